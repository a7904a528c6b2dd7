"""One resumable upload, and the meaning of the responses.

Its parts are sent one after the other into a session, and stay invisible until the last request
makes them an object. An XML multipart upload could send several at once, but its completion takes
no condition, so it might replace a backup.
https://cloud.google.com/storage/docs/performing-resumable-uploads
https://cloud.google.com/storage/docs/multipart-uploads
"""

from __future__ import annotations

import base64
import json
import re
import secrets
import threading
from collections.abc import Iterator, Mapping
from functools import partial
from typing import IO, Any
from urllib.parse import urlsplit

import google_crc32c
from requests import Response

from pgstash.errors import (
    ObjectExistsError,
    ObjectNotFoundError,
    StorageError,
    StorageUnreachableError,
    UploadError,
)
from pgstash.storage.gcs.client import Request, Requests
from pgstash.storage.gcs.errors import GONE, ResponseError
from pgstash.storage.multipart import unknown_outcome
from pgstash.storage.part_reader import PartReader
from pgstash.storage.retry import Retry

ABORT_RETRY = Retry(attempts=5, delay=0.5)

# All requests but the last one of a session send a multiple of this.
QUANTUM = 256 * 1024

CREATED = (200, 201)
INCOMPLETE = 308
CANCELLED = (200, 204, *GONE)
_KEPT = re.compile(r"bytes=0-(\d+)", re.ASCII)


