"""Events of pruning."""

from __future__ import annotations

from dataclasses import dataclass

from pgstash.errors import EXIT_UNEXPECTED
from pgstash.events.base import Event

KEPT_AS_PROVEN = "the newest that is proven to restore"
"""The reason for keeping the one backup that is removed only after a newer one is proven."""


@dataclass(frozen=True, slots=True)
class BackupKept(Event):
    """Pruning keeps a backup; there is at least one reason."""

    name: str
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class BackupRemoved(Event):
    """Pruning removed a backup, or in a dry run would have removed it."""

    name: str
    reasons: tuple[str, ...]
    dry_run: bool


@dataclass(frozen=True, slots=True)
class OthersLeft(Event):
    """Pruning skipped backups that belong to another source; ``label`` names it."""

    label: str
    number: int


@dataclass(frozen=True, slots=True)
class LeftoverSwept(Event):
    """Pruning removed a leftover of a failed backup, or in a dry run would have removed it."""

    location: str
    reason: str
    dry_run: bool


@dataclass(frozen=True, slots=True)
class PruneFinished(Event):
    """Pruning has ended, successfully or not; counts of backups and leftovers."""

    location: str
    kept: int
    removed: int
    swept: int
    dry_run: bool


@dataclass(frozen=True, slots=True)
class PruneFailed(Event):
    """Pruning failed, completely or in part; of the primary, or of the ``copy`` with this name.

    ``after_backup`` means that the backup before it is complete: this is a warning.
    """

    message: str
    hint: str
    copy: str = ""
    after_backup: bool = False
    error: str = ""
    exit_code: int = EXIT_UNEXPECTED
    host: str = ""
    database: str = ""
