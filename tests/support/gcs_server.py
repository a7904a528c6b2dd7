"""A server that speaks Google Cloud Storage's JSON API as its documentation describes it.

No emulator that can be had here honours the conditions of resumable uploads, or answers questions
about their status without ending them. This server does, so the promises of a store can be tested
against it. What it shares with pgstash is our reading of the documentation: see ``fake_gcs.py`` for
a server that others wrote.

https://cloud.google.com/storage/docs/performing-resumable-uploads
https://cloud.google.com/storage/docs/request-preconditions
https://cloud.google.com/storage/docs/json_api/v1/objects
"""

from __future__ import annotations

import base64
import itertools
import json
import re
import threading
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import parse_qs, unquote, urlsplit

import google_crc32c
import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.proxy import Request

HOST = "127.0.0.1"
QUANTUM = 256 * 1024
PAGE = 1000
TOKEN = "a-token-of-this-server"


@dataclass
class Stored:
    """One generation of an object."""

    name: str
    data: bytes
    metadata: dict[str, str]
    generation: int
    updated: str = field(default_factory=lambda: datetime.now(UTC).isoformat())
    kept: dict[str, Any] = field(default_factory=dict)
    """What its resource has about locks; a deletion is refused until the times in it."""

    def resource(self) -> dict[str, Any]:
        return {
            "kind": "storage#object",
            "name": self.name,
            "size": str(len(self.data)),
            "generation": str(self.generation),
            "updated": self.updated,
            "crc32c": checksum(self.data),
            "metadata": self.metadata,
            **self.kept,
        }

    @property
    def locked(self) -> str | None:
        """The reason for which it may not be deleted now.

        https://cloud.google.com/storage/docs/json_api/v1/status-codes#403-forbidden
        """
        if self.kept.get("temporaryHold") or self.kept.get("eventBasedHold"):
            return "objectUnderActiveHold"
        until = self.kept.get("retentionExpirationTime")
        past = until is None or datetime.fromisoformat(until) <= datetime.now(UTC)
        return None if past else "retentionPolicyNotMet"


@dataclass
class Session:
    """One resumable upload; ``done`` is the object that it became."""

    bucket: str
    name: str
    metadata: dict[str, str]
    condition: str | None
    data: bytearray = field(default_factory=bytearray)
    done: Stored | None = None


