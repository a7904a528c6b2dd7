"""Tells whether a backup is much smaller than the ones before it: a pure comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from statistics import median
from typing import Self

MOST = 7
"""How many predecessors are compared with, the most recent ones."""

FEWEST = 3
"""With fewer there is nothing to compare with."""

_NAMES = {"raw_bytes": "bytes of SQL", "tables": "tables", "rows": "rows"}


@dataclass(frozen=True, slots=True)
class Figures:
    """How large a backup is: ``raw_bytes`` of plain SQL, and what was counted in them."""

    raw_bytes: int
    tables: int
    rows: int

    @classmethod
    def of(cls, metadata: Mapping[str, str]) -> Self | None:
        """Read them from a manifest's metadata; None where they are not all in there."""
        found = [metadata.get(field.name.replace("_", "-"), "") for field in fields(cls)]
        if not all(value.isascii() and value.isdecimal() for value in found):
            return None
        return cls(*map(int, found))


def shrunk(current: Figures, predecessors: Sequence[Figures], ratio: float) -> list[str]:
    """Name each figure that is below ``ratio`` times the median of its predecessors.

    ``predecessors`` begin with the most recent one. Nothing is below where there are too few.
    """
    recent = predecessors[:MOST]
    if len(recent) < FEWEST:
        return []
    found = []
    for name, words in _NAMES.items():
        value = getattr(current, name)
        usual = median(getattr(each, name) for each in recent)
        if value < ratio * usual:
            found.append(
                f"{words}: {value:,}, median of the last {len(recent)} backups: {usual:,.0f}"
            )
    return found
