"""The databases that have backups under a prefix that many databases share.

Each has its folder there: :mod:`pgstash.format.folders`. Other folders are of no database.
"""

from __future__ import annotations

from collections.abc import Callable

from pgstash.format import names
from pgstash.format.folders import database_of, folder_of
from pgstash.repository.object_metadata import in_parallel
from pgstash.storage.interface import Storage

Has = Callable[[Storage, str], bool]
"""Returns whether something is under a prefix. Raises StorageError."""


def with_folder(storage: Storage, prefix: str) -> list[str]:
    """Return the databases that have a folder, sorted; it may hold no backup.

    One request is sent for about 1,000 folders. Raises StorageError.
    """
    within = f"{prefix}/"
    found = storage.folders(within, complete=True)
    databases = (database_of(folder.removeprefix(within).removesuffix("/")) for folder in found)
    return sorted(database for database in databases if database)


def has_backup(storage: Storage, prefix: str) -> bool:
    """Return whether there is a backup under a prefix. Raises StorageError."""
    listed = storage.list(f"{prefix}/backup_")
    return any(names.ARCHIVE_NAME.fullmatch(each.key.removeprefix(f"{prefix}/")) for each in listed)


def with_backups(storage: Storage, prefix: str, has: Has = has_backup) -> list[str]:
    """Return the databases that have at least one backup, or what else ``has`` finds, sorted.

    One more request is sent for each folder, several at once. Raises StorageError.
    """
    databases = with_folder(storage, prefix)
    found = in_parallel(lambda name: has(storage, f"{prefix}/{folder_of(name)}"), databases)
    return [name for name, there in zip(databases, found, strict=True) if there]


def other_folders(storage: Storage, prefix: str) -> list[str]:
    """Return the folders with backups that are of no database, sorted. Raises StorageError."""
    within = f"{prefix}/"
    found = (
        folder.removeprefix(within).removesuffix("/")
        for folder in storage.folders(within, complete=True)
    )
    return sorted(
        name
        for name in found
        if database_of(name) is None and has_backup(storage, f"{prefix}/{name}")
    )
