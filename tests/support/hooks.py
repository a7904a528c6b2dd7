"""A real HTTP server that receives webhooks and pings, and answers as badly as a test wants."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True, slots=True)
class Received:
    """One request as it arrived."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes
    at: float

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Receiver:
    """``statuses`` are answered in turn, the last one for ever after.

    ``silence`` is in seconds before an answer, ``trickle`` sends it a byte at a time. ``judge``
    returns why a body is refused, or an empty text; a refusal is a 400.
    """

    statuses: list[int] = field(default_factory=lambda: [200])
    silence: float = 0.0
    trickle: bool = False
    location: str = ""
    words: bytes = b""
    judge: Callable[[bytes], str] = lambda _: ""
    received: list[Received] = field(default_factory=list)
    stopped: threading.Event = field(default_factory=threading.Event)
    port: int = 0

    def url(self, path: str = "/hook") -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    @property
    def targets(self) -> list[str]:
        return [each.target for each in self.received]

    def wait_for(self, count: int, seconds: float = 20.0) -> list[Received]:
        """Return the requests when there are so many of them."""
        end = time.monotonic() + seconds
        while len(self.received) < count:
            if time.monotonic() > end:
                raise AssertionError(f"{len(self.received)} requests came, and not {count}")
            time.sleep(0.01)
        return self.received


@contextlib.contextmanager
def receiving(wanted: Receiver | None = None) -> Iterator[Receiver]:
    """Serve on a free port of this machine until the end of the block."""
    receiver = wanted or Receiver()

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            request = Received(self.command, self.path, dict(self.headers), body, time.monotonic())
            receiver.received.append(request)
            number = min(len(receiver.received), len(receiver.statuses))
            receiver.stopped.wait(receiver.silence)
            with contextlib.suppress(OSError):
                if receiver.trickle:
                    while not receiver.stopped.wait(0.05):
                        self.wfile.write(b"H")
                    return
                refusal = receiver.judge(body).encode()
                words = refusal or receiver.words
                self.send_response(400 if refusal else receiver.statuses[number - 1])
                if receiver.location:
                    self.send_header("Location", receiver.location)
                self.send_header("Content-Length", str(len(words)))
                self.end_headers()
                self.wfile.write(words)

        do_GET = _answer  # noqa: N815 - http.server's names
        do_POST = _answer  # noqa: N815

        def log_message(self, *_: object) -> None:
            """Say nothing: the test looks at what was received."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        block_on_close = False

    with Server(("127.0.0.1", 0), Handler) as server:
        receiver.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield receiver
        finally:
            receiver.stopped.set()
            server.shutdown()
            thread.join()
