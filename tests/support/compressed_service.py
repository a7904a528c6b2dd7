"""The real service on a clock that does not wait: ``compressed_service.py <time> <socket>``.

Everything is as in ``pgstash backup``, but that the time begins at ``<time>`` (ISO 8601) and is
put forward where the service would sleep. Before each run it says ``ready`` on the socket, which
is an inherited descriptor, and waits for one byte; after each it says how the run ended, and the
time.
"""

from __future__ import annotations

import socket
import sys
import time
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import typer

from pgstash import app, service
from pgstash.cli.running import run
from pgstash.errors import PgstashError

if TYPE_CHECKING:
    from pgstash.events import Emit
    from pgstash.settings import Settings
    from pgstash.signals import Interruption


class CompressedClock:
    """Implements :class:`pgstash.service.Clock`: real time, and what nobody slept on top."""

    def __init__(self, start: datetime) -> None:
        self._start = start
        self._began = time.monotonic()

    def now(self) -> datetime:
        return self._start + timedelta(seconds=time.monotonic() - self._began)

    def sleep(self, seconds: float) -> None:
        self._start += timedelta(seconds=seconds)


def main(start: datetime, control: socket.socket) -> None:
    clock = CompressedClock(start)

    def work(values: Settings, emit: Emit, interruption: Interruption) -> None:
        def job() -> None:
            control.sendall(b"ready\n")
            control.recv(1)
            outcome = "success"
            try:
                app.back_up(
                    values,
                    emit,
                    interruption.deferred,
                    interruption.hear,
                    now=clock.now,
                    server_now=lambda _: clock.now(),
                )
            except PgstashError as error:
                outcome = type(error).__name__
                raise
            finally:
                control.sendall(f"{outcome} {clock.now().isoformat()}\n".encode())

        service.run(job, app.schedule(values, start), clock, emit, interruption.hear)

    run(work)


if __name__ == "__main__":
    try:
        main(datetime.fromisoformat(sys.argv[1]), socket.socket(fileno=int(sys.argv[2])))
    except typer.Exit as done:
        sys.exit(done.exit_code)
