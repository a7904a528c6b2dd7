"""Answers probes of the service: `/healthz` (alive) and `/readyz` (healthy).

The service is healthy while the newest backup is fresh and no drill has failed since the last one
that passed.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Protocol

from pgstash import __version__, events
from pgstash.errors import ConfigurationError
from pgstash.format.iso_time import iso
from pgstash.format.names import ARCHIVE_NAME, started_of
from pgstash.monitoring.copy_states import CopyStates
from pgstash.monitoring.redaction import Scrubber
from pgstash.signals import kept_for_this_thread

_SECONDS_TO_ASK = 5.0
_MOST_CONNECTIONS = 16
_BACKLOG = 128
_LONGEST_MESSAGE = 500


@dataclass(frozen=True, slots=True)
class _Success:
    name: str
    started: datetime
    stored_bytes: int
    raw_bytes: int | None


@dataclass(frozen=True, slots=True)
class _Failure:
    name: str
    error: str
    at: datetime
    message: str


@dataclass(frozen=True, slots=True)
class _Proof:
    name: str
    at: datetime


class Health:
    """An event listener that keeps the state of the service. Safe to use from any thread."""

    def __init__(
        self,
        scrubber: Scrubber,
        stale_at: Callable[[datetime], datetime],
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Start without any state; ``stale_at`` is the rule of `pgstash healthcheck`."""
        self._scrubber = scrubber
        self._stale_at = stale_at
        self._now = now
        self._running_since = now()
        self._lock = threading.Lock()
        self._success: _Success | None = None
        self._failure: _Failure | None = None
        self._proof: _Proof | None = None
        self._failed_drill: _Failure | None = None
        self._drill_failed = False
        self._next_run: datetime | None = None
        self._copies = CopyStates()

    def found(self, name: str, started: datetime, stored_bytes: int) -> None:
        """Record a backup that was in the store before, unless a newer one is known."""
        with self._lock:
            if self._success is None or self._success.started < started:
                self._success = _Success(name, started, stored_bytes, None)

    def found_proof(self, name: str, at: datetime) -> None:
        """Record a drill that passed before, unless a later one is known; a failure stays."""
        with self._lock:
            if self._proof is None or self._proof.at < at:
                self._proof = _Proof(name, at)

    def __call__(self, event: events.Event) -> None:
        """Take an event; never waits."""
        self._copies(event)
        match event:
            case events.BackupSucceeded():
                named = ARCHIVE_NAME.fullmatch(event.name)
                started = (started_of(named[1]) if named else None) or self._now()
                with self._lock:
                    self._success = _Success(
                        event.name, started, event.stored_bytes, event.raw_bytes
                    )
            case events.BackupFailed():
                failure = self._failed(event)
                with self._lock:
                    self._failure = failure
            case events.DrillSucceeded():
                with self._lock:
                    self._proof, self._drill_failed = _Proof(event.name, event.at), False
            case events.DrillFailed():
                failure = self._failed(event)
                with self._lock:
                    self._failed_drill, self._drill_failed = failure, True
            case events.NextRunPlanned():
                with self._lock:
                    self._next_run = event.at
            case _:
                pass

    def _failed(self, event: events.BackupFailed | events.DrillFailed) -> _Failure:
        message = self._scrubber.scrub(event.message)
        return _Failure(event.name, event.error, self._now(), message[:_LONGEST_MESSAGE])

    def facts(self) -> tuple[bool, dict[str, object]]:
        """Return whether the service is healthy, and the body of `/readyz`."""
        now = self._now()
        with self._lock:
            success, failure, next_run = self._success, self._failure, self._next_run
            proof, failed_drill, drill_failed = self._proof, self._failed_drill, self._drill_failed
        copies = self._copies.judged(now, self._stale_at, self._scrubber.scrub)
        # A failed drill comes first: a fresh backup is worth little if backups do not restore.
        if drill_failed:
            status = "drill failed"
        elif success is None:
            status = "no backup yet"
        else:
            status = "ready" if now < self._stale_at(success.started) else "stale"
        return status == "ready", {
            "status": status,
            "version": __version__,
            "running_since": iso(self._running_since),
            "next_run": iso(next_run) if next_run else None,
            **({"copies": copies} if copies else {}),
            "last_success": {
                "name": success.name,
                "at": iso(success.started),
                "age_seconds": round((now - success.started).total_seconds()),
                "stored_bytes": success.stored_bytes,
                "raw_bytes": success.raw_bytes,
            }
            if success
            else None,
            "last_failure": {
                "error": failure.error,
                "at": iso(failure.at),
                "message": failure.message,
            }
            if failure
            else None,
            "last_proof": {
                "name": proof.name,
                "at": iso(proof.at),
                "age_seconds": round((now - proof.at).total_seconds()),
            }
            if proof
            else None,
            "last_failed_drill": {
                "name": failed_drill.name,
                "error": failed_drill.error,
                "at": iso(failed_drill.at),
                "message": failed_drill.message,
            }
            if failed_drill
            else None,
        }


