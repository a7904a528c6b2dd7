"""Two proxies that stand before a server and break things on purpose.

``TcpProxy`` knows bytes: it refuses, resets, stalls, slows down. ``HttpProxy`` knows
requests: it answers chosen ones itself, loses their answers or changes them. Both pass
the Host header on unchanged, so that signatures of S3 requests stay valid.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self
from urllib.parse import parse_qs, urlsplit

HOST = "127.0.0.1"
CHUNK = 64 * 1024
TICK = 0.02


@dataclass(frozen=True, slots=True)
class Behaviour:
    """What a TcpProxy does to a connection.

    ``reset_after`` and ``stall_after`` count bytes in both directions together, from the
    moment the connection was accepted; ``rate`` is in bytes a second for each direction,
    ``latency`` in seconds for each piece that is passed on. A server that is asked something with
    ``reset_answer_to`` in it hears it, and its answer does not arrive; with ``then_refuse`` it is
    not reached again. An answer to ``keep_answer_to`` is waited for in vain.
    """

    refuse: bool = False
    reset_after: int | None = None
    stall_after: int | None = None
    rate: float | None = None
    latency: float = 0.0
    reset_answer_to: bytes | None = None
    then_refuse: bool = False
    keep_answer_to: bytes | None = None


PASS = Behaviour()
REFUSE = Behaviour(refuse=True)
STALL = Behaviour(stall_after=0)


@dataclass(slots=True)
class _Connection:
    client: socket.socket
    server: socket.socket
    own: Behaviour | None
    passed: int = 0
    asked: bool = False


class TcpProxy:
    """Passes connections on to ``host:port``, as well or as badly as it is told."""

    def __init__(self, port: int, host: str = HOST) -> None:
        self._target = (host, port)
        self._behaviour = PASS
        self._planned: list[Behaviour] = []
        self._connections: list[_Connection] = []
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self.sent_bytes = 0
        self.received_bytes = 0
        self.accepted = 0

    def __enter__(self) -> Self:
        self._listener = socket.create_server((HOST, 0))
        # Small, so that a sender notices a slow line instead of filling the kernel's buffers.
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, CHUNK)
        self.port: int = self._listener.getsockname()[1]
        self._spawn(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            for connection in self._connections:
                _reset(connection)
            threads = list(self._threads)
        for thread in threads:
            thread.join(timeout=5)

    @property
    def endpoint(self) -> str:
        return f"http://{HOST}:{self.port}"

    def behave(
        self, behaviour: Behaviour, *, next_connections: list[Behaviour] | None = None
    ) -> None:
        """Treat every connection like this, also those that are open.

        Each of the next new connections takes one of ``next_connections`` instead, for
        as long as it lives.
        """
        with self._lock:
            self._behaviour = behaviour
            self._planned = list(next_connections or [])

    def _spawn(self, target: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._closed.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                self.accepted += 1
                own = self._planned.pop(0) if self._planned else None
            if (own or self._behaviour).refuse:
                _reset_socket(client)
                continue
            try:
                server = socket.create_connection(self._target, timeout=5)
            except OSError:
                _reset_socket(client)
                continue
            server.settimeout(None)
            connection = _Connection(client, server, own)
            with self._lock:
                self._connections.append(connection)
                self._spawn(self._pump, connection, client, server)
                self._spawn(self._pump, connection, server, client)

    def _pump(self, connection: _Connection, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(CHUNK):
                while data:
                    behaviour = connection.own or self._behaviour
                    if self._lost(connection, behaviour, data, answer=source is connection.server):
                        return
                    if behaviour.refuse or _reached(behaviour.reset_after, connection.passed):
                        _reset(connection)
                        return
                    if _reached(behaviour.stall_after, connection.passed):
                        if self._closed.wait(TICK):
                            return
                        continue
                    piece = data[: _allowance(behaviour, connection.passed)]
                    time.sleep(
                        behaviour.latency + (len(piece) / behaviour.rate if behaviour.rate else 0)
                    )
                    sink.sendall(piece)
                    data = data[len(piece) :]
                    with self._lock:
                        connection.passed += len(piece)
                        if source is connection.client:
                            self.sent_bytes += len(piece)
                        else:
                            self.received_bytes += len(piece)
        for each in (connection.client, connection.server):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _lost(
        self, connection: _Connection, behaviour: Behaviour, data: bytes, *, answer: bool
    ) -> bool:
        """Reset the connection, or wait, if this is the answer that is to be lost."""
        if behaviour.keep_answer_to and behaviour.keep_answer_to in data:
            connection.asked = True
        elif answer and connection.asked and behaviour.keep_answer_to:
            self._closed.wait()
            return True
        if behaviour.reset_answer_to and behaviour.reset_answer_to in data:
            connection.asked = True
        elif answer and connection.asked:
            if behaviour.then_refuse:
                self._behaviour = REFUSE
            _reset(connection)
            return True
        return False


def _reached(limit: int | None, passed: int) -> bool:
    return limit is not None and passed >= limit


def _allowance(behaviour: Behaviour, passed: int) -> int:
    limits = [behaviour.reset_after, behaviour.stall_after]
    allowed = [limit - passed for limit in limits if limit is not None]
    if behaviour.rate:
        allowed.append(max(1, int(behaviour.rate / 20)))
    return min(allowed, default=CHUNK)


def _reset_socket(each: socket.socket) -> None:
    """Close so that the other side sees a reset, not an end of file."""
    with contextlib.suppress(OSError):
        each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        each.shutdown(socket.SHUT_RD)
    each.close()


def _reset(connection: _Connection) -> None:
    _reset_socket(connection.client)
    _reset_socket(connection.server)


_SUBRESOURCES = {
    "delete": "DeleteObjects",
    "versions": "ListObjectVersions",
    "versioning": "GetBucketVersioning",
    "object-lock": "GetObjectLockConfiguration",
    "lifecycle": "GetBucketLifecycleConfiguration",
}


@dataclass(frozen=True, slots=True)
class Request:
    """What a client asked an HttpProxy for."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    size: int
    deletes: bytes = b""
    """The body of a DeleteObjects request: it names what is deleted."""

    @property
    def operation(self) -> str:
        """The S3 operation, told by method and query as the S3 API reference does."""
        if "uploads" in self.query:
            return "CreateMultipartUpload" if self.method == "POST" else "ListMultipartUploads"
        if "uploadId" in self.query:
            return {
                "PUT": "UploadPart",
                "POST": "CompleteMultipartUpload",
                "DELETE": "AbortMultipartUpload",
                "GET": "ListParts",
            }[self.method]
        for parameter, operation in _SUBRESOURCES.items():
            if parameter in self.query:
                return operation
        if "list-type" in self.query:
            return "ListObjectsV2"
        return {
            "DELETE": "DeleteObject",
            "GET": "GetObject",
            "HEAD": "HeadObject",
            "PUT": "PutObject",
        }.get(self.method, self.method)


