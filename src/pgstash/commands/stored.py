"""Find and open the backup that a command reads, according to the settings; list what is stored."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from pgstash import events
from pgstash.commands import kms, origin
from pgstash.commands.source import configured_source, owners_of, source_that_answers
from pgstash.commands.storage import open_storage
from pgstash.errors import BackupNotFoundError, PgstashError, UnverifiedError, WrongClockError
from pgstash.format import manifest as manifests
from pgstash.format.identity import Identity
from pgstash.repository import archive, catalog, empty_prefix, object_metadata
from pgstash.repository.access import Access
from pgstash.runtime import utc_now
from pgstash.settings import Settings
from pgstash.storage.interface import Storage


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which backup: by name, or the newest that started at or before a time, or a file.

    ``source`` selects the source whose newest backup is wanted, by its label or the name of its
    database. A file has a ``/`` in its name and needs no storage; ``-`` is stdin. If the primary
    cannot be read, it is taken from a copy, unless ``or_copy`` is False.
    """

    name: str
    at: datetime | None = None
    unverified: bool = False
    source: str | None = None
    or_copy: bool = True

    @property
    def is_file(self) -> bool:
        """Whether it is outside the storage."""
        return self.name == "-" or "/" in self.name


def list_backups(settings: Settings, *, newest: int | None, complete: bool = False) -> list[Listed]:
    """Return the stored backups, newest first, all their metadata if ``complete``.

    Raises StorageError.
    """
    storage = open_storage(settings, events.ignore)
    backups = catalog.read(storage, settings.backup_prefix).backups[::-1][:newest]
    known = object_metadata.of_backups(storage, backups, complete=complete)
    return [Listed(backup, facts) for backup, facts in zip(backups, known, strict=True)]


@dataclass(frozen=True, slots=True)
class Listed:
    """A backup and the metadata of its archive."""

    backup: catalog.Backup
    metadata: Mapping[str, str]


def nothing_stored(settings: Settings) -> BackupNotFoundError:
    """Return the error that names the place that :func:`list_backups` found empty."""
    return empty_prefix.error(open_storage(settings, events.ignore), settings.backup_prefix)


def manifest_of(settings: Settings, wanted: Wanted, emit: events.Emit) -> manifests.Manifest:
    """Return the manifest of a backup. Raises what :func:`open_archive` raises."""
    found = open_archive(settings, replace(wanted, unverified=True), emit, to_read=False)
    if found.archived:
        emit(
            events.Informed(
                f"{found.name} is in the storage class {found.archived}. It has to be thawed "
                "before it can be restored, which takes hours"
            )
        )
    if found.manifest is None:
        raise UnverifiedError(f"{found.name} has no manifest, so there is nothing to show")
    return found.manifest


def open_archive(
    settings: Settings, wanted: Wanted, emit: events.Emit, *, to_read: bool = True
) -> archive.Archive:
    """Open a backup for reading, or only its companions.

    Raises what :mod:`pgstash.repository.archive` raises.
    """
    if wanted.is_file:
        access = access_of(settings, emit, unverified=wanted.unverified)
        if wanted.name == "-":
            return archive.open_stdin(access)
        return archive.open_file(Path(wanted.name), access)
    origin.report(settings, emit)
    read = origin.readable(settings, emit, or_copy=wanted.or_copy)
    storage = open_storage(read, emit)
    found = Search(read, storage, emit, utc_now, may_guess=False).find(wanted)
    compare_with_primary(settings, wanted, found.backup, emit)
    return archive.open_stored(storage, found.backup, found.access, to_read=to_read)


def compare_with_primary(
    settings: Settings, wanted: Wanted, chosen: catalog.Backup, emit: events.Emit
) -> None:
    """Warn if the newest backup was wanted, and the primary has a newer one than the copy.

    These are the settings of a copy that ``--from`` names; with others, nothing is compared. It is
    a warning, too, if the primary does not answer.
    """
    primary = settings.primary
    if primary is None or not (wanted.at or wanted.name == "latest"):
        return
    about = f"{chosen.name} is the newest in the copy {settings.copy_name}"
    if not origin.is_configured(primary):
        emit(events.Warned(f"{about}. No primary store is configured that might have a newer one"))
        return
    try:
        storage = open_storage(primary, events.ignore, prompt=True)
        search = Search(primary, storage, events.ignore, utc_now, may_guess=True)
        newest = search.find(wanted).backup
    except BackupNotFoundError:
        return
    except PgstashError as error:
        emit(events.Warned(f"{about}. Could not ask the primary for a newer one: {error.message}"))
        return
    if newest.started > chosen.started:
        emit(events.Warned(f"{about}, but the primary has a newer one: {newest.name}"))


def of_one_source(
    settings: Settings, storage: Storage, found: catalog.Catalog, named: str | None
) -> catalog.Catalog:
    """Return the backups of the selected source. Raises SourceUnclearError, StorageError."""
    sources = _selected(settings, storage, found, named)
    return replace(found, backups=owners_of(storage).of(found.backups, sources))


def _selected(
    settings: Settings, storage: Storage, found: catalog.Catalog, named: str | None
) -> Sequence[Identity]:
    """Return the selected source. Raises SourceUnclearError, StorageError.

    The settings identify it even if its server is down, or is a new one without backups. The
    server is asked only if several sources match.
    """
    return owners_of(storage).choose(
        found.backups,
        named=[named] if named else [],
        settings=configured_source(settings),
        ask=lambda: source_that_answers(settings),
    )


