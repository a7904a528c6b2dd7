"""Copy backups to other stores, according to the settings."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pgstash import events, failure
from pgstash.commands import copies, copy_targets, stored
from pgstash.commands.storage import open_storage, refuse_if_only_writes
from pgstash.copying import behind, same_place
from pgstash.copying import run as copying
from pgstash.copying.place import Place
from pgstash.errors import ConfigurationError, PgstashError, StorageUnreachableError
from pgstash.format.identity import Identity
from pgstash.repository import catalog, empty_prefix
from pgstash.repository.catalog import Backup
from pgstash.runtime import Runtime
from pgstash.settings import Settings
from pgstash.storage.interface import Storage

Find = Callable[[copies.Copy, Storage], Sequence[Backup]]
"""Returns the backups to copy to a place that is open, the first one first."""


@dataclass(frozen=True, slots=True)
class Request:
    """What to copy where: one backup, or ``everything`` of one source that a target lacks."""

    to: Sequence[str]
    name: str = "latest"
    source: str | None = None
    everything: bool = False


@dataclass(frozen=True, slots=True)
class Copier:
    """Copies backups from the primary, one after the other.

    ``go_on`` ends the copying by raising. ``after_backup`` is the source of a backup that was made
    before: then a failure is only a warning.
    """

    settings: Settings
    primary: Storage
    runtime: Runtime
    go_on: Callable[[], None]
    after_backup: Identity | None = None

    def copy_all(self, target: copies.Copy, find: Find) -> list[PgstashError]:
        """Copy what ``find`` finds, which is asked again after each backup; return the errors.

        A backup that cannot be copied does not keep back the others, unless a store cannot be
        reached. Each failure is reported.
        """
        errors: list[PgstashError] = []
        began = time.monotonic()
        try:
            storage = target.open(self.runtime.emit)
            storage.check()
        except PgstashError as error:
            error.hint = target.settings.as_written(error.hint)  # it is certainly this store
            self._report(target, "", began, error)
            return [error]
        tried: set[str] = set()
        while True:
            name, began = "", time.monotonic()
            try:
                if not tried:
                    self._refuse_primary(target, storage)
                left = [each for each in find(target, storage) if each.name not in tried]
                if not left:
                    if not tried:
                        self.runtime.emit(events.Informed(f"{target.name} has every backup"))
                    return errors
                name = left[0].name
                tried.add(name)
                self._copy(target, storage, left[0])
            except PgstashError as error:
                self._report(target, name, began, error)
                errors.append(error)
                if isinstance(error, StorageUnreachableError) or not name:
                    return errors

    def _places(self, target: copies.Copy, storage: Storage) -> tuple[Place, Place]:
        return (
            Place(self.primary, self.settings.backup_prefix),
            Place(storage, target.settings.backup_prefix),
        )

    def _refuse_primary(self, target: copies.Copy, storage: Storage) -> None:
        """Raise ConfigurationError if the target is the primary under another URL.

        Nothing would be copied, and the retention of the copy would delete backups of the primary.
        Raises StorageError.
        """
        source, place = self._places(target, storage)
        if same_place.is_one(source, place, self.runtime.random):
            problem = (
                f"The copy {target.name} is the primary under another URL: what is stored in "
                f"{place.url} appears in {source.url}. Give it another store."
            )
            raise ConfigurationError([problem])

    def _copy(self, target: copies.Copy, storage: Storage, backup: Backup) -> None:
        began = time.monotonic()
        plan = copying.Plan(
            *self._places(target, storage),
            stored.access_of(self.settings, unverified=False),
            self.go_on,
        )
        self.runtime.emit(events.CopyStarted(backup.name, target.name, backup.size))
        done = copying.run(plan, backup, self.runtime)
        self.runtime.emit(
            events.CopySucceeded(
                name=backup.name,
                copy=target.name,
                location=done.location,
                seconds=time.monotonic() - began,
                sent_bytes=done.sent_bytes,
                already=done.already,
                verified=done.verified,
                inside_bytes=done.inside_bytes,
            )
        )

    def _report(self, target: copies.Copy, name: str, began: float, error: PgstashError) -> None:
        self.runtime.emit(
            events.CopyFailed(
                name=name,
                copy=target.name,
                seconds=time.monotonic() - began,
                after_backup=self.after_backup is not None,
                host=(self.after_backup and self.after_backup.host) or "",
                database=(self.after_backup and self.after_backup.database) or "",
                **failure.fields(error),
            )
        )


def copy_backups(settings: Settings, request: Request, runtime: Runtime) -> None:
    """Copy backups to each target. A target that fails does not keep back the others.

    Raises ConfigurationError before anything is copied, what
    :class:`pgstash.commands.stored.Search` raises for a backup that cannot be found, and the first
    error of a copy at the end.
    """
    refuse_if_only_writes(settings, "copy")
    targets = copy_targets.of(settings, request.to)
    storage = open_storage(settings, runtime.emit)
    find = _finder(settings, request, storage, runtime)
    copier = Copier(settings, storage, runtime, runtime.interruption.raise_if_interrupted)
    errors = [error for target in targets for error in copier.copy_all(target, find)]
    if errors:
        raise errors[0]


def _finder(settings: Settings, request: Request, storage: Storage, runtime: Runtime) -> Find:
    """Return what finds the wanted backups that a target lacks.

    Raises what :class:`pgstash.commands.stored.Search` raises, before a target is opened.
    """
    if not request.everything:
        search = stored.Search(settings, storage, runtime.emit, runtime.now, may_guess=False)
        chosen = search.find(stored.Wanted(request.name, source=request.source)).backup
        return lambda _target, _place: [chosen]

    def own() -> Sequence[Backup]:
        found = catalog.read(storage, settings.backup_prefix)
        if not found.backups:
            raise empty_prefix.error(storage, settings.backup_prefix)
        return stored.of_one_source(settings, storage, found, request.source).backups

    def find(target: copies.Copy, place: Storage) -> Sequence[Backup]:
        here = own()
        there = catalog.read(place, target.settings.backup_prefix).backups
        return [*behind.missing(here, there), *behind.outdated(here, there)]

    own()
    return find
