"""A client tool as a child process: clean environment, stderr drained, and always ended."""

from __future__ import annotations

import contextlib
import fcntl
import math
import os
import select
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Self

from pgstash.errors import DumpError, PgstashError
from pgstash.postgres.server.connection import Connection
from pgstash.postgres.tools import environment
from pgstash.processes.child import SECONDS_TO_TERMINATE, Group, Lines

# Below glibc's threshold for mmap (128 KiB): page faults would cost 0.3 s of CPU for each GB.
CHUNK_BYTES = 120 * 1024
_PIPE_BYTES = 1024 * 1024
_LET_IT_FILL = 0.001  # seconds
_SECONDS_TO_EXIT = 60.0
_READ_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Command:
    """A client tool to start: its ``words``, to which ``--dbname`` is appended.

    The child sees a part of ``environment``, usually that of the process. If it is ``fed``, it
    reads what :meth:`Child.queue` and :meth:`Child.feed_and_discard` write. It inherits the
    descriptors ``inherited``. It may write ``ahead_bytes`` before they are read, if the system
    allows so large a pipe. ``failure`` is the class of all errors. Only the first lines of its
    stderr are passed on, unless ``all_lines`` is true.
    """

    words: Sequence[str | Path]
    environment: Mapping[str, str]
    fed: bool = False
    inherited: Sequence[int] = ()
    ahead_bytes: int | None = None
    failure: type[PgstashError] = DumpError
    all_lines: bool = False


