"""A download that continues after a broken connection."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError, ResponseStreamingError
from urllib3.exceptions import HTTPError

from pgstash.errors import StorageError, StorageRefusedError, StorageUnreachableError
from pgstash.storage.interface import archived, beyond_the_end
from pgstash.storage.s3.client import Requests
from pgstash.storage.s3.errors import is_beyond_the_end, is_not_thawed, is_taken

if TYPE_CHECKING:
    from botocore.response import StreamingBody
    from mypy_boto3_s3.type_defs import GetObjectOutputTypeDef

CHUNK = 256 * 1024

# https://www.rfc-editor.org/rfc/rfc9110#name-content-range
CONTENT_RANGE = re.compile(r"bytes (?P<start>\d+)-\d+/(?P<size>\d+|\*)", re.ASCII)


class Download:
    """Reads ``length`` bytes of an object from ``position`` on, or to its end.

    When a response ends early or its connection breaks, the rest is requested. The retry budget
    is reset whenever a chunk arrives, so a download may reconnect any number of times.
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
            if is_not_thawed(exc):
                raise archived(self._url) from exc
            raise

    @property
    def _doing(self) -> str:
        return f"read {self._url}"

    def close(self) -> None:
        """Close the connection of the current response, if there is one."""
        if self._body is not None:
            self._body.close()
        self._body = None

    def chunks(self) -> Iterator[bytes]:
        """Yield the remaining bytes as they arrive. Raises StorageError."""
        while self._left:
            chunk = self._requests.call(self._doing, self._next_chunk)
            self._position += len(chunk)
            self._left -= len(chunk)
            yield chunk

    def _next_chunk(self) -> bytes:
        """Return at least one more byte.

        botocore compares a body with its announced length. A response that announces fewer bytes
        than were requested is treated like a broken connection.
        """
        body = self._body or self._reopen()
        try:
            chunk = body.read(min(CHUNK, self._left))
        except HTTPError as exc:  # such as a broken TLS record: botocore translates only two kinds
            self.close()
            raise ResponseStreamingError(error=exc) from exc
        except BaseException:
            self.close()
            raise
        if not chunk:
            self.close()
            raise StorageUnreachableError(
                f"cannot {self._doing}: the response ended {self._left} bytes early"
            )
        return chunk

    def _open(self, length: int | None) -> int:
        """Open the whole range and return its number of bytes."""
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
        """Request the rest of the same object, which may have been replaced in the meantime."""
        try:
            found = self._get(Range=self._range, IfMatch=self._etag)
        except ClientError as exc:
            if is_taken(exc):
                raise self._replaced() from exc
            raise
        self._body = found["Body"]
        self._size_of(found)
        if found["ETag"] != self._etag:  # the store ignored the condition
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
        """Return the size of the whole object, from a response that begins at the position."""
        answered = CONTENT_RANGE.fullmatch(found.get("ContentRange", ""))
        if not answered:
            raise StorageRefusedError(f"cannot {self._doing}: the store ignores the range")
        if int(answered["start"]) != self._position:
            raise StorageRefusedError(
                f"cannot {self._doing}: the store answered {found['ContentRange']!r} to a request "
                f"for {self._range!r}"
            )
        if answered["size"] == "*":
            return self._position + found["ContentLength"]
        return int(answered["size"])

    def _replaced(self) -> StorageRefusedError:
        return StorageRefusedError(
            f"cannot {self._doing}: it was replaced while it was read", hint="Try again."
        )
