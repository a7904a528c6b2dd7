"""Which backups a recovery of a whole server restores: one of each database that has any."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from pgstash import events
from pgstash.commands import jobs
from pgstash.commands.stored import Search, Wanted
from pgstash.errors import BackupNotFoundError, CorruptedError, PgstashError, StorageError
from pgstash.format.manifest import Manifest
from pgstash.postgres.restore.server_roles import Script
from pgstash.postgres.tools import toc
from pgstash.repository import archive, catalog, empty_prefix, object_metadata
from pgstash.repository.archive import Archive
from pgstash.runtime import utc_now
from pgstash.settings import Settings
from pgstash.settings.databases import Selection
from pgstash.storage.interface import Storage

MAINTENANCE = "postgres"
"""The database that is on every server, and is used to log in."""

_OF_DATABASE = {b"ENCODING", b"STDSTRINGS", b"SEARCHPATH", b"DATABASE", b"DATABASE PROPERTIES"}
_OF_INITDB = {
    (b"SCHEMA", b"public"),
    (b"EXTENSION", b"plpgsql"),
    (b"COMMENT", b"SCHEMA public"),
    (b"COMMENT", b"EXTENSION plpgsql"),
    (b"COMMENT", b"DATABASE postgres"),
}
# What pg_dump writes around the objects; a line of anything else is one of an object.
_NOTHING = re.compile(
    rb"|--.*|SET \w+ = [^;]*;|SELECT pg_catalog\.set_config\('search_path', '', false\);"
    rb"|\\(?:un)?restrict \w+"
)
_LONGEST_EMPTY = 64 * 1024  # bytes
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
    identifies the server of it.
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
            search = Search(settings, self.storage, self.emit, utc_now, may_guess=False)
            found = search.find(Wanted("latest", at=self.wish.at))
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
                is_empty=database == MAINTENANCE and _holds_nothing(opened, manifest),
                has_settings=bool(manifest.database.settings),
                roles=_roles(opened, manifest, self.emit),
                source=manifest.database.identity.digest,
                system=manifest.database.system,
                estimate=_estimate(self.storage, settings, found.backup)
                if self.wish.estimates
                else None,
            )
        except PgstashError as error:
            return Unusable(name, error.message, error.hint, error.exit_code)


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
    for name in _elsewhere(settings):
        if not wish.only or wish.only.has(name):
            hint = f"`pgstash restore --job {settings.origin.server}/{name} --create {name}`"
            problem = "it has a store or a prefix of its own in the configuration file"
            found[name] = Unusable(name, problem, f"Restore it alone: {hint}", 1)
    for name in wish.only.named if wish.only else ():
        if name not in found:
            hint = "`pgstash recover --dry-run` without --only shows all databases with backups."
            found[name] = Unusable(name, "it has no backup", hint, BackupNotFoundError.exit_code)
    return [found[name] for name in sorted(found)]


def _elsewhere(settings: Settings) -> Iterable[str]:
    """Return the databases of a server in a configuration file that are stored in another place."""
    config = settings.origin.config
    return config.elsewhere(settings) if config and not settings.copy_name else ()


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
    elif other is None and settings.databases:
        found[direct.database] = Unusable(
            direct.database,
            f"its backups are directly under {settings.backup_prefix}, from before DATABASES was "
            "set",
            "To restore it too, unset DATABASES, and run the same command again.",
            1,
        )
    elif other is None or (
        not settings.databases
        and isinstance(other, Chosen)
        and other.backup.started < direct.backup.started
    ):
        found[direct.database] = direct


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


def _holds_nothing(opened: Archive, manifest: Manifest) -> bool:
    """Return whether a backup certainly holds nothing that a user made."""
    if manifest.tables:
        return False
    try:
        if not opened.is_seekable:
            return manifest.raw_bytes <= _LONGEST_EMPTY and _is_empty(opened)
        contents = toc.read(opened.schema())
    except (PgstashError, toc.TocError):
        return False
    return contents is not None and all(
        each.description in _OF_DATABASE or (each.description, each.tag) in _OF_INITDB
        for each in contents.entries
    )


def _is_empty(opened: Archive) -> bool:
    """Return whether a script makes nothing. Raises what :meth:`Archive.script` raises."""
    with opened.script() as chunks:
        return all(_NOTHING.fullmatch(line) for line in b"".join(chunks).splitlines())


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
