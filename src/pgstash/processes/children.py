"""Runs of pgstash itself as child processes, several at a time: a crash of one harms no other.

A child reports how it ended through a pipe; the end of that pipe also wakes who waits for the
child. Its log goes where that of its parent goes, unless it is captured.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, Generic, TypeVar

from pgstash.processes import left_behind, outcome
from pgstash.processes.child import Group, Lines
from pgstash.processes.outcome import Outcome

PGSTASH = (sys.executable, "-P", "-m", "pgstash")
"""``-P`` keeps Python from importing what lies in the working directory."""

GRACE = 8.0
"""Seconds that children have to end after SIGTERM. Docker kills a container after 10."""

_SECONDS_BETWEEN_CHECKS = 0.05
_SECONDS_AFTER_KILL = 5.0
_READ_BYTES = 64 * 1024  # the default size of a pipe
_LARGEST = 16 * 1024 * 1024  # bytes of stdout

Key = TypeVar("Key")


@dataclass(frozen=True, slots=True)
class Command:
    """A run: ``arguments`` follow the name of the program.

    A child that ``reports`` gets the option with the descriptor to write to. If ``on_line`` takes
    the lines of its log, its stdout is kept too; ``secrets`` are removed where a line is cut.
    ``more`` are variables beyond those that all children have.
    """

    arguments: Sequence[str]
    reports: bool = True
    on_line: Callable[[str], None] | None = None
    secrets: Iterable[str] = field(repr=False, default=())
    more: Mapping[str, str] = field(repr=False, default_factory=dict)


@dataclass(frozen=True, slots=True)
class Ended(Generic[Key]):
    """A child that has ended. A ``status`` below zero is the signal that killed it.

    ``was_stopped`` is whether it was asked to end. ``output`` and ``last_lines`` are its stdout and
    the end of its log, if that was captured.
    """

    key: Key
    status: int
    outcome: Outcome | None
    was_stopped: bool = False
    output: str = ""
    last_lines: Sequence[str] = ()
    seconds: float = field(default=0.0, compare=False)


class _Captured:
    """What is captured of a child: its log line by line, its stdout when it has ended."""

    def __init__(self, on_line: Callable[[str], None], secrets: Iterable[str]) -> None:
        # A file in memory, so that nobody has to read it meanwhile.
        self.stdout: IO[bytes] = open(os.memfd_create("stdout"), "r+b", buffering=0)  # noqa: PTH123, SIM115 - a descriptor, closed by close()
        self.lines = Lines(on_line, tuple(secrets), float("inf"))
        self.log: IO[bytes] | None = None

    def read(self) -> bool:
        """Read what the child wrote to its log; return whether there may be more later."""
        while self.log and (chunk := self.log.read(_READ_BYTES)) is not None:  # None: nothing now
            if not chunk:
                return False
            self.lines.feed(chunk)
        return True

    def output(self) -> str:
        """Return the stdout so far."""
        return os.pread(self.stdout.fileno(), _LARGEST, 0).decode(errors="replace")

    def close(self) -> None:
        self.stdout.close()
        if self.log:
            self.log.close()


@dataclass(slots=True)
class _Child(Generic[Key]):
    key: Key
    process: subprocess.Popen[bytes]
    group: Group
    pipe: int
    mark: str
    captured: _Captured | None
    began: float
    written: bytes = b""
    is_open: bool = True
    was_stopped: bool = False
    kill_at: float = float("inf")


class Children(Generic[Key]):
    """The children that run. Leave :meth:`ending` only when they have ended."""

    def __init__(self, environment: Mapping[str, str], command: Sequence[str] = PGSTASH) -> None:
        """Start nothing yet; ``environment`` is that of each child, ``command`` its beginning."""
        self._environment = dict(environment)
        self._shared: tuple[int, ...] = ()
        self._command = command
        self._running: list[_Child[Key]] = []
        self._selector = selectors.DefaultSelector()
        self._alarm = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._selector.register(self._alarm, selectors.EVENT_READ)

    def __len__(self) -> int:
        """Return how many children run."""
        return len(self._running)

    def ages(self) -> dict[Key, float]:
        """Return for how many seconds each child has been running."""
        now = time.monotonic()
        return {child.key: now - child.began for child in self._running}

    def share(self, variable: str, descriptor: int) -> None:
        """Let children that start from now on have a descriptor, whose number a variable names."""
        self._environment[variable] = str(descriptor)
        self._shared = (descriptor,)

    def wake(self) -> None:
        """Let :meth:`wait` return; for handlers of signals, and for other threads."""
        os.eventfd_write(self._alarm, 1)

    def start(self, key: Key, command: Command) -> None:
        """Start a child. Raises OSError, or ValueError for arguments that no process can have."""
        mark, environment = left_behind.marked({**self._environment, **command.more})
        captured = _Captured(command.on_line, command.secrets) if command.on_line else None
        reading, writing = os.pipe()
        report = [f"--report-to={writing}"] if command.reports else []
        try:
            process = subprocess.Popen(  # noqa: S603 - pgstash itself, and no shell
                [*self._command, *command.arguments, *report],
                stdin=subprocess.DEVNULL,
                stdout=captured.stdout if captured else None,
                stderr=subprocess.PIPE if captured else None,
                env=environment,
                pass_fds=[writing, *self._shared],
                start_new_session=True,  # Ctrl-C on a terminal reaches it once, from its parent
            )
        except BaseException:
            os.close(reading)
            if captured:
                captured.close()
            raise
        finally:
            os.close(writing)
        child = _Child(key, process, Group(process), reading, mark, captured, time.monotonic())
        self._running.append(child)
        os.set_blocking(reading, False)
        self._selector.register(reading, selectors.EVENT_READ, (child, self._read))
        if captured and process.stderr:
            captured.log = process.stderr
            os.set_blocking(process.stderr.fileno(), False)
            self._selector.register(process.stderr, selectors.EVENT_READ, (child, self._capture))

    def stop(self, key: Key, grace: float = GRACE) -> None:
        """Ask a child to end, by SIGTERM; :meth:`wait` kills it if it does not, and returns it."""
        for child in self._running:
            if child.key == key and not child.was_stopped:
                self._stop(child, grace)

    def _stop(self, child: _Child[Key], grace: float) -> None:
        child.was_stopped = True
        child.kill_at = min(child.kill_at, time.monotonic() + grace)
        self._send(child, signal.SIGTERM)

    def _send(self, child: _Child[Key], signum: int) -> None:
        if not child.group.exits(0):
            with contextlib.suppress(OSError):
                os.killpg(child.process.pid, signum)

    def wait(self, seconds: float) -> list[Ended[Key]]:
        """Wait until a child has ended, for up to ``seconds``; return those that have."""
        give_up = time.monotonic() + seconds
        while True:
            now = time.monotonic()
            for child in self._running:
                if child.kill_at <= now:
                    child.kill_at = float("inf")
                    self._send(child, signal.SIGKILL)
            awake = False
            for key, _ in self._selector.select(self._patience(give_up)):
                if key.data is None:
                    awake = True
                    os.eventfd_read(self._alarm)
                    continue
                child, read = key.data
                read(child)
            if (ended := list(self._reaped())) or awake or time.monotonic() >= give_up:
                return ended

    def _patience(self, give_up: float) -> float:
        """Return for how long nothing has to be done, unless a child writes something."""
        until = min([give_up, *(child.kill_at for child in self._running)])
        left = max(0.0, until - time.monotonic())
        # A child whose pipe is closed ends in a moment; nothing else wakes us for that.
        closed = any(not child.is_open for child in self._running)
        return min(left, _SECONDS_BETWEEN_CHECKS) if closed else left

    def _read(self, child: _Child[Key]) -> None:
        with contextlib.suppress(BlockingIOError):
            if data := os.read(child.pipe, outcome.MOST_BYTES):
                child.written = (child.written + data)[: outcome.MOST_BYTES + 1]
                return
            self._close(child)

    def _capture(self, child: _Child[Key]) -> None:
        if child.captured and child.captured.log and not child.captured.read():
            self._selector.unregister(child.captured.log)

    def _close(self, child: _Child[Key]) -> None:
        if child.is_open:
            child.is_open = False
            self._selector.unregister(child.pipe)
            os.close(child.pipe)

    def _reaped(self) -> Iterator[Ended[Key]]:
        for child in self._running[:]:
            if not child.group.exits(0):
                continue
            child.group.end()
            status = child.process.returncode
            if status < 0:
                left_behind.end(child.mark)
            if child.is_open:
                self._read(child)
            self._close(child)
            output, last_lines = self._captured(child)
            self._running.remove(child)
            yield Ended(
                child.key,
                status,
                outcome.read(child.written),
                child.was_stopped,
                output,
                last_lines,
                time.monotonic() - child.began,
            )

    def _captured(self, child: _Child[Key]) -> tuple[str, Sequence[str]]:
        """Return the stdout of a child that has ended, and its last lines."""
        if child.captured is None or child.captured.log is None:
            return "", ()
        child.captured.read()
        with contextlib.suppress(KeyError):
            self._selector.unregister(child.captured.log)
        child.captured.lines.finish()
        output = child.captured.output()
        child.captured.close()
        return output, child.captured.lines.last

    @contextlib.contextmanager
    def ending(self, grace: float = GRACE) -> Iterator[None]:
        """End the children that still run at the end of the block: SIGTERM, then SIGKILL."""
        try:
            yield
        finally:
            for child in self._running:
                self._stop(child, grace)
            give_up = time.monotonic() + grace + _SECONDS_AFTER_KILL
            while self._running and (left := give_up - time.monotonic()) > 0:
                self.wait(left)
            self._selector.close()
            os.close(self._alarm)
