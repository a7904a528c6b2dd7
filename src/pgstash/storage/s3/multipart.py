"""The requests of one multipart upload, and what their answers mean.

https://docs.aws.amazon.com/AmazonS3/latest/userguide/mpuoverview.html
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from typing import Any

from botocore.exceptions import ClientError

from pgstash.errors import (
    ObjectExistsError,
    ObjectNotFoundError,
    StorageError,
    StorageRefusedError,
    UploadError,
)
from pgstash.storage.retry import Retry
from pgstash.storage.s3_client import PartReader, Requests, lowered
from pgstash.storage.s3_errors import is_unknown_request, may_go_on

ABORT_RETRY = Retry(attempts=5, delay=0.5)


class Multipart:
    """One upload as the store knows it; ``parts`` are the size and the ETag of each that was sent.

    Several threads may send parts. Setting an event that is handed over as ``abandoned`` ends a
    wait for the next attempt.
    """

    def __init__(self, requests: Requests, key: str, metadata: Mapping[str, str]) -> None:
        """Prepare; nothing is sent yet."""
        self._requests = requests
        self._client = requests.client
        self._bucket = requests.bucket
        self._key = key
        self._metadata = dict(metadata)
        self.url = f"s3://{requests.bucket}/{key}"
        self.id = "unknown"
        self.parts: dict[int, tuple[int, str]] = {}
        self.unclear = False  # Complete was sent, and nobody said what came of it

    def begin(self, abandoned: threading.Event) -> None:
        """Begin the upload; from then on it has an id. Raises StorageError."""
        self.id = self._requests.call(
            f"begin the upload of {self.url}",
            lambda: self._client.create_multipart_upload(
                Bucket=self._bucket, Key=self._key, Metadata=self._metadata
            )["UploadId"],
            abandoned=abandoned,
        )

    def send(self, number: int, data: memoryview, abandoned: threading.Event) -> None:
        """Send a part. Raises StorageError."""
        answer = self._requests.call(
            f"send part {number} of {self.url}",
            lambda: self._client.upload_part(
                Bucket=self._bucket,
                Key=self._key,
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
                lambda marker=marker: self._page(marker),  # type: ignore[misc]
                abandoned=abandoned,
            )
            yield from found

    def _page(self, marker: int) -> tuple[list[tuple[int, tuple[int, str]]], int | None]:
        """Return the parts after a number, and the number to go on after, if there are more."""
        page = self._client.list_parts(
            Bucket=self._bucket, Key=self._key, UploadId=self.id, PartNumberMarker=marker
        )
        found = [
            (part["PartNumber"], (part["Size"], part["ETag"].strip('"')))
            for part in page.get("Parts", [])
        ]
        return found, page["NextPartNumberMarker"] if page.get("IsTruncated") else None

    def complete(self, abandoned: threading.Event) -> None:
        """Compare what the store holds with what was sent, and make the object visible.

        Raises UploadError, ObjectExistsError, StorageError.
        """
        self._verify(abandoned)
        if self._is_taken():
            raise ObjectExistsError(f"{self.url} is there already")
        self._complete()

    def is_stored(self) -> bool:
        """Tell whether what is under the key is this upload, by its size and its metadata."""
        try:
            size, metadata = self._found()
        except StorageError:
            return False
        wanted = sum(size for size, _ in self.parts.values())
        return bool(metadata) and (size, metadata) == (wanted, lowered(self._metadata))

    def abort(self, abandoned: threading.Event) -> None:
        """Have the store forget the upload. Raises StorageError."""
        self._requests.call(
            f"abort the upload of {self.url}",
            lambda: self._client.abort_multipart_upload(
                Bucket=self._bucket, Key=self._key, UploadId=self.id
            ),
            retry=ABORT_RETRY,
            abandoned=abandoned,
        )

    def _verify(self, abandoned: threading.Event) -> None:
        """Raise UploadError unless the store holds the parts that were sent, and no others."""
        held = dict(self.held(abandoned))
        if held != self.parts:
            wrong = sorted(
                number
                for number in held.keys() | self.parts.keys()
                if held.get(number) != self.parts.get(number)
            )
            raise UploadError(
                f"cannot commit {self.url}: the store does not hold what was sent "
                f"(differing parts: {', '.join(map(str, wrong[:10]))})",
                hint="Run the backup again; if it stays so, something between here and the store "
                "changes what is sent.",
            )

    def _complete(self) -> None:
        """Complete the upload; look the object up where the answer does not tell.

        https://docs.aws.amazon.com/AmazonS3/latest/API/API_CompleteMultipartUpload.html
        """
        try:
            try:
                self._send_complete(IfNoneMatch="*")
            except StorageRefusedError as exc:
                # Some stores do not know the condition. The name was free a moment ago.
                if not is_unknown_request(exc):
                    raise
                self._send_complete()
        except StorageError as exc:
            # Either it failed, or only its answer was lost: then a second attempt was told
            # that the upload is gone, or the name taken, by the first.
            if self.is_stored():
                return
            if self.unclear:
                raise UploadError(
                    f"cannot tell whether {self.url} was stored: {exc.message}",
                    hint="Look for it in the store: if it is there it is complete. Otherwise run "
                    "the backup again.",
                ) from exc
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
                    Key=self._key,
                    UploadId=self.id,
                    MultipartUpload={"Parts": sent},
                    **condition,
                )
            except ClientError as exc:
                # An answer of the store itself says that it is through with the request.
                self.unclear = unclear_before or may_go_on(exc)
                raise

        self._requests.call(f"complete the upload of {self.url}", send)

    def _found(self) -> tuple[int, dict[str, str]]:
        def ask() -> tuple[int, dict[str, str]]:
            answer = self._client.head_object(Bucket=self._bucket, Key=self._key)
            return answer["ContentLength"], lowered(answer["Metadata"])

        return self._requests.call(f"look at {self.url}", ask)

    def _is_taken(self) -> bool:
        try:
            self._found()
        except ObjectNotFoundError:
            return False
        return True
