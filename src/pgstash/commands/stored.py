"""The composition root of what reads back: list, show, cat, restore, drill.

What not every command needs is imported where it is used, as in :mod:`pgstash.app`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from pgstash import catalog, events
from pgstash import manifest as manifests
from pgstash.app import (
    back_up,
    configured_source,
    open_storage,
    owners_of,
    source_that_answers,
    utc_now,
)
from pgstash.errors import (
    BackupNotFoundError,
    ConfigurationError,
    PgstashError,
    UnverifiedError,
    WrongClockError,
)
from pgstash.identity import Identity
from pgstash.settings import Settings, environment

if TYPE_CHECKING:
    from pgstash import archive
    from pgstash.storage.interface import Storage


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which backup: by name, or the newest that began at a time or before, or a file.

    ``source`` says of which source the newest is wanted, as its label or its database's name.
    A file has a ``/`` in its name, and needs no storage; ``-`` is stdin.
    """

    name: str
    at: datetime | None = None
    unverified: bool = False
    source: str | None = None

    @property
    def is_file(self) -> bool:
        """Whether it lies outside the storage."""
        return self.name == "-" or "/" in self.name


def list_backups(settings: Settings, *, newest: int | None) -> list[Listed]:
    """Return the backups that are stored, the newest first. Raises StorageError."""
    storage = open_storage(settings, events.ignore)
    backups = catalog.read(storage, settings.backup_prefix).backups[::-1][:newest]
    known = catalog.metadata(storage, backups)
    return [Listed(backup, facts) for backup, facts in zip(backups, known, strict=True)]


@dataclass(frozen=True, slots=True)
class Listed:
    """A backup, and what its metadata say of it."""

    backup: catalog.Backup
    metadata: Mapping[str, str]


def manifest_of(settings: Settings, wanted: Wanted, emit: events.Emit) -> manifests.Manifest:
    """Return the manifest of a backup. Raises what :func:`open_archive` raises."""
    found = open_archive(settings, replace(wanted, unverified=True), emit)
    if found.manifest is None:
        raise UnverifiedError(f"{found.name} has no manifest, so there is nothing to show")
    return found.manifest


def open_archive(settings: Settings, wanted: Wanted, emit: events.Emit) -> archive.Archive:
    """Open a backup to read. Raises what the functions of :mod:`pgstash.archive` raise."""
    from pgstash import archive  # noqa: PLC0415

    if wanted.is_file:
        access = _access(settings, unverified=wanted.unverified)
        if wanted.name == "-":
            return archive.open_stdin(access)
        return archive.open_file(Path(wanted.name), access)
    storage = open_storage(settings, emit)
    found = catalog.read(storage, settings.backup_prefix)
    own = found
    if wanted.at or wanted.name == "latest":
        own = _where_newest_counts(settings, storage, found, wanted, emit, may_guess=False)
    if wanted.at:
        backup = catalog.find_before(own, wanted.at)
    else:
        backup = _named(own, storage, wanted.name, utc_now(), emit, may_guess=False)
    access = _access(settings, unverified=wanted.unverified, others=found.backups)
    return archive.open_stored(storage, backup, access)


def _of_one_source(
    settings: Settings, storage: Storage, found: catalog.Catalog, named: str | None
) -> catalog.Catalog:
    """Return the backups of the source that is meant. Raises SourceUnclearError, StorageError."""
    sources = _chosen(settings, storage, found, named)
    return replace(found, backups=owners_of(storage).of(found.backups, sources))


def _chosen(
    settings: Settings, storage: Storage, found: catalog.Catalog, named: str | None
) -> Sequence[Identity]:
    """Return the source that is meant. Raises SourceUnclearError, StorageError.

    The settings say which, also while its server is down, or is a new one without backups: it is
    asked only if several sources fit.
    """
    return owners_of(storage).choose(
        found.backups,
        named=[named] if named else [],
        settings=configured_source(settings),
        ask=lambda: source_that_answers(settings),
    )


