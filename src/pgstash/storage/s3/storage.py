"""A bucket of an S3-compatible store."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from typing import Any

from pgstash import events
from pgstash.errors import ConfigurationError, StorageError
from pgstash.storage import part_size as parts
from pgstash.storage.bucket_rules import BucketRules
from pgstash.storage.interface import ObjectVersion, Original, PendingUpload, StoredObject
from pgstash.storage.multipart_upload import MultipartUpload
from pgstash.storage.part_reader import PartReader
from pgstash.storage.s3 import bucket_rules, deletion, object_lock, versions
from pgstash.storage.s3.client import Requests, archived_class, lowered
from pgstash.storage.s3.codes import ARCHIVED
from pgstash.storage.s3.config import S3Config
from pgstash.storage.s3.copied import CopiedMultipart, Inside, Source
from pgstash.storage.s3.download import Download
from pgstash.storage.s3.errors import unreadable, upload_is_gone
from pgstash.storage.s3.multipart import S3Multipart
from pgstash.storage.s3.resumed import Earlier, ResumedMultipart
from pgstash.storage.s3.unreadable import UnreadableMultipart

# Every store sends some of these with a listing, even an empty one. A web page has none.
LISTING = {"Contents", "IsTruncated", "KeyCount", "MaxKeys", "Name"}


class S3Storage:
    """One bucket; the client is made here, and nothing is sent before the first operation."""

    def __init__(self, config: S3Config, emit: events.Emit = events.ignore) -> None:
        """Prepare the client. ``emit`` is called from several threads.

        Raises ConfigurationError if the endpoint is not a URL, or if S3 does not allow parts of
        that size.
        """
        size = config.part_size
        if size is not None and not parts.SMALLEST <= size <= parts.LARGEST:
            raise ConfigurationError(["S3_PART_SIZE must be between 5 and 5120 MiB."])
        self._bucket = config.bucket
        self._prefix = config.prefix
        self._may_read = config.may_read
        self._part_size = size
        self._max_parts = config.max_parts
        self._may_grow = parts.may_grow(config.endpoint)
        self._provider = config.provider
        self.host = config.host
        self._inside = Inside(emit)
        self._emit = emit
        self._requests = Requests(config, emit)
        self._client = self._requests.client

    def __repr__(self) -> str:
        return f"S3Storage({self.url()!r})"

    def url(self, key: str = "") -> str:
        """Return ``s3://bucket/key``."""
        return f"s3://{self._bucket}/{key}"

    def identity(self) -> str:
        """Return whom requests are signed as; see :class:`pgstash.storage.interface.Identified`."""
        return self._requests.call("get credentials", self._requests.identity.describe)

    def check(self) -> None:
        """Raise StorageError unless the store answers and the bucket exists and may be listed."""
        where = (
            f"list {self.url(self._prefix)}" if self._prefix else f"list the bucket {self.url()}"
        )
        self._page(where, Prefix=self._prefix, MaxKeys=1)
        if self._requests.objects.lock_days is not None:
            object_lock.require(self._requests)

    def locked_until(self, key: str, version_id: str | None = None) -> datetime | None:
        """Return when the lock of an object ends; see :class:`pgstash.storage.interface.Locking`.

        Raises ObjectNotFoundError, StorageError.
        """
        return object_lock.locked_until(self._requests, key, version_id)

    def bucket_rules(self) -> BucketRules:
        """Return what is known; see :class:`pgstash.storage.bucket_rules.HasRules`."""
        return bucket_rules.read(self._requests, self._prefix)

    def list(self, prefix: str, *, start_after: str = "") -> Iterator[StoredObject]:
        """Yield every object whose key starts with ``prefix``, in the order of keys.

        https://docs.aws.amazon.com/AmazonS3/latest/API/API_ListObjectsV2.html
        """
        position: dict[str, Any] = {"StartAfter": start_after} if start_after else {}
        while True:
            found, more = self._page(f"list {self.url(prefix)}", Prefix=prefix, **position)
            yield from found
            if more is None:
                return
            position = {"ContinuationToken": more}

    def _page(self, doing: str, **which: Any) -> tuple[Sequence[StoredObject], str | None]:  # noqa: ANN401 - parameters of botocore
        """Return the objects of one page of a listing, and where the next page begins."""

        def ask() -> tuple[Sequence[StoredObject], str | None]:
            page = self._client.list_objects_v2(Bucket=self._bucket, **which)
            if not LISTING & page.keys():
                raise unreadable(doing)
            found = [
                StoredObject(
                    each["Key"],
                    each["Size"],
                    each["LastModified"].astimezone(UTC),
                    archived=kept if (kept := each.get("StorageClass", "")) in ARCHIVED else "",
                )
                for each in page.get("Contents", [])
            ]
            return found, page["NextContinuationToken"] if page.get("IsTruncated") else None

        return self._requests.call(doing, ask)

    def folders(self, within: str = "", *, complete: bool = False) -> Sequence[str]:
        """Return the folders directly within a folder, of the first page or of all pages.

        https://docs.aws.amazon.com/AmazonS3/latest/userguide/using-prefixes.html
        """
        found: set[str] = set()
        position: dict[str, Any] = {}

        def ask() -> str | None:
            page = self._client.list_objects_v2(
                Bucket=self._bucket, Prefix=within, Delimiter="/", **position
            )
            found.update(each["Prefix"] for each in page.get("CommonPrefixes", []))
            return page["NextContinuationToken"] if page.get("IsTruncated") else None

        doing = f"list the folders of {self.url(within)}"
        while (more := self._requests.call(doing, ask)) and complete:
            position = {"ContinuationToken": more}
        return sorted(found)

    def head(self, key: str) -> StoredObject:
        """Return one object with its metadata; raise ObjectNotFoundError."""
        return self._head(key)

    def _head(self, key: str, **which: str) -> StoredObject:
        def ask() -> StoredObject:
            given: dict[str, Any] = dict(which)
            found = self._client.head_object(Bucket=self._bucket, Key=key, **given)
            modified = found["LastModified"].astimezone(UTC)
            return StoredObject(
                key,
                found["ContentLength"],
                modified,
                lowered(found["Metadata"]),
                archived_class(found),
            )

        return self._requests.call(f"read the metadata of {self.url(key)}", ask)

    @contextmanager
    def read(
        self, key: str, *, start: int = 0, length: int | None = None
    ) -> Iterator[Iterator[bytes]]:
        """Open a range of an object; see :meth:`pgstash.storage.interface.Storage.read`.

        https://docs.aws.amazon.com/AmazonS3/latest/API/API_GetObject.html
        """
        if length == 0:
            self.head(key)
            yield iter(())
            return
        with closing(Download(self._requests, key, start, length)) as download:
            yield download.chunks()

    def put(self, key: str, data: bytes, metadata: Mapping[str, str]) -> None:
        """Store a small object with one request, replacing one of the same key."""
        small: Any = self._requests.objects.small() | self._requests.lock(key)
        self._requests.call(
            f"store {self.url(key)}",
            lambda: self._client.put_object(
                Bucket=self._bucket,
                Key=key,
                Body=PartReader(memoryview(data)).body(),
                Metadata=dict(metadata),
                **small,
            ),
        )

    def upload(
        self,
        key: str,
        *,
        metadata: Mapping[str, str],
        expected_size: int,
        usual_size: int | None = None,
    ) -> MultipartUpload:
        """Begin a multipart upload.

        Its parts have the configured size, or the sizes that :mod:`.part_size` chooses.
        """
        kind = S3Multipart if self._may_read else UnreadableMultipart
        sizes = self._sizes(expected_size, usual_size)
        return MultipartUpload(kind(self._requests, key, metadata), sizes, self._emit)

    def upload_copy(self, key: str, original: Original) -> MultipartUpload:
        """Begin a multipart upload; see :class:`pgstash.storage.interface.CopiesInside`.

        The store is asked to copy the parts itself if the original is in one of its buckets, and
        until it has refused once.
        """
        storage, found = original.storage, original.found
        if not self._may_read:
            return self.upload(key, metadata=found.metadata, expected_size=found.size)
        sizes = self._sizes(found.size, None)
        earlier = Earlier(original, sizes.first, self._emit)
        if (
            not isinstance(storage, S3Storage)
            or storage._provider != self._provider  # noqa: SLF001 - of this class
            or not self._inside.works
        ):
            return MultipartUpload(
                ResumedMultipart(self._requests, key, earlier), sizes, self._emit
            )
        source = Source(storage._requests, earlier)  # noqa: SLF001 - of this class
        multipart = CopiedMultipart(self._requests, key, source, self._inside)
        return MultipartUpload(multipart, sizes, self._emit)

    def _sizes(self, expected_size: int, usual_size: int | None) -> parts.Sizes:
        if self._part_size is not None:
            return parts.equal(self._part_size, self._max_parts)
        return parts.sizes_for(expected_size, usual_size, self._max_parts, may_grow=self._may_grow)

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects, up to 1,000 per request. A missing object is not an error."""
        deletion.delete(self._requests, ({"Key": key} for key in keys))

    def versions(self, prefix: str) -> Iterator[ObjectVersion]:
        """Yield all versions and delete markers; see :class:`.interface.Versioned`."""
        return versions.listed(self._requests, prefix)

    def head_version(self, version: ObjectVersion) -> StoredObject:
        """Return one version with its metadata. Raises ObjectNotFoundError."""
        with versions.explained():
            return self._head(version.key, VersionId=version.version_id)

    def delete_versions(self, which: Iterable[ObjectVersion]) -> None:
        """Remove versions and markers for good. A missing one is not an error."""
        targets = ({"Key": each.key, "VersionId": each.version_id} for each in which)
        with versions.explained():
            deletion.delete(self._requests, targets)

    def pending(self, prefix: str) -> Iterator[PendingUpload]:
        """Yield the uploads under ``prefix`` that are neither committed nor aborted.

        https://docs.aws.amazon.com/AmazonS3/latest/API/API_ListMultipartUploads.html
        """
        position: dict[str, Any] | None = {}
        while position is not None:
            found, position = self._requests.call(
                f"list the uploads under {self.url(prefix)}",
                lambda position=position: self._pending_page(prefix, position),  # type: ignore[misc]
            )
            yield from found

    def _pending_page(
        self, prefix: str, position: dict[str, Any]
    ) -> tuple[Sequence[PendingUpload], dict[str, Any] | None]:
        page = self._client.list_multipart_uploads(Bucket=self._bucket, Prefix=prefix, **position)
        found = [
            PendingUpload(each["Key"], each["UploadId"], each["Initiated"].astimezone(UTC))
            for each in page.get("Uploads", [])
        ]
        if not page.get("IsTruncated"):
            return found, None
        after = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}
        return found, after

    def abort(self, upload: PendingUpload) -> None:
        """Remove a pending upload and its parts. If it is gone, that is not an error."""
        try:
            self._requests.call(
                f"abort the upload of {self.url(upload.key)}",
                lambda: self._client.abort_multipart_upload(
                    Bucket=self._bucket, Key=upload.key, UploadId=upload.upload_id
                ),
            )
        except StorageError as exc:
            if not upload_is_gone(exc):
                raise
