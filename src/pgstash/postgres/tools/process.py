"""A client tool as a child process: a clean environment, its stderr drained, its end certain."""

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
from pathlib import Path
from typing import IO, Self

from pgstash.child import SECONDS_TO_TERMINATE, Group, Lines
from pgstash.errors import DumpError, PgstashError
from pgstash.postgres.source import Connection

# All that a client tool may learn of our environment: nothing of it is a secret of ours, and
# no PG… variable is in it.
_ENVIRONMENT = (
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "LD_LIBRARY_PATH",
    "TZ",
    "KRB5CCNAME",
    "KRB5_CLIENT_KTNAME",
    "KRB5_CONFIG",
    "KRB5_KTNAME",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "OPENSSL_CONF",
)

# Below glibc's threshold for mmap (128 KiB): a chunk reuses warm memory instead of faulting in new
# pages, which costs a third of a second of CPU for each GB.
CHUNK_BYTES = 120 * 1024
_PIPE_BYTES = 1024 * 1024
_LET_IT_FILL = 0.001  # seconds
_SECONDS_TO_EXIT = 60.0
_READ_BYTES = 64 * 1024


def child_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return what of an environment a client tool may see, with messages in English."""
    allowed = {name: value for name, value in environment.items() if name in _ENVIRONMENT}
    return allowed | {"LC_ALL": "C"}


class Child:
    """A running client tool whose stdout is read as a stream, or whose stdin is fed with one.

    A context manager: leaving it ends the tool and all that it started, if they still run.
    """

    def __init__(  # noqa: PLR0913 - each is one property of one process
        self,
        command: Sequence[str | Path],
        connection: Connection,
        environment: Mapping[str, str],
        *,
        say: Callable[[str], None],
        fed: bool = False,
        inherited: Sequence[int] = (),
        ahead_bytes: int | None = None,
        failure: type[PgstashError] = DumpError,
        says_all: bool = False,
    ) -> None:
        """Start the tool; ``say`` is called with each line of its stderr, from a thread.

        With the first ones, that is, unless it ``says_all``.

        ``--dbname`` is appended to the command. ``environment`` is what the child may
        choose from, usually the process's own. With ``fed`` it reads what :meth:`queue` and
        :meth:`feed_and_discard` write; ``inherited`` are descriptors that it keeps. It may write
        ``ahead_bytes`` that were not read yet, if the system has room for them in a pipe.

        Raises ``failure`` where it cannot start, and all else that goes wrong.
        """
        self._failure = failure
        self._name = Path(command[0]).name
        secrets = tuple(connection.secrets.values())
        self._lines = Lines(say, secrets, math.inf) if says_all else Lines(say, secrets)
        process: subprocess.Popen[bytes] | None = None
        try:
            with _login_environment(connection) as (variables, descriptors, conninfo):
                process = self._process = subprocess.Popen(  # noqa: S603 - no shell, our own path
                    [*command, f"--dbname={conninfo}"],
                    stdin=subprocess.PIPE if fed else subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    env=child_environment(environment) | variables,
                    pass_fds=(*descriptors, *inherited),
                    # A group of its own: a terminal's Ctrl-C reaches us alone, we end the group.
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
            self._room = ahead_bytes or _PIPE_BYTES
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
        """End the tool; whoever reads from it sees the end of its output."""
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

        ``begun`` is called when the first of it is there and nothing was read: the tool cannot have
        written more than a small pipe holds. ``silent`` is called each time that
        nothing came for ``silent_seconds``. Raises an error where nothing comes for
        ``idle_seconds``. Both count only while we wait.
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
                        hint="Look at what its session waits for, in pg_stat_activity.",
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
                # pg_dump writes 4 KiB at a time: a short nap saves thousands of switches.
                time.sleep(_LET_IT_FILL)

    def read_until(self, mark: bytes, idle_seconds: float) -> Iterator[bytes]:
        """Yield what the tool writes to stdout before a mark that nothing follows.

        Raises EOFError where stdout ends without it (:meth:`wait` says why), and what
        :meth:`read` raises.
        """
        held = b""
        for chunk in self.read(idle_seconds):
            data = held + chunk if held else chunk
            if data.endswith(mark):
                if len(data) > len(mark):
                    yield data[: -len(mark)]
                return
            # Only an end that is the mark's beginning has to wait for what follows.
            keep = _overlap(data, mark)
            held = data[len(data) - keep :]
            if keep < len(data):
                yield data[: len(data) - keep] if keep else data
        raise EOFError(self._name)

    def queue(self, data: bytes) -> None:
        """Have this written to the tool's stdin, while its output is read.

        So neither waits for the other, however small the pipes are. What a tool that has exited
        does not read any more is dropped: its output ends.
        """
        if not self._queued:
            self._poll.register(_pipe(self._stdin), select.POLLOUT)
        self._queued = memoryview(bytes(self._queued) + data)

    def feed_and_discard(self, data: bytes) -> bool:
        """Write to the tool's stdin, and discard what it writes to stdout until that is done.

        It takes as long as the tool does. Return whether the tool still reads.
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

        They are 0 if nothing came in time.
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
        """Return what is queued, which is not queued any more."""
        data = bytes(self._queued)
        if data:
            self._queued = memoryview(b"")
            self._poll.unregister(_pipe(self._stdin))
        return data

    def close_stdin(self) -> None:
        """Let the tool see the end of its input."""
        if self._stdin:
            self._stdin.close()

    def wait(self, seconds: float = _SECONDS_TO_EXIT) -> int:
        """Wait for the exit after the end of stdout; return its status as Popen gives it.

        Raises an error where the tool stays although it has closed its output.
        """
        if not self._group.exits(seconds):
            raise self._failure(
                f"{self._name} closed its output but did not exit",
                hint="Look at what its session waits for, in pg_stat_activity.",
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
    with contextlib.suppress(OSError):  # the default size works, with more switches
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, size)


def _pipe(stream: IO[bytes] | None) -> IO[bytes]:
    if stream is None:
        raise AssertionError("Popen was asked for a pipe")
    return stream


@contextlib.contextmanager
def in_memory(name: str, content: bytes) -> Iterator[tuple[int, str]]:
    """Yield descriptor and path of a file in memory: the path for a child that keeps the former.

    https://man7.org/linux/man-pages/man2/memfd_create.2.html
    """
    descriptor = os.memfd_create(name)
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(content)
        yield descriptor, f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _login_environment(
    connection: Connection,
) -> Iterator[tuple[dict[str, str], tuple[int, ...], str]]:
    """Give a child its secrets: variables, descriptors to inherit, and its connection string.

    Passwords go through PGPASSWORD. The few secrets that have no variable go through a
    service file (https://www.postgresql.org/docs/current/libpq-pgservice.html) that exists
    in memory alone.
    """
    variables: dict[str, str] = {}
    secrets = dict(connection.secrets)
    if "password" in secrets:
        variables["PGPASSWORD"] = secrets.pop("password")
    if not secrets:
        yield variables, (), connection.conninfo
        return
    lines = ["[pgstash]", *(f"{key}={value}" for key, value in secrets.items()), ""]
    with in_memory("pg_service.conf", "\n".join(lines).encode("utf-8", "surrogateescape")) as (
        descriptor,
        path,
    ):
        variables["PGSERVICEFILE"] = path
        yield variables, (descriptor,), f"{connection.conninfo} service=pgstash"
