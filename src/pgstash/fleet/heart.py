"""The signs of life of a worker: in a thread and a session of their own, whatever it waits for."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

from pgstash import events
from pgstash.errors import PgstashError
from pgstash.fleet.queue import Queue
from pgstash.signals import kept_for_this_thread

_BEATS = 6
"""How many signs of life a worker gives until it would be considered dead."""

_SECONDS_TO_STOP = 1.0


class Heart:
    """Registers a worker, and keeps it alive until :meth:`beating` ends."""

    def __init__(self, open_queue: Callable[[], Queue], timeout: float, emit: events.Emit) -> None:
        """Start nothing yet; a worker is dead after ``timeout`` seconds without a sign of life."""
        self._open = open_queue
        self._timeout = timeout
        self._emit = emit
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._worker: int | None = None
        self._beat_at = float("-inf")

    @property
    def number(self) -> int | None:
        """The number that this worker has, dead or alive."""
        return self._worker

    @property
    def worker(self) -> int | None:
        """The number of this worker; None while others may soon consider it dead."""
        late = time.monotonic() - self._beat_at > self._timeout / 2
        return None if late else self._worker

    @contextlib.contextmanager
    def beating(self) -> Iterator[None]:
        """Give signs of life in the block. Raises what the first registration does."""
        queue = self._open()
        try:
            self._register(queue)
        except BaseException:
            queue.close()
            raise
        self._thread = threading.Thread(target=self._run, args=(queue,), name="heart", daemon=True)
        with kept_for_this_thread():
            self._thread.start()
        try:
            yield
        finally:
            self.stop()

    def stop(self) -> None:
        """Give no further sign of life."""
        self._stop.set()
        if self._thread:
            self._thread.join(_SECONDS_TO_STOP)

    def _register(self, queue: Queue) -> None:
        began = time.monotonic()
        self._worker = queue.register()
        self._beat_at = began

    def _run(self, queue: Queue) -> None:
        while not self._stop.wait(self._timeout / _BEATS):
            try:
                if not queue.is_open:
                    queue = self._open()
                self._beat(queue)
            except PgstashError:  # the worker reports that the queue does not answer
                continue
        queue.close()

    def _beat(self, queue: Queue) -> None:
        began = time.monotonic()
        if self._worker is not None and queue.beat(self._worker):
            self._beat_at = began
            return
        self._emit(events.Warned("This worker was considered dead: its runs were put back"))
        self._register(queue)
