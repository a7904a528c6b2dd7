"""What the server is working on is told in a few words."""

from __future__ import annotations

import pytest

from pgstash.postgres.restore.activity import _described


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([], ""),
        ([(True, b"public.t", 45, 100)], "index of public.t 45%"),
        ([(True, b"public.t", 100, 100)], "index of public.t 99%"),
        ([(True, None, None, None)], "index of a new table"),
        ([(False, b"public.t", 45, 0)], "rows of public.t"),
        (
            [(True, b"a", 1, 2), (True, b"b", 0, 0), (False, b"c", 1, 0)],
            "index of a 50%, index of b, and 1 more",
        ),
        ([(True, b"public.caf\xe9", 0, 0)], "index of public.caf\N{REPLACEMENT CHARACTER}"),
    ],
)
def test_what_is_worked_on(rows: list[tuple[object, ...]], words: str) -> None:
    assert _described(rows, "utf-8") == words
