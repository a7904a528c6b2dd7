"""The composition root of what reads back: list, show, cat, restore.

What not every command needs is imported where it is used, as in :mod:`pgstash.app`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from pgstash import catalog, events
from pgstash import manifest as manifests
from pgstash.app import open_storage
from pgstash.errors import UnverifiedError
from pgstash.settings import Settings, environment

if TYPE_CHECKING:
    from pgstash import archive


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which backup: by name, or the newest that began at a time or before, or a file.

    A file needs no storage; ``-`` is stdin.
    """

    name: str
    at: datetime | None = None
    unverified: bool = False

    @property
    def is_file(self) -> bool:
        """Whether it lies outside the storage."""
        return self.name == "-" or "/" in self.name or Path(self.name).is_file()


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


def manifest_of(settings: Settings, name: str, emit: events.Emit) -> manifests.Manifest:
    """Return the manifest of a backup. Raises what :func:`open_archive` raises."""
    found = open_archive(settings, Wanted(name, unverified=True), emit)
    if found.manifest is None:
        raise UnverifiedError(f"{found.name} has no manifest, so there is nothing to show")
    return found.manifest


def open_archive(settings: Settings, wanted: Wanted, emit: events.Emit) -> archive.Archive:
    """Open a backup to read. Raises what the functions of :mod:`pgstash.archive` raise."""
    from pgstash import archive  # noqa: PLC0415

    access = archive.Access(
        passphrase=settings.reading_passphrase,
        unverified=wanted.unverified,
        only_encrypted=settings.backup_encryption,
    )
    if wanted.name == "-":
        return archive.open_stdin(access)
    if wanted.is_file:
        return archive.open_file(Path(wanted.name), access)
    storage = open_storage(settings, emit)
    found = catalog.read(storage, settings.backup_prefix)
    if wanted.at:
        backup = catalog.find_before(found, wanted.at)
    else:
        backup = catalog.find(found, wanted.name)
    return archive.open_stored(storage, backup, access)


def restore_backup(  # noqa: PLR0913 - one argument for each option
    settings: Settings,
    wanted: Wanted,
    emit: events.Emit,
    uninterrupted: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext,
    *,
    create: str | None,
    overwrite: bool,
    dry_run: bool,
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
    )
    restore.run(plan, wanted.name, lambda: open_archive(settings, wanted, emit), emit)
