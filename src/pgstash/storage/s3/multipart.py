"""The requests of one multipart upload, and the meaning of their responses.

https://docs.aws.amazon.com/AmazonS3/latest/userguide/mpuoverview.html
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from botocore.exceptions import ClientError

from pgstash.errors import (
    ObjectExistsError,
    ObjectNotFoundError,
    StorageError,
    StorageRefusedError,
)
from pgstash.storage.multipart import differing_parts, unknown_outcome
from pgstash.storage.part_reader import PartReader
from pgstash.storage.retry import Retry
from pgstash.storage.s3.client import Requests, lowered
from pgstash.storage.s3.errors import is_unknown_request, may_go_on, upload_is_gone

ABORT_RETRY = Retry(attempts=5, delay=0.5)


class S3Multipart:
    """One upload in the store; ``parts`` holds the size and the ETag of each part sent.

    Several threads may send parts. Setting an event that was passed as ``abandoned`` ends a wait
    for the next attempt.
    """

    def __init__(self, requests: Requests, key: str, metadata: Mapping[str, str]) -> None:
        """Prepare; nothing is sent yet."""
        self._requests = requests
        self._client = requests.client
        self._bucket = requests.bucket
        self.key = key
        self._metadata = dict(metadata)
        self.url = f"s3://{requests.bucket}/{key}"
        self.id = "unknown"
        self.parts: dict[int, tuple[int, str]] = {}
        self.unclear = False  # Complete was sent, and its outcome is unknown

    def begin(self, abandoned: threading.Event) -> None:
        """Create the upload, which sets its ``id``. Raises StorageError."""
        kept: Any = self._requests.objects.archive() | self._requests.lock(self.key)
        self.id = self._requests.call(
            f"begin the upload of {self.url}",
            lambda: self._client.create_multipart_upload(
                Bucket=self._bucket, Key=self.key, Metadata=self._metadata, **kept
            )["UploadId"],
            abandoned=abandoned,
        )

    def send(self, number: int, data: memoryview, abandoned: threading.Event) -> None:
        """Send a part. Raises StorageError."""
        answer = self._requests.call(
            f"send part {number} of {self.url}",
            lambda: self._client.upload_part(
                Bucket=self._bucket,
                Key=self.key,
                UploadId=self.id,
                PartNumber=number,
                Body=PartReader(data).body(),
            ),
            abandoned=abandoned,
        )
        self.parts[number] = (len(data), answer.get("ETag", "").strip('"'))

    def held(self, abandoned: threading.Event) -> Iterator[tuple[int, tuple[int, str]]]:
        """Yield the number, size and ETag of each part in the store.

        https://docs.aws.amazon.com/AmazonS3/latest/API/API_ListParts.html
        """
        marker: int | None = 0
        while marker is not None:
            found, marker = self._requests.call(
                f"list the parts of {self.url}",
                partial(self._page, marker),
                abandoned=abandoned,
            )
            yield from found

    def _page(self, marker: int) -> tuple[list[tuple[int, tuple[int, str]]], int | None]:
        """Return the parts after ``marker``, and the next marker if there are more."""
        page = self._client.list_parts(
            Bucket=self._bucket, Key=self.key, UploadId=self.id, PartNumberMarker=marker
        )
        found = [
            (part["PartNumber"], (part["Size"], part["ETag"].strip('"')))
            for part in page.get("Parts", [])
        ]
        return found, page["NextPartNumberMarker"] if page.get("IsTruncated") else None

    def complete(self, abandoned: threading.Event) -> None:
        """Compare the parts in the store with those sent, and make the object visible.

        Raises UploadError, ObjectExistsError, StorageError.
        """
        self._verify(abandoned)
        if self._is_taken():
            raise ObjectExistsError(f"{self.url} already exists")
        self._complete()

    def is_stored(self) -> bool:
        """Return whether the object under the key is this upload, by its size and metadata."""
        try:
            size, metadata = self._found()
        except StorageError:
            return False
        wanted = sum(size for size, _ in self.parts.values())
        return bool(metadata) and (size, metadata) == (wanted, lowered(self._metadata))

    def abort(self, abandoned: threading.Event) -> None:
        """Make the store drop the upload and its parts. Raises StorageError."""
        self._requests.call(
            f"abort the upload of {self.url}",
            lambda: self._client.abort_multipart_upload(
                Bucket=self._bucket, Key=self.key, UploadId=self.id
            ),
            retry=ABORT_RETRY,
            abandoned=abandoned,
        )

    def is_gone(self, error: StorageError) -> bool:
        """Return whether ``error`` means that the store does not know the upload, or no longer."""
        return upload_is_gone(error)

    def too_large(self, size: int) -> str:
        """Return what to do if the upload does not fit into parts of ``size`` MiB."""
        return f"Set S3_PART_SIZE (MiB) to more than {size}, for example {2 * size}."

    def _verify(self, abandoned: threading.Event) -> None:
        """Raise UploadError unless the store holds exactly the parts that were sent."""
        held = dict(self.held(abandoned))
        if held != self.parts:
            raise differing_parts(self.url, held, self.parts)

    def _complete(self) -> None:
        """Complete the upload; check for the object if the response leaves the outcome open.

        https://docs.aws.amazon.com/AmazonS3/latest/API/API_CompleteMultipartUpload.html
        """
        try:
            try:
                self._send_complete(IfNoneMatch="*")
            except StorageRefusedError as exc:
                # Some stores do not support the condition. The name was free a moment ago.
                if not is_unknown_request(exc):
                    raise
                self._send_complete()
        except StorageError as exc:
            # Either it failed, or only its response was lost. In that case a retry reports that
            # the upload is gone or that the name is taken, both because of the first attempt.
            if self.is_stored():
                return
            if self.unclear:
                raise unknown_outcome(self.url, exc) from exc
            raise

    def _send_complete(self, **condition: Any) -> None:  # noqa: ANN401 - parameters of botocore
        sent: list[Any] = [
            {"PartNumber": number, "ETag": f'"{etag}"'}
            for number, (_, etag) in sorted(self.parts.items())
        ]

        def send() -> None:
            unclear_before = self.unclear
            self.unclear = True
            try:
                self._client.complete_multipart_upload(
                    Bucket=self._bucket,
                    Key=self.key,
                    UploadId=self.id,
                    MultipartUpload={"Parts": sent},
                    **condition,
                )
            except ClientError as exc:
                # A response from the store itself means that it has finished with the request.
                self.unclear = unclear_before or may_go_on(exc)
                raise

        self._requests.call(f"complete the upload of {self.url}", send)

    def _found(self) -> tuple[int, dict[str, str]]:
        def ask() -> tuple[int, dict[str, str]]:
            answer = self._client.head_object(Bucket=self._bucket, Key=self.key)
            return answer["ContentLength"], lowered(answer["Metadata"])

        return self._requests.call(f"read the metadata of {self.url}", ask)

    def _is_taken(self) -> bool:
        """Return whether there is an object under the key. Raises StorageError."""
        try:
            self._found()
        except ObjectNotFoundError:
            return False
        return True
