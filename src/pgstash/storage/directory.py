"""A store in a folder: for development, a mounted NAS, and a first look.

An object is a file below the root, its metadata a hidden file beside it
(``.<name>.metadata.json``), an upload a hidden file too
(``.<name>.<upload id>.partial``). So whatever dies midway leaves hidden files, which
:meth:`DirectoryStorage.pending` sees and nobody takes for an object. Files and folders are
for the user alone who runs pgstash.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO, Self

from pgstash.errors import (
    ObjectDamagedError,
    ObjectExistsError,
    ObjectNotFoundError,
    StorageError,
    StorageRefusedError,
    StorageUnreachableError,
    UploadError,
)
from pgstash.storage.interface import PendingUpload, StoredObject, end_of_range

CHUNK = 256 * 1024
LOCK_NAME = ".pgstash.lock"
STARTED = "%Y%m%dT%H%M%SZ"
PARTIAL = re.compile(
    r"\.(?P<name>.+)\.(?P<upload_id>(?P<started>\d{8}T\d{6}Z)-[0-9a-f]{16})\.partial"
)

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}
GONE = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.ENOTCONN, errno.ENODEV}
NO_HARD_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EINVAL}


class DirectoryStorage:
    """Objects as files below ``root``, an existing folder."""

    def __init__(self, root: Path) -> None:
        """Keep the place; :meth:`check` looks whether it is there."""
        self._root = root.absolute()

    def url(self, key: str = "") -> str:
        """Return ``file:///root/key``."""
        return f"file://{self._root}/{key}"

    def check(self) -> None:
        """Raise unless the root is a folder that may be listed and written to.

        A missing root is not made: on a NAS that is not mounted, backups would silently
        go to the local disk.
        """
        if not self._root.is_dir():
            raise _no_root(self._root)
        with _translated(f"list {self._root}"):
            os.listdir(self._root)  # noqa: PTH208 - one system call answers; iterdir is lazy
        if not os.access(self._root, os.W_OK | os.X_OK):
            raise StorageRefusedError(
                f"the folder {self._root} may not be written to",
                hint="Give the user that runs pgstash the right to write there.",
            )

    def list(self, prefix: str, *, start_after: str = "") -> Iterator[StoredObject]:
        """Yield every object whose key starts with ``prefix``, in the order of keys."""
        for key, path in sorted(self._files(prefix)):
            if key <= start_after or any(part.startswith(".") for part in key.split("/")):
                continue
            try:
                yield _stored(key, path, {})
            except FileNotFoundError:
                continue  # deleted since the folder was read

    def head(self, key: str) -> StoredObject:
        """Return one object with its metadata; raise ObjectNotFoundError."""
        path = self._path(key)
        with _translated(f"look at {self.url(key)}"):
            stored = _stored(key, path, {})
            try:
                metadata = json.loads(_sidecar(path).read_text())
            except FileNotFoundError:
                return stored  # somebody put the file there by hand
            except ValueError as exc:
                raise StorageError(f"the metadata of {self.url(key)} are damaged") from exc
        return StoredObject(key, stored.size, stored.modified, metadata)

    @contextmanager
    def read(
        self, key: str, *, start: int = 0, length: int | None = None
    ) -> Iterator[Iterator[bytes]]:
        """Open a range of an object; raise ObjectNotFoundError."""
        with _translated(f"read {self.url(key)}"):
            file = self._path(key).open("rb", buffering=0)
        with file:
            size = os.fstat(file.fileno()).st_size
            end = end_of_range(self.url(key), size, start, length)
            yield self._chunks(key, file, start, end)

    def _chunks(self, key: str, file: BinaryIO, start: int, end: int) -> Iterator[bytes]:
        file.seek(start)
        while start < end:
            with _translated(f"read {self.url(key)}"):
                chunk = file.read(min(CHUNK, end - start))
            if not chunk:
                raise ObjectDamagedError(f"{self.url(key)} became shorter while it was read")
            start += len(chunk)
            yield chunk

    def put(self, key: str, data: bytes, metadata: Mapping[str, str]) -> None:
        """Store a small object, replacing one of the same key."""
        with self.upload(key, metadata=metadata, expected_size=len(data)) as upload:
            upload.write(data)
            upload.flush()
            upload.publish(replacing=True)

    def upload(
        self, key: str, *, metadata: Mapping[str, str], expected_size: int
    ) -> DirectoryUpload:
        """Begin an upload into a hidden file; a folder needs no guess of its size."""
        del expected_size
        return DirectoryUpload(self._root, self._path(key), metadata)

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects; a key that is not there is no error."""
        for key in keys:
            path = self._path(key)
            with _translated(f"delete {self.url(key)}"):
                path.unlink(missing_ok=True)
                _sidecar(path).unlink(missing_ok=True)

    def pending(self, prefix: str) -> Iterator[PendingUpload]:
        """Yield uploads under ``prefix`` that were neither committed nor aborted."""
        for key, path in sorted(self._files(prefix, hidden=True)):
            if found := PARTIAL.fullmatch(path.name):
                started = datetime.strptime(found["started"], STARTED).replace(tzinfo=UTC)
                yield PendingUpload(key, found["upload_id"], started)

    def abort(self, upload: PendingUpload) -> None:
        """Remove a pending upload; one that is gone is no error."""
        with _translated(f"remove an upload of {self.url(upload.key)}"):
            _remove_partial(_partial(self._path(upload.key), upload.upload_id))

    def _path(self, key: str) -> Path:
        """Return the file of ``key``; raise StorageRefusedError if it would leave the root."""
        parts = key.split("/")
        if "\0" in key or any(not part or part.startswith(".") for part in parts):
            raise StorageRefusedError(
                f"{key!r} cannot be a key in a folder",
                hint="A key has no empty and no hidden parts, and does not begin with a slash.",
            )
        path = self._root.joinpath(*parts)
        if not path.parent.resolve().is_relative_to(self._root.resolve()):
            raise StorageRefusedError(f"{key!r} leads out of {self._root}")
        return path

    def _files(self, prefix: str, *, hidden: bool = False) -> Iterator[tuple[str, Path]]:
        """Yield the key and the path of every file, or of every upload, under ``prefix``."""
        if not self._root.is_dir():
            raise _no_root(self._root)
        folder = prefix.rpartition("/")[0]
        top = self._path(f"{folder}/x").parent if folder else self._root

        def fail(exc: OSError) -> None:
            if exc.errno != errno.ENOENT:
                raise _translate(exc, f"list {self.url(prefix)}") from exc

        for where, _, names in os.walk(top, onerror=fail):
            for name in names:
                path = Path(where, name)
                found = PARTIAL.fullmatch(name) if hidden else None
                if hidden and not found:
                    continue
                key = path.with_name(found["name"]) if found else path
                if (text := key.relative_to(self._root).as_posix()).startswith(prefix):
                    yield text, path


class DirectoryUpload:
    """A file that is being written; see :class:`pgstash.storage.interface.Upload`."""

    part_size = 0

    def __init__(self, root: Path, target: Path, metadata: Mapping[str, str]) -> None:
        """Choose the name of the hidden file; nothing is made before the block is entered."""
        self._root = root
        self._target = target
        self._metadata = {name.lower(): value for name, value in metadata.items()}
        upload_id = f"{datetime.now(UTC):{STARTED}}-{secrets.token_hex(8)}"
        self._partial = _partial(target, upload_id)
        self._flushed = False
        self.committed: bool | None = False

    def __enter__(self) -> Self:
        with self._storing():
            if not self._root.is_dir():
                raise _no_root(self._root)
            _make_folders(self._root, self._target.parent)
            try:
                self._file = open(self._partial, "xb", buffering=0, opener=_for_us_alone)
            except BaseException:  # a signal, and the file is there by then
                _remove_partial(self._partial)
                raise
        return self

    def __exit__(self, *_: object) -> None:
        self._flushed = True
        self._file.close()
        with self._storing():
            _remove_partial(self._partial)

    def write(self, data: bytes) -> None:
        """Append ``data``; raise UploadError after a flush or a commit."""
        if self._flushed:
            raise UploadError(f"the upload of {self._target} is finished, nothing can be added")
        rest = memoryview(data)
        with self._storing():
            while rest:
                rest = rest[self._file.write(rest) :]

    def flush(self) -> None:
        """Wait until the disk has everything; nothing can be written after it."""
        self._flushed = True
        with self._storing():
            os.fsync(self._file.fileno())

    def commit(self) -> None:
        """Make the file visible; raise ObjectExistsError if the key is taken."""
        self.flush()
        try:
            self.publish(replacing=False)
        except StorageError:
            if self._is_named():  # and then the disk stumbled: nobody knows what will last
                self.committed = None
            raise
        self.committed = True

    def _is_named(self) -> bool:
        """Tell whether the file has its name already: as a second one, or instead of the first."""
        if not self._partial.exists():
            return self._target.exists()
        return self._target.exists() and self._target.samefile(self._partial)

    def publish(self, *, replacing: bool) -> None:
        """Give the file its name, after its metadata; both survive a crash afterwards.

        A lock on the root keeps two writers from mixing the metadata of one with the
        file of the other.
        """
        with self._storing(), (self._root / LOCK_NAME).open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not self._partial.exists():
                raise UploadError(f"the upload of {self._target} was aborted by somebody else")
            if not replacing and self._target.exists():
                raise self._taken()
            self._write_metadata()
            if replacing:
                self._partial.replace(self._target)
            else:
                self._name_without_replacing()
            _sync_folder(self._target.parent)

    def _name_without_replacing(self) -> None:
        """Use a hard link, which never replaces; a rename under the lock where there are none."""
        try:
            os.link(self._partial, self._target)
        except FileExistsError as exc:
            raise self._taken() from exc
        except OSError as exc:
            if exc.errno not in NO_HARD_LINKS:
                raise
            self._partial.rename(self._target)

    def _write_metadata(self) -> None:
        written = _unpublished_metadata(self._partial)
        with open(written, "w", opener=_for_us_alone) as file:
            json.dump(self._metadata, file)
            file.flush()
            os.fsync(file.fileno())
        written.replace(_sidecar(self._target))

    def _taken(self) -> ObjectExistsError:
        return ObjectExistsError(f"{self._target} is there already")

    @contextmanager
    def _storing(self) -> Iterator[None]:
        with _translated(f"store {self._target}"):
            yield


def _sidecar(path: Path) -> Path:
    return path.with_name(f".{path.name}.metadata.json")


def _partial(path: Path, upload_id: str) -> Path:
    return path.with_name(f".{path.name}.{upload_id}.partial")


def _unpublished_metadata(partial: Path) -> Path:
    return partial.with_suffix(".metadata")


def _remove_partial(partial: Path) -> None:
    """Remove an upload; its file last, because the file is how a sweep finds it."""
    _unpublished_metadata(partial).unlink(missing_ok=True)
    partial.unlink(missing_ok=True)


def _stored(key: str, path: Path, metadata: Mapping[str, str]) -> StoredObject:
    status = path.stat()
    if not path.is_file():
        raise ObjectNotFoundError(f"{path} is not a file")
    return StoredObject(key, status.st_size, datetime.fromtimestamp(status.st_mtime, UTC), metadata)


def _make_folders(root: Path, folder: Path) -> None:
    """Make the folders below ``root``, each one lasting through a crash."""
    if folder == root or folder.is_dir():
        return
    _make_folders(root, folder.parent)
    folder.mkdir(mode=0o700, exist_ok=True)
    _sync_folder(folder.parent)


def _for_us_alone(path: str, flags: int) -> int:
    """Open a file that nobody else may read: a backup holds what the database guards."""
    return os.open(path, flags, 0o600)


def _sync_folder(folder: Path) -> None:
    """Write a folder's own entries to disk; some network file systems cannot, and need not."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    except OSError as exc:
        if exc.errno not in {errno.EINVAL, errno.EOPNOTSUPP}:
            raise
    finally:
        os.close(handle)


def _no_root(root: Path) -> StorageUnreachableError:
    return StorageUnreachableError(
        f"there is no folder {root}",
        hint="Create it, or mount what belongs there; pgstash does not, lest backups go astray.",
    )


@contextmanager
def _translated(doing: str) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise _translate(exc, doing) from exc


def _translate(exc: OSError, doing: str) -> StorageError:
    message = f"cannot {doing}: {exc.strerror or exc}"
    if exc.errno in {errno.ENOENT, errno.ENOTDIR}:
        return ObjectNotFoundError(message)
    if exc.errno in FULL:
        return StorageRefusedError(message, hint="Free some space, or shorten the retention.")
    if exc.errno in FORBIDDEN:
        return StorageRefusedError(message, hint="Check who owns the folder, and its mode.")
    if exc.errno in GONE:
        return StorageUnreachableError(message, hint="Check the disk, or the mounted share.")
    return StorageRefusedError(message, hint="Check the folder and its file system.")
