"""Which backups a recovery of a whole server restores: one of each database that has any."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from pgstash import events
from pgstash.commands import jobs, maintenance_database
from pgstash.commands.maintenance_database import MAINTENANCE
from pgstash.commands.source import owners_of
from pgstash.commands.stored import Found, Search, Wanted
from pgstash.errors import (
    BackupNotFoundError,
    CorruptedError,
    PgstashError,
    SourceUnclearError,
    StorageError,
)
from pgstash.format.manifest import Manifest
from pgstash.postgres.restore.server_roles import Script
from pgstash.repository import archive, catalog, databases, empty_prefix, object_metadata
from pgstash.repository.archive import Archive
from pgstash.runtime import utc_now
from pgstash.settings import Settings
from pgstash.settings.databases import Selection
from pgstash.storage.interface import Storage

_RESTORE_SECONDS = "restore-seconds"


@dataclass(frozen=True, slots=True)
class Wish:
    """What was asked for: databases, all if ``only`` is None, and the moment, if any.

    With ``estimates``, the time of each restore is estimated from proofs.
    """

    only: Selection | None = None
    at: datetime | None = None
    estimates: bool = False


@dataclass(frozen=True, slots=True)
class Chosen:
    """A backup to restore, and facts of its manifest.

    ``job`` is the name of its job; without one, it is directly under the prefix. ``is_empty`` is
    whether it holds nothing of a user, as the maintenance database usually does. ``source_bytes``
    is the size of the database. ``roles`` are those of its server. ``estimate`` is in seconds, if
    there is a proof. ``source`` is the digest of its source, and ``system``
    identifies the server of it. ``notes`` are for the report.
    """

    database: str
    job: str | None
    backup: catalog.Backup
    rows: int
    source_bytes: int
    is_empty: bool
    has_settings: bool
    roles: Script | None = field(repr=False)
    estimate: float | None = None
    source: str = ""
    system: str | None = None
    notes: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Unusable:
    """A database that cannot be restored, and why."""

    database: str
    message: str
    hint: str
    exit_code: int


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reads what is chosen of each database."""

    storage: Storage
    wish: Wish
    emit: events.Emit

    def read(self, settings: Settings, name: str, *, job: str | None) -> Chosen | Unusable:
        """Choose the backup of a job, or one directly under the prefix, and read its manifest."""
        try:
            stored = catalog.read(self.storage, settings.backup_prefix).backups
            found = self._find(settings, stored)
            opened = archive.open_stored(self.storage, found.backup, found.access)
            manifest = opened.manifest
            if manifest is None:
                raise AssertionError("without a manifest, a backup cannot be opened like this")
            database = name if job is not None else manifest.database.name
            return Chosen(
                database=database,
                job=job,
                backup=found.backup,
                rows=sum(table.rows for table in manifest.tables),
                source_bytes=manifest.database.bytes,
                is_empty=database == MAINTENANCE
                and maintenance_database.holds_nothing(opened, manifest),
                has_settings=bool(manifest.database.settings),
                roles=_roles(opened, manifest, self.emit),
                source=manifest.database.identity.digest,
                system=manifest.database.system,
                notes=(
                    *self._notes(found.backup, stored, manifest, database),
                    *maintenance_database.notes(opened, database),
                ),
                estimate=_estimate(self.storage, settings, found.backup)
                if self.wish.estimates
                else None,
            )
        except SourceUnclearError as error:
            return Unusable(
                name, error.message, _single_restore(settings, name, job), error.exit_code
            )
        except PgstashError as error:
            return Unusable(name, error.message, error.hint, error.exit_code)

    def _find(self, settings: Settings, stored: Sequence[catalog.Backup]) -> Found:
        """Return the newest backup; if the database has moved, that of the newest source."""
        search = Search(settings, self.storage, self.emit, utc_now, may_guess=False)
        try:
            return search.find(Wanted("latest", at=self.wish.at))
        except SourceUnclearError:
            source = owners_of(self.storage).successor(self._until(stored))
            if source is None:
                raise
            return search.find(Wanted("latest", at=self.wish.at, source=source.label))

    def _until(self, stored: Sequence[catalog.Backup]) -> Sequence[catalog.Backup]:
        return [each for each in stored if not self.wish.at or each.started <= self.wish.at]

    def _notes(
        self,
        backup: catalog.Backup,
        stored: Sequence[catalog.Backup],
        manifest: Manifest,
        database: str,
    ) -> Iterator[str]:
        """Yield what is not as a person may expect."""
        if manifest.database.name != database:
            yield (
                f"its backups are of a database called {manifest.database.name}. Rename it if "
                "that is its name"
            )
        newest = self._until(stored)[-1:]
        if newest and newest[0] != backup:
            yield (
                f"{newest[0].name} is newer than {backup.name}, but of another source, or dated in "
                "the future"
            )


