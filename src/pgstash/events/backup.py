"""Events of backups, and of the service that makes them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from pgstash.errors import EXIT_UNEXPECTED
from pgstash.events.base import Event


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
    """The upload starts, while pg_dump is still running.

    ``usual_bytes`` is the size in the store of the largest of the latest backups, None if there
    are none; ``database_bytes`` is the size of the database on its server.
    """

    name: str
    destination: str
    part_size: int
    usual_bytes: int | None = None
    database_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Progressed(Event):
    """Bytes and rows read from the database, and bytes passed to the store so far."""

    name: str
    raw_bytes: int
    stored_bytes: int
    rows: int = 0


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
class BackupShrunk(Event):
    """The backup is much smaller than usual, but complete; ``figures`` are sentences."""

    name: str
    figures: tuple[str, ...]


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