@dataclass(frozen=True, slots=True)
class Answer:
    """Answer in the server's place; the server sees nothing.

    With an S3 error, or without a code as a gateway does: with nothing but the status.
    """

    status: int
    code: str
    message: str = "planted by the test"


@dataclass(frozen=True, slots=True)
class Drop:
    """Break the connection, before or after the server did what it was asked."""

    forward: bool


@dataclass(frozen=True, slots=True)
class Hang:
    """Never answer; the server sees nothing."""


@dataclass(frozen=True, slots=True)
class Change:
    """Change the body of the server's answer."""

    body: Callable[[bytes], bytes]


@dataclass(frozen=True, slots=True)
class Reply:
    """What a server answered; the proxy gives its body a length."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes


@dataclass(frozen=True, slots=True)
class Respond:
    """Answer in the server's place, with what only this server answers; it sees nothing."""

    reply: Reply


@dataclass(frozen=True, slots=True)
class Rewrite:
    """Change the server's whole answer."""

    reply: Callable[[Reply], Reply]


@dataclass(frozen=True, slots=True)
class Cut:
    """Announce the whole answer, and break off after so many bytes of its body."""

    after: int


Action = Answer | Drop | Hang | Change | Respond | Rewrite | Cut

ANY = "any operation"


@dataclass(slots=True)
class Rule:
    """Applies ``action`` to requests of ``operation``, after ``skip`` of them, ``times`` times."""

    operation: str
    action: Action
    skip: int = 0
    times: int = 1_000_000
    matches: Callable[[Request], bool] = lambda _request: True
    applied: int = 0


