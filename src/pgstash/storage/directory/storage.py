"""A store in a folder: for development, a mounted NAS, and first steps.

An object is a file below the root. Its metadata is a hidden file next to it
(``.<name>.metadata.json``), and an upload is a hidden file too (``.<name>.<upload id>.partial``).
So whatever dies midway leaves hidden files, which :meth:`DirectoryStorage.pending` lists and which
are never objects. Only the user that runs pgstash may read the files and folders.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from pgstash.errors import ObjectDamagedError, StorageRefusedError
from pgstash.storage.directory.errors import read_error, reading, writing
from pgstash.storage.directory.files import (
    demand_file,
    demand_root,
    is_name,
    metadata_of,
    open_file,
    partial_of,
    remove,
    remove_partial,
    sidecar_of,
    stored_object,
    upload_of,
)
from pgstash.storage.directory.upload import DirectoryUpload
from pgstash.storage.interface import PendingUpload, StoredObject, end_of_range

CHUNK = 256 * 1024
# Why a symbolic link may lead nowhere although nothing is wrong with the store.
LEADS_NOWHERE = {errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENOTDIR, errno.ENAMETOOLONG}


class DirectoryStorage:
    """Objects as files below ``root``, an existing folder."""

    def __init__(self, root: Path) -> None:
        """Store the path; :meth:`check` tests whether it exists."""
        self._root = root.absolute()

    def url(self, key: str = "") -> str:
        """Return ``file:///root/key``."""
        return f"file://{self._root}/{key}"

    def check(self) -> None:
        """Raise StorageError unless the root is a folder that may be listed and written to.

        A missing root is not created: if a NAS is not mounted, backups would silently go to the
        local disk.
        """
        demand_root(self._root)
        with reading(f"list {self._root}"):
            os.listdir(self._root)  # noqa: PTH208 - one system call answers; iterdir is lazy
            may_write = os.access(self._root, os.W_OK | os.X_OK)
        if not may_write:
            raise StorageRefusedError(
                f"the folder {self._root} is not writable",
                hint="Allow the user that runs pgstash to write there.",
            )

    def list(self, prefix: str, *, start_after: str = "") -> Iterator[StoredObject]:
        """Yield every object whose key starts with ``prefix``, in the order of keys.

        Only regular files are objects.
        """
        found = [
            (key, entry)
            for key, entry in self._entries(prefix)
            if key.startswith(prefix) and key > start_after and not entry.name.startswith(".")
        ]
        for key, entry in sorted(found, key=lambda each: each[0]):
            if status := self._file_status(entry):
                yield stored_object(key, status, {})

    def folders(self, within: str = "", *, complete: bool = False) -> Sequence[str]:
        """Return the folders directly within a folder, except hidden ones, always all of them.

        A folder need not contain an object.
        """
        del complete
        demand_root(self._root)
        found = self._scan(within)
        return sorted(
            f"{within}{entry.name}/"
            for entry, is_folder in found
            if is_folder and not entry.name.startswith(".")
        )

    def head(self, key: str) -> StoredObject:
        """Return one object with its metadata. Raises ObjectNotFoundError."""
        path = self._path(key)
        with reading(f"read the metadata of {self.url(key)}"):
            status = path.stat()
            demand_file(path, status)
            return stored_object(key, status, metadata_of(self.url(key), sidecar_of(path)))

    @contextmanager
    def read(
        self, key: str, *, start: int = 0, length: int | None = None
    ) -> Iterator[Iterator[bytes]]:
        """Open a range of an object; see :meth:`pgstash.storage.interface.Storage.read`."""
        path = self._path(key)
        doing = f"read {self.url(key)}"
        with reading(doing):
            file = open_file(path)
        with file:
            with reading(doing):
                size = os.fstat(file.fileno()).st_size
                file.seek(start)
            end = end_of_range(self.url(key), size, start, length)
            yield self._chunks(key, file, start, end)

    def _chunks(self, key: str, file: BinaryIO, start: int, end: int) -> Iterator[bytes]:
        while start < end:
            with reading(f"read {self.url(key)}"):
                chunk = file.read(min(CHUNK, end - start))
            if not chunk:
                raise ObjectDamagedError(f"{self.url(key)} became shorter while it was being read")
            start += len(chunk)
            yield chunk

    def put(self, key: str, data: bytes, metadata: Mapping[str, str]) -> None:
        """Store a small object, replacing one of the same key."""
        with self.upload(key, metadata=metadata, expected_size=len(data)) as upload:
            upload.write(data)
            upload.flush()
            upload.publish(replacing=True)

    def upload(
        self,
        key: str,
        *,
        metadata: Mapping[str, str],
        expected_size: int,
        usual_size: int | None = None,
    ) -> DirectoryUpload:
        """Start an upload into a hidden file; its expected size is not needed."""
        del expected_size, usual_size
        return DirectoryUpload(self._root, self._path(key), metadata)

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects. A missing key is not an error."""
        for key in keys:
            path = self._path(key)
            with writing(f"delete {self.url(key)}"):
                remove(path)
                remove(sidecar_of(path))

    def pending(self, prefix: str) -> Iterator[PendingUpload]:
        """Yield the uploads under ``prefix`` that are neither committed nor aborted."""
        found = [
            upload
            for key, entry in self._entries(prefix)
            if (upload := upload_of(key, entry.name))
            and upload.key.startswith(prefix)
            and self._file_status(entry)
        ]
        yield from sorted(found, key=lambda upload: (upload.key, upload.upload_id))

    def abort(self, upload: PendingUpload) -> None:
        """Remove a pending upload. If it is gone, that is not an error."""
        with writing(f"remove an upload of {self.url(upload.key)}"):
            remove_partial(partial_of(self._path(upload.key), upload.upload_id))

    def _path(self, key: str) -> Path:
        """Return the file of ``key``. Raises StorageRefusedError if it is outside the root."""
        parts = key.split("/")
        if not is_name(key) or any(not part or part.startswith(".") for part in parts):
            raise StorageRefusedError(
                f"{key!r} cannot be a key in a folder",
                hint="A key has no empty or hidden parts and does not begin with a slash.",
            )
        path = self._root.joinpath(*parts)
        with reading(f"find {self.url(key)}"):
            # Not Path.resolve(), which raises RuntimeError for a link to itself.
            root, parent = os.path.realpath(self._root), os.path.realpath(path.parent)
        if not Path(parent).is_relative_to(root):
            raise StorageRefusedError(f"{key!r} leads out of {self._root}")
        return path

    def _entries(self, prefix: str) -> Iterator[tuple[str, os.DirEntry[str]]]:
        """Yield everything but folders that may match ``prefix``, with its path from the root.

        Folders that cannot hold such a key are not opened, such as hidden ones and ``lost+found``.
        """
        demand_root(self._root)
        folder = prefix.rpartition("/")[0]
        waiting = [f"{folder}/"] if folder else [""]
        while waiting:
            within = waiting.pop()
            for entry, is_folder in self._scan(within):
                path = f"{within}{entry.name}"
                if not is_folder:
                    yield path, entry
                elif f"{path}/".startswith(prefix) and not entry.name.startswith("."):
                    waiting.append(f"{path}/")

    def _scan(self, within: str) -> Sequence[tuple[os.DirEntry[str], bool]]:
        """Return the entries of a folder, and whether each is a folder; none if it is missing."""
        where = self._path(f"{within}x").parent
        try:
            with os.scandir(where) as entries:
                return [
                    (entry, entry.is_dir(follow_symlinks=False))
                    for entry in entries
                    if is_name(entry.name)
                ]
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as exc:
            raise read_error(exc, f"list {self.url(within)}") from exc

    def _file_status(self, entry: os.DirEntry[str]) -> os.stat_result | None:
        """Return the status of a regular file; None for anything else, or if it was deleted."""
        try:
            status = entry.stat()
        except FileNotFoundError:
            return None
        except OSError as exc:
            if exc.errno in LEADS_NOWHERE and entry.is_symlink():
                return None
            raise read_error(exc, f"read the status of file://{entry.path}") from exc
        return status if stat.S_ISREG(status.st_mode) else None