def _where_newest_counts(  # noqa: PLR0913 - whose the newest is depends on all of it
    settings: Settings,
    storage: Storage,
    found: catalog.Catalog,
    wanted: Wanted,
    emit: events.Emit,
    *,
    may_guess: bool,
) -> catalog.Catalog:
    """Return the backups of the source that is meant, to take the newest of them.

    A newer one may be of it and not say so: its server does not tell its system identifier any
    more, or a copy lost the metadata. If neither the server nor the label of a source says whose it
    is, raise SourceUnclearError, or warn who ``may_guess``. Raises StorageError.
    """
    owners, backups = owners_of(storage), found.backups
    sources = _chosen(settings, storage, found, wanted.source)
    newer = owners.doubtful(backups, sources, wanted.at or utc_now() + catalog.CLOCKS_APART)
    if newer and wanted.source not in [each.label for each in sources]:
        answer = None if wanted.source else source_that_answers(settings)
        as_answered = owners.of(backups, [answer]) if answer else []
        if all(each in as_answered for each in newer):
            return replace(found, backups=as_answered)
        label = sources[0].label if sources else "this source"
        what = f"{newer[-1].name} is newer than the backups of {label}, and may be of it too"
        if not may_guess:
            raise owners.unclear(f"which backup is the latest cannot be told: {what}", backups)
        emit(events.Warned(f"{what}: it is not taken for the latest, since it does not say so"))
    return replace(found, backups=owners.of(backups, sources))


def _named(  # noqa: PLR0913 - what a name may mean depends on all of it
    found: catalog.Catalog,
    storage: Storage,
    name: str,
    now: datetime,
    emit: events.Emit,
    *,
    may_guess: bool,
) -> catalog.Backup:
    """Return the backup of a name, and say so where a later one is not taken for the latest.

    Unless it ``may_guess``, raise WrongClockError where it may be our clock that is wrong.
    """
    try:
        backup = catalog.find(found, name, now)
    except BackupNotFoundError as error:
        if _is_file(name):
            raise BackupNotFoundError(
                error.message, hint=f"Is it the file of that name that lies here? It is ./{name}."
            ) from error
        raise
    last = found.backups[-1]
    if name == "latest" and last != backup:
        # The clock that the store's times are of is another than that of whoever made the backup,
        # but for a folder.
        if not may_guess and storage.head(last.key).modified > now + catalog.CLOCKS_APART:
            raise WrongClockError(
                f"which backup is the latest cannot be told: by this machine's clock it is "
                f"{now:%Y-%m-%d %H:%M} UTC, and {last.name} was stored after that",
                hint="Set the clock right that is wrong, or name the backup: `pgstash list` shows "
                "them all.",
            )
        emit(
            events.Warned(
                f"{backup.name} is taken for the latest, because {last.name} bears a time in the "
                "future: some clock was wrong, or this machine's is"
            )
        )
    return backup


def _is_file(name: str) -> bool:
    try:
        return Path(name).is_file()
    except OSError:  # longer than a name can be, for one
        return False


def _access(
    settings: Settings, *, unverified: bool, others: Sequence[catalog.Backup] = ()
) -> archive.Access:
    """Say how to read a backup; ``others`` are those that lie beside it."""
    from pgstash import archive  # noqa: PLC0415

    # Whoever can write to the store, and has no key, could put a plain one beside them.
    some_are = any(backup.encrypted for backup in others)
    return archive.Access(
        passphrase=settings.reading_passphrase,
        unverified=unverified,
        only_encrypted=settings.backup_encryption or (settings.only_reads_with_key and some_are),
    )


def restore_backup(  # noqa: PLR0913 - one argument for each option
    settings: Settings,
    wanted: Wanted,
    emit: events.Emit,
    uninterrupted: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext,
    *,
    create: str | None,
    overwrite: bool,
    dry_run: bool,
    create_roles: bool,
    tables: Sequence[str] = (),
    rows_only: bool = False,
) -> None:
    """Restore one backup. Raises what :func:`open_archive` and :func:`restore.run` raise."""
    from pgstash import restore  # noqa: PLC0415

    plan = restore.Plan(
        target_url=settings.target_url,
        create=create,
        overwrite=overwrite,
        dry_run=dry_run,
        environment=environment(),
        uninterrupted=uninterrupted,
        create_roles=create_roles,
        jobs=settings.restore_jobs,
        tables=tables,
        rows_only=rows_only,
    )
    restore.run(plan, wanted.name, lambda: open_archive(settings, wanted, emit), emit)


