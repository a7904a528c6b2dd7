"""Constraints that a script leaves unvalidated are counted, wherever the script is cut."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pgstash.drill.checks import _NOT_VALID, UnvalidatedConstraints

SCRIPT = b"ALTER TABLE a ADD CHECK (n > 0)%b" % _NOT_VALID * 5 + b"--" + _NOT_VALID[:4]


def test_one_cut_anywhere() -> None:
    for cut in range(len(SCRIPT) + 1):
        counted = UnvalidatedConstraints()
        counted.watch(SCRIPT[:cut])
        counted.watch(SCRIPT[cut:])
        assert counted.count == 5, cut


@given(st.lists(st.integers(1, 12), min_size=1))
def test_chunks_of_any_size(sizes: list[int]) -> None:
    counted, at = UnvalidatedConstraints(), 0
    for size in sizes:
        counted.watch(SCRIPT[at : at + size])
        at += size
    counted.watch(SCRIPT[at:])
    assert counted.count == 5
