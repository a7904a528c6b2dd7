"""A small SMTP server (RFC 5321) that keeps the messages it takes."""

from __future__ import annotations

import contextlib
import socketserver
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from email import message_from_bytes, policy
from email.message import EmailMessage


@dataclass
class Mailbox:
    """``refuses`` all recipients, with the code for an unknown mailbox."""

    refuses: bool = False
    messages: list[EmailMessage] = field(default_factory=list)
    port: int = 0


@contextlib.contextmanager
def mailbox(*, refuses: bool = False) -> Iterator[Mailbox]:
    """Serve on a free port of this machine until the end of the block."""
    box = Mailbox(refuses)

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self._say("220 ready")
            while line := self.rfile.readline():
                verb = line.split(maxsplit=1)[0].upper()
                if verb == b"RCPT" and box.refuses:
                    self._say("550 5.1.1 no such mailbox")
                elif verb == b"DATA":
                    self._say("354 go on")
                    self._take()
                    self._say("250 taken")
                elif verb == b"QUIT":
                    self._say("221 bye")
                    return
                else:
                    self._say("250 yes")

        def _say(self, text: str) -> None:
            self.wfile.write(f"{text}\r\n".encode())

        def _take(self) -> None:
            lines: list[bytes] = []
            while (line := self.rfile.readline()) not in (b".\r\n", b""):
                lines.append(line.removeprefix(b"."))
            parsed = message_from_bytes(b"".join(lines), policy=policy.default)
            assert isinstance(parsed, EmailMessage)
            box.messages.append(parsed)

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True
        block_on_close = False

    with Server(("127.0.0.1", 0), Handler) as server:
        box.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield box
        finally:
            server.shutdown()
            thread.join()
