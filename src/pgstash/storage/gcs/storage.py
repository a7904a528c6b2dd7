"""A bucket of Google Cloud Storage, by its JSON API."""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from typing import Any

import google_crc32c

from pgstash import events
from pgstash.errors import StorageRefusedError
from pgstash.storage import part_size as parts
from pgstash.storage.gcs.client import Request, Requests
from pgstash.storage.gcs.config import MAX_PARTS, GcsConfig
from pgstash.storage.gcs.errors import NOT_FOUND, ResponseError
from pgstash.storage.gcs.resumable import ResumableUpload
from pgstash.storage.gcs.unreadable import UnreadableUpload
from pgstash.storage.interface import PendingUpload, StoredObject, end_of_range
from pgstash.storage.multipart_upload import MultipartUpload
from pgstash.storage.ranges import chunks, exactly

RANGE_SENT = (200, 206)
LISTED = "kind,nextPageToken,items(name,size,updated)"


class GcsStorage:
    """One bucket; nothing is sent before the first operation."""

    def __init__(self, config: GcsConfig, emit: events.Emit = events.ignore) -> None:
        """Prepare. ``emit`` is called from several threads."""
        self._sizes = parts.equal(config.part_size, MAX_PARTS)
        self._emit = emit
        self._may_read = config.may_read
        self.host = (config.endpoint,)
        self._requests = Requests(config, emit)

    def __repr__(self) -> str:
        return f"GcsStorage({self.url()!r})"

    def url(self, key: str = "") -> str:
        """Return ``gs://bucket/key``."""
        return f"{self._requests.where}/{key}"

    def check(self) -> None:
        """Raise StorageError unless the store answers and the bucket may be listed."""
        self._page(f"list the bucket {self.url()}", {"maxResults": "1"})

    def list(self, prefix: str, *, start_after: str = "") -> Iterator[StoredObject]:
        """Yield every object whose key starts with ``prefix``, in the order of keys.

        https://cloud.google.com/storage/docs/json_api/v1/objects/list
        """
        query = {"prefix": prefix, "startOffset": start_after, "fields": LISTED}
        while True:
            page = self._page(f"list {self.url(prefix)}", query)
            for item in page.get("items", []):
                if item["name"] > start_after:
                    yield _stored(item, {})
            if not page.get("nextPageToken"):
                return
            query["pageToken"] = page["nextPageToken"]

    def _page(self, doing: str, query: Mapping[str, str]) -> Mapping[str, Any]:
        """Return one page of a listing."""
        given = {name: value for name, value in query.items() if value}
        request = Request("GET", self._requests.objects, given, of_object=False)

        def ask() -> Mapping[str, Any]:
            page = dict(self._requests.send(request).json())
            if "kind" not in page:
                raise ValueError("not a listing")
            return page

        return self._requests.call(doing, ask)

    def folders(self, within: str = "", *, complete: bool = False) -> Sequence[str]:
        """Return the folders directly within a folder, of the first page or of all pages."""
        query = {"prefix": within, "delimiter": "/"}
        found: set[str] = set()
        while True:
            page = self._page(f"list the folders of {self.url(within)}", query)
            found.update(page.get("prefixes", []))
            if not complete or not page.get("nextPageToken"):
                return sorted(found)
            query["pageToken"] = page["nextPageToken"]

    def head(self, key: str) -> StoredObject:
        """Return one object with its metadata. Raises ObjectNotFoundError."""
        return self._properties(key)[0]

    def _properties(self, key: str) -> tuple[StoredObject, str]:
        """Return an object and its generation."""

        def ask() -> tuple[StoredObject, str]:
            found = self._requests.send(Request("GET", self._requests.path_of(key))).json()
            return _stored(found, found.get("metadata") or {}), str(found["generation"])

        return self._requests.call(f"read the metadata of {self.url(key)}", ask)

    def locked_until(self, key: str, version_id: str | None = None) -> datetime | None:
        """Return when the lock of an object ends; see :class:`pgstash.storage.interface.Locking`.

        A hold has no end. https://cloud.google.com/storage/docs/json_api/v1/objects#resource
        """
        request = Request(
            "GET", self._requests.path_of(key), {"generation": version_id} if version_id else None
        )

        def ask() -> datetime | None:
            found = self._requests.send(request).json()
            if found.get("temporaryHold") or found.get("eventBasedHold"):
                return datetime.max.replace(tzinfo=UTC)
            own = (found.get("retention") or {}).get("retainUntilTime")
            ends = [each for each in (found.get("retentionExpirationTime"), own) if each]
            return max(
                (datetime.fromisoformat(each).astimezone(UTC) for each in ends), default=None
            )

        return self._requests.call(f"read the lock of {self.url(key)}", ask)

    @contextmanager
    def read(
        self, key: str, *, start: int = 0, length: int | None = None
    ) -> Iterator[Iterator[bytes]]:
        """Open a range of an object; see :meth:`pgstash.storage.interface.Storage.read`.

        Each request asks for the generation that the first one found.
        """
        stored, generation = self._properties(key)
        end = end_of_range(self.url(key), stored.size, start, length)
        yield chunks(partial(self._fetch, key, generation), start, end)

    def _fetch(self, key: str, generation: str, start: int, length: int) -> bytes:
        doing = f"read {self.url(key)}"
        request = Request(
            "GET",
            self._requests.path_of(key),
            {"alt": "media", "generation": generation},
            {"Range": f"bytes={start}-{start + length - 1}"},
            expected=RANGE_SENT,
        )

        def ask() -> bytes:
            try:
                return exactly(self._requests.send(request).content, length, doing)
            except ResponseError as exc:
                if exc.status == NOT_FOUND:
                    raise StorageRefusedError(
                        f"cannot {doing}: it was replaced while it was read", hint="Try again."
                    ) from exc
                raise

        return self._requests.call(doing, ask)

    def put(self, key: str, data: bytes, metadata: Mapping[str, str]) -> None:
        """Store a small object with one request, replacing one of the same key.

        The store compares the checksum. https://cloud.google.com/storage/docs/uploading-objects
        """
        crc = google_crc32c.value(data).to_bytes(4, "big")
        described = {
            "name": key,
            "metadata": {name.lower(): value for name, value in metadata.items()},
            "crc32c": base64.b64encode(crc).decode(),
        }
        mark = f"pgstash-{secrets.token_hex(16)}"
        body = b"".join(
            (
                f"--{mark}\r\nContent-Type: application/json; charset=UTF-8\r\n\r\n".encode(),
                json.dumps(described).encode(),
                f"\r\n--{mark}\r\nContent-Type: application/octet-stream\r\n\r\n".encode(),
                data,
                f"\r\n--{mark}--\r\n".encode(),
            )
        )
        request = Request(
            "POST",
            f"/upload{self._requests.objects}",
            {"uploadType": "multipart"},
            {"Content-Type": f"multipart/related; boundary={mark}"},
            body,
            of_object=False,
        )
        self._requests.call(f"store {self.url(key)}", lambda: self._requests.send(request))

    def upload(
        self,
        key: str,
        *,
        metadata: Mapping[str, str],
        expected_size: int,
        usual_size: int | None = None,
    ) -> MultipartUpload:
        """Begin a resumable upload, whose parts are sent in order by one thread."""
        del expected_size, usual_size  # parts of one size reach the limit of an object
        kind = ResumableUpload if self._may_read else UnreadableUpload
        upload = kind(self._requests, key, metadata)
        return MultipartUpload(upload, self._sizes, self._emit, senders=1)

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects, one per request. A missing object is not an error."""
        for key in keys:
            request = Request("DELETE", self._requests.path_of(key), expected=(200, 204, 404))
            self._requests.call(f"remove {self.url(key)}", partial(self._requests.send, request))

    def pending(self, prefix: str) -> Iterator[PendingUpload]:
        """Yield nothing: the store lists no sessions, and drops them after a week.

        https://cloud.google.com/storage/docs/resumable-uploads#introduction
        """
        del prefix
        return iter(())

    def abort(self, upload: PendingUpload) -> None:
        """Do nothing: see :meth:`pending`."""


def _stored(item: Mapping[str, Any], metadata: Mapping[str, str]) -> StoredObject:
    modified = datetime.fromisoformat(item["updated"]).astimezone(UTC)
    lowered = {name.lower(): value for name, value in metadata.items()}
    return StoredObject(item["name"], int(item["size"]), modified, lowered)
