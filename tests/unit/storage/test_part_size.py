"""Parts take as little memory as the last backups need, and no upload runs out of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgstash.storage import part_size
from pgstash.storage.part_size import LARGEST, MIB, Sizes, equal, may_grow, size_for, sizes_for

GIB = 1024 * MIB
TIB = 1024 * GIB


@pytest.mark.parametrize(
    ("server", "usual", "first"),
    [
        (62 * GIB, None, 8),
        (62 * GIB, 20 * GIB, 8),
        (TIB, None, 132),
        (TIB, 30 * GIB, 19),  # so little that more than that would not fit
        (TIB, 100 * GIB, 19),
        (TIB, 300 * GIB, 55),
        (TIB, 2 * TIB, 132),
        (4 * TIB, 300 * GIB, 75),
    ],
)
def test_the_size_follows_what_was_stored(server: int, usual: int | None, first: int) -> None:
    sizes = sizes_for(server, usual, 10_000, may_grow=True)
    assert sizes.first == first * MIB
    assert sizes.grow == (first * MIB < size_for(server, 10_000))
    assert sizes_for(server, usual, 10_000, may_grow=False) == equal(
        size_for(server, 10_000), 10_000
    )


SIZE = st.integers(0, 40 * TIB)


@given(SIZE, st.none() | SIZE, st.integers(1, 10_000))
def test_no_upload_runs_out_that_did_not_with_equal_parts(
    server: int, usual: int | None, most: int
) -> None:
    before = equal(size_for(server, most), most)
    sizes = sizes_for(server, usual, most, may_grow=True)
    assert sizes.hold >= min(before.hold, server * 1.25)
    assert part_size.DEFAULT <= sizes.first <= before.first
    assert sizes.first % MIB == 0
    each = [sizes.of(number) for number in range(1, most + 1)]
    assert each == sorted(each)
    assert each[-1] <= LARGEST
    assert sum(each) == sizes.hold
    if sizes.grow and usual is not None:
        # The usual size and a quarter more needs no growth.
        assert sizes.first * sizes.equal >= min(usual * 1.25, LARGEST * sizes.equal)


def test_they_double_in_steps() -> None:
    sizes = Sizes(5 * MIB, 40, 28)
    assert [sizes.of(number) // MIB for number in range(28, 35)] == [5, 10, 10, 20, 20, 40, 40]


@pytest.mark.parametrize(
    ("endpoint", "grows"),
    [
        (None, True),
        ("https://s3.eu-central-1.amazonaws.com", True),
        ("https://0123.r2.cloudflarestorage.com", False),
        ("https://0123.eu.r2.cloudflarestorage.com/", False),
        ("https://r2.cloudflarestorage.com:443", False),
        ("https://notr2.cloudflarestorage.com.example", True),
    ],
)
def test_where_parts_may_grow(endpoint: str | None, *, grows: bool) -> None:
    assert may_grow(endpoint) is grows


def test_parts_do_not_grow_beyond_what_the_store_takes() -> None:
    most = 4000 * MIB
    grown = sizes_for(10**15, 4 * 10**12, 50_000, may_grow=True, largest=most)
    assert grown.of(50_000) == most
    assert size_for(10**15, 50_000, most) == most
    assert sizes_for(10**15, 4 * 10**12, 50_000, may_grow=True).of(50_000) == LARGEST