def drill_backup(  # noqa: PLR0913 - what of the world can be another one, and what to prove
    settings: Settings,
    name: str,
    emit: events.Emit,
    uninterrupted: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext,
    now: Callable[[], datetime] = utc_now,
    *,
    source: str | None = None,
) -> None:
    """Prove that one stored backup restores. Raises what :func:`drill.run` raises."""
    from pgstash import archive, drill  # noqa: PLC0415

    plan = drill.Plan(
        prefix=settings.backup_prefix,
        scratch_url=settings.scratch_url,
        source_url=settings.source_url if settings.has_source else None,
        passphrase=settings.reading_passphrase,
        jobs=settings.restore_jobs,
        statements=settings.verify_sql,
        min_tables=settings.min_table_count,
        environment=environment(),
    )
    world = drill.World(now=now, random=os.urandom, emit=emit, uninterrupted=uninterrupted)
    storage = open_storage(settings, emit)

    def find() -> drill.Found:
        found = catalog.read(storage, settings.backup_prefix)
        own = found
        if name == "latest":
            wanted = Wanted(name, source=source)
            own = _where_newest_counts(settings, storage, found, wanted, emit, may_guess=True)
        backup = _named(own, storage, name, now(), emit, may_guess=True)
        access = _access(settings, unverified=False, others=found.backups)
        return drill.Found(backup.name, lambda: archive.open_stored(storage, backup, access))

    drill.run(plan, storage, name, find, world)


def unproven(settings: Settings, emit: events.Emit, source: str | None = None) -> list[str]:
    """Return the names of backups that no drill has proven, the newest first; tell what is none.

    They are those of one source, if the user or the settings name one. Without a manifest nothing
    can be proven. Raises SourceUnclearError, StorageError.
    """
    storage = open_storage(settings, emit)
    found = catalog.read(storage, settings.backup_prefix)
    if source or settings.has_source:
        found = _of_one_source(settings, storage, found, source)
    left = [backup for backup in found.backups[::-1] if not backup.proven]
    for backup in left:
        if not backup.manifests:
            emit(events.Warned(f"{backup.name} has no manifest, and cannot be proven"))
    return [backup.name for backup in left if backup.manifests]


def is_drill_due(settings: Settings, now: datetime) -> bool:
    """Tell whether the newest proof is older than ``VERIFY_INTERVAL``. Raises StorageError.

    The proofs in the store are what is asked: a service that is started anew remembers nothing.
    """
    if settings.verify_interval is None:
        return False
    if settings.verify_interval == "after-backup":
        return True
    storage = open_storage(settings, events.ignore)
    found = catalog.read(storage, settings.backup_prefix).backups
    source = source_that_answers(settings) or configured_source(settings) or Identity()
    proven = owners_of(storage).last_proven(found, source, now)
    last = proven.proven_by(now) if proven else None
    return last is None or (now - last).total_seconds() >= settings.verify_interval


def back_up_and_drill(
    settings: Settings,
    emit: events.Emit,
    uninterrupted: Callable[[], AbstractContextManager[None]],
    hear: Callable[[], None],
) -> None:
    """Run one backup, then a drill of the newest backup if one is due.

    A backup that failed is no reason to leave the drill of an older one out, unless each backup
    is to be proven. Raises what went wrong, of the backup before that of the drill.
    """
    failure: PgstashError | None = None
    try:
        back_up(settings, emit, uninterrupted, hear)
    except ConfigurationError:
        raise
    except PgstashError as error:
        failure = error
    hear()
    every_one = settings.verify_interval == "after-backup"
    try:
        due = not (failure and every_one) and is_drill_due(settings, utc_now())
    except PgstashError as error:
        emit(events.Warned(f"Whether a drill is due cannot be told: {error.message}"))
        failure, due = failure or error, False
    if due:
        try:
            drill_backup(settings, "latest", emit, uninterrupted)
        except PgstashError as error:
            failure = failure or error
    if failure:
        raise failure
