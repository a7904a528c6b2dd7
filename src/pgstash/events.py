"""What happened, as frozen values that any room may report and any listener may read.

Sizes are in bytes, durations in seconds, ``name`` is the archive's name without its
prefix (``backup_20260131_020000.sql.gz``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from pgstash.errors import EXIT_UNFORESEEN


@dataclass(frozen=True, slots=True)
class Event:
    """Base of all events."""


Emit = Callable[[Event], None]


def ignore(_event: Event) -> None:
    """Listen to nothing: the default where a caller has no listener."""


@dataclass(frozen=True, slots=True)
class Notice(Event):
    """A detail that helps to understand what is going on; for the debug log."""

    message: str


@dataclass(frozen=True, slots=True)
class Warned(Event):
    """Something is not as it should be, and the run goes on."""

    message: str


@dataclass(frozen=True, slots=True)
class ToolSaid(Event):
    """A client tool wrote a line to its stderr, or a hook one to any of its outputs."""

    tool: str
    line: str


@dataclass(frozen=True, slots=True)
class Retrying(Event):
    """A request failed and will be tried again after ``delay`` seconds."""

    request: str
    attempt: int
    attempts: int
    delay: float
    reason: str


@dataclass(frozen=True, slots=True)
class UploadLeftBehind(Event):
    """An upload could not be aborted in time; its parts stay in the store until swept."""

    key: str
    upload_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class IterationStarted(Event):
    """The service begins its run of this number, counted from 1."""

    number: int


@dataclass(frozen=True, slots=True)
class NextRunPlanned(Event):
    """The service waits ``seconds`` for its next run; 0 where that is due already."""

    at: datetime
    seconds: float


@dataclass(frozen=True, slots=True)
class BackupAttempted(Event):
    """A backup is about to be tried; nothing was asked of the store or the database yet."""

    host: str
    database: str


@dataclass(frozen=True, slots=True)
class BackupStarted(Event):
    """A backup begins."""

    name: str


@dataclass(frozen=True, slots=True)
class DumpStarted(Event):
    """pg_dump begins to run."""

    name: str
    client: str
    server: str


@dataclass(frozen=True, slots=True)
class UploadStarted(Event):
    """The first byte goes to the store, while pg_dump still runs."""

    name: str
    destination: str
    part_size: int


@dataclass(frozen=True, slots=True)
class Progressed(Event):
    """So many bytes were read from pg_dump and handed to the store so far."""

    name: str
    raw_bytes: int
    stored_bytes: int


@dataclass(frozen=True, slots=True)
class DumpFinished(Event):
    """pg_dump ended well."""

    name: str
    seconds: float
    raw_bytes: int


@dataclass(frozen=True, slots=True)
class UploadFinished(Event):
    """The archive is complete and visible in the store."""

    name: str
    seconds: float
    stored_bytes: int


@dataclass(frozen=True, slots=True)
class BackupSucceeded(Event):
    """The backup is complete.

    ``last_proof`` is when a drill last passed, of any backup beside it, as far as was known when
    this one began.
    """

    name: str
    seconds: float
    location: str
    raw_bytes: int
    stored_bytes: int
    tables: int
    rows: int
    host: str = ""
    database: str = ""
    last_proof: datetime | None = None


@dataclass(frozen=True, slots=True)
class BackupFailed(Event):
    """The backup ended without an archive.

    ``error`` is the name of the error's class, ``exit_code`` the exit status it stands for.
    """

    name: str
    seconds: float
    message: str
    hint: str
    host: str = ""
    database: str = ""
    error: str = ""
    exit_code: int = EXIT_UNFORESEEN


@dataclass(frozen=True, slots=True)
class RestoreStarted(Event):
    """A restore begins, or a dry run of one; ``host`` and ``database`` are the target's.

    ``of`` names the database that the backup is of, as far as that is known.
    """

    name: str
    host: str
    database: str
    dry_run: bool
    of: str = ""


@dataclass(frozen=True, slots=True)
class RestorePlanned(Event):
    """A dry run has found nothing that stands in the way; None where there is no manifest."""

    name: str
    host: str
    database: str
    created: bool
    server: str
    client: str
    verified: bool
    raw_bytes: int | None
    tables: int | None
    rows: int | None


@dataclass(frozen=True, slots=True)
class RestoreProgressed(Event):
    """So many bytes were read from the store, ``total`` of them in all, and handed to psql."""

    name: str
    raw_bytes: int
    stored_bytes: int
    total: int | None


@dataclass(frozen=True, slots=True)
class RestoreSucceeded(Event):
    """Everything is in the target, and was as it had been written where ``verified``."""

    name: str
    seconds: float
    host: str
    database: str
    raw_bytes: int
    verified: bool


@dataclass(frozen=True, slots=True)
class RestoreFailed(Event):
    """The restore did not come to its end; ``outcome`` says what became of the target."""

    name: str
    seconds: float
    message: str
    hint: str
    outcome: str
    error: str
    exit_code: int


@dataclass(frozen=True, slots=True)
class RoleCreated(Event):
    """A restore made a role, without login, that the target had not had."""

    name: str


@dataclass(frozen=True, slots=True)
class DrillStarted(Event):
    """A drill of a backup begins; ``where`` says where the scratch is, for people."""

    name: str
    where: str


@dataclass(frozen=True, slots=True)
class DrillSucceeded(Event):
    """A backup was restored into scratch and passed all checks, and its proof is stored.

    ``restore_seconds`` is the measured recovery time, ``at`` the time of the proof, ``location``
    where it is; ``host`` and ``database`` are those of the source.
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
    """A drill did not prove its backup: it does not restore, fails a check, or nobody could try.

    ``error`` is the name of the error's class, ``exit_code`` the exit status it stands for.
    """

    name: str
    seconds: float
    message: str
    hint: str
    host: str
    database: str
    error: str
    exit_code: int


@dataclass(frozen=True, slots=True)
class BackupKept(Event):
    """Pruning keeps a backup; there is at least one reason."""

    name: str
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class BackupRemoved(Event):
    """Pruning removed a backup, or in a dry run would have."""

    name: str
    reasons: tuple[str, ...]
    dry_run: bool


@dataclass(frozen=True, slots=True)
class OthersLeft(Event):
    """Pruning leaves backups alone, because they are of another source; ``label`` names it."""

    label: str
    number: int


@dataclass(frozen=True, slots=True)
class LeftoverSwept(Event):
    """Pruning removed what a failed backup had left, or in a dry run would have."""

    location: str
    reason: str
    dry_run: bool


@dataclass(frozen=True, slots=True)
class SweepLeftOut(Event):
    """Pruning does not look for leftovers: it cannot be sure that no backup runs."""

    reason: str


@dataclass(frozen=True, slots=True)
class PruneFinished(Event):
    """Pruning has come to its end, or to what ended it; counts of backups and of leftovers."""

    location: str
    kept: int
    removed: int
    swept: int
    dry_run: bool


@dataclass(frozen=True, slots=True)
class PruneFailed(Event):
    """Not everything that was to be pruned could be."""

    message: str
    hint: str
