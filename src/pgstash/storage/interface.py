"""What pgstash requires of a store: objects by key, and uploads that appear whole or not at all.

``memory``, ``directory``, ``s3``, ``azure`` and ``gcs`` implement it, and the contract tests check
all of them. Keys are
``/``-separated text without a leading slash. Every failure is raised as a
:class:`pgstash.errors.StorageError`.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol, runtime_checkable

from pgstash.errors import ObjectDamagedError, StorageRefusedError


@dataclass(frozen=True, slots=True)
class StoredObject:
    """One object: ``size`` in bytes, ``modified`` in UTC. A listing leaves ``metadata`` empty.

    ``archived`` is the class of an object that has to be thawed before it can be read; in a
    listing, it may have been thawed since. It is empty for all others.

    Metadata keys are lower-case ASCII; values are printable ASCII.
    """

    key: str
    size: int
    modified: datetime
    metadata: Mapping[str, str] = field(default_factory=dict)
    archived: str = ""


@dataclass(frozen=True, slots=True)
class ObjectVersion:
    """One version of an object, or a delete marker, which hides the versions before it.

    ``current`` is whether a request for the key finds this one. A marker has the ``size`` 0.
    """

    key: str
    version_id: str
    modified: datetime
    size: int
    current: bool
    is_marker: bool = False


@dataclass(frozen=True, slots=True)
class PendingUpload:
    """An upload that was started and neither committed nor aborted."""

    key: str
    upload_id: str
    started: datetime


class Upload(Protocol):
    """An object being uploaded: written in order, and visible only after :meth:`commit`."""

    @property
    def part_size(self) -> int:
        """The number of bytes sent at a time; 0 if there are no parts."""

    @property
    def committed(self) -> bool | None:
        """Whether the object is visible; None if a commit was cut off with unknown outcome.

        The value is final once the block has been left.
        """

    def write(self, data: bytes) -> None:
        """Append ``data``, of any length.

        May block while earlier bytes are sent. Raises the error of an earlier part as soon as it is
        known.
        """

    def flush(self) -> None:
        """Wait until all that was written is in the store, still invisible."""

    def commit(self) -> None:
        """Make the whole object visible.

        Raises ObjectExistsError if the key was taken in the meantime, UploadError if the store does
        not hold the bytes that were sent. If the response to a commit was lost, the store is
        checked for the object.
        """


class Storage(Protocol):
    """A place that keeps objects."""

    def url(self, key: str = "") -> str:
        """Return the place of ``key`` for messages, ``s3://bucket/key``; it holds no secret."""

    def check(self) -> None:
        """Raise StorageError unless the store answers and the bucket exists and may be listed."""

    def list(self, prefix: str, *, start_after: str = "") -> Iterator[StoredObject]:
        """Yield every object whose key starts with ``prefix``, in the order of keys.

        Only keys after ``start_after`` are listed; that key need not exist. Rely on the order only
        within one folder: SeaweedFS lists ``b/1`` before ``b-1``.
        """

    def folders(self, within: str = "", *, complete: bool = False) -> Sequence[str]:
        """Return the folders directly within a folder, in order: ``a/b/`` within ``a/``.

        ``within`` ends with a slash. Without it, the folders are those of the whole store: ``a/``.
        Unless ``complete``, one request is sent, and some may be missing if the folder has more
        than about 1,000 entries.
        """

    def head(self, key: str) -> StoredObject:
        """Return one object with its metadata. Raises ObjectNotFoundError."""

    def read(
        self, key: str, *, start: int = 0, length: int | None = None
    ) -> AbstractContextManager[Iterator[bytes]]:
        """Open ``length`` bytes of an object from ``start`` on; None reads to its end.

        The stream yields exactly those bytes, or raises. Raises ObjectNotFoundError, and
        ObjectDamagedError if the range extends beyond the end of the object.
        """

    def put(self, key: str, data: bytes, metadata: Mapping[str, str]) -> None:
        """Store a small object, replacing one of the same key."""

    def upload(
        self,
        key: str,
        *,
        metadata: Mapping[str, str],
        expected_size: int,
        usual_size: int | None = None,
    ) -> AbstractContextManager[Upload]:
        """Start an upload of at most about ``expected_size`` bytes.

        ``usual_size`` is the size of most such uploads. If it is known, memory is chosen for it.
        Leaving the block without a commit leaves no object, and removes the bytes that were sent.
        ``metadata`` must distinguish this object from any other: it identifies the object if the
        response to a commit was lost.
        """

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects. A missing key is not an error."""

    def pending(self, prefix: str) -> Iterator[PendingUpload]:
        """Yield the uploads under ``prefix`` that are neither committed nor aborted."""

    def abort(self, upload: PendingUpload) -> None:
        """Remove a pending upload and its parts. If it is gone, that is not an error."""


@dataclass(frozen=True, slots=True)
class Original:
    """An object to copy, in another place. It was ``found`` there.

    ``copied_inside`` is called with numbers of bytes that the store of the copy took from there
    itself, and ``kept`` with those that it had from an earlier upload. Several threads call them.
    """

    storage: Storage
    found: StoredObject
    copied_inside: Callable[[int], None]
    kept: Callable[[int], None]


@runtime_checkable
class CopiesInside(Protocol):
    """A store that may copy bytes from one of its buckets to another itself."""

    def upload_copy(self, key: str, original: Original) -> AbstractContextManager[Upload]:
        """Start to upload what is written, which must be the bytes of an original, in order.

        It gets the metadata of the original. See :meth:`Storage.upload`. Bytes are not sent if the
        store copies them itself, or has them from an upload of these bytes that was interrupted,
        and they are then the same as those written. Such an upload stays if the block is left
        without a commit.
        """


@runtime_checkable
class Identified(Protocol):
    """A store that takes requests from several identities."""

    def identity(self) -> str:
        """Return who makes the requests, and where that was configured, without a secret.

        Raises StorageError, ConfigurationError.
        """


@runtime_checkable
class Hosted(Protocol):
    """A store whose URLs name neither the server that has the objects nor the tenant of it."""

    @property
    def host(self) -> Sequence[str]:
        """What distinguishes the store from others whose objects have the same URLs."""


@runtime_checkable
class Locking(Protocol):
    """A store whose objects may be locked against deletion."""

    def locked_until(self, key: str, version_id: str | None = None) -> datetime | None:
        """Return the time until which an object is locked; None if it is not, or it is unknown.

        Without a version it is the current one. Raises ObjectNotFoundError, StorageError.
        """


@runtime_checkable
class Versioned(Protocol):
    """A store that may keep earlier versions of objects. Every method raises StorageError.

    In a bucket without versioning, each object has one version, and deleting it leaves none.
    """

    def versions(self, prefix: str) -> Iterator[ObjectVersion]:
        """Yield all versions and delete markers of the keys that start with ``prefix``."""

    def head_version(self, version: ObjectVersion) -> StoredObject:
        """Return one version with its metadata. Raises ObjectNotFoundError."""

    def delete_versions(self, which: Iterable[ObjectVersion]) -> None:
        """Remove versions and markers for good. A missing one is not an error."""


def locked(message: str) -> StorageRefusedError:
    """Return the error for an object that a lock of the store protects from deletion."""
    error = StorageRefusedError(
        message, hint="Set a retention of backups that is longer than the lock."
    )
    error.locked = True
    return error


def beyond_the_end(
    url: str, size: int | None, start: int, length: int | None
) -> ObjectDamagedError:
    """Return the error for a range beyond the end of an object; ``size`` may be unknown."""
    wanted = f"bytes from {start} on" if length is None else f"{length} bytes from {start} on"
    has = "it ends before that" if size is None else f"it has {size}"
    return ObjectDamagedError(f"cannot read {wanted} of {url}: {has}")


def archived(url: str, storage_class: str = "") -> StorageRefusedError:
    """Return the error for an object that has to be thawed before it can be read."""
    what = f"it is in the storage class {storage_class}" if storage_class else "it is archived"
    return StorageRefusedError(
        f"cannot read {url} yet: {what}",
        hint=f"Thaw it, which takes hours, then try again: {_thawing(url)}",
    )


def _thawing(url: str) -> str:
    """Return the command that thaws an object."""
    if url.startswith("azure://"):
        account, container, key = map(shlex.quote, url.removeprefix("azure://").split("/", 2))
        return (
            f"az storage blob set-tier --account-name {account} --container-name {container} "
            f"--name {key} --tier Hot"
        )
    bucket, _, key = url.removeprefix("s3://").partition("/")
    return (
        f"aws s3api restore-object --bucket {shlex.quote(bucket)} --key {shlex.quote(key)} "
        "--restore-request Days=7"
    )


def end_of_range(url: str, size: int, start: int, length: int | None) -> int:
    """Return the end of a range in an object of ``size`` bytes. Raises ObjectDamagedError."""
    end = size if length is None else start + length
    if length != 0 and (end > size or (start and start >= size)):
        raise beyond_the_end(url, size, start, length)
    return end
