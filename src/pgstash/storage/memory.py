"""A store in the memory of this process, for tests and experiments."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Self

from pgstash.errors import ObjectExistsError, ObjectNotFoundError, UploadError
from pgstash.storage.interface import PendingUpload, StoredObject, end_of_range

CHUNK = 256 * 1024


@dataclass(frozen=True, slots=True)
class _Entry:
    stored: StoredObject
    data: bytes


class MemoryStorage:
    """Objects in a dictionary; several threads may use it."""

    def __init__(self) -> None:
        """Start empty."""
        self._lock = threading.Lock()
        self._entries: dict[str, _Entry] = {}
        self._pending: dict[str, PendingUpload] = {}
        self._upload_ids = itertools.count(1)

    def url(self, key: str = "") -> str:
        """Return ``memory:///key``."""
        return f"memory:///{key}"

    def check(self) -> None:
        """Do nothing: memory is always there."""

    def list(self, prefix: str, *, start_after: str = "") -> Iterator[StoredObject]:
        """Yield the objects that exist when the first one is requested."""
        with self._lock:
            found = sorted(
                key for key in self._entries if key.startswith(prefix) and key > start_after
            )
            entries = [self._entries[key].stored for key in found]
        for stored in entries:
            yield replace(stored, metadata={})

    def folders(self, within: str = "", *, complete: bool = False) -> Sequence[str]:
        """Return the folders directly within a folder, always all of them."""
        del complete
        with self._lock:
            rests = [key.removeprefix(within) for key in self._entries if key.startswith(within)]
        return sorted({f"{within}{rest.partition('/')[0]}/" for rest in rests if "/" in rest})

    def head(self, key: str) -> StoredObject:
        """Return one object with its metadata. Raises ObjectNotFoundError."""
        return self._entry(key).stored

    @contextmanager
    def read(
        self, key: str, *, start: int = 0, length: int | None = None
    ) -> Iterator[Iterator[bytes]]:
        """Open a range of an object; see :meth:`pgstash.storage.interface.Storage.read`."""
        data = self._entry(key).data
        end = end_of_range(self.url(key), len(data), start, length)
        yield (data[at : min(at + CHUNK, end)] for at in range(start, end, CHUNK))

    def put(self, key: str, data: bytes, metadata: Mapping[str, str]) -> None:
        """Store an object, replacing one of the same key."""
        with self._lock:
            self._entries[key] = _entry(key, data, metadata)

    def upload(
        self,
        key: str,
        *,
        metadata: Mapping[str, str],
        expected_size: int,
        usual_size: int | None = None,
    ) -> MemoryUpload:
        """Start an upload; its expected size is not needed."""
        del expected_size, usual_size
        return MemoryUpload(self, key, metadata)

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects. A missing key is not an error."""
        with self._lock:
            for key in keys:
                self._entries.pop(key, None)

    def pending(self, prefix: str) -> Iterator[PendingUpload]:
        """Yield the uploads under ``prefix`` that are neither committed nor aborted."""
        with self._lock:
            uploads = list(self._pending.values())
        yield from (upload for upload in uploads if upload.key.startswith(prefix))

    def abort(self, upload: PendingUpload) -> None:
        """Drop a pending upload; its owner can no longer commit it."""
        with self._lock:
            self._pending.pop(upload.upload_id, None)

    def _entry(self, key: str) -> _Entry:
        with self._lock:
            try:
                return self._entries[key]
            except KeyError as exc:
                raise ObjectNotFoundError(f"{self.url(key)} does not exist") from exc

    def _begin(self, key: str) -> PendingUpload:
        with self._lock:
            pending = PendingUpload(key, str(next(self._upload_ids)), datetime.now(UTC))
            self._pending[pending.upload_id] = pending
            return pending

    def _publish(self, pending: PendingUpload, data: bytes, metadata: Mapping[str, str]) -> None:
        with self._lock:
            if pending.upload_id not in self._pending:
                raise UploadError(f"the upload of {pending.key} was aborted by another process")
            if pending.key in self._entries:
                raise ObjectExistsError(f"{self.url(pending.key)} already exists")
            self._entries[pending.key] = _entry(pending.key, data, metadata)
            del self._pending[pending.upload_id]


class MemoryUpload:
    """An object being written; see :class:`pgstash.storage.interface.Upload`."""

    part_size = 0

    def __init__(self, storage: MemoryStorage, key: str, metadata: Mapping[str, str]) -> None:
        """Prepare; nothing is pending until the block is entered."""
        self._storage = storage
        self._key = key
        self._metadata = metadata
        self._written = bytearray()
        self._finished = False
        self.committed: bool | None = False

    def __enter__(self) -> Self:
        self._pending = self._storage._begin(self._key)  # noqa: SLF001 - one class in two parts
        return self

    def __exit__(self, *_: object) -> None:
        self._finished = True
        self._storage.abort(self._pending)

    def write(self, data: bytes) -> None:
        """Append ``data``. Raises UploadError after a flush or a commit."""
        if self._finished:
            raise UploadError(f"the upload of {self._key} is finished; nothing can be added")
        self._written += data

    def flush(self) -> None:
        """End the writing; there is nothing to wait for."""
        self._finished = True

    def commit(self) -> None:
        """Make the object visible. Raises ObjectExistsError and UploadError."""
        self.flush()
        self._storage._publish(self._pending, bytes(self._written), self._metadata)  # noqa: SLF001
        self.committed = True


def _entry(key: str, data: bytes, metadata: Mapping[str, str]) -> _Entry:
    lowered = {name.lower(): value for name, value in metadata.items()}
    return _Entry(StoredObject(key, len(data), datetime.now(UTC), lowered), bytes(data))
