"""What to report if there is no backup under a prefix: the place, and where there are some."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterator
from itertools import islice

from pgstash.errors import BackupNotFoundError, StorageError, StorageRefusedError
from pgstash.format import names
from pgstash.storage.interface import Storage

_MOST_NAMED = 3
_MOST_SEARCHED = 25  # folders, one request for each
_DEEPEST = 3
# The names of a backup's companions come before that of its archive.
_FIRST_NAMES = 100


def error(storage: Storage, prefix: str, name: str = "latest") -> BackupNotFoundError:
    """Return the error for a prefix without backups; ``name`` is the backup that was wanted.

    It names up to three other prefixes in the store that have backups. Some may be missed: only a
    few folders are searched, and only those that the store allows to list.
    """
    wanted = "backup" if name == "latest" else f"backup {name}, nor any other,"
    others: list[str] = []
    with contextlib.suppress(StorageError):  # it would hide the error to report
        others += islice(_others(storage, prefix), _MOST_NAMED)
    hint = "Check BACKUP_PREFIX, and S3_BUCKET or STORAGE_URL: they name this place."
    if others:
        *all_but_last, last = others
        every = f"{', '.join(all_but_last)} and {last}" if all_but_last else last
        hint = f"There are backups under {every}. Set BACKUP_PREFIX to the right prefix."
    return BackupNotFoundError(f"there is no {wanted} under {storage.url(prefix)}/", hint=hint)


def _others(storage: Storage, own: str) -> Iterator[str]:
    """Yield other prefixes with backups: those in ``own`` and next to it first."""
    parts = own.split("/")
    waiting = deque("/".join([*parts[:count], ""]) for count in range(len(parts), -1, -1))
    searched = set(waiting)
    searched.discard("")
    left = _MOST_SEARCHED
    while waiting:
        for folder in _folders(storage, waiting.popleft()):
            if folder == f"{own}/" or not left:
                continue
            left -= 1
            if _has_backups(storage, folder):
                yield folder.removesuffix("/")
            if folder not in searched and folder.count("/") < _DEEPEST:
                waiting.append(folder)
                searched.add(folder)


def _folders(storage: Storage, within: str) -> list[str]:
    with contextlib.suppress(StorageRefusedError):
        return list(storage.folders(within))
    return []


def _has_backups(storage: Storage, folder: str) -> bool:
    """Return whether there is an archive directly in a folder that may be listed."""
    with contextlib.suppress(StorageRefusedError):
        found = islice(storage.list(f"{folder}backup_"), _FIRST_NAMES)
        return any(names.ARCHIVE_NAME.fullmatch(each.key.removeprefix(folder)) for each in found)
    return False
