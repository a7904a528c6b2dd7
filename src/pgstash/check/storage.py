"""The preflight of the store: write, read back, list, delete, an upload, and its clock.

What is stored for it lies under the prefix, has a name that no backup has, and is removed again.
"""

from __future__ import annotations

import contextlib
import ipaddress
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from urllib.parse import urlsplit

from pgstash.check.finding import Finding, clock, skipped
from pgstash.errors import ObjectNotFoundError, StorageError
from pgstash.storage import parts
from pgstash.storage.interface import PendingUpload, Storage, Upload

_ID_BYTES = 8
_DELETE = (
    "Pruning deletes old backups, and a failed one what it had stored. Allow s3:DeleteObject, or "
    "let something else delete them."
)
_UPLOADS = (
    "Only pruning asks for them, to remove what a killed process left: allow "
    "s3:ListBucketMultipartUploads, or have a lifecycle rule of the bucket abort them."
)


@dataclass(frozen=True, slots=True)
class Plan:
    """Where to try; ``endpoint`` is None for a directory."""

    prefix: str
    endpoint: str | None
    now: Callable[[], datetime]
    random: Callable[[int], bytes]


def look(plan: Plan, storage: Storage) -> Iterator[Finding]:
    """Try everything that backups and pruning do; yield what came of it."""
    yield _tls(plan.endpoint)
    try:
        storage.check()
    except StorageError as error:
        yield Finding.of("bucket", error)
        yield from skipped(
            ("write", "read", "list", "store clock", "delete", "multipart"),
            "the store could not be listed",
        )
        return
    yield Finding("bucket", "ok", f"{storage.url()} answers")
    probe = _Probe(plan, storage)
    try:
        yield from probe.of_an_object()
        yield from probe.of_an_upload()
    finally:
        probe.clear()


class _Probe:
    """Two objects that are stored for a moment."""

    def __init__(self, plan: Plan, storage: Storage) -> None:
        self._plan = plan
        self._storage = storage
        self._id = plan.random(_ID_BYTES).hex()
        self._key = f"{plan.prefix}/pgstash-check-{self._id}"
        self._upload_key = f"{self._key}-upload"
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
        yield _tried("read", "the same bytes and metadata came back", lambda: self._read(data))
        yield _tried("list", "the object is listed", self._list)
        yield self._clock(began + (ended - began) / 2)
        yield self._delete()

    def _read(self, data: bytes) -> str:
        with self._storage.read(self._key) as chunks:
            if b"".join(chunks) != data:
                return "the store returns other bytes than were written"
        if self._storage.head(self._key).metadata.get("id") != self._id:
            return "the store does not keep the metadata of an object"
        return ""

    def _list(self) -> str:
        seen = any(found.key == self._key for found in self._storage.list(self._key))
        return "" if seen else "the object was written, and the listing does not have it"

    def _clock(self, moment: datetime) -> Finding:
        try:
            modified = self._storage.head(self._key).modified
        except StorageError:
            return Finding("store clock", "skipped", "the object could not be looked at")
        return clock("store clock", (modified - moment).total_seconds(), "the store's clock")

    def _delete(self) -> Finding:
        try:
            self._storage.delete([self._key])
            self._storage.head(self._key)
        except ObjectNotFoundError:
            self._left.discard(self._key)
            return Finding("delete", "ok", "the object is gone")
        except StorageError as error:
            left = f"; left behind: {self._storage.url(self._key)}"
            return Finding("delete", "failure", error.message + left, _DELETE)
        return Finding("delete", "failure", "the object was deleted, and is still there", _DELETE)

    def of_an_upload(self) -> Iterator[Finding]:
        tried = _tried("multipart", "an upload appears whole, and none of an aborted one", self._up)
        yield tried
        if tried.state != "ok":
            return
        try:
            pending = self._pending()
        except StorageError as error:
            yield Finding(
                "abandoned uploads", "warning", f"not to be seen: {error.message}", _UPLOADS
            )
            return
        if pending:
            yield Finding(
                "abandoned uploads",
                "warning",
                "the parts of an aborted upload stay in the store",
                "Allow s3:AbortMultipartUpload, or have a lifecycle rule of the bucket abort them.",
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
        with self._storage.read(self._upload_key) as chunks:
            same = b"".join(chunks) == data
        return "" if same else "the store returns other bytes than were uploaded"

    def _begun(self) -> AbstractContextManager[Upload]:
        return self._storage.upload(
            self._upload_key, metadata={"id": self._id}, expected_size=parts.SMALLEST
        )

    def _pending(self) -> list[PendingUpload]:
        return list(self._storage.pending(self._upload_key))

    def clear(self) -> None:
        """Remove what is left, if the store lets us; what it refused was told."""
        with contextlib.suppress(StorageError):
            self._storage.delete(sorted(self._left))
        with contextlib.suppress(StorageError):
            for upload in self._pending():
                self._storage.abort(upload)


def _tried(topic: str, works: str, attempt: Callable[[], str]) -> Finding:
    """Return what came of an attempt that returns what is wrong, or nothing."""
    try:
        wrong = attempt()
    except StorageError as error:
        return Finding.of(topic, error)
    if wrong:
        return Finding(
            topic, "failure", wrong, "Is there something in between that changes what is sent?"
        )
    return Finding(topic, "ok", works)


def _tls(endpoint: str | None) -> Finding:
    url = urlsplit(endpoint or "")
    host = url.hostname or ""
    if endpoint is None:
        return Finding("store TLS", "ok", "not needed: a directory")
    if url.scheme == "https":
        return Finding("store TLS", "ok", f"on, to {host}")
    if _is_loopback(host):
        return Finding("store TLS", "ok", "not needed: the connection stays on this machine")
    return Finding(
        "store TLS",
        "warning",
        f"off: whoever is between here and {host} reads the backups",
        "Let S3_ENDPOINT begin with https://, or turn BACKUP_ENCRYPTION on.",
    )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def part_size(
    bytes_: int,
    wanted: int | None,
    max_parts: int,
    usual: int | None = None,
    endpoint: str | None = None,
) -> Finding:
    """Return what an upload of a database of so many bytes takes, and how much it holds.

    ``usual`` is what the last backups stored, None if there are none.
    """
    sizes = parts.equal(wanted or 0, max_parts)
    if wanted is None:
        sizes = parts.sizes_for(bytes_, usual, max_parts, may_grow=parts.may_grow(endpoint))
    grown = f", with parts that grow up to {_mib(sizes.of(max_parts))}" if sizes.grow else ""
    found = (
        f"{_mib(sizes.first)}, {parts.BUFFERS} in memory: {_mib(sizes.first * parts.BUFFERS)}; one "
        f"backup may have {sizes.hold / 1024**3:.0f} GiB stored{grown}, the database has "
        f"{bytes_ / 1024**3:.1f} GiB"
    )
    if sizes.hold >= bytes_:
        return Finding("part size", "ok", found)
    return Finding(
        "part size",
        "warning",
        f"{found}, and may not fit where it compresses badly",
        "Leave S3_PART_SIZE out, or set it to "
        f"{parts.size_for(bytes_, max_parts) // parts.MIB} or more.",
    )


def _mib(count: int) -> str:
    return f"{count / 1024**2:.0f} MiB"
