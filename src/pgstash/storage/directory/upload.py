"""An upload into a folder: a hidden file that gets its name when it is complete.

It gets the name by a hard link, or by a rename if the file system has none. Both survive a crash.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from pgstash.errors import ObjectExistsError, StorageError, UploadError
from pgstash.storage.directory.errors import writing
from pgstash.storage.directory.files import (
    STARTED,
    demand_root,
    for_us_alone,
    make_folders,
    partial_of,
    remove_partial,
    sidecar_of,
    sync_folder,
    unpublished_metadata_of,
    without_waiting,
)

LOCK_NAME = ".pgstash.lock"
NO_HARD_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EINVAL}


class DirectoryUpload:
    """A file being written; see :class:`pgstash.storage.interface.Upload`."""

    part_size = 0

    def __init__(self, root: Path, target: Path, metadata: Mapping[str, str]) -> None:
        """Choose the name of the hidden file, which is created when the block is entered."""
        self._root = root
        self._target = target
        self._metadata = {name.lower(): value for name, value in metadata.items()}
        upload_id = f"{datetime.now(UTC):{STARTED}}-{secrets.token_hex(8)}"
        self._partial = partial_of(target, upload_id)
        self._flushed = False
        self.committed: bool | None = False

    def __enter__(self) -> Self:
        with self._storing():
            demand_root(self._root)
            make_folders(self._root, self._target.parent)
            try:
                self._file = open(self._partial, "xb", buffering=0, opener=for_us_alone)
            except BaseException:  # such as a signal, after the file was created
                remove_partial(self._partial)
                raise
        return self

    def __exit__(self, *_: object) -> None:
        self._flushed = True
        with self._storing():
            try:
                self._file.close()
            finally:
                remove_partial(self._partial)

    def write(self, data: bytes) -> None:
        """Append ``data``. Raises UploadError after a flush or a commit."""
        if self._flushed:
            raise UploadError(f"the upload of {self._target} is finished; nothing can be added")
        rest = memoryview(data)
        with self._storing():
            while rest:
                rest = rest[self._file.write(rest) :]

    def flush(self) -> None:
        """Wait until everything is on disk. Nothing can be written afterwards."""
        self._flushed = True
        with self._storing():
            os.fsync(self._file.fileno())

    def commit(self) -> None:
        """Make the file visible. Raises ObjectExistsError if the key is taken."""
        self.flush()
        try:
            self.publish(replacing=False)
        except StorageError:
            if self._is_named():  # then the disk failed, and what it holds is unknown
                self.committed = None
            raise
        self.committed = True

    def _is_named(self) -> bool:
        """Return whether the file may have its final name, in addition or as its only one."""
        try:
            if not self._partial.exists():
                return self._target.exists()
            return self._target.exists() and self._target.samefile(self._partial)
        except OSError:
            return True

    def publish(self, *, replacing: bool) -> None:
        """Give the file its name, after its metadata. Both survive a crash afterwards.

        A lock on the root prevents two writers from mixing the metadata of one with the file of
        the other.
        """
        with self._storing(), open(self._root / LOCK_NAME, "ab", opener=without_waiting) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not self._partial.exists():
                raise UploadError(f"the upload of {self._target} was aborted by another process")
            if not replacing and self._target.exists():
                raise self._taken()
            self._write_metadata()
            if replacing:
                self._partial.replace(self._target)
            else:
                self._name_without_replacing()
            sync_folder(self._target.parent)

    def _name_without_replacing(self) -> None:
        """Use a hard link, which never replaces a file, or else a rename under the lock."""
        try:
            os.link(self._partial, self._target)
        except FileExistsError as exc:
            raise self._taken() from exc
        except OSError as exc:
            if exc.errno not in NO_HARD_LINKS:
                raise
            self._partial.rename(self._target)

    def _write_metadata(self) -> None:
        written = unpublished_metadata_of(self._partial)
        with open(written, "w", opener=for_us_alone) as file:
            json.dump(self._metadata, file)
            file.flush()
            os.fsync(file.fileno())
        written.replace(sidecar_of(self._target))

    def _taken(self) -> ObjectExistsError:
        return ObjectExistsError(f"{self._target} already exists")

    @contextmanager
    def _storing(self) -> Iterator[None]:
        with writing(f"store {self._target}"):
            yield
