"""Events of restores."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from pgstash.events.base import Event


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


Phase = Literal[
    "objects",
    "rows",
    "objects, rows and indexes",
    "indexes and constraints",
    "owners and privileges",
    "statistics",
    "checks",
]
"""The phases of a restore or a drill. One session that runs the whole script has fewer."""


@dataclass(frozen=True, slots=True)
class PhaseStarted(Event):
    """A restore or a drill comes to its next phase; ``total`` is its number of steps, if known."""

    phase: Phase
    total: int | None = None


@dataclass(frozen=True, slots=True)
class StepsDone(Event):
    """How many steps of the current phase are done."""

    done: int


@dataclass(frozen=True, slots=True)
class WorkingOn(Event):
    """What the sessions of a restore are working on; empty if unknown."""

    what: str


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
