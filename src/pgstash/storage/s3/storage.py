"""A bucket of an S3-compatible store."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from datetime import UTC
from itertools import islice
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError, ResponseStreamingError
from urllib3.exceptions import HTTPError

from pgstash import events
from pgstash.errors import (
    ConfigurationError,
    StorageError,
    StorageRefusedError,
    StorageUnreachableError,
)
from pgstash.storage import parts
from pgstash.storage.interface import PendingUpload, StoredObject, beyond_the_end
from pgstash.storage.retry import Retry
from pgstash.storage.s3_client import PartReader, Requests, lowered
from pgstash.storage.s3_errors import (
    is_beyond_the_end,
    is_missing,
    is_taken,
    is_unknown_request,
    translate,
    unreadable,
    upload_is_gone,
)
from pgstash.storage.s3_upload import S3Upload

if TYPE_CHECKING:
    from botocore.response import StreamingBody
    from mypy_boto3_s3.type_defs import GetObjectOutputTypeDef

CHUNK = 256 * 1024
DELETE_BATCH = 1000

# Every store sends some of these with a listing, also with an empty one; a web page has none.
LISTING = {"Contents", "IsTruncated", "KeyCount", "MaxKeys", "Name"}
# https://www.rfc-editor.org/rfc/rfc9110#name-content-range
CONTENT_RANGE = re.compile(r"bytes (?P<start>\d+)-\d+/(?P<size>\d+|\*)", re.ASCII)


class S3Storage:
    """One bucket, reached with one access key.

    ``retry_attempts`` come after the first try, ``retry_delay`` and the time limits are in
    seconds, ``part_size`` is in bytes (None: chosen for each upload). ``connections`` are kept
    for the next request; when more requests are under way at once, each of the others makes a
    connection of its own. ``emit`` is called from several threads.
    """

    def __init__(  # noqa: PLR0913 - one argument for each setting
        self,
        *,
        endpoint: str | None,
        bucket: str,
        region: str,
        access_key_id: str,
        secret_access_key: str,
        retry_attempts: int = 3,
        retry_delay: float = 5.0,
        max_parts: int = 10_000,
        part_size: int | None = None,
        connections: int = 16,
        connect_timeout: float = 10.0,
        read_timeout: float = 60.0,
        emit: events.Emit = events.ignore,
    ) -> None:
        """Prepare the client; nothing is sent before the first operation.

        Raises ConfigurationError if ``endpoint`` is no URL or ``part_size`` not one that
        S3 allows.
        """
        if part_size is not None and not parts.SMALLEST <= part_size <= parts.LARGEST:
            raise ConfigurationError(["S3_PART_SIZE must be between 5 and 5120 MiB."])
        self._bucket = bucket
        self._part_size = part_size
        self._max_parts = max_parts
        self._may_grow = parts.may_grow(endpoint)
        self._emit = emit
        self._requests = Requests(
            endpoint=endpoint,
            bucket=bucket,
            region=region,
            access_key_id=access_key_id,
            secret_access_key=secret_access_key,
            retry=Retry(retry_attempts, retry_delay, emit),
            connections=connections,
            connect_timeout=connect_timeout,
            read_timeout=read_timeout,
        )
        self._client = self._requests.client

    def __repr__(self) -> str:
        return f"S3Storage({self.url()!r})"

    def url(self, key: str = "") -> str:
        """Return ``s3://bucket/key``."""
        return f"s3://{self._bucket}/{key}"

    def check(self) -> None:
        """Raise unless the store answers, the bucket exists and may be listed."""
        self._page(f"list the bucket {self.url()}", MaxKeys=1)

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
                StoredObject(each["Key"], each["Size"], each["LastModified"].astimezone(UTC))
                for each in page.get("Contents", [])
            ]
            return found, page["NextContinuationToken"] if page.get("IsTruncated") else None

        return self._requests.call(doing, ask)

    def head(self, key: str) -> StoredObject:
        """Return one object with its metadata; raise ObjectNotFoundError."""

        def ask() -> StoredObject:
            found = self._client.head_object(Bucket=self._bucket, Key=key)
            modified = found["LastModified"].astimezone(UTC)
            return StoredObject(key, found["ContentLength"], modified, lowered(found["Metadata"]))

        return self._requests.call(f"look at {self.url(key)}", ask)

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
        with closing(_Download(self._requests, key, start, length)) as download:
            yield download.chunks()

    def put(self, key: str, data: bytes, metadata: Mapping[str, str]) -> None:
        """Store a small object at once, replacing one of the same key."""
        self._requests.call(
            f"store {self.url(key)}",
            lambda: self._client.put_object(
                Bucket=self._bucket,
                Key=key,
                Body=PartReader(memoryview(data)).body(),
                Metadata=dict(metadata),
            ),
        )

    def upload(
        self,
        key: str,
        *,
        metadata: Mapping[str, str],
        expected_size: int,
        usual_size: int | None = None,
    ) -> S3Upload:
        """Begin a multipart upload.

        Its parts are of the size that was set, or of the one that :mod:`.parts` chooses.
        """
        if self._part_size is None:
            sizes = parts.sizes_for(
                expected_size, usual_size, self._max_parts, may_grow=self._may_grow
            )
        else:
            sizes = parts.equal(self._part_size, self._max_parts)
        return S3Upload(
            self._requests,
            key,
            metadata=metadata,
            sizes=sizes,
            emit=self._emit,
        )

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects, a thousand with each request; a missing one is no error."""
        remaining = iter(keys)
        while batch := [*islice(remaining, DELETE_BATCH)]:
            try:
                self._requests.call(
                    f"delete objects of {self.url()}",
                    lambda batch=batch: self._delete_batch(batch),  # type: ignore[misc]
                )
            except StorageError as exc:
                if not is_unknown_request(exc):
                    raise
                for key in batch:
                    self._delete_one(key)

    def _delete_batch(self, keys: Iterable[str]) -> None:
        answer = self._client.delete_objects(
            Bucket=self._bucket,
            Delete={"Objects": [{"Key": key} for key in keys], "Quiet": True},
        )
        for error in answer.get("Errors", []):
            failed = ClientError({"Error": error}, "DeleteObjects")
            if not is_missing(failed):
                raise translate(failed, f"remove {self.url(error.get('Key', ''))}") from failed

    def _delete_one(self, key: str) -> None:
        """Delete one object: Google's store and others know no batches, or did not for long."""

        def ask() -> None:
            try:
                self._client.delete_object(Bucket=self._bucket, Key=key)
            except ClientError as exc:
                if not is_missing(exc):
                    raise

        self._requests.call(f"remove {self.url(key)}", ask)

    def pending(self, prefix: str) -> Iterator[PendingUpload]:
        """Yield uploads under ``prefix`` that were neither committed nor aborted.

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
        """Remove a pending upload and its parts; one that is gone is no error."""
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


class _Download:
    """The bytes of an object from ``position`` on, ``length`` of them, or all that follow.

    When an answer ends early, or its connection breaks, the rest is requested. The retry budget is
    reset whenever a chunk arrives, so a download may reconnect any number of times.
    """

    def __init__(self, requests: Requests, key: str, position: int, length: int | None) -> None:
        """Send the first request. Raises ObjectNotFoundError, ObjectDamagedError, StorageError."""
        self._requests = requests
        self._key = key
        self._url = f"s3://{requests.bucket}/{key}"
        self._position = position
        self._last = "" if length is None else position + length - 1
        self._etag = ""
        self._body: StreamingBody | None = None
        try:
            self._left = self._requests.call(self._doing, lambda: self._open(length))
        except StorageError as exc:
            self.close()
            if is_beyond_the_end(exc):
                raise beyond_the_end(self._url, None, position, length) from exc
            raise

    @property
    def _doing(self) -> str:
        return f"read {self._url}"

    def close(self) -> None:
        if self._body is not None:
            self._body.close()
        self._body = None

    def chunks(self) -> Iterator[bytes]:
        """Yield what is left, as it arrives. Raises StorageError."""
        while self._left:
            chunk = self._requests.call(self._doing, self._next_chunk)
            self._position += len(chunk)
            self._left -= len(chunk)
            yield chunk

    def _next_chunk(self) -> bytes:
        """Return the next bytes, at least one; botocore compares a body with its announced length.

        An answer that announces fewer bytes than were asked for ends like a broken connection.
        """
        body = self._body or self._reopen()
        try:
            chunk = body.read(min(CHUNK, self._left))
        except HTTPError as exc:  # a broken TLS record: botocore translates but two of them
            self.close()
            raise ResponseStreamingError(error=exc) from exc
        except BaseException:
            self.close()
            raise
        if not chunk:
            self.close()
            raise StorageUnreachableError(
                f"cannot {self._doing}: the answer ended {self._left} bytes early"
            )
        return chunk

    def _open(self, length: int | None) -> int:
        """Open the whole range, and return how many bytes it has."""
        whole = not self._position and length is None
        found = self._get() if whole else self._get(Range=self._range)
        self._body = found["Body"]
        self._etag = found["ETag"]
        if whole:
            return found["ContentLength"]
        size = self._size_of(found)
        if length is None:
            return size - self._position
        if self._position + length > size:
            raise beyond_the_end(self._url, size, self._position, length)
        return length

    def _reopen(self) -> StreamingBody:
        """Ask for the rest, of the same object only: it may have been replaced meanwhile."""
        try:
            found = self._get(Range=self._range, IfMatch=self._etag)
        except ClientError as exc:
            if is_taken(exc):
                raise self._replaced() from exc
            raise
        self._body = found["Body"]
        self._size_of(found)
        if found["ETag"] != self._etag:  # a store that does not know the condition
            raise self._replaced()
        return self._body

    @property
    def _range(self) -> str:
        return f"bytes={self._position}-{self._last}"

    def _get(self, **which: str) -> GetObjectOutputTypeDef:
        get: Any = self._requests.client.get_object
        found: GetObjectOutputTypeDef = get(Bucket=self._requests.bucket, Key=self._key, **which)
        return found

    def _size_of(self, found: GetObjectOutputTypeDef) -> int:
        """Return the size of the whole object, from an answer that begins at the position."""
        answered = CONTENT_RANGE.fullmatch(found.get("ContentRange", ""))
        if not answered:
            raise StorageRefusedError(f"cannot {self._doing}: the store ignores the range")
        if int(answered["start"]) != self._position:
            raise StorageRefusedError(
                f"cannot {self._doing}: the store answers {found['ContentRange']!r} to a request "
                f"for {self._range!r}"
            )
        if answered["size"] == "*":
            return self._position + found["ContentLength"]
        return int(answered["size"])

    def _replaced(self) -> StorageRefusedError:
        return StorageRefusedError(
            f"cannot {self._doing}: it was replaced while it was read", hint="Try it again."
        )
