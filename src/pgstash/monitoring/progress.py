"""How far long work has come: a bar on a terminal, a line in the log now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pgstash.events import (
    BackupFailed,
    BackupStarted,
    BackupSucceeded,
    DrillFailed,
    DrillStarted,
    DrillSucceeded,
    DumpFinished,
    Emit,
    Event,
    Progressed,
    RestoreFailed,
    RestoreProgressed,
    RestoreStarted,
    RestoreSucceeded,
)
from pgstash.monitoring.log import LOGGER
from pgstash.monitoring.wording import size

_SECONDS_BETWEEN_LINES = 30.0


@contextmanager
def listen() -> Iterator[Emit]:
    """Yield a listener to events that shows progress the way that suits stderr."""
    if sys.stderr is not None and sys.stderr.isatty():
        with _bar() as listener:
            yield listener
    else:
        yield Lines()


class Lines:
    """Logs a line of progress when the last one is some time ago."""

    def __init__(
        self, *, every: float = _SECONDS_BETWEEN_LINES, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Log at most one line in ``every`` seconds of ``clock``."""
        self._every = every
        self._clock = clock
        self._started = self._last = clock()

    def __call__(self, event: Event) -> None:
        """Hear of an event."""
        now = self._clock()
        if isinstance(event, BackupStarted | RestoreStarted | DrillStarted):
            self._started = self._last = now
        elif isinstance(event, Progressed) and now - self._last >= self._every:
            self._last = now
            elapsed = now - self._started
            LOGGER.info(
                "In progress: %s read, %s stored, %s/s, %.0fs elapsed",
                size(event.raw_bytes),
                size(event.stored_bytes),
                size(round(event.raw_bytes / elapsed)),
                elapsed,
            )
        elif isinstance(event, RestoreProgressed) and now - self._last >= self._every:
            self._last = now
            elapsed = now - self._started
            LOGGER.info(
                "In progress: %s of %s read, %s restored, %s/s, %.0fs elapsed",
                size(event.stored_bytes),
                size(event.total) if event.total is not None else "?",
                size(event.raw_bytes),
                size(round(event.raw_bytes / elapsed)),
                elapsed,
            )


@contextmanager
def _bar() -> Iterator[Emit]:
    # Imported here: a service in a container has no terminal, and rich has its price.
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import (  # noqa: PLC0415
        DownloadColumn,
        Progress,
        SpinnerColumn,
        TextColumn,
        TimeElapsedColumn,
        TransferSpeedColumn,
    )

    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
        redirect_stdout=sys.stdout is not None and sys.stdout.isatty(),
        redirect_stderr=True,
    ) as bar:
        task = bar.add_task("dump", total=None, visible=False)

        def listener(event: Event) -> None:
            match event:
                case Progressed():
                    bar.update(task, completed=event.raw_bytes, visible=True)
                case RestoreProgressed():
                    bar.update(
                        task,
                        description="restore",
                        completed=event.stored_bytes,
                        total=event.total,
                        visible=True,
                    )
                case DumpFinished() | BackupSucceeded() | BackupFailed():
                    bar.update(task, visible=False)
                case RestoreSucceeded() | RestoreFailed() | DrillSucceeded() | DrillFailed():
                    bar.update(task, visible=False)
                case _:
                    pass

        yield listener
