"""Runs the user's own commands, without a shell, with the facts they need and none of our secrets.

One pipe takes both outputs of a command, and the thread that waits for the command reads it. So
nothing is left to wait for once the command has exited, even if other processes hold the pipe.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import shlex
import subprocess
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, Self

from pgstash.errors import HookError
from pgstash.events import Emit, ToolSaid
from pgstash.processes.child import SECONDS_TO_TERMINATE, Group, Lines

_SECONDS_TO_TIDY_UP = 5.0
_SECONDS_BETWEEN_CHECKS = 0.05
_READ_BYTES = 64 * 1024  # the default size of a pipe
_PIPE_BYTES = 1024 * 1024

# A command cannot run without these, even if a short secret happens to be a part of one.
_NEEDED = frozenset({"PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "PWD", "TMPDIR", "TZ"})


@dataclass(frozen=True, slots=True)
class Hook:
    """A command of the user. ``name`` is the name of its setting, ``timeout`` is in seconds.

    ``environment`` is what the command sees in addition to the facts of the moment. ``secrets`` are
    removed where a line of its output is cut.
    """

    name: str
    command: Sequence[str]
    timeout: float
    environment: Mapping[str, str] = field(repr=False)
    secrets: Sequence[str] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Hooks:
    """The commands around a backup; None for each that is not set."""

    before: Hook | None = None
    after: Hook | None = None
    verify: Hook | None = None


def words(command: str) -> list[str]:
    """Split a command line as a POSIX shell does; no shell ever runs it.

    Raises ValueError if a quote is not closed, or the line is empty.
    """
    try:
        split = shlex.split(command)
    except ValueError:
        raise ValueError("lacks a closing quote, or ends with a backslash") from None
    if not split or not split[0]:
        raise ValueError("names no program")
    return split


def visible(
    environment: Mapping[str, str],
    hidden: Collection[str],
    holds_secret: Callable[[str], bool],
) -> dict[str, str]:
    """Return the part of an environment that a hook may see.

    It lacks the ``hidden`` variables, libpq's ``PG…``, and every variable whose value contains a
    secret, whatever its name. Without the mark of the run, which begins with PG too, nothing that a
    hook starts is ended as left behind by a run that was killed.
    """
    return {
        name: value
        for name, value in environment.items()
        if name not in hidden
        and not name.startswith("PG")
        and (name in _NEEDED or not holds_secret(value))
    }


def run(hook: Hook, facts: Mapping[str, str], emit: Emit) -> None:
    """Run a hook to its end; ``facts`` are variables for it.

    Raises HookError if it cannot be started, exits with a status other than 0, or takes longer
    than its timeout.
    """
    with Running(hook, facts, emit, fed=False) as running:
        running.finish()


@contextlib.contextmanager
def verifying(
    hook: Hook | None, facts: Mapping[str, str], emit: Emit
) -> Iterator[Callable[[Iterable[bytes]], Iterator[bytes]]]:
    """Start a hook, and yield a function that passes chunks on and writes them to the hook.

    The stream that the function returns ends only after the hook has exited with 0. Anything else
    raises HookError instead of the end, as early as it is known. A hook that exits with 0 earlier,
    or closes its stdin, gets no more. Leaving the block ends the hook.
    """
    if hook is None:
        yield iter
        return
    with Running(hook, facts, emit, fed=True) as running:
        yield running.watch


class Running:
    """A hook that runs. A context manager: leaving it ends the hook and all that it started."""

    def __init__(self, hook: Hook, facts: Mapping[str, str], emit: Emit, *, fed: bool) -> None:
        """Start the hook; if ``fed``, it reads what :meth:`write` writes. Raises HookError."""
        self._hook = hook
        self._lines = Lines(lambda line: emit(ToolSaid(hook.name, line)), hook.secrets)
        self._ended = False
        try:
            self._process = subprocess.Popen(  # noqa: S603 - the user's own command, and no shell
                hook.command,
                stdin=subprocess.PIPE if fed else subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env={**hook.environment, **facts},
                # A group of its own: a terminal's Ctrl-C reaches only us, and we end the group.
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "a value contains a NUL"
            raise HookError(f"{hook.name} cannot be started: {reason}") from error
        self._group = Group(self._process)
        self._stdin = self._process.stdin
        self._output: IO[bytes] | None = self._process.stdout
        try:
            self._prepare_pipes()
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # Before its stdin is closed: the hook must not take a stream that was cut off for a whole.
        self._end()
        self._close_stdin()

    def _prepare_pipes(self) -> None:
        for pipe in (self._stdin, self._output):
            if pipe:
                os.set_blocking(pipe.fileno(), False)
        if self._stdin:
            with contextlib.suppress(OSError):  # the default size works too, but slower
                fcntl.fcntl(self._stdin, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)

    def watch(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """Yield the same chunks, written to the hook too; end when the hook has exited with 0."""
        for chunk in chunks:
            self.write(chunk)
            yield chunk
        self.finish()

    def finish(self) -> None:
        """Close the input, and wait until the hook has exited with 0. Raises HookError."""
        self._close_stdin()
        give_up = time.monotonic() + self._hook.timeout
        while not self._has_succeeded():
            if time.monotonic() >= give_up:
                raise self._late("did not end within")
            self._wait()

    def write(self, chunk: bytes) -> None:
        """Write to the hook's stdin, unless it has exited with 0. Raises HookError."""
        rest = memoryview(chunk)
        moved = time.monotonic()
        while not self._has_succeeded() and self._stdin and rest:
            try:
                count = os.write(self._stdin.fileno(), rest)
            except BlockingIOError:
                if time.monotonic() - moved >= self._hook.timeout:
                    raise self._late("read nothing for") from None
                self._wait()
            except BrokenPipeError:  # it reads no more
                self._close_stdin()
            else:
                rest = rest[count:]
                moved = time.monotonic()

    def _has_succeeded(self) -> bool:
        """Return whether the hook has exited with 0. Raises HookError if it failed."""
        if self._ended:
            return True
        if not self._group.exits(0):
            self._read()
            return False
        self._end()
        status = self._process.returncode
        if status:
            how = (
                f"was killed by signal {-status}"
                if status < 0
                else f"failed with exit status {status}"
            )
            raise self._failure(how)
        return True

    def _late(self, what: str) -> HookError:
        self._end(_SECONDS_TO_TIDY_UP)
        return self._failure(f"{what} {self._hook.timeout:.0f} s and was stopped")

    def _failure(self, how: str) -> HookError:
        said = "\n".join(self._lines.last)
        return HookError(f"{self._hook.name} {how}" + (f":\n{said}" if said else ""))

    def _wait(self) -> None:
        """Wait a moment, or until there is output to read or room for input."""
        poll = select.poll()
        if self._stdin:
            poll.register(self._stdin, select.POLLOUT)
        if self._output:
            poll.register(self._output, select.POLLIN)
        poll.poll(_SECONDS_BETWEEN_CHECKS * 1000)

    def _read(self) -> None:
        """Read the output that is there."""
        if self._output is None:
            return
        try:
            data = os.read(self._output.fileno(), _READ_BYTES)
        except BlockingIOError:
            return
        if data:
            self._lines.feed(data)
        else:
            self._close_output()

    def _end(self, seconds: float = SECONDS_TO_TERMINATE) -> None:
        if self._ended:
            return
        self._group.end(seconds)
        self._ended = True
        self._read()
        self._lines.finish()
        self._close_output()

    def _close_stdin(self) -> None:
        if self._stdin:
            with contextlib.suppress(OSError):
                self._stdin.close()
            self._stdin = None

    def _close_output(self) -> None:
        if self._output:
            self._output.close()
            self._output = None
