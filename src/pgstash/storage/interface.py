"""What pgstash asks of a store: objects under keys, and uploads that appear whole or not at all.

``memory``, ``directory`` and ``s3`` implement it, and the contract tests hold all
three to it. Keys are ``/``-separated text without a leading slash. Every failure
leaves as a :class:`pgstash.errors.StorageError`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from pgstash.errors import ObjectDamagedError


@dataclass(frozen=True, slots=True)
class StoredObject:
    """One object: ``size`` in bytes, ``modified`` in UTC; a listing leaves ``metadata`` empty.

    Metadata keys are lower-case ASCII, values printable ASCII.
    """

    key: str
    size: int
    modified: datetime
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PendingUpload:
    """An upload that was begun and neither committed nor aborted."""

    key: str
    upload_id: str
    started: datetime


class Upload(Protocol):
    """An object on its way, written in order, visible only after :meth:`commit`."""

    @property
    def part_size(self) -> int:
        """The number of bytes sent at a time; 0 where there are no parts."""

    @property
    def committed(self) -> bool | None:
        """Whether the object is visible; None where a commit was cut off and nobody knows.

        It is final after the block has been left.
        """

    def write(self, data: bytes) -> None:
        """Append ``data``, of any length.

        May block while earlier bytes are sent. Raises the error that an earlier part
        met as soon as it is known.
        """

    def flush(self) -> None:
        """Wait until everything written so far is in the store, still invisible."""

    def commit(self) -> None:
        """Make the object visible, whole.

        Raises ObjectExistsError if the key was taken meanwhile, UploadError if the
        store does not hold what was sent. A commit whose answer was lost is looked up,
        not guessed.
        """


class Storage(Protocol):
    """A place that keeps objects."""

    def url(self, key: str = "") -> str:
        """Return where ``key`` is, for people: ``s3://bucket/key``; never a secret."""

    def check(self) -> None:
        """Raise unless the store answers, the bucket exists and may be listed."""

    def list(self, prefix: str, *, start_after: str = "") -> Iterator[StoredObject]:
        """Yield every object whose key starts with ``prefix``, in the order of keys.

        Only keys that come after ``start_after``, which need not exist. Rely on the order within
        one folder only: SeaweedFS lists ``b/1`` before ``b-1``.
        """

    def head(self, key: str) -> StoredObject:
        """Return one object with its metadata; raise ObjectNotFoundError."""

    def read(
        self, key: str, *, start: int = 0, length: int | None = None
    ) -> AbstractContextManager[Iterator[bytes]]:
        """Open ``length`` bytes of an object from ``start`` (to its end if None).

        The stream has exactly those bytes, or raises. Raises ObjectNotFoundError, and
        ObjectDamagedError if the range reaches beyond the end of the object.
        """

    def put(self, key: str, data: bytes, metadata: Mapping[str, str]) -> None:
        """Store a small object at once, replacing one of the same key."""

    def upload(
        self,
        key: str,
        *,
        metadata: Mapping[str, str],
        expected_size: int,
        usual_size: int | None = None,
    ) -> AbstractContextManager[Upload]:
        """Begin an upload of at most about ``expected_size`` bytes.

        ``usual_size`` is what such an upload mostly has: memory is chosen by that, if it is known.

        Leaving the block without a commit leaves no object, and removes what was sent.
        ``metadata`` tells this object from any other: a commit whose answer was lost is
        looked up by it.
        """

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects; a key that is not there is no error."""

    def pending(self, prefix: str) -> Iterator[PendingUpload]:
        """Yield uploads under ``prefix`` that were neither committed nor aborted."""

    def abort(self, upload: PendingUpload) -> None:
        """Remove a pending upload and its parts; one that is gone is no error."""


def beyond_the_end(
    url: str, size: int | None, start: int, length: int | None
) -> ObjectDamagedError:
    """Return the error for a range that an object of ``size`` bytes, if known, does not have."""
    wanted = f"bytes from {start} on" if length is None else f"{length} bytes from {start} on"
    has = "it ends before that" if size is None else f"it has {size}"
    return ObjectDamagedError(f"cannot read {wanted} of {url}: {has}")


def end_of_range(url: str, size: int, start: int, length: int | None) -> int:
    """Return where a range ends in an object of ``size`` bytes. Raises ObjectDamagedError."""
    end = size if length is None else start + length
    if length != 0 and (end > size or (start and start >= size)):
        raise beyond_the_end(url, size, start, length)
    return end
