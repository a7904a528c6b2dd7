"""Runs of pgstash itself, several at a time: each has memory, signals and crashes of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO

from pgstash.errors import EXIT_UNEXPECTED
from pgstash.events import Emit, Informed, Notice
from pgstash.processes.child import Group, Lines

_SECONDS_BETWEEN_LOOKS = 0.1
_SECONDS_BETWEEN_REPORTS = 60.0
_SECONDS_TO_TIDY_UP = 30.0
_READ_BYTES = 64 * 1024  # the default size of a pipe
_LARGEST = 16 * 1024 * 1024  # bytes of stdout


@dataclass(frozen=True, slots=True)
class OwnCommand:
    """A run of pgstash: ``name`` is what it is for, ``arguments`` follow the name of the program.

    ``secrets`` are removed where a line of its log is cut.
    """

    name: str
    arguments: Sequence[str]
    environment: Mapping[str, str] = field(repr=False)
    secrets: Sequence[str] = field(repr=False, default=())


@dataclass(frozen=True, slots=True)
class Ended:
    """A run that has ended: its exit status, stdout, and the last lines of its log.

    The ``status`` is negative if a signal ended it: minus its number.
    """

    command: OwnCommand
    status: int
    output: str
    last_lines: Sequence[str]
    seconds: float


def run(commands: Sequence[OwnCommand], at_a_time: int, emit: Emit) -> Generator[Ended, None, None]:
    """Run the commands in their order, some at a time; yield each when it has ended.

    If the generator is left earlier, by a signal for example, the runs are ended by SIGTERM, and
    have the time to tidy up. One that cannot be started has ended with EXIT_UNEXPECTED.
    """
    waiting = list(commands)[::-1]
    running: list[_Run] = []
    reported = time.monotonic()
    try:
        while waiting or running:
            while waiting and len(running) < at_a_time:
                command = waiting.pop()
                emit(Notice(f"Starting pgstash {command.arguments[0]} for {command.name}"))
                try:
                    running.append(_Run(command, emit))
                except OSError as error:
                    reason = f"pgstash cannot be started: {error.strerror}"
                    yield Ended(command, EXIT_UNEXPECTED, "", [reason], 0.0)
            for each in list(running):
                if ended := each.ended():
                    running.remove(each)
                    yield ended
            if time.monotonic() - reported >= _SECONDS_BETWEEN_REPORTS:
                reported = time.monotonic()
                emit(Informed(f"Still running: {', '.join(each.described for each in running)}"))
            time.sleep(_SECONDS_BETWEEN_LOOKS)
    finally:
        for each in running:
            each.terminate()
        for each in running:
            each.end()


class _Run:
    """One run. Its stdout is a file in memory, so that nobody has to read it meanwhile."""

    def __init__(self, command: OwnCommand, emit: Emit) -> None:
        self._command = command
        self._began = time.monotonic()
        self._output: IO[bytes] = open(os.memfd_create("stdout"), "r+b", buffering=0)  # noqa: PTH123, SIM115 - a descriptor, closed by ended() or end()
        self._lines = Lines(
            lambda line: emit(Notice(f"{command.name}: {line}")), command.secrets, float("inf")
        )
        try:
            self._process = subprocess.Popen(  # noqa: S603 - pgstash itself, and no shell
                # -P: no module of the working directory takes the place of one of pgstash.
                [sys.executable, "-P", "-m", "pgstash", *command.arguments],
                stdin=subprocess.DEVNULL,
                stdout=self._output,
                stderr=subprocess.PIPE,
                env=command.environment,
                start_new_session=True,  # a group of its own, which ends with it
            )
        except BaseException:
            self._output.close()
            raise
        self._group = Group(self._process)
        if self._process.stderr is None:
            raise AssertionError("stderr is a pipe")
        self._log = self._process.stderr
        os.set_blocking(self._log.fileno(), False)

    @property
    def described(self) -> str:
        """What runs, and for how long."""
        return f"{self._command.name} ({time.monotonic() - self._began:.0f} s)"

    def ended(self) -> Ended | None:
        """Read the log; return the outcome if the run has ended."""
        over = self._group.exits(0)
        self._read_log()
        if not over:
            return None
        self._lines.finish()
        output = os.pread(self._output.fileno(), _LARGEST, 0).decode(errors="replace")
        self.end()
        return Ended(
            self._command,
            self._process.returncode,
            output,
            self._lines.last,
            time.monotonic() - self._began,
        )

    def _read_log(self) -> None:
        while chunk := self._log.read(_READ_BYTES):  # None if there is nothing now
            self._lines.feed(chunk)

    def terminate(self) -> None:
        """Ask the run to end."""
        if not self._group.exits(0):
            os.killpg(self._process.pid, signal.SIGTERM)

    def end(self) -> None:
        """Wait until the run has ended, at most for the time to tidy up, and close what is open."""
        self._group.exits(_SECONDS_TO_TIDY_UP)
        self._group.end()
        self._log.close()
        self._output.close()
