"""What happened, as frozen values: any package may emit them, any listener may receive them.

Sizes are in bytes, durations in seconds; ``name`` is the name of the archive without its
prefix (``backup_20260131_020000.sql.gz``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from pgstash.errors import EXIT_UNEXPECTED


@dataclass(frozen=True, slots=True)
class Event:
    """Base of all events."""


Emit = Callable[[Event], None]


def ignore(_event: Event) -> None:
    """Ignore an event: for callers without a listener."""


@dataclass(frozen=True, slots=True)
class Notice(Event):
    """A detail that helps with debugging."""

    message: str


@dataclass(frozen=True, slots=True)
class Informed(Event):
    """A fact that users want to know, although nothing is wrong."""

    message: str


@dataclass(frozen=True, slots=True)
class Warned(Event):
    """There is a problem, but the run continues."""

    message: str


@dataclass(frozen=True, slots=True)
class ToolSaid(Event):
    """A client tool wrote a line to stderr, or a hook wrote one to stdout or stderr."""

    tool: str
    line: str


@dataclass(frozen=True, slots=True)
class Retrying(Event):
    """A request failed and will be retried after ``delay`` seconds."""

    request: str
    attempt: int
    attempts: int
    delay: float
    reason: str


@dataclass(frozen=True, slots=True)
class UploadLeftBehind(Event):
    """An upload could not be aborted in time; its parts stay in the store until they are swept."""

    key: str
    upload_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class IterationStarted(Event):
    """The service starts run ``number``, counted from 1."""

    number: int


@dataclass(frozen=True, slots=True)
class NextRunPlanned(Event):
    """The service waits ``seconds`` for its next run; 0 if that is due already."""

    at: datetime
    seconds: float
    reason: str = ""


@dataclass(frozen=True, slots=True)
class BackupAttempted(Event):
    """A backup will be tried; neither the store nor the database has been contacted yet."""

    host: str
    database: str


@dataclass(frozen=True, slots=True)
class BackupStarted(Event):
    """A backup starts."""

    name: str


@dataclass(frozen=True, slots=True)
class DumpStarted(Event):
    """pg_dump starts."""

    name: str
    client: str
    server: str


@dataclass(frozen=True, slots=True)
class UploadStarted(Event):
    """The upload starts, while pg_dump is still running."""

    name: str
    destination: str
    part_size: int


@dataclass(frozen=True, slots=True)
class Progressed(Event):
    """Bytes read from pg_dump and passed to the store so far."""

    name: str
    raw_bytes: int
    stored_bytes: int


@dataclass(frozen=True, slots=True)
class DumpFinished(Event):
    """pg_dump succeeded."""

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

    ``last_proof`` is the time of the last passed drill of any backup under the same prefix, as
    known when this backup started.
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
    """The backup ended without an archive; ``repeated`` and ``next_attempt`` as in a FollowUp."""

    name: str
    seconds: float
    message: str
    hint: str
    host: str = ""
    database: str = ""
    error: str = ""
    exit_code: int = EXIT_UNEXPECTED
    next_attempt: datetime | None = None
    repeated: bool = False


@dataclass(frozen=True, slots=True)
class BackupChosen(Event):
    """A backup was found by a time, or by a part of its name: ``name``, started at ``started``.

    ``at`` is the time, None if it was found by its name. ``before`` and ``after`` are the names of
    the backups of the same source before and after it; None if there are none, or without ``at``.
    """

    name: str
    started: datetime
    at: datetime | None = None
    before: str | None = None
    after: str | None = None


@dataclass(frozen=True, slots=True)
class RestoreTargeted(Event):
    """A restore will write to this database, or would in a dry run; nothing was contacted yet.

    ``address`` is host and port, as configured. The database will be ``created``, or exists.
    """

    address: str
    database: str
    created: bool


@dataclass(frozen=True, slots=True)
class RestoreStarted(Event):
    """A restore starts, or a dry run of one; ``host`` and ``database`` are those of the target.

    ``of`` names the source database, if it is known.
    """

    name: str
    host: str
    database: str
    dry_run: bool
    of: str = ""


@dataclass(frozen=True, slots=True)
class RestorePlanned(Event):
    """A dry run found no obstacle; figures are None if the backup has no manifest."""

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
    """Bytes read from the store, of ``total``, and passed to psql so far."""

    name: str
    raw_bytes: int
    stored_bytes: int
    total: int | None


@dataclass(frozen=True, slots=True)
class StatisticsUpdated(Event):
    """How many restored tables have statistics for the planner so far."""

    done: int
    total: int


@dataclass(frozen=True, slots=True)
class RestoreSucceeded(Event):
    """Everything is in the target; if ``verified``, it matched the manifest.

    ``kept`` describes the database that it replaced, if it did.
    """

    name: str
    seconds: float
    host: str
    database: str
    raw_bytes: int
    verified: bool
    kept: str = ""


@dataclass(frozen=True, slots=True)
class RestoreFailed(Event):
    """The restore failed; ``outcome`` describes what happened to the target."""

    name: str
    seconds: float
    message: str
    hint: str
    outcome: str
    error: str
    exit_code: int


@dataclass(frozen=True, slots=True)
class RoleCreated(Event):
    """A restore created a role that was missing on the target.

    With ``login`` it has the login and the password that it had on the source.
    """

    name: str
    login: bool = False


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
    """Pruning failed, completely or in part."""

    message: str
    hint: str