class RefusedError(Exception):
    """A response that is an error."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(status, reason)
        self.status = status
        self.reason = reason


def checksum(data: bytes) -> str:
    return base64.b64encode(google_crc32c.value(data).to_bytes(4, "big")).decode()


class GcsServer:
    """Buckets in memory. With ``wants_token`` it accepts only requests with its own token."""

    def __init__(self) -> None:
        self.buckets: dict[str, dict[str, Stored]] = {}
        self.sessions: dict[str, Session] = {}
        self.lock = threading.RLock()
        self.generations = itertools.count(1)
        self.wants_token = False
        self.tokens_given = 0

    def __enter__(self) -> Self:
        handler = type("Handler", (_Handler,), {"gcs": self})
        self._http = ThreadingHTTPServer((HOST, 0), handler)
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()

    @property
    def port(self) -> int:
        return int(self._http.server_address[1])

    @property
    def endpoint(self) -> str:
        return f"http://{HOST}:{self.port}"

    def create_bucket(self) -> str:
        """Make a bucket and return its name."""
        name = f"test-{uuid.uuid4().hex[:12]}"
        self.buckets[name] = {}
        return name

    def settings(self, bucket: str) -> dict[str, str]:
        """Return the settings that send backups to a bucket."""
        return {"STORAGE_URL": f"gs://{bucket}", "STORAGE_EMULATOR_HOST": self.endpoint}

    def store(self, bucket: str, stored: Stored, condition: str | None) -> Stored:
        """Store an object, if the condition holds: its generation, 0 for none."""
        with self.lock:
            present = self.objects(bucket).get(stored.name)
            if condition not in (None, str(present.generation if present else 0)):
                raise RefusedError(412, "conditionNotMet")
            self.buckets[bucket][stored.name] = stored
            return stored

    def objects(self, bucket: str) -> dict[str, Stored]:
        if bucket not in self.buckets:
            raise RefusedError(404, "notFound")
        return self.buckets[bucket]

    def object(self, bucket: str, name: str, generation: str | None) -> Stored:
        found = self.objects(bucket).get(name)
        if found is None or generation not in (None, str(found.generation)):
            raise RefusedError(404, "notFound")
        return found


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    gcs: GcsServer

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as in the base
        pass

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        try:
            self._answer(url.path, query, body)
        except RefusedError as refused:
            errors = {"errors": [{"reason": refused.reason, "domain": "global"}]}
            self._json(refused.status, {"error": {"code": refused.status, **errors}})

    def _answer(self, path: str, query: dict[str, str], body: bytes) -> None:
        if path == "/token":
            self.gcs.tokens_given += 1
            self._json(200, {"access_token": TOKEN, "expires_in": 3600, "token_type": "Bearer"})
            return
        if self.gcs.wants_token and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            raise RefusedError(401, "required")
        place = re.fullmatch(r"(/upload)?/storage/v1/b/([^/]+)/o(?:/([^/]+))?", path)
        if not place:
            raise RefusedError(404, "notFound")
        bucket, name = unquote(place[2]), unquote(place[3] or "")
        if place[1]:
            self._upload(bucket, query, body)
        elif name:
            self._object(bucket, name, query)
        else:
            self._list(bucket, query)

    do_GET = do_PUT = do_POST = do_DELETE = _serve  # noqa: N815 - names of the base

    def _json(self, status: int, content: dict[str, Any]) -> None:
        self._send(status, json.dumps(content).encode())

    def _send(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _list(self, bucket: str, query: dict[str, str]) -> None:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        first = max(query.get("startOffset", ""), query.get("pageToken", ""))
        most = int(query.get("maxResults", PAGE))
        page: dict[str, Any] = {"kind": "storage#objects"}
        with self.gcs.lock:
            objects = self.gcs.objects(bucket)
            found = sorted(name for name in objects if name.startswith(prefix) and name >= first)
            rests = [name[len(prefix) :] for name in found]
            if delimiter:  # a page counts objects and folders together
                cut = (rest.partition(delimiter) for rest in rests)
                found = sorted({f"{prefix}{name}{slash}" for name, slash, _ in cut})
                page["prefixes"] = [
                    name for name in found[:most] if name.endswith(delimiter) and name != prefix
                ]
            listed = [name for name in found[:most] if name not in page.get("prefixes", ())]
            page["items"] = [objects[name].resource() for name in listed]
        if found[most:]:
            page["nextPageToken"] = found[most]
        self._json(200, page)

    def _object(self, bucket: str, name: str, query: dict[str, str]) -> None:
        with self.gcs.lock:
            found = self.gcs.object(bucket, name, query.get("generation"))
            if self.command == "DELETE":
                if query.get("ifGenerationMatch") not in (None, str(found.generation)):
                    raise RefusedError(412, "conditionNotMet")
                if found.locked:
                    raise RefusedError(403, found.locked)
                del self.gcs.buckets[bucket][name]
                self._send(204, b"")
                return
        if query.get("alt") != "media":
            self._json(200, found.resource())
            return
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if not wanted:
            self._send(200, found.data)
            return
        if int(wanted[1]) >= len(found.data):
            raise RefusedError(416, "requestedRangeNotSatisfiable")
        self._send(206, found.data[int(wanted[1]) : int(wanted[2]) + 1])

    def _upload(self, bucket: str, query: dict[str, str], body: bytes) -> None:
        if "upload_id" in query:
            self._resume(query["upload_id"], body)
            return
        condition = query.get("ifGenerationMatch")
        if query.get("uploadType") == "resumable":
            metadata = json.loads(body or b"{}").get("metadata", {})
            if condition == "0" and query["name"] in self.gcs.objects(bucket):
                raise RefusedError(412, "conditionNotMet")
            self.gcs.objects(bucket)
            upload_id = uuid.uuid4().hex
            self.gcs.sessions[upload_id] = Session(bucket, query["name"], metadata, condition)
            self._send(200, b"", Location=f"{self.gcs.endpoint}{self.path}&upload_id={upload_id}")
            return
        described, data = _parts(body, self.headers["Content-Type"])
        resource = json.loads(described)
        if resource.get("crc32c", checksum(data)) != checksum(data):
            raise RefusedError(400, "invalid")
        number = next(self.gcs.generations)
        stored = Stored(resource["name"], data, resource.get("metadata", {}), number)
        self._json(200, self.gcs.store(bucket, stored, condition).resource())

    def _resume(self, upload_id: str, body: bytes) -> None:
        given = re.fullmatch(
            r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)", self.headers.get("Content-Range", "")
        )
        with self.gcs.lock:
            session = self.gcs.sessions.get(upload_id)
            if session is None:
                raise RefusedError(404, "notFound")
            if self.command == "DELETE":
                del self.gcs.sessions[upload_id]
                raise RefusedError(499, "")
            if session.done:
                self._json(200, session.done.resource())
                return
            if not given or (given[1] and int(given[1]) != len(session.data)):
                raise RefusedError(400, "invalid")
            if given[1] and len(body) != int(given[2]) + 1 - int(given[1]):
                raise RefusedError(400, "invalid")
            if given[3] == "*" and len(body) % QUANTUM:
                raise RefusedError(400, "invalid")
            session.data += body
            if given[3] == str(len(session.data)):
                self._finish(session)
                return
            kept = {"Range": f"bytes=0-{len(session.data) - 1}"} if session.data else {}
            self._send(308, b"", **kept)

    def _finish(self, session: Session) -> None:
        data = bytes(session.data)
        digest = self.headers.get("x-goog-hash", "").partition("crc32c=")[2]
        if digest not in ("", checksum(data)):
            raise RefusedError(400, "invalid")
        stored = Stored(session.name, data, session.metadata, next(self.gcs.generations))
        session.done = self.gcs.store(session.bucket, stored, session.condition)
        self._json(200, session.done.resource())


def _parts(body: bytes, content_type: str) -> list[bytes]:
    """Return the parts of a multipart/related body."""
    mark = b"--" + content_type.partition("boundary=")[2].encode()
    parts = body.split(mark)[1:-1]
    return [part.partition(b"\r\n\r\n")[2].removesuffix(b"\r\n") for part in parts]


def operation_of(request: Request) -> str:
    """Return what a proxy was asked for."""
    if "upload_id" in request.query and request.method == "DELETE":
        return "Cancel"
    if "upload_id" in request.query:
        headers = {name.lower(): value for name, value in request.headers.items()}
        unfinished = "Status" if headers["content-range"] == "bytes */*" else "Part"
        return unfinished if headers["content-range"].endswith("/*") else "Commit"
    if request.path.startswith("/upload/"):
        return "Begin" if request.query.get("uploadType") == ["resumable"] else "Put"
    if request.method == "DELETE":
        return "Delete"
    of_one = "Read" if request.query.get("alt") == ["media"] else "Head"
    return "List" if request.path.endswith("/o") else of_one


@pytest.fixture(scope="session")
def gcs_server() -> Iterator[GcsServer]:
    """One server for the whole run."""
    with GcsServer() as server:
        yield server


@pytest.fixture
def gcs_bucket(gcs_server: GcsServer) -> Iterator[str]:
    """The name of an empty bucket that is this test's own; it is in memory, so it goes again."""
    name = gcs_server.create_bucket()
    yield name
    del gcs_server.buckets[name]
