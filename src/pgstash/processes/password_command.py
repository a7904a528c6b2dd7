"""A command of the user that prints a password: it runs for each login, and nobody sees its output.

Tokens of cloud services expire within minutes, so a password is not kept for the next login.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO

from pgstash.errors import DatabaseLoginError
from pgstash.processes.child import Group, shortened

SECONDS = 60.0
_LARGEST = 64 * 1024  # bytes; a token has a few kB at most
_MOST_SHOWN = 1000  # characters of stderr
_MOST_WRITTEN = 1024 * 1024  # bytes
_SECONDS_BETWEEN_CHECKS = 0.1


@dataclass(frozen=True, slots=True)
class PasswordCommand:
    """Call it for a password. ``name`` is the name of its setting.

    ``command`` are its words, and no shell runs it. ``learn`` receives each password, so that it is
    removed from whatever is shown. It may run for ``seconds``.
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str] = field(repr=False)
    learn: Callable[[Sequence[str]], None]
    seconds: float = SECONDS

    def __call__(self) -> str:
        """Run the command, and return what it printed, without the end of the line.

        Raises DatabaseLoginError if it cannot be started, fails, takes too long, or prints anything
        but one line.
        """
        # Files in memory: unlike a pipe, nobody has to read them while the command runs.
        with (
            open(os.memfd_create("stdout"), "r+b", buffering=0) as stdout,  # noqa: PTH123 - a descriptor
            open(os.memfd_create("stderr"), "r+b", buffering=0) as stderr,  # noqa: PTH123 - a descriptor
        ):
            status = self._run(stdout, stderr)
            output = os.pread(stdout.fileno(), _LARGEST, 0)
            message = os.pread(stderr.fileno(), _LARGEST, 0).decode(errors="replace").strip()
        lines = output.decode(errors="surrogateescape").splitlines()
        secrets = [line for line in lines if line]
        self.learn(secrets)
        said = shortened(message, _MOST_SHOWN, secrets)
        if status != 0:
            how = f"failed with exit status {status}" if status else "did not end in time"
            raise self._error(f"{how}: {said}" if said else how)
        # What is not UTF-8 is not printable either.
        if len(lines) != 1 or not lines[0].isprintable() or not lines[0]:
            raise self._error("did not print one line with a password")
        return lines[0]

    def _run(self, stdout: IO[bytes], stderr: IO[bytes]) -> int | None:
        """Return the exit status; None if the command took too long, or wrote too much."""
        try:
            process = subprocess.Popen(  # noqa: S603 - the user's own command, and no shell
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                env=self.environment,
                start_new_session=True,  # a group of its own, which ends with it
            )
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "a value contains a NUL"
            raise self._error(f"cannot be started: {reason}") from error
        group = Group(process)
        give_up = time.monotonic() + self.seconds
        try:
            while not group.exits(_SECONDS_BETWEEN_CHECKS):
                written = sum(os.fstat(each.fileno()).st_size for each in (stdout, stderr))
                if time.monotonic() > give_up or written > _MOST_WRITTEN:
                    return None
        finally:
            group.end()
        return process.returncode

    def _error(self, what: str) -> DatabaseLoginError:
        return DatabaseLoginError(
            f"{self.name} {what}",
            hint="Run the command by hand: it must print the password, and nothing else.",
            retryable=True,
        )