@dataclass(frozen=True, slots=True)
class Found:
    """A stored backup, and how to read it."""

    backup: catalog.Backup
    access: Access


@dataclass(frozen=True, slots=True)
class Search:
    """Finds a stored backup.

    If it is not certain which backup is the latest, :meth:`find` raises; with ``may_guess`` it
    warns instead.
    """

    settings: Settings
    storage: Storage
    emit: events.Emit
    now: Callable[[], datetime]
    may_guess: bool

    def find(self, wanted: Wanted) -> Found:
        """Return the wanted backup.

        Raises BackupNotFoundError, SourceUnclearError, WrongClockError or StorageError.
        """
        prefix = self.settings.backup_prefix
        found = catalog.read(self.storage, prefix)
        if not found.backups:
            raise _with_file(empty_prefix.error(self.storage, prefix, wanted.name), wanted.name)
        own = found
        if wanted.at or wanted.name == "latest":
            own = self._of_source(found, wanted)
        backup = self._before(own, wanted.at) if wanted.at else self._named(own, wanted.name)
        access = access_of(
            self.settings, self.emit, unverified=wanted.unverified, others=found.backups
        )
        return Found(backup, access)

    def _before(self, own: catalog.Catalog, at: datetime) -> catalog.Backup:
        """Return the newest backup that started at or before a time, and report which it is."""
        backup = catalog.find_before(own, at)
        before, after = catalog.neighbours(own, backup)
        self.emit(
            events.BackupChosen(
                backup.name,
                backup.started,
                at,
                before=before.name if before else None,
                after=after.name if after else None,
            )
        )
        return backup

    def _of_source(self, found: catalog.Catalog, wanted: Wanted) -> catalog.Catalog:
        """Return the backups of the selected source, to take the newest of them.

        A newer backup may belong to that source without naming it: the server no longer reports
        its system identifier, or a copy lost the metadata. If neither the server nor the label of
        a source settles it, raise SourceUnclearError, or warn with ``may_guess``.
        """
        owners, backups = owners_of(self.storage), found.backups
        sources = _selected(self.settings, self.storage, found, wanted.source)
        newer = owners.doubtful(backups, sources, wanted.at or utc_now() + catalog.CLOCKS_APART)
        if newer and wanted.source not in [each.label for each in sources]:
            answer = None if wanted.source else source_that_answers(self.settings)
            as_answered = owners.of(backups, [answer]) if answer else []
            if all(each in as_answered for each in newer):
                return replace(found, backups=as_answered)
            label = sources[0].label if sources else "this source"
            what = (
                f"{newer[-1].name} is newer than the backups of {label}, and may belong to the "
                "same source"
            )
            if not self.may_guess:
                raise owners.unclear(
                    f"could not determine which backup is the latest: {what}", backups
                )
            self.emit(events.Warned(f"{what}. It is ignored, because it does not name its source"))
        return replace(found, backups=owners.of(backups, sources))

    def _named(self, found: catalog.Catalog, name: str) -> catalog.Backup:
        """Return the backup of a name; warn if a later one is not taken for the latest.

        If our own clock may be the wrong one, raise WrongClockError unless it ``may_guess``.
        """
        now = self.now()
        try:
            backup = catalog.find(found, name, now)
        except BackupNotFoundError as error:
            raise _with_file(error, name) from None
        if name != "latest" and not catalog.is_named(backup, name):
            self.emit(events.BackupChosen(backup.name, backup.started))
        last = found.backups[-1]
        if name == "latest" and last != backup:
            # The store's times come from another clock than the name of the backup, except in a
            # directory.
            stored_at = None if self.may_guess else self.storage.head(last.key).modified
            if stored_at and stored_at > now + catalog.CLOCKS_APART:
                raise WrongClockError(
                    f"could not determine which backup is the latest: by this machine's clock it "
                    f"is {now:%Y-%m-%d %H:%M} UTC, and {last.name} was stored after that",
                    hint="Correct the wrong clock, or name the backup: `pgstash list` shows all of "
                    "them.",
                )
            self.emit(
                events.Warned(
                    f"Using {backup.name} as the latest backup: {last.name} is dated in the "
                    "future. Its clock was wrong, or this machine's clock is"
                )
            )
        return backup


def _with_file(error: BackupNotFoundError, name: str) -> BackupNotFoundError:
    """Return the error, with a better hint if there is a file of that name."""
    with contextlib.suppress(OSError):  # for example, the name is too long
        if Path(name).is_file():
            hint = f"To read the file of that name in this directory, write ./{name}."
            return BackupNotFoundError(error.message, hint=hint)
    return error


def access_of(
    settings: Settings,
    emit: events.Emit = events.ignore,
    *,
    unverified: bool,
    others: Sequence[catalog.Backup] = (),
) -> Access:
    """Return how to read a backup; ``others`` are the backups under the same prefix."""
    # Someone who can write to the store, but has no key, could add an unencrypted backup.
    some_are = any(backup.encrypted for backup in others)
    return Access(
        passphrase=settings.reading_passphrase,
        unverified=unverified,
        only_encrypted=settings.backup_encryption or (settings.only_reads_with_key and some_are),
        older=settings.old_passphrases,
        identity=settings.identity,
        rounds=settings.backup_encryption_iterations,
        only_passphrase=settings.passphrase is not None,
        kms=kms.opener(settings, emit),
    )