class Child:
    """A running client tool whose stdout is read as a stream, or whose stdin is fed with one.

    A context manager: leaving it ends the tool and every process that the tool started.
    """

    def __init__(
        self, command: Command, connection: Connection, report: Callable[[str], None]
    ) -> None:
        """Start the tool; a thread calls ``report`` with each line of its stderr.

        Raises the command's ``failure`` if it cannot start.
        """
        self._failure = command.failure
        self._name = Path(command.words[0]).name
        process: subprocess.Popen[bytes] | None = None
        try:
            with environment.of_login(connection) as (variables, descriptors, conninfo):
                secrets = (*connection.secrets.values(), variables.get("PGPASSWORD", ""))
                self._lines = Lines(report, secrets, *([math.inf] if command.all_lines else []))
                process = self._process = subprocess.Popen(  # noqa: S603 - no shell, our own path
                    [*command.words, f"--dbname={conninfo}"],
                    stdin=subprocess.PIPE if command.fed else subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    env=environment.child_environment(command.environment) | variables,
                    pass_fds=(*descriptors, *command.inherited),
                    # A group of its own: Ctrl-C in a terminal reaches only pgstash, which ends it.
                    start_new_session=True,
                )
            self._group = Group(process)
            self._stdout = _pipe(process.stdout)
            self._wide = False
            self._stdin = process.stdin
            self._queued = memoryview(b"")
            self._poll = select.poll()
            self._poll.register(self._stdout, select.POLLIN)
            if self._stdin:
                os.set_blocking(self._stdin.fileno(), False)
                _resize(self._stdin, _PIPE_BYTES)
            self._room = command.ahead_bytes or _PIPE_BYTES
            self._listener = threading.Thread(target=self._listen, daemon=True)
            self._listener.start()
        except BaseException as error:
            if process:
                Group(process).end()
                for stream in (process.stdin, process.stdout, process.stderr):
                    if stream:
                        stream.close()
            if process or not isinstance(error, OSError):
                raise
            raise self._failure(
                f"{self._name} cannot be started: {error}",
                hint="Check that it is installed for this machine, and may be executed.",
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._group.end()
        self._listener.join(SECONDS_TO_TERMINATE)
        self._stdout.close()
        self.close_stdin()

    def end(self) -> None:
        """End the tool; a reader sees the end of its output."""
        self._group.end()

    @property
    def last_lines(self) -> list[str]:
        """The last lines of the tool's stderr so far."""
        return self._lines.last

    def read(
        self,
        idle_seconds: float,
        *,
        silent_seconds: float = math.inf,
        silent: Callable[[], None] = lambda: None,
        begun: Callable[[], None] = lambda: None,
    ) -> Iterator[bytes]:
        """Yield what the tool writes to stdout, until its end.

        ``begun`` is called when output is available, before any is read: the tool cannot have
        written more than a small pipe holds. ``silent`` is called each time that nothing arrived
        for ``silent_seconds``. Raises an error if nothing arrives for ``idle_seconds`` of waiting.
        """
        descriptor = self._stdout.fileno()
        while True:
            began = time.monotonic()
            patience = min(silent_seconds, idle_seconds)
            while not (ready := self._readable(patience)):
                left = began + idle_seconds - time.monotonic()
                if left <= 0:
                    raise self._failure(
                        f"{self._name} wrote nothing for {idle_seconds:.0f} s and was stopped",
                        hint="Check in pg_stat_activity what its session waits for.",
                    )
                silent()
                patience = min(silent_seconds, left)
            if ready & select.POLLIN and not self._wide:
                begun()
                self._wide = True
                _resize(self._stdout, self._room)
            chunk = os.read(descriptor, CHUNK_BYTES)
            if not chunk:
                return
            yield chunk
            if len(chunk) < CHUNK_BYTES // 2:
                # pg_dump writes 4 KiB at a time: a short sleep saves thousands of switches.
                time.sleep(_LET_IT_FILL)

    def read_until(self, mark: bytes, idle_seconds: float) -> Iterator[bytes]:
        """Yield what the tool writes to stdout before a mark, which is the last thing it writes.

        Raises EOFError if stdout ends without the mark (:meth:`wait` returns why), and what
        :meth:`read` raises.
        """
        held = b""
        for chunk in self.read(idle_seconds):
            data = held + chunk if held else chunk
            if data.endswith(mark):
                if len(data) > len(mark):
                    yield data[: -len(mark)]
                return
            # Only an end that may be the beginning of the mark waits for the next chunk.
            keep = _overlap(data, mark)
            held = data[len(data) - keep :]
            if keep < len(data):
                yield data[: len(data) - keep] if keep else data
        raise EOFError(self._name)

    def queue(self, data: bytes) -> None:
        """Write this to the tool's stdin later, while its output is read: neither has to wait.

        If the tool exits before it has read everything, the rest is dropped: its output ends.
        """
        if not self._queued:
            self._poll.register(_pipe(self._stdin), select.POLLOUT)
        self._queued = memoryview(bytes(self._queued) + data)

    def feed_and_discard(self, data: bytes) -> bool:
        """Write to the tool's stdin, and meanwhile discard what it writes to stdout.

        It takes as long as the tool takes to read it. Returns whether the tool still reads.
        """
        stdin, stdout = _pipe(self._stdin).fileno(), self._stdout.fileno()
        poll = select.poll()
        poll.register(stdin, select.POLLOUT)
        poll.register(stdout, select.POLLIN)
        left = memoryview(self._unqueued() + data)
        while left:
            ready = [descriptor for descriptor, _ in poll.poll()]
            if stdout in ready and not os.read(stdout, CHUNK_BYTES):
                poll.unregister(stdout)
            if stdin in ready:
                try:
                    left = left[os.write(stdin, left) :]
                except BrokenPipeError:
                    return False
        return True

    def read_line(self) -> bytes:
        """Return the next line of stdout, without its end; empty at the end of stdout."""
        line = b""
        while self._readable(None):
            byte = os.read(self._stdout.fileno(), 1)
            if byte in (b"\n", b""):
                break
            line += byte
        return line

    def _readable(self, seconds: float | None) -> int:
        """Write what is queued until there is output, or its end; return poll's events for it.

        Returns 0 if there is none in time.
        """
        give_up = None if seconds is None else time.monotonic() + seconds
        while True:
            wait = None if give_up is None else max(0.0, give_up - time.monotonic()) * 1000
            ready = dict(self._poll.poll(wait))
            if self._queued and _pipe(self._stdin).fileno() in ready:
                self._write_queued()
            if not ready or self._stdout.fileno() in ready:
                return ready.get(self._stdout.fileno(), 0)

    def _write_queued(self) -> None:
        try:
            written = os.write(_pipe(self._stdin).fileno(), self._queued)
        except BrokenPipeError:
            written = len(self._queued)
        self._queued = self._queued[written:]
        if not self._queued:
            self._poll.unregister(_pipe(self._stdin))

    def _unqueued(self) -> bytes:
        """Return what is queued, and empty the queue."""
        data = bytes(self._queued)
        if data:
            self._queued = memoryview(b"")
            self._poll.unregister(_pipe(self._stdin))
        return data

    def close_stdin(self) -> None:
        """Close stdin: the tool reads the end of its input."""
        if self._stdin:
            self._stdin.close()

    def wait(self, seconds: float = _SECONDS_TO_EXIT) -> int:
        """Wait for the exit after the end of stdout; return the status in the form of Popen.

        Raises an error if the tool closed its output, but does not exit.
        """
        if not self._group.exits(seconds):
            raise self._failure(
                f"{self._name} closed its output but did not exit",
                hint="Check in pg_stat_activity what its session waits for.",
            )
        self._group.end()
        self._listener.join(SECONDS_TO_TERMINATE)
        return self._process.wait()

    def _listen(self) -> None:
        """Drain stderr to its end."""
        with _pipe(self._process.stderr) as stderr:
            while data := os.read(stderr.fileno(), _READ_BYTES):
                self._lines.feed(data)
        self._lines.finish()


def _overlap(data: bytes, mark: bytes) -> int:
    """Return how many of the last bytes may be the beginning of the mark."""
    start = data.find(mark[:1], max(0, len(data) - len(mark) + 1))
    while start >= 0:
        if mark.startswith(data[start:]):
            return len(data) - start
        start = data.find(mark[:1], start + 1)
    return 0


def _resize(pipe: IO[bytes], size: int) -> None:
    with contextlib.suppress(OSError):  # the default size works too, but is slower
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, size)


def _pipe(stream: IO[bytes] | None) -> IO[bytes]:
    if stream is None:
        raise AssertionError("Popen was asked for a pipe")
    return stream