@dataclass
class HttpProxy:
    """Passes requests on to an HTTP server, except where a rule says otherwise.

    ``operation_of`` names the operation of a request; without it, they are those of S3.
    """

    target_port: int
    operation_of: Callable[[Request], str] = lambda request: request.operation
    rules: list[Rule] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    connections: int = 0

    def __enter__(self) -> Self:
        self._lock = threading.Lock()
        self._closed = threading.Event()
        proxy = self

        class Handler(_Handler):
            def __init__(self, *args: object) -> None:
                self.proxy = proxy
                super().__init__(*args)  # type: ignore[arg-type]

        self._server = _Server((HOST, 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(TICK,))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def endpoint(self) -> str:
        return f"http://{HOST}:{self._server.server_port}"

    def rule(
        self, operation: str, action: Action, *, skip: int = 0, times: int = 1_000_000
    ) -> Rule:
        """Add a rule, and return it to be looked at or taken away again."""
        rule = Rule(operation, action, skip, times)
        self.rules.append(rule)
        return rule

    def count(self, operation: str) -> int:
        """Return how many requests of ``operation`` came in."""
        with self._lock:
            return sum(self.operation_of(request) == operation for request in self.requests)

    def connected(self) -> None:
        """Count a connection."""
        with self._lock:
            self.connections += 1

    def action(self, request: Request) -> Action | None:
        """Record a request, and return what a rule wants to be done to it."""
        asked = self.operation_of(request)
        with self._lock:
            self.requests.append(request)
            for rule in self.rules:
                if rule.operation not in (ANY, asked) or not rule.matches(request):
                    continue
                if rule.skip:
                    rule.skip -= 1
                elif rule.applied < rule.times:
                    rule.applied += 1
                    return rule.action
        return None

    def wait_until_closed(self) -> None:
        """Hold a request for as long as the proxy lives."""
        self._closed.wait()


class _Server(ThreadingHTTPServer):
    """Says nothing about clients that went away: tests make them go."""

    block_on_close = False

    def handle_error(self, request: object, client_address: object) -> None:
        pass


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 60
    proxy: HttpProxy

    def setup(self) -> None:
        super().setup()
        self.proxy.connected()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as in the base
        pass

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urlsplit(self.path)
        query = parse_qs(url.query, keep_blank_values=True)
        deletes = body if "delete" in query else b""
        request = Request(self.command, url.path, query, dict(self.headers), len(body), deletes)
        action = self.proxy.action(request)
        if isinstance(action, Answer):
            self._answer(action)
            return
        if isinstance(action, Respond):
            self._send(action.reply, cut=None)
            return
        if isinstance(action, Hang):
            self.proxy.wait_until_closed()
        if isinstance(action, Hang) or (isinstance(action, Drop) and not action.forward):
            self._drop()
            return
        reply = self._forward(body)
        if isinstance(action, Drop):
            self._drop()
            return
        if isinstance(action, Change):
            reply = replace(reply, body=action.body(reply.body))
        if isinstance(action, Rewrite):
            reply = action.reply(reply)
        self._send(reply, cut=action.after if isinstance(action, Cut) else None)

    def _send(self, reply: Reply, *, cut: int | None) -> None:
        self.send_response_only(reply.status)
        announced = str(len(reply.body))
        for name, value in reply.headers:
            if name.lower() == "content-length" and self.command == "HEAD":
                announced = value
            if name.lower() not in {"content-length", "transfer-encoding", "connection"}:
                self.send_header(name, value)
        self.send_header("Content-Length", announced)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(reply.body[:cut])
        if cut is not None:
            self._drop()

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _serve  # noqa: N815 - names of the base

    def _forward(self, body: bytes) -> Reply:
        upstream = http.client.HTTPConnection(HOST, self.proxy.target_port, timeout=60)
        with contextlib.closing(upstream):
            upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                upstream.putheader(name, value)
            upstream.endheaders(body or None)
            with upstream.getresponse() as response:
                return Reply(response.status, response.getheaders(), response.read())

    def _answer(self, action: Answer) -> None:
        body = b""
        if action.code:
            body = (
                f"<?xml version='1.0'?><Error><Code>{action.code}</Code>"
                f"<Message>{action.message}</Message></Error>"
            ).encode()
        self.send_response_only(action.status)
        self.send_header("Content-Type", "application/xml")
        if action.code:
            self.send_header("x-ms-error-code", action.code)  # as Azure does
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _drop(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)
