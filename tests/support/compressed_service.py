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

from pgstash.cli.runner import run
from pgstash.commands.backup import back_up
from pgstash.commands.schedules import schedule_of
from pgstash.errors import PgstashError
from pgstash.runtime import Runtime
from pgstash.service import loop
from pgstash.service.retries import Retries

if TYPE_CHECKING:
    from pgstash.events import Emit
    from pgstash.settings import Settings
    from pgstash.signals import Interruption


class CompressedClock:
    """Real time, plus the time that the service would have slept."""

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
        runtime = Runtime(emit, interruption, now=clock.now)

        def job(given: Runtime) -> None:
            control.sendall(b"ready\n")
            control.recv(1)
            outcome = "success"
            try:
                back_up(values, given, server_now=lambda _: clock.now())
            except PgstashError as error:
                outcome = type(error).__name__
                raise
            finally:
                control.sendall(f"{outcome} {clock.now().isoformat()}\n".encode())

        loop.run(job, Retries(schedule_of(values, start), runtime), runtime, clock.sleep)

    run(work)


if __name__ == "__main__":
    try:
        main(datetime.fromisoformat(sys.argv[1]), socket.socket(fileno=int(sys.argv[2])))
    except typer.Exit as done:
        sys.exit(done.exit_code)
