"""Answers probes of a service: `/healthz` (alive), `/readyz` (healthy), and `/metrics`."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections import deque
from collections.abc import Iterator
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Protocol

from pgstash.errors import ConfigurationError
from pgstash.monitoring.metrics import Metrics, exposed
from pgstash.signals import kept_for_this_thread

_SECONDS_TO_ASK = 5.0
_MOST_CONNECTIONS = 16
_BACKLOG = 128


class Probed(Protocol):
    """What `/readyz` reports."""

    def facts(self) -> tuple[bool, dict[str, object]]:
        """Return whether the service is healthy, and the body of the answer."""
        ...


@contextlib.contextmanager
def serving(port: int, health: Probed, metrics: Metrics | None = None) -> Iterator[int]:
    """Serve on all interfaces until the end of the block; yield the port.

    `/metrics` is served if there are ``metrics``. Port 0 is any free one. Raises ConfigurationError
    if the port is not available.
    """
    try:
        listener = _listener(port)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigurationError(
            [f"HEALTH_PORT {port} is not available: {reason}. Choose another port."]
        ) from error
    server = _Server(listener, health, metrics)
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

    def __init__(self, listener: socket.socket, health: Probed, metrics: Metrics | None) -> None:
        super().__init__(listener.getsockname()[:2], _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self.health = health
        self.metrics = metrics
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
        elif path == "/metrics" and self.server.metrics is not None:
            self._answer_with_metrics(self.server.metrics)
        else:
            self._answer(HTTPStatus.NOT_FOUND, {"error": "try /healthz, /readyz or /metrics"})

    def _answer_with_metrics(self, metrics: Metrics) -> None:
        try:
            body, content_type = exposed(metrics, self.headers.get("Accept", ""))
        except ImportError:
            missing = "install the extra metrics: pip install 'pgstash[metrics]'"
            self._answer(HTTPStatus.NOT_IMPLEMENTED, {"error": missing})
        else:
            self._send(HTTPStatus.OK, body, content_type)

    do_HEAD = do_GET  # noqa: N815 - a name of the base

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer what the base class refuses: an unknown method, or a request that is not HTTP."""
        del message, explain
        unknown = code == HTTPStatus.NOT_IMPLEMENTED
        status = HTTPStatus.METHOD_NOT_ALLOWED if unknown else HTTPStatus(code)
        self._answer(status, {"error": status.phrase})

    def _answer(self, status: HTTPStatus, facts: dict[str, object]) -> None:
        self._send(status, json.dumps(facts).encode() + b"\n", "application/json")

    def _send(self, status: HTTPStatus, body: bytes, content_type: str) -> None:
        self.send_response_only(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        if status is HTTPStatus.METHOD_NOT_ALLOWED:
            self.send_header("Allow", "GET, HEAD")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as in the base
        """Keep probes out of the log."""
