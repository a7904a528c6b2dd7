"""Child processes that run jobs: each is pgstash itself, and one that crashes harms no other.

A child inherits stdout and stderr, where its log goes. It reports how it ended through a pipe; the
end of that pipe also wakes who waits for the child.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from pgstash.processes import outcome
from pgstash.processes.outcome import Outcome

PGSTASH = (sys.executable, "-P", "-m", "pgstash")
"""``-P`` keeps Python from importing what lies in the working directory."""

GRACE = 8.0
"""Seconds that children have to end after SIGTERM. Docker kills a container after 10."""

_SECONDS_BETWEEN_CHECKS = 0.05
_SECONDS_AFTER_KILL = 5.0

Key = TypeVar("Key")


@dataclass(frozen=True, slots=True)
class Ended(Generic[Key]):
    """A child that has ended. A ``status`` below zero is the signal that killed it."""

    key: Key
    status: int
    outcome: Outcome | None


@dataclass(slots=True)
class _Child(Generic[Key]):
    key: Key
    process: subprocess.Popen[bytes]
    pipe: int
    written: bytes = b""
    is_open: bool = True


class Children(Generic[Key]):
    """The children that run. Leave :meth:`ending` only when they have ended."""

    def __init__(self, environment: Mapping[str, str], command: Sequence[str] = PGSTASH) -> None:
        """Start nothing yet; ``environment`` is that of each child, ``command`` its beginning."""
        self._environment = dict(environment)
        self._command = command
        self._running: list[_Child[Key]] = []
        self._selector = selectors.DefaultSelector()

    def __len__(self) -> int:
        """Return how many children run."""
        return len(self._running)

    def start(self, key: Key, arguments: Iterable[str]) -> None:
        """Start a child with these arguments, and with ``--report-to``. Raises OSError."""
        reading, writing = os.pipe()
        try:
            process = subprocess.Popen(  # noqa: S603 - pgstash itself, and no shell
                [*self._command, *arguments, f"--report-to={writing}"],
                stdin=subprocess.DEVNULL,
                env=self._environment,
                pass_fds=[writing],
                start_new_session=True,  # Ctrl-C on a terminal reaches it once, from its parent
            )
        except BaseException:
            os.close(reading)
            raise
        finally:
            os.close(writing)
        child = _Child(key, process, reading)
        self._running.append(child)
        os.set_blocking(reading, False)
        self._selector.register(reading, selectors.EVENT_READ, child)

    def wait(self, seconds: float) -> list[Ended[Key]]:
        """Wait until a child has ended, for up to ``seconds``; return those that have."""
        give_up = time.monotonic() + seconds
        while True:
            left = max(0.0, give_up - time.monotonic())
            # A child whose pipe is closed ends in a moment; nothing else wakes us for that.
            closed = any(not child.is_open for child in self._running)
            for key, _ in self._selector.select(
                min(left, _SECONDS_BETWEEN_CHECKS) if closed else left
            ):
                self._read(key.data)
            if (ended := list(self._reaped())) or time.monotonic() >= give_up:
                return ended

    def _read(self, child: _Child[Key]) -> None:
        with contextlib.suppress(BlockingIOError):
            if data := os.read(child.pipe, outcome.MOST_BYTES):
                child.written = (child.written + data)[: outcome.MOST_BYTES + 1]
                return
            self._close(child)

    def _close(self, child: _Child[Key]) -> None:
        if child.is_open:
            child.is_open = False
            self._selector.unregister(child.pipe)
            os.close(child.pipe)

    def _reaped(self) -> Iterator[Ended[Key]]:
        for child in self._running[:]:
            status = child.process.poll()
            if status is None:
                continue
            if child.is_open:
                self._read(child)
            self._close(child)
            self._running.remove(child)
            yield Ended(child.key, status, outcome.read(child.written))

    @contextlib.contextmanager
    def ending(self, grace: float = GRACE) -> Iterator[None]:
        """End the children that still run at the end of the block: SIGTERM, then SIGKILL."""
        try:
            yield
        finally:
            self._send(signal.SIGTERM)
            self._wait_for_all(grace)
            self._send(signal.SIGKILL)
            self._wait_for_all(_SECONDS_AFTER_KILL)
            self._selector.close()

    def _send(self, signum: int) -> None:
        for child in self._running:
            child.process.send_signal(signum)

    def _wait_for_all(self, seconds: float) -> None:
        give_up = time.monotonic() + seconds
        while self._running and (left := give_up - time.monotonic()) > 0:
            self.wait(left)
