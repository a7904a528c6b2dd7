"""One backup to be made: what is asked for, what it is called, what it works with."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from pgstash import events
from pgstash.backup.other_writers import OtherWriters
from pgstash.backup.sealing import Keys, Sealing
from pgstash.errors import ObjectExistsError
from pgstash.format import names
from pgstash.pipeline import encryption
from pgstash.postgres.dump import required_tables
from pgstash.postgres.server.connection import Password, Server
from pgstash.postgres.server.writer_lock import Writer
from pgstash.processes import hooks
from pgstash.repository.owners import Owners
from pgstash.runtime import Runtime
from pgstash.storage.interface import Storage

_NAMES_TRIED = 5


@dataclass(frozen=True, slots=True)
class Plan:
    """What to back up, and how.

    ``jobs`` is the number of sessions that read rows, ``options`` are added to those of pg_dump.
    ``environment`` is where client tools may take variables from. A backup smaller than
    ``anomaly_ratio`` times the usual size causes a warning; with 0 none does. With
    ``globals_passwords`` the hashes of passwords are stored with the roles, if that is encrypted.
    ``source_password`` returns the password for one login, if it is not in ``source_url``. Unless
    it ``may_delete``, what a failed backup stored is left to pruning.
    """

    source_url: str = field(repr=False)
    prefix: str
    compression_level: int
    keys: Keys
    jobs: int
    lock_seconds: float
    idle_seconds: float
    environment: Mapping[str, str] = field(repr=False)
    options: Sequence[str]
    required: Sequence[required_tables.Requirement]
    hooks: hooks.Hooks
    anomaly_ratio: float
    globals_passwords: bool = False
    source_password: Password | None = field(default=None, repr=False)
    may_delete: bool = True

    @property
    def stores_passwords(self) -> bool:
        """Whether passwords of roles are wanted, and will be encrypted."""
        return self.globals_passwords and bool(self.keys)


@dataclass(frozen=True, slots=True)
class Job:
    """A backup under the writer lock, with its name and its random ``id``."""

    plan: Plan
    storage: Storage
    owners: Owners
    runtime: Runtime
    server: Server
    lock: Writer
    others: OtherWriters
    started: datetime
    id: str
    sealing: Sealing

    @property
    def base(self) -> str:
        """The beginning of the names of all its objects."""
        return names.base_name(self.started)

    @property
    def name(self) -> str:
        """The name of the archive, without the prefix."""
        return names.archive_name(self.base, encrypted=bool(self.plan.keys))

    @property
    def object_key(self) -> str:
        """The key of the archive in the store."""
        return f"{self.plan.prefix}/{self.name}"

    @property
    def location(self) -> str:
        """The URL of the archive."""
        return self.storage.url(self.object_key)

    @property
    def emit(self) -> events.Emit:
        """The sink of its events."""
        return self.runtime.emit

    def new_key(self) -> encryption.Key | None:
        """Derive a key for one object, with a salt of its own; None without a passphrase."""
        return self.sealing.new_key(self.runtime.random)


def unused_name(storage: Storage, prefix: str, runtime: Runtime) -> tuple[datetime, str]:
    """Return the first second from now on in which no backup of this prefix began, and the name."""
    for _ in range(_NAMES_TRIED):
        started = runtime.now()
        base = names.base_name(started)
        if next(iter(storage.list(f"{prefix}/{base}")), None) is None:
            return started, base
        time.sleep(1.05 - started.microsecond / 1_000_000)
    raise ObjectExistsError(f"backups named {base} and before exist already under {prefix}")