def choose(
    settings: Settings, storage: Storage, wish: Wish, emit: events.Emit
) -> list[Chosen | Unusable]:
    """Return what is stored and wanted, by name. Raises StorageError, BackupNotFoundError."""
    stored = jobs.stored(settings)
    wanted = [job for job in stored if not wish.only or wish.only.has(job.name)]

    def passed_on(event: events.Event) -> None:
        if not isinstance(event, events.BackupChosen):  # the report has them all
            emit(event)

    read = _Reader(storage, wish, passed_on).read
    found = {
        each.database: each
        for each in object_metadata.in_parallel(
            lambda job: read(job.settings, job.name, job=job.settings.job), wanted
        )
    }
    direct = catalog.read(storage, settings.backup_prefix).backups[-1:]
    if direct:
        [known] = object_metadata.of_backups(storage, direct)
        name = known.get("database") or f"(directly under {settings.backup_prefix})"
        _add(found, read(settings, name, job=None), settings, wish)
    elif not stored:
        raise empty_prefix.error(storage, settings.backup_prefix)
    for each in _others(settings, storage):
        # Of a database with another primary store only, the copy has backups here.
        if not wish.only or wish.only.has(each.database):
            found[each.database] = (settings.copy_name and found.get(each.database)) or each
    for name in wish.only.named if wish.only else ():
        if name not in found:
            hint = "`pgstash recover --dry-run` without --only shows all databases with backups."
            found[name] = Unusable(name, "it has no backup", hint, BackupNotFoundError.exit_code)
    return [found[name] for name in sorted(found)]


def _others(settings: Settings, storage: Storage) -> Iterator[Unusable]:
    """Yield what has backups in another place, or in a folder that is of no database."""
    server, config, prefix = settings.origin.server, settings.origin.config, settings.backup_prefix
    for name in config.elsewhere(settings.primary or settings) if config else ():
        hint = f"`pgstash restore --job {server}/{name} --create {name}`"
        problem = "it has a store or a prefix of its own in the configuration file"
        yield Unusable(name, problem, f"Restore it alone: {hint}", 1)
    for folder in databases.other_folders(storage, prefix):
        problem = f"the folder {prefix}/{folder} has backups, but is not one of DATABASES"
        hint = f"Restore them alone: set BACKUP_PREFIX={prefix}/{folder} for `pgstash restore`. "
        yield Unusable(folder, problem, f"{hint}Or leave them out: --only '!{folder}'.", 1)


def _add(
    found: dict[str, Chosen | Unusable],
    direct: Chosen | Unusable,
    settings: Settings,
    wish: Wish,
) -> None:
    """Add the backup directly under the prefix, unless its database has a newer one in a folder."""
    if wish.only and not wish.only.has(direct.database):
        return
    other = found.get(direct.database)
    if isinstance(direct, Unusable):
        found.setdefault(direct.database, direct)
        return
    if other and not (isinstance(other, Chosen) and other.backup.started < direct.backup.started):
        return
    if settings.databases:
        which = "newest backups" if other else "backups"
        found[direct.database] = Unusable(
            direct.database,
            f"its {which} are directly under {settings.backup_prefix}, from a time when DATABASES "
            "was not set",
            "To restore it too, unset DATABASES, and run the same command again.",
            1,
        )
    else:
        found[direct.database] = direct


def _single_restore(settings: Settings, name: str, job: str | None) -> str:
    """Return how to restore a database alone, from the source that somebody chooses."""
    given = "DATABASES='*' " if job and settings.origin.config is None else ""
    of_job = f"--job {shlex.quote(job)} " if job else ""
    command = f"{given}pgstash restore latest {of_job}--source SOURCE --mark"
    return f"Restore it alone, from one of them: {command} --create {shlex.quote(name)}"


def _roles(opened: Archive, manifest: Manifest, emit: events.Emit) -> Script | None:
    try:
        script = opened.globals()
    except (CorruptedError, StorageError) as error:
        emit(events.Warned(f"The roles of {opened.name} are not used: {error.message}"))
        return None
    if script is None:
        return None
    # Without encryption, anyone who can write to the store could have put a login there.
    passwords = manifest.globals_passwords and manifest.encryption is not None
    return Script(script, passwords, manifest.database.system)


def _estimate(storage: Storage, settings: Settings, backup: catalog.Backup) -> float | None:
    """Return how long a restore may take: as long as the last drill, in proportion to the size."""
    proven = catalog.by_proof(catalog.read(storage, settings.backup_prefix).backups, utc_now())
    for each in proven[:1]:
        proofs: Sequence[catalog.Companion] = [
            companion for companion in each.companions if companion.proven == each.proven
        ]
        for proof in proofs:
            seconds = storage.head(proof.key).metadata.get(_RESTORE_SECONDS, "")
            if seconds.replace(".", "", 1).isdecimal() and each.size:
                return float(seconds) * backup.size / each.size
    return None
