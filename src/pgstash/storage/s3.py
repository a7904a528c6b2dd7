"""A bucket of an S3-compatible store."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from datetime import UTC
from itertools import islice
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError, ResponseStreamingError
from urllib3.exceptions import HTTPError

from pgstash import events
from pgstash.errors import ConfigurationError, StorageRefusedError, UploadError
from pgstash.storage import parts
from pgstash.storage.interface import PendingUpload, StoredObject
from pgstash.storage.retry import Retry
from pgstash.storage.s3_client import PartReader, Requests, lowered
from pgstash.storage.s3_errors import TAKEN, error_code, translate
from pgstash.storage.s3_upload import S3Upload

if TYPE_CHECKING:
    from botocore.response import StreamingBody
    from mypy_boto3_s3.type_defs import GetObjectOutputTypeDef

CHUNK = 256 * 1024
DELETE_BATCH = 1000


class S3Storage:
    """One bucket, reached with one access key.

    ``retry_attempts`` come after the first try, ``retry_delay`` and the time limits are in
    seconds, ``part_size`` is in bytes (None: chosen for each upload). ``emit`` is called
    from several threads.
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
        self._emit = emit
        self._requests = Requests(
            endpoint=endpoint,
            bucket=bucket,
            region=region,
            access_key_id=access_key_id,
            secret_access_key=secret_access_key,
            retry=Retry(retry_attempts, retry_delay, emit),
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
        self._requests.call(
            f"list the bucket {self.url()}",
            lambda: self._client.list_objects_v2(Bucket=self._bucket, MaxKeys=1),
        )

    def list(self, prefix: str, *, start_after: str = "") -> Iterator[StoredObject]:
        """Yield every object whose key starts with ``prefix``, in the order of keys.

        https://docs.aws.amazon.com/AmazonS3/latest/API/API_ListObjectsV2.html
        """
        position: dict[str, Any] = {"StartAfter": start_after} if start_after else {}
        while True:
            page = self._requests.call(
                f"list {self.url(prefix)}",
                lambda position=position: self._client.list_objects_v2(  # type: ignore[misc]
                    Bucket=self._bucket, Prefix=prefix, **position
                ),
            )
            for found in page.get("Contents", []):
                modified = found["LastModified"].astimezone(UTC)
                yield StoredObject(found["Key"], found["Size"], modified)
            if not page.get("IsTruncated"):
                return
            position = {"ContinuationToken": page["NextContinuationToken"]}

    def head(self, key: str) -> StoredObject:
        """Return one object with its metadata; raise ObjectNotFoundError."""
        found = self._requests.call(
            f"look at {self.url(key)}",
            lambda: self._client.head_object(Bucket=self._bucket, Key=key),
        )
        return StoredObject(
            key,
            found["ContentLength"],
            found["LastModified"].astimezone(UTC),
            lowered(found["Metadata"]),
        )

    @contextmanager
    def read(
        self, key: str, *, start: int = 0, length: int | None = None
    ) -> Iterator[Iterator[bytes]]:
        """Open a range of an object; raise ObjectNotFoundError.

        https://docs.aws.amazon.com/AmazonS3/latest/API/API_GetObject.html
        """
        doing = f"read {self.url(key)}"
        if length == 0:
            self.head(key)
            yield iter(())
            return
        whole = not start and length is None
        last = "" if length is None else start + length - 1
        extra: dict[str, Any] = {} if whole else {"Range": f"bytes={start}-{last}"}
        try:
            found = self._requests.call(
                doing, lambda: self._client.get_object(Bucket=self._bucket, Key=key, **extra)
            )
        except StorageRefusedError as exc:
            if error_code(exc) != "InvalidRange":
                raise
            yield iter(())  # the object ends before the range begins
            return
        with closing(_Download(self._requests, key, doing, found)) as download:
            if not whole:
                download.demand_range(found)
            yield download.chunks(start, last)

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

    def upload(self, key: str, *, metadata: Mapping[str, str], expected_size: int) -> S3Upload:
        """Begin a multipart upload.

        Its parts are of the size that was set, or of the one that :mod:`.parts` chooses.
        """
        part_size = self._part_size or parts.size_for(expected_size, self._max_parts)
        return S3Upload(
            self._requests,
            key,
            metadata=metadata,
            part_size=part_size,
            max_parts=self._max_parts,
            emit=self._emit,
        )

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects, a thousand with each request; a missing one is no error."""
        remaining = iter(keys)
        while batch := [*islice(remaining, DELETE_BATCH)]:
            answer = self._requests.call(
                f"delete objects of {self.url()}",
                lambda batch=batch: self._client.delete_objects(  # type: ignore[misc]
                    Bucket=self._bucket,
                    Delete={"Objects": [{"Key": key} for key in batch], "Quiet": True},
                ),
            )
            for error in answer.get("Errors", []):
                if error.get("Code") not in {"NoSuchKey", "NotFound"}:
                    doing = f"remove {self.url(error.get('Key', ''))}"
                    failed = ClientError({"Error": error}, "DeleteObjects")
                    raise translate(failed, doing) from failed

    def pending(self, prefix: str) -> Iterator[PendingUpload]:
        """Yield uploads under ``prefix`` that were neither committed nor aborted.

        https://docs.aws.amazon.com/AmazonS3/latest/API/API_ListMultipartUploads.html
        """
        position: dict[str, Any] = {}
        while True:
            page = self._requests.call(
                f"list the uploads under {self.url(prefix)}",
                lambda position=position: self._client.list_multipart_uploads(  # type: ignore[misc]
                    Bucket=self._bucket, Prefix=prefix, **position
                ),
            )
            for found in page.get("Uploads", []):
                started = found["Initiated"].astimezone(UTC)
                yield PendingUpload(found["Key"], found["UploadId"], started)
            if not page.get("IsTruncated"):
                return
            position = {
                "KeyMarker": page["NextKeyMarker"],
                "UploadIdMarker": page["NextUploadIdMarker"],
            }

    def abort(self, upload: PendingUpload) -> None:
        """Remove a pending upload and its parts; one that is gone is no error."""
        try:
            self._requests.call(
                f"abort the upload of {self.url(upload.key)}",
                lambda: self._client.abort_multipart_upload(
                    Bucket=self._bucket, Key=upload.key, UploadId=upload.upload_id
                ),
            )
        except UploadError as exc:
            if error_code(exc) != "NoSuchUpload":
                raise


class _Download:
    """The body of an answer, asked for again from where it stopped when its connection breaks.

    However often that happens: the attempts are counted anew with each chunk that arrives.
    """

    def __init__(
        self, requests: Requests, key: str, doing: str, found: GetObjectOutputTypeDef
    ) -> None:
        self._requests = requests
        self._key = key
        self._doing = doing
        self._etag = found["ETag"]
        self._left = found["ContentLength"]
        self._body: StreamingBody | None = found["Body"]

    def close(self) -> None:
        if self._body is not None:
            self._body.close()
        self._body = None

    def demand_range(self, found: GetObjectOutputTypeDef) -> None:
        if "ContentRange" not in found:
            raise StorageRefusedError(f"cannot {self._doing}: the store ignores the range")

    def chunks(self, position: int, last: int | str) -> Iterator[bytes]:
        """Yield what arrives; botocore compares its length with what was announced."""

        def next_chunk() -> bytes:
            body = self._body = self._body or self._reopened(f"bytes={position}-{last}")
            try:
                return body.read(CHUNK)
            except HTTPError as exc:  # a broken TLS record: botocore translates but two of them
                self.close()
                raise ResponseStreamingError(error=exc) from exc
            except BaseException:
                self.close()
                raise

        while self._left:
            chunk = self._requests.call(self._doing, next_chunk)
            position += len(chunk)
            self._left -= len(chunk)
            yield chunk

    def _reopened(self, of_range: str) -> StreamingBody:
        """Ask for the rest, of the same object only: it may have been replaced meanwhile."""
        try:
            found = self._requests.client.get_object(
                Bucket=self._requests.bucket, Key=self._key, Range=of_range, IfMatch=self._etag
            )
        except ClientError as exc:
            if exc.response["Error"].get("Code") in TAKEN:
                raise self._replaced() from exc
            raise
        self._body = found["Body"]
        self.demand_range(found)
        if found["ETag"] != self._etag:  # a store that does not know the condition
            raise self._replaced()
        return self._body

    def _replaced(self) -> StorageRefusedError:
        return StorageRefusedError(
            f"cannot {self._doing}: it was replaced while it was read", hint="Try it again."
        )
