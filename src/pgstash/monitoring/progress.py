"""Shows progress: a bar on a terminal; elsewhere, a line in the log from time to time."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pgstash.counting import counted
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
    StatisticsUpdated,
)
from pgstash.monitoring.log import LOGGER
from pgstash.monitoring.messages import size

_SECONDS_BETWEEN_LINES = 30.0


@contextmanager
def listen() -> Iterator[Emit]:
    """Yield an event listener that shows progress in the form that suits stderr."""
    if sys.stderr is not None and sys.stderr.isatty():
        with _bar() as listener:
            yield listener
    else:
        yield Lines()


class Lines:
    """Logs a line of progress at intervals."""

    def __init__(
        self, *, every: float = _SECONDS_BETWEEN_LINES, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Log at most one line every ``every`` seconds of ``clock``."""
        self._every = every
        self._clock = clock
        self._started = self._last = clock()

    def __call__(self, event: Event) -> None:
        """Take an event."""
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
        elif isinstance(event, StatisticsUpdated) and now - self._last >= self._every:
            self._last = now
            LOGGER.info(
                "In progress: statistics of %d of %s, %.0fs elapsed",
                event.done,
                counted(event.total, "table"),
                now - self._started,
            )


@contextmanager
def _bar() -> Iterator[Emit]:
    # rich is slow to import, and a service in a container has no terminal.
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
        # The terminal breaks long lines of the log itself, so that they can be copied whole.
        console=Console(stderr=True, soft_wrap=True),
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
                case StatisticsUpdated():
                    tables = counted(event.total, "table")
                    bar.update(
                        task,
                        description=f"statistics of {event.done} of {tables}",
                        visible=True,
                    )
                case DumpFinished() | BackupSucceeded() | BackupFailed():
                    bar.update(task, visible=False)
                case RestoreSucceeded() | RestoreFailed() | DrillSucceeded() | DrillFailed():
                    bar.update(task, visible=False)
                case _:
                    pass

        yield listener
