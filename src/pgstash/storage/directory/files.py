"""The files of a store in a folder: naming, opening, reading and removing them.

No name is trusted: anyone who can write to the folder may have put anything there.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import stat
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from pgstash.errors import (
    ObjectDamagedError,
    ObjectNotFoundError,
    StorageRefusedError,
    StorageUnreachableError,
)
from pgstash.storage.directory.errors import writing
from pgstash.storage.interface import PendingUpload, StoredObject

STARTED = "%Y%m%dT%H%M%SZ"
PARTIAL = re.compile(
    r"\.(?P<name>.+)\.(?P<upload_id>(?P<started>\d{8}T\d{6}Z)-[0-9a-f]{16})\.partial"
)
LONGEST_METADATA = 64 * 1024
LATEST_TIME = datetime.max.replace(tzinfo=UTC, microsecond=0).timestamp()
OTHER_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def sidecar_of(path: Path) -> Path:
    """Return the hidden file with the metadata of an object."""
    return path.with_name(f".{path.name}.metadata.json")


def partial_of(path: Path, upload_id: str) -> Path:
    """Return the hidden file of an upload to ``path``."""
    return path.with_name(f".{path.name}.{upload_id}.partial")


def unpublished_metadata_of(partial: Path) -> Path:
    """Return the hidden file with the metadata of an upload until it is published."""
    return partial.with_suffix(".metadata")


def remove_partial(partial: Path) -> None:
    """Remove an upload, its file last: a sweep finds the upload by that file."""
    unpublished_metadata_of(partial).unlink(missing_ok=True)
    partial.unlink(missing_ok=True)


def remove(path: Path) -> None:
    """Remove a file. A missing file or a folder is not an object, and not an error."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError, IsADirectoryError):
        path.unlink()


def is_name(text: str) -> bool:
    """Return whether ``text`` can be a file name: valid UTF-8 without NUL."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in text


def upload_of(path: str, name: str) -> PendingUpload | None:
    """Return the upload whose hidden file has this path and name; None for any other file."""
    found = PARTIAL.fullmatch(name)
    if not found:
        return None
    try:
        started = datetime.strptime(found["started"], STARTED).replace(tzinfo=UTC)
    except ValueError:  # not a time
        return None
    return PendingUpload(path.removesuffix(name) + found["name"], found["upload_id"], started)


def open_file(path: Path, buffering: int = 0) -> BinaryIO:
    """Open a regular file for reading, without ever blocking; refuse anything else.

    Raises OSError, ObjectNotFoundError, StorageRefusedError.
    """
    demand_file(path, path.stat())  # before opening, so that no device is opened
    file = open(path, "rb", buffering=buffering, opener=without_waiting)  # noqa: SIM115 - the caller closes it
    try:
        demand_file(path, os.fstat(file.fileno()))
    except BaseException:
        file.close()
        raise
    return file


def without_waiting(path: str, flags: int) -> int:
    """Open a file without blocking, as a named pipe would until its other end is opened."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY, 0o666)


def demand_file(path: Path, status: os.stat_result) -> None:
    """Raise unless it is a regular file: ObjectNotFoundError for a folder, else a refusal."""
    if stat.S_ISDIR(status.st_mode):
        raise ObjectNotFoundError(f"{path} is a folder")
    if not stat.S_ISREG(status.st_mode):
        kind = OTHER_KINDS.get(stat.S_IFMT(status.st_mode), "something else")
        raise StorageRefusedError(
            f"{path} is not a regular file but {kind}",
            hint="pgstash reads regular files only. Move it away.",
        )


def metadata_of(url: str, sidecar: Path) -> Mapping[str, str]:
    """Read the metadata of an object; empty for a file that was copied there by hand."""
    try:
        with open_file(sidecar, buffering=-1) as file:
            text = file.read(LONGEST_METADATA + 1)
    except FileNotFoundError:
        return {}
    except (ObjectNotFoundError, StorageRefusedError) as exc:
        raise _damaged(url, sidecar) from exc
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise _damaged(url, sidecar) from exc
    if not isinstance(found, dict) or not all(isinstance(each, str) for each in found.values()):
        raise _damaged(url, sidecar)
    return found


def _damaged(url: str, sidecar: Path) -> ObjectDamagedError:
    return ObjectDamagedError(
        f"the metadata of {url} is damaged: {sidecar}",
        hint="Restore that file from a copy. If you remove it, the backup is read like one that "
        "was copied here by hand.",
    )


def stored_object(key: str, status: os.stat_result, metadata: Mapping[str, str]) -> StoredObject:
    """Return an object as the status of its file describes it."""
    seconds = min(max(status.st_mtime, 0.0), LATEST_TIME)  # some file systems store later times
    return StoredObject(key, status.st_size, datetime.fromtimestamp(seconds, UTC), metadata)


def make_folders(root: Path, folder: Path) -> None:
    """Create the folders below ``root``, each so that it survives a crash."""
    if folder == root or folder.is_dir():
        return
    make_folders(root, folder.parent)
    folder.mkdir(mode=0o700, exist_ok=True)
    sync_folder(folder.parent)


def for_us_alone(path: str, flags: int) -> int:
    """Open a file that no other user may read: a backup holds the contents of the database."""
    return os.open(path, flags, 0o600)


def sync_folder(folder: Path) -> None:
    """Write the entries of a folder to disk; some network file systems cannot and need not."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    except OSError as exc:
        if exc.errno not in {errno.EINVAL, errno.EOPNOTSUPP}:
            raise
    finally:
        os.close(handle)


def demand_root(root: Path) -> None:
    """Raise StorageError unless the root is a folder that can be reached."""
    with writing(f"open {root}"):
        try:
            is_folder = stat.S_ISDIR(root.stat().st_mode)
        except (FileNotFoundError, NotADirectoryError):
            is_folder = False
    if not is_folder:
        raise StorageUnreachableError(
            f"the folder {root} does not exist",
            hint="Create it or mount the volume there. pgstash does not create it, so that backups "
            "cannot end up on the wrong disk.",
        )
