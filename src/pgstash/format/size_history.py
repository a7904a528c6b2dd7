"""Compares the size of a backup with those of earlier ones, as pure values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from statistics import median
from typing import Self

MOST = 7
"""The number of predecessors to compare with: the most recent ones."""

FEWEST = 3
"""With fewer predecessors nothing is compared."""

_NAMES = {"raw_bytes": "bytes of SQL", "tables": "tables", "rows": "rows"}


@dataclass(frozen=True, slots=True)
class Figures:
    """The size of a backup: ``raw_bytes`` of plain SQL, and the tables and rows in it."""

    raw_bytes: int
    tables: int
    rows: int

    @classmethod
    def of(cls, metadata: Mapping[str, str]) -> Self | None:
        """Read them from the metadata of a manifest; None if they are not complete."""
        found = [metadata.get(field.name.replace("_", "-"), "") for field in fields(cls)]
        if not all(value.isascii() and value.isdecimal() for value in found):
            return None
        return cls(*map(int, found))


def shrunk(current: Figures, predecessors: Sequence[Figures], ratio: float) -> list[str]:
    """Return a line for each figure below ``ratio`` times the median of its predecessors.

    ``predecessors`` start with the most recent one. If there are too few, no line is returned.
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
