"""The files of a store in a folder: how they are called, opened, read and removed.

Nothing here trusts a name: whoever can write to the folder may have put anything there.
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
from pgstash.storage.directory_errors import writing
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
    """Return the hidden file with the metadata of an upload, until they get their name."""
    return partial.with_suffix(".metadata")


def remove_partial(partial: Path) -> None:
    """Remove an upload; its file last, because the file is how a sweep finds it."""
    unpublished_metadata_of(partial).unlink(missing_ok=True)
    partial.unlink(missing_ok=True)


def remove(path: Path) -> None:
    """Remove a file; what is not there, or is a folder, is no object."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError, IsADirectoryError):
        path.unlink()


def is_name(text: str) -> bool:
    """Return whether a file can be called that, and the name is text: no NUL, no broken UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in text


def upload_of(path: str, name: str) -> PendingUpload | None:
    """Return the upload whose hidden file has this path and name; None if it is another file."""
    found = PARTIAL.fullmatch(name)
    if not found:
        return None
    try:
        started = datetime.strptime(found["started"], STARTED).replace(tzinfo=UTC)
    except ValueError:  # a time that is none
        return None
    return PendingUpload(path.removesuffix(name) + found["name"], found["upload_id"], started)


def open_file(path: Path, buffering: int = 0) -> BinaryIO:
    """Open a regular file to read it; what is none is refused, and nothing is waited for.

    Raises OSError, ObjectNotFoundError, StorageRefusedError.
    """
    demand_file(path, path.stat())  # so that no device is opened
    file = open(path, "rb", buffering=buffering, opener=without_waiting)  # noqa: SIM115 - the caller closes it
    try:
        demand_file(path, os.fstat(file.fileno()))
    except BaseException:
        file.close()
        raise
    return file


def without_waiting(path: str, flags: int) -> int:
    """Open a file; a named pipe of that name would wait for its other end."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY, 0o666)


def demand_file(path: Path, status: os.stat_result) -> None:
    """Raise unless it is a regular file. A folder is no object, and anything else is not ours."""
    if stat.S_ISDIR(status.st_mode):
        raise ObjectNotFoundError(f"{path} is a folder")
    if not stat.S_ISREG(status.st_mode):
        kind = OTHER_KINDS.get(stat.S_IFMT(status.st_mode), "something else")
        raise StorageRefusedError(
            f"{path} is not a regular file, but {kind}",
            hint="pgstash reads regular files only. Move it away.",
        )


def metadata_of(url: str, sidecar: Path) -> Mapping[str, str]:
    """Read the metadata of an object; none if somebody put the file there by hand."""
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
        f"the metadata of {url} are damaged: {sidecar}",
        hint="Put that file back from a copy. Without it, the backup is read like one that was "
        "copied here by hand.",
    )


def stored_object(key: str, status: os.stat_result, metadata: Mapping[str, str]) -> StoredObject:
    """Return an object as its file's status describes it."""
    seconds = min(max(status.st_mtime, 0.0), LATEST_TIME)  # some file systems know later ones
    return StoredObject(key, status.st_size, datetime.fromtimestamp(seconds, UTC), metadata)


def make_folders(root: Path, folder: Path) -> None:
    """Make the folders below ``root``, each one lasting through a crash."""
    if folder == root or folder.is_dir():
        return
    make_folders(root, folder.parent)
    folder.mkdir(mode=0o700, exist_ok=True)
    sync_folder(folder.parent)


def for_us_alone(path: str, flags: int) -> int:
    """Open a file that nobody else may read: a backup holds what the database guards."""
    return os.open(path, flags, 0o600)


def sync_folder(folder: Path) -> None:
    """Write a folder's own entries to disk; some network file systems cannot, and need not."""
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
            f"there is no folder {root}",
            hint="Create it, or mount the volume there. pgstash does not create it, so that "
            "backups cannot end up on the wrong disk.",
        )
