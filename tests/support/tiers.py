"""Marks by hand which variants of a test may wait for the second tier."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterable


# For a test that would show the same of a backup that is not encrypted.
ENCRYPTED_FIRST = [
    pytest.param(False, marks=pytest.mark.long, id="plain"),
    pytest.param(True, id="encrypted"),
]


def later(variants: Iterable[object], *waiting: object) -> list[object]:
    """Return variants for ``parametrize``: those that are named after them for the second tier.

    A variant that is new belongs to the first tier until somebody names it. Never name one that
    shows an invariant of ARCHITECTURE.md. A tuple holds several arguments, as in ``parametrize``.
    ValueError is raised for a name that is no variant.
    """
    known = list(variants)
    if unknown := [each for each in waiting if each not in known]:
        raise ValueError(f"no such variants: {unknown}")
    return [_second_tier(each) if each in waiting else each for each in known]


def _second_tier(variant: object) -> object:
    arguments = variant if isinstance(variant, tuple) else (variant,)
    return pytest.param(*arguments, marks=pytest.mark.long)
