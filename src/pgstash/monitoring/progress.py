"""Shows progress: one live line on a terminal; elsewhere, a line in the log from time to time."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pgstash.events import Emit, Event
from pgstash.monitoring.log import LOGGER, printable
from pgstash.monitoring.run_state import RunState

_SECONDS_BETWEEN_LINES = 30.0
_SECONDS_BETWEEN_LOOKS = 1.0


@contextmanager
def listen(*, live: bool = True) -> Iterator[Emit]:
    """Yield an event listener that shows progress in the form that suits stderr."""
    if live and sys.stderr is not None and sys.stderr.isatty():
        with _live_line() as listener:
            yield listener
    else:
        lines = Lines(every=_SECONDS_BETWEEN_LINES)
        with _looking(lines):
            yield lines


class Lines:
    """Logs a line of progress at intervals, also while no event comes. Safe in any thread."""

    def __init__(self, *, every: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Log at most one line every ``every`` seconds of ``clock``."""
        self._every = every
        self._clock = clock
        self._state = RunState(clock)
        self._last = clock()
        self._lock = threading.Lock()

    def __call__(self, event: Event) -> None:
        """Take an event."""
        if self._state.update(event):
            self._last = self._clock()
        self.look()

    def look(self) -> None:
        """Log a line if it is time for one."""
        now = self._clock()
        with self._lock:
            if not self._state.running or now - self._last < self._every:
                return
            self._last = now
        LOGGER.info("In progress: %s", self._state.text())


@contextmanager
def _looking(lines: Lines) -> Iterator[None]:
    """Log the lines of the block while no event comes."""
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(_SECONDS_BETWEEN_LOOKS):
            lines.look()

    thread = threading.Thread(target=look, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()


@contextmanager
def _live_line() -> Iterator[Emit]:
    # rich is slow to import, and a service in a container has no terminal.
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import Progress, ProgressColumn, SpinnerColumn, Task  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    state = RunState(time.monotonic)

    class Words(ProgressColumn):
        def render(self, task: Task) -> Text:  # noqa: ARG002 - of the column's interface
            # It contains names of tables, which may be sequences that control a terminal.
            return Text(printable(state.text()), overflow="ellipsis", no_wrap=True)

    with Progress(
        SpinnerColumn(),
        Words(),
        # The terminal breaks long lines of the log itself, so that they can be copied whole.
        console=Console(stderr=True, soft_wrap=True),
        transient=True,
        redirect_stdout=sys.stdout is not None and sys.stdout.isatty(),
        redirect_stderr=True,
    ) as display:
        task = display.add_task("", total=None, visible=False)

        def listener(event: Event) -> None:
            state.update(event)
            display.update(task, visible=state.running)

        yield listener
