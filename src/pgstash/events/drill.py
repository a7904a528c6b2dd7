"""Events of drills."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from pgstash.events.base import Event


@dataclass(frozen=True, slots=True)
class DrillAttempted(Event):
    """A drill will be tried; the store was not contacted yet. ``name`` is as it was asked for."""

    name: str


@dataclass(frozen=True, slots=True)
class DrillStarted(Event):
    """A drill of a backup starts; ``where`` describes the scratch server for people."""

    name: str
    where: str


@dataclass(frozen=True, slots=True)
class DrillSucceeded(Event):
    """A backup was restored into scratch and passed all checks; its proof is stored.

    ``restore_seconds`` is the measured recovery time; ``at`` and ``location`` are those of the
    proof, ``host`` and ``database`` those of the source.
    """

    name: str
    seconds: float
    restore_seconds: float
    location: str
    at: datetime
    checks: int
    tables: int
    rows: int
    host: str
    database: str


@dataclass(frozen=True, slots=True)
class DrillFailed(Event):
    """A drill did not prove its backup: the restore failed or was impossible, or a check failed."""

    name: str
    seconds: float
    message: str
    hint: str
    host: str
    database: str
    error: str
    exit_code: int
