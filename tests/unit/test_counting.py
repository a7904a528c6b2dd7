"""How counts are written."""

from __future__ import annotations

import pytest

from pgstash.counting import counted


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0 rows"), (1, "1 row"), (2, "2 rows"), (7_000_000, "7,000,000 rows")],
)
def test_a_count_has_its_noun(number: int, text: str) -> None:
    assert counted(number, "row") == text


def test_a_plural_of_its_own() -> None:
    assert [counted(n, "index", "indexes") for n in (1, 2)] == ["1 index", "2 indexes"]
