"""Only the variants that are named by hand leave the first tier."""

from __future__ import annotations

import pytest

from support.tiers import later


def waiting(variants: list[object]) -> list[tuple[object, ...]]:
    """Return the arguments of the variants that are marked."""
    found = []
    for each in variants:
        if isinstance(each, type(pytest.param())):
            assert [mark.name for mark in each.marks] == ["long"]
            found.append(tuple(each.values))
    return found


def test_what_is_named_waits_and_nothing_else() -> None:
    variants = later(["a", "b", ("c", 1), ("d", 2)], "b", ("d", 2))
    assert variants[::2] == ["a", ("c", 1)]
    assert waiting(variants) == [("b",), ("d", 2)]


def test_a_name_that_is_no_variant_is_an_error() -> None:
    with pytest.raises(ValueError, match="gone"):
        later({"a": 1, "b": 2}, "b", "gone")
