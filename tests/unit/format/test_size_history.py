"""A backup that is much smaller than usual is detected."""

from __future__ import annotations

from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgstash.format.size_history import FEWEST, MOST, Figures, shrunk

USUAL = Figures(raw_bytes=1_000_000, tables=20, rows=54_000)
COUNTS = st.integers(0, 10**15)
FIGURES = st.builds(Figures, COUNTS, COUNTS, COUNTS)


def test_each_figure_is_named_with_what_is_usual() -> None:
    found = shrunk(Figures(raw_bytes=999_000, tables=9, rows=1_200), [USUAL] * MOST, 0.5)
    assert found == [
        "tables: 9, median of the last 7 backups: 20",
        "rows: 1,200, median of the last 7 backups: 54,000",
    ]


def test_exactly_the_ratio_is_not_below_it() -> None:
    half = Figures(raw_bytes=500_000, tables=10, rows=27_000)
    assert shrunk(half, [USUAL] * 3, 0.5) == []
    assert len(shrunk(half, [USUAL] * 3, 0.51)) == 3


def test_one_odd_backup_among_them_does_not_decide() -> None:
    odd = Figures(0, 0, 0)
    assert shrunk(odd, [odd, USUAL, USUAL], 0.5)
    assert shrunk(odd, [odd, odd, USUAL], 0.5) == []


def test_only_the_most_recent_ones_count() -> None:
    small = Figures(10, 1, 1)
    assert shrunk(small, [small] * MOST + [USUAL] * 100, 0.5) == []


@given(FIGURES, st.lists(FIGURES, max_size=12), st.floats(0, 0.99))
def test_always(current: Figures, before: list[Figures], ratio: float) -> None:
    found = shrunk(current, before, ratio)
    if len(before) < FEWEST or ratio == 0:
        assert found == []
    for name, words in (("raw_bytes", "bytes"), ("tables", "tables"), ("rows", "rows")):
        told = any(line.startswith(words) for line in found)
        if len(before) >= FEWEST:
            usual = median(getattr(each, name) for each in before[:MOST])
            assert told == (getattr(current, name) < ratio * usual)
    grown = Figures(current.raw_bytes + 1, current.tables + 1, current.rows + 1)
    assert len(shrunk(grown, before, ratio)) <= len(found)


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        {"id": "0"},
        {"raw-bytes": "1", "tables": "2"},
        {"raw-bytes": "1", "tables": "2", "rows": "-3"},
        {"raw-bytes": "1", "tables": "2", "rows": "²"},
    ],
)
def test_metadata_that_does_not_say_it(metadata: dict[str, str]) -> None:
    assert Figures.of(metadata) is None


def test_metadata_that_says_it() -> None:
    metadata = {"raw-bytes": "1", "tables": "2", "rows": "3", "seconds": "0.1"}
    assert Figures.of(metadata) == Figures(raw_bytes=1, tables=2, rows=3)
