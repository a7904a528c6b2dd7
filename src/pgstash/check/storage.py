"""The preflight of the store: write, read back, list, delete, an upload, and its clock.

Its objects are stored under the prefix, have names that no backup has, and are removed again: by
pruning, if this host may not delete.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime

from pgstash.check import bucket_rules, tls
from pgstash.check.finding import Finding, clock, skipped
from pgstash.errors import (
    ConfigurationError,
    ObjectNotFoundError,
    StorageError,
    StorageRefusedError,
)
from pgstash.format import trial_objects
from pgstash.storage import part_size as parts
from pgstash.storage.interface import Identified, PendingUpload, Storage, Upload

ONLY_WRITES = "not with STORAGE_ROLE=writer"

_ID_BYTES = 8
_TRIED = ("write", "read", "list", "store clock", "delete", "multipart")
_ARCHIVED = ("GLACIER", "DEEP_ARCHIVE")
_DELETE = (
    "Pruning deletes old backups, and a failed backup deletes what it stored. Allow "
    "s3:DeleteObject (on Azure the permission d, on Google Cloud storage.objects.delete), or "
    "delete them by other means."
)
_UPLOADS = (
    "Only pruning lists them, to remove what a killed process left behind. Allow "
    "s3:ListBucketMultipartUploads, or abort them by a lifecycle rule of the bucket."
)


@dataclass(frozen=True, slots=True)
class Plan:
    """Where to try; ``endpoint`` is None for a directory.

    ``part_size`` is in bytes, None if pgstash chooses it; ``max_parts`` is the store's limit.
    ``endpoint_setting`` is where the user would change the endpoint. A host that ``only_writes``
    does not try to read or delete. ``rules`` is what the rules of the bucket are compared with;
    None if they are not.
    """

    prefix: str
    endpoint: str | None
    now: Callable[[], datetime]
    random: Callable[[int], bytes]
    part_size: int | None
    max_parts: int
    endpoint_setting: str = "S3_ENDPOINT"
    storage_class: str | None = None
    only_writes: bool = False
    rules: bucket_rules.Plan | None = None


def look(plan: Plan, storage: Storage) -> Iterator[Finding]:
    """Try everything that backups and pruning do; yield the results."""
    yield tls.look(plan.endpoint, plan.endpoint_setting)
    if isinstance(storage, Identified):
        identity = _identity(storage)
        yield identity
        if identity.state == "failure":
            yield from skipped(("bucket", *_TRIED), "no request could be signed")
            return
    try:
        storage.check()
    except StorageError as error:
        yield Finding.of("bucket", error)
        yield from skipped(_TRIED, "the store could not be listed")
        return
    yield Finding("bucket", "ok", f"{storage.url()} answers")
    yield from _storage_class(plan.storage_class)
    if plan.rules:
        yield from bucket_rules.look(plan.rules, storage)
    probe = _Probe(plan, storage)
    try:
        yield from probe.of_an_object()
        yield from probe.of_an_upload()
    finally:
        probe.clear()


def _identity(storage: Identified) -> Finding:
    """Return who makes the requests, and where the credentials come from."""
    try:
        return Finding("identity", "ok", storage.identity())
    except (ConfigurationError, StorageError) as error:
        return Finding.of("identity", error)


class _Probe:
    """Two objects that are stored temporarily."""

    def __init__(self, plan: Plan, storage: Storage) -> None:
        self._plan = plan
        self._storage = storage
        self._id = plan.random(_ID_BYTES).hex()
        self._key = f"{plan.prefix}/{trial_objects.name(self._id)}"
        self._upload_key = f"{plan.prefix}/{trial_objects.upload_name(self._id)}"
        self._left: set[str] = set()

    def of_an_object(self) -> Iterator[Finding]:
        data = f"pgstash check {self._id}\n".encode()
        self._left.add(self._key)
        began = self._plan.now()
        try:
            self._storage.put(self._key, data, {"id": self._id})
        except StorageError as error:
            yield Finding.of("write", error)
            yield from skipped(("read", "list", "store clock", "delete"), "nothing was written")
            return
        ended = self._plan.now()
        yield Finding("write", "ok", f"an object under {self._storage.url(self._plan.prefix)}")
        if self._plan.only_writes:
            yield from skipped(("read",), ONLY_WRITES)
        else:
            yield _tried("read", "the same bytes and metadata came back", lambda: self._read(data))
        yield _tried("list", "the object is listed", self._list)
        yield self._clock(began + (ended - began) / 2)
        if self._plan.only_writes:
            yield from skipped(("delete",), ONLY_WRITES)
        else:
            yield self._delete()

    def _read(self, data: bytes) -> str:
        with self._storage.read(self._key) as chunks:
            if b"".join(chunks) != data:
                return "the store returns different bytes from those that were written"
        if self._storage.head(self._key).metadata.get("id") != self._id:
            return "the store does not keep the metadata of an object"
        return ""

    def _list(self) -> str:
        seen = any(found.key == self._key for found in self._storage.list(self._key))
        return "" if seen else "the object was written, but it is not listed"

    def _clock(self, moment: datetime) -> Finding:
        try:
            # By the listing: a host that only writes may not request the object.
            [modified] = [
                found.modified for found in self._storage.list(self._key) if found.key == self._key
            ]
        except (StorageError, ValueError):
            return Finding("store clock", "skipped", "the object could not be read")
        return clock("store clock", (modified - moment).total_seconds(), "the store's clock")

    def _delete(self) -> Finding:
        try:
            self._storage.delete([self._key])
            self._storage.head(self._key)
        except ObjectNotFoundError:
            self._left.discard(self._key)
            return Finding("delete", "ok", "the object is gone")
        except StorageError as error:
            if isinstance(error, StorageRefusedError) and error.locked:
                found = "the store has locked the object; pruning removes it when the lock ends"
                return Finding("delete", "ok", found)
            left = f"; left behind: {self._storage.url(self._key)}"
            return Finding("delete", "failure", error.message + left, _DELETE)
        return Finding("delete", "failure", "the object was deleted, but it still exists", _DELETE)

    def of_an_upload(self) -> Iterator[Finding]:
        tried = _tried("multipart", "completed uploads are visible, aborted ones are not", self._up)
        yield tried
        if tried.state != "ok" or self._plan.only_writes:
            return
        try:
            pending = self._pending()
        except StorageError as error:
            yield Finding(
                "abandoned uploads", "warning", f"cannot be listed: {error.message}", _UPLOADS
            )
            return
        if pending:
            yield Finding(
                "abandoned uploads",
                "warning",
                "the parts of an aborted upload stay in the store",
                "Allow s3:AbortMultipartUpload, or let a lifecycle rule of the bucket abort them.",
            )

    def _up(self) -> str:
        data = b"pgstash check: an upload\n"
        with self._begun() as upload:
            upload.write(data)
            upload.flush()
        if any(found.key == self._upload_key for found in self._storage.list(self._upload_key)):
            self._left.add(self._upload_key)
            return "an upload that was never committed is visible"
        with self._begun() as upload:
            upload.write(data)
            self._left.add(self._upload_key)
            upload.commit()
        if self._plan.only_writes:
            return ""
        if self._storage.head(self._upload_key).archived:
            return ""  # nothing can be read from this class at once
        with self._storage.read(self._upload_key) as chunks:
            same = b"".join(chunks) == data
        return "" if same else "the store returns different bytes from those that were uploaded"

    def _begun(self) -> AbstractContextManager[Upload]:
        return self._storage.upload(
            self._upload_key, metadata={"id": self._id}, expected_size=parts.SMALLEST
        )

    def _pending(self) -> list[PendingUpload]:
        return list(self._storage.pending(self._upload_key))

    def clear(self) -> None:
        """Remove the objects, if the store permits it; a refusal is among the findings."""
        if self._plan.only_writes:
            return
        with contextlib.suppress(StorageError):
            self._storage.delete(sorted(self._left))
        with contextlib.suppress(StorageError):
            for upload in self._pending():
                self._storage.abort(upload)


def _storage_class(name: str | None) -> Iterator[Finding]:
    """Yield what the storage class of archives means for restores, if it is set."""
    if name in _ARCHIVED:
        yield Finding(
            "storage class",
            "warning",
            f"{name}: a backup has to be thawed before it can be restored, which takes hours, and "
            "no drill can prove that it restores",
            "Set S3_STORAGE_CLASS to GLACIER_IR or STANDARD_IA, or let a lifecycle rule of the "
            "bucket move old backups.",
        )
    elif name == "INTELLIGENT_TIERING":
        found = f"{name}: at once readable, unless the bucket has archive tiers turned on"
        yield Finding("storage class", "ok", found)
    elif name:
        yield Finding("storage class", "ok", name)


def _tried(topic: str, works: str, attempt: Callable[[], str]) -> Finding:
    """Return the result of an attempt, which returns the problem or an empty text."""
    try:
        wrong = attempt()
    except StorageError as error:
        return Finding.of(topic, error)
    if wrong:
        return Finding(
            topic,
            "failure",
            wrong,
            "Check for a proxy or gateway that changes data on the way to the store.",
        )
    return Finding(topic, "ok", works)


def part_size(database_bytes: int, plan: Plan, usual: int | None) -> Finding:
    """Return how large a backup of a database of this size may become, and the memory it takes.

    ``usual`` is the size of the last backups in the store, in bytes; None if there are none.
    """
    sizes = parts.equal(plan.part_size or 0, plan.max_parts)
    if plan.part_size is None:
        may_grow = parts.may_grow(plan.endpoint)
        sizes = parts.sizes_for(database_bytes, usual, plan.max_parts, may_grow=may_grow)
    grown = f", with parts that grow up to {_mib(sizes.of(plan.max_parts))}" if sizes.grow else ""
    found = (
        f"{_mib(sizes.first)}, {parts.BUFFERS} in memory: {_mib(sizes.first * parts.BUFFERS)}; one "
        f"backup may have {sizes.hold / 1024**3:.0f} GiB stored{grown}, the database has "
        f"{database_bytes / 1024**3:.1f} GiB"
    )
    if sizes.hold >= database_bytes:
        return Finding("part size", "ok", found)
    return Finding(
        "part size",
        "warning",
        f"{found}, and may not fit if it compresses badly",
        "Remove S3_PART_SIZE, or set it to "
        f"{parts.size_for(database_bytes, plan.max_parts) // parts.MIB} or more.",
    )


def _mib(count: int) -> str:
    return f"{count / 1024**2:.0f} MiB"