class Probed(Protocol):
    """What `/readyz` reports."""

    def facts(self) -> tuple[bool, dict[str, object]]:
        """Return whether the service is healthy, and the body of the answer."""
        ...


@contextlib.contextmanager
def serving(port: int, health: Probed) -> Iterator[int]:
    """Serve on all interfaces until the end of the block; yield the port.

    Port 0 is any free one. Raises ConfigurationError if the port is not available.
    """
    try:
        listener = _listener(port)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigurationError(
            [f"HEALTH_PORT {port} is not available: {reason}. Choose another port."]
        ) from error
    server = _Server(listener, health)
    thread = threading.Thread(
        target=server.serve_forever, name="health", kwargs={"poll_interval": 60}, daemon=True
    )
    with kept_for_this_thread():
        thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)  # wakes the thread immediately
        server.shutdown()
        server.server_close()


def _listener(port: int) -> socket.socket:
    """Listen on IPv6 and IPv4, or on IPv4 alone if the system has no IPv6."""
    if socket.has_dualstack_ipv6():
        return socket.create_server(
            ("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=_BACKLOG
        )
    return socket.create_server(("", port), backlog=_BACKLOG)


class _Server(ThreadingHTTPServer):
    """One thread per connection; above a limit, the oldest connection is closed for a new one."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, listener: socket.socket, health: Probed) -> None:
        super().__init__(listener.getsockname()[:2], _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self.health = health
        self._open: deque[socket.socket] = deque()
        self._guard = threading.Lock()

    def process_request(self, request: object, client_address: object) -> None:
        """Close the oldest connection if there are too many, then let a thread answer."""
        if not isinstance(request, socket.socket):
            raise TypeError("connections are sockets")
        with self._guard:
            self._open.append(request)
            oldest = self._open.popleft() if len(self._open) > _MOST_CONNECTIONS else None
        if oldest:
            with contextlib.suppress(OSError):
                oldest.shutdown(socket.SHUT_RDWR)
        super().process_request(request, client_address)

    def shutdown_request(self, request: object) -> None:
        """Close a connection, answered or not."""
        with self._guard, contextlib.suppress(ValueError):
            # The stubs allow a datagram too, which no server of TCP gets.
            self._open.remove(request)  # type: ignore[arg-type]
        super().shutdown_request(request)  # type: ignore[arg-type] # as above

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore a client that disconnected or was too slow."""


class _Handler(BaseHTTPRequestHandler):
    """Answers GET and HEAD, one request per connection, and reads no body."""

    timeout = _SECONDS_TO_ASK
    server: _Server

    def do_GET(self) -> None:
        """Answer a probe."""
        path = self.path.partition("?")[0]
        if path == "/healthz":
            self._answer(HTTPStatus.OK, {"status": "alive"})
        elif path == "/readyz":
            well, facts = self.server.health.facts()
            self._answer(HTTPStatus.OK if well else HTTPStatus.SERVICE_UNAVAILABLE, facts)
        else:
            self._answer(HTTPStatus.NOT_FOUND, {"error": "try /healthz or /readyz"})

    do_HEAD = do_GET  # noqa: N815 - a name of the base

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer what the base class refuses: an unknown method, or a request that is not HTTP."""
        del message, explain
        unknown = code == HTTPStatus.NOT_IMPLEMENTED
        status = HTTPStatus.METHOD_NOT_ALLOWED if unknown else HTTPStatus(code)
        self._answer(status, {"error": status.phrase})

    def _answer(self, status: HTTPStatus, facts: dict[str, object]) -> None:
        body = json.dumps(facts).encode() + b"\n"
        self.send_response_only(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        if status is HTTPStatus.METHOD_NOT_ALLOWED:
            self.send_header("Allow", "GET, HEAD")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as in the base
        """Keep probes out of the log."""