class ResumableUpload:
    """One upload in the store, whose parts are sent in order by one thread."""

    def __init__(self, requests: Requests, key: str, metadata: Mapping[str, str]) -> None:
        """Prepare; nothing is sent yet."""
        self._requests = requests
        self._metadata = {name.lower(): value for name, value in metadata.items()}
        self.key = key
        self.url = f"{requests.where}/{key}"
        self.id = secrets.token_hex(8)  # not the session's: whoever has that may write
        self.unclear = False
        self._session = ""
        self._sent = 0
        self._tail = b""
        self._crc = 0
        self._interrupted = False

    def begin(self, abandoned: threading.Event) -> None:
        """Open a session. Raises ObjectExistsError if the name is taken already."""
        request = Request(
            "POST",
            f"/upload{self._requests.objects}",
            {"uploadType": "resumable", "name": self.key, "ifGenerationMatch": "0"},
            {"Content-Type": "application/json"},
            json.dumps({"metadata": self._metadata}).encode(),
            of_object=False,
        )
        location = self._requests.call(
            f"begin the upload of {self.url}",
            lambda: urlsplit(self._requests.send(request).headers["Location"]),
            abandoned=abandoned,
        )
        # Never another host than the configured one: the request has a token.
        self._session = f"{location.path}?{location.query}"

    def send(self, number: int, data: memoryview, abandoned: threading.Event) -> None:
        """Send a part. The bytes after its last multiple of 256 KiB wait for the commit."""
        for start in range(0, len(data), QUANTUM):
            piece = bytes(data[start : start + QUANTUM])
            self._crc = google_crc32c.extend(self._crc, piece)
        whole = len(data) - len(data) % QUANTUM
        self._tail = bytes(data[whole:])
        if whole:
            self._requests.call(
                f"send part {number} of {self.url}",
                partial(self._send_part, data[:whole]),
                abandoned=abandoned,
            )
            self._sent += whole

    def _send_part(self, data: memoryview) -> None:
        """Send what the store does not have yet of a part: after a failure, it is asked."""
        start = end = self._sent
        end += len(data)
        if self._interrupted:
            start = self._kept()
            if start < self._sent:
                raise UploadError(f"cannot store {self.url}: the store lost a part that it had")
        self._interrupted = True
        if start < end:
            body = PartReader(data[start - self._sent :]).body()
            answer = self._put(f"bytes {start}-{end - 1}/*", body, (INCOMPLETE,))
            if _kept_by(answer) != end:
                raise StorageUnreachableError(
                    f"cannot store {self.url}: a part was kept in part",
                    hint="The store may be overloaded. Run the backup again.",
                )
        self._interrupted = False

    def _put(
        self,
        content_range: str,
        body: bytes | IO[bytes],
        expected: tuple[int, ...],
        digest: str = "",
    ) -> Response:
        headers = {"Content-Range": content_range}
        if digest:
            headers["x-goog-hash"] = f"crc32c={digest}"
        path, _, query = self._session.partition("?")
        try:
            return self._requests.send(
                Request("PUT", f"{path}?{query}", None, headers, body, expected)
            )
        except ResponseError as exc:
            if exc.status in GONE:
                raise UploadError(
                    f"cannot store {self.url}: the store no longer knows the upload ({exc})",
                    hint="Did the backup take longer than a week?",
                ) from exc
            raise

    def _kept(self) -> int:
        """Return how many bytes the store has.

        https://cloud.google.com/storage/docs/performing-resumable-uploads#status-check
        """
        return _kept_by(self._put("bytes */*", b"", (INCOMPLETE,)))

    def held(self, abandoned: threading.Event) -> Iterator[int]:
        """Yield nothing: a session that was cancelled keeps nothing."""
        del abandoned
        return iter(())

    def complete(self, abandoned: threading.Event) -> None:
        """Make the object visible. Raises UploadError, ObjectExistsError, StorageError.

        The store compares the checksum of everything before it does, and reports it afterwards.
        """
        if self._is_taken():
            raise ObjectExistsError(f"{self.url} already exists")
        del abandoned  # a commit is not given up halfway
        self._interrupted = False
        try:
            found = self._requests.call(f"complete the upload of {self.url}", self._commit)
        except StorageError as exc:
            if self.is_stored():
                return
            if self.unclear:
                raise unknown_outcome(self.url, exc) from exc
            raise
        self._compare(found)

    def _commit(self) -> Mapping[str, Any]:
        """Send the rest with the checksum of everything; return the object.

        https://cloud.google.com/storage/docs/json_api/v1/objects/insert#request-headers
        """
        total = self._total
        unclear_before = self.unclear
        self.unclear = True
        try:
            expected = (*CREATED, INCOMPLETE)
            start = self._sent
            if self._interrupted:
                answer = self._put(f"bytes */{total}", b"", expected)
                if answer.status_code in CREATED:
                    return dict(answer.json())
                start = max(start, _kept_by(answer))
            self._interrupted = True
            content_range = f"bytes {start}-{total - 1}/{total}"
            if start == total:
                content_range = f"bytes */{total}"
            body = self._tail[start - self._sent :]
            answer = self._put(content_range, body, expected, self._digest)
        except ResponseError as exc:
            self.unclear = unclear_before or exc.may_go_on
            raise
        except UploadError:
            self.unclear = unclear_before
            raise
        if answer.status_code == INCOMPLETE:
            self.unclear = unclear_before
            raise UploadError(
                f"cannot commit {self.url}: the store has {_kept_by(answer)} bytes of the "
                f"{total} sent",
                hint="Run the backup again.",
            )
        return dict(answer.json())

    @property
    def _total(self) -> int:
        return self._sent + len(self._tail)

    @property
    def _digest(self) -> str:
        return base64.b64encode(self._crc.to_bytes(4, "big")).decode()

    def _compare(self, found: Mapping[str, Any]) -> None:
        """Remove the object if it is not what was sent, although the store has the checksum."""
        held = (int(found.get("size", -1)), found.get("crc32c"))
        if held == (self._total, self._digest):
            return
        request = Request(
            "DELETE",
            self._requests.path_of(self.key),
            {"ifGenerationMatch": str(found.get("generation", ""))},
            expected=(200, 204, 404),
        )
        self._requests.call(f"remove {self.url}", lambda: self._requests.send(request))
        raise UploadError(
            f"cannot commit {self.url}: the store does not hold what was sent",
            hint="Run the backup again. If this persists, something between pgstash and the "
            "store changes the data in transit.",
        )

    def is_stored(self) -> bool:
        """Return whether the object under the key is this upload, by size, checksum, metadata."""
        try:
            found = self._found()
        except StorageError:
            return False
        held = (int(found.get("size", -1)), found.get("crc32c"), found.get("metadata"))
        return bool(self._metadata) and held == (self._total, self._digest, self._metadata)

    def _found(self) -> Mapping[str, Any]:
        request = Request("GET", self._requests.path_of(self.key))
        return self._requests.call(
            f"read the metadata of {self.url}", lambda: dict(self._requests.send(request).json())
        )

    def _is_taken(self) -> bool:
        try:
            self._found()
        except ObjectNotFoundError:
            return False
        return True

    def abort(self, abandoned: threading.Event) -> None:
        """Cancel the session. Raises StorageError."""
        request = Request("DELETE", self._session, expected=CANCELLED)
        self._requests.call(
            f"abort the upload of {self.url}",
            lambda: self._requests.send(request),
            retry=ABORT_RETRY,
            abandoned=abandoned,
        )

    def is_gone(self, error: StorageError) -> bool:
        """Return whether ``error`` means that the store does not know the session any more."""
        return isinstance(error, UploadError) and isinstance(error.__cause__, ResponseError)

    def too_large(self, size: int) -> str:
        """Return what to do: nothing helps, as the limit is that of the store."""
        return f"Google Cloud Storage takes objects of up to 5 TiB; parts of {size} MiB reach that."


def _kept_by(answer: Response) -> int:
    """Return how many bytes a session has; without a range it has none."""
    found = _KEPT.fullmatch(answer.headers.get("Range", ""))
    return int(found[1]) + 1 if found else 0
