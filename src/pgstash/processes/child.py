"""Every child process: all processes that it started end with it, and its output is bounded."""

from __future__ import annotations

import collections
import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Sequence

SECONDS_TO_TERMINATE = 1.0
"""How long a group may take to end after SIGTERM, before it is killed."""

_SECONDS_BETWEEN_CHECKS = 0.01
_SECONDS_TO_EXIT = 60.0
_LONGEST_LINE = 4096  # bytes
_LINES_REPORTED = 200
_LINES_KEPT = 20


class Group:
    """A child that was started in a session of its own, and all processes that it started there."""

    def __init__(self, leader: subprocess.Popen[bytes]) -> None:
        """Take charge of the child and its group."""
        self._leader = leader
        self._ending = threading.RLock()  # the thread that reads from the child may end it, too

    def exits(self, seconds: float) -> bool:
        """Wait until the child has exited; it stays a zombie, so that its process id stays its own.

        Returns False if it has not exited after ``seconds``.
        """
        give_up = time.monotonic() + seconds
        how = os.WEXITED | os.WNOWAIT | os.WNOHANG
        # Another thread may have reaped it a moment ago: then there is no child any more.
        with contextlib.suppress(ChildProcessError):
            while os.waitid(os.P_PID, self._leader.pid, how) is None:
                if time.monotonic() >= give_up:
                    return False
                time.sleep(_SECONDS_BETWEEN_CHECKS)
        return True

    def end(self, seconds: float = SECONDS_TO_TERMINATE) -> None:
        """End the whole group, with processes that outlived the child: by SIGTERM, then SIGKILL."""
        with self._ending:
            self._end(seconds)

    def _end(self, seconds: float) -> None:
        if self._leader.returncode is not None:
            return  # done before; another group may have this id by now
        for signum, patience in ((signal.SIGTERM, seconds), (signal.SIGKILL, SECONDS_TO_TERMINATE)):
            # If we may not end it, its work is done nevertheless.
            with contextlib.suppress(OSError):
                os.killpg(self._leader.pid, signum)
            # On SIGTERM pg_dump asks the server to cancel its query.
            self.exits(patience)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._leader.wait(_SECONDS_TO_EXIT)


class Lines:
    """Splits the output of a child into lines, with limits for their length and number.

    The beginning of a long line is kept: pg_dump quotes whole statements, and one that locks
    thousands of tables must not push the reason out of the last lines.
    """

    def __init__(
        self,
        report: Callable[[str], None],
        secrets: Sequence[str],
        most_reported: float = _LINES_REPORTED,
    ) -> None:
        """Report the first lines; ``secrets`` are those that the child may write."""
        self._report = report
        self._secrets = secrets
        self._most_reported = most_reported
        self._last: collections.deque[str] = collections.deque(maxlen=_LINES_KEPT)
        self._line = b""
        self._cut = False
        self._count = 0

    @property
    def last(self) -> list[str]:
        """The last lines so far."""
        return list(self._last.copy())  # copy() is atomic: another thread may still append

    def feed(self, data: bytes) -> None:
        """Take the next output of the child."""
        for number, part in enumerate(data.split(b"\n")):
            if number:
                self._end_line()
            if self._cut:
                continue
            self._line += part
            if len(self._line) > _LONGEST_LINE:
                beginning = self._line[:_LONGEST_LINE].decode(errors="replace")
                self._keep(_without_half_a_secret(beginning, self._secrets) + " ...")
                self._cut = True

    def finish(self) -> None:
        """Report the rest at the end."""
        self._end_line()
        if self._count > self._most_reported:
            self._report(f"({self._count - self._most_reported:.0f} more lines were left out)")

    def _end_line(self) -> None:
        line = self._line.decode(errors="replace").rstrip()
        if line and not self._cut:
            self._keep(line)
        self._line, self._cut = b"", False

    def _keep(self, line: str) -> None:
        self._last.append(line)
        self._count += 1
        if self._count <= self._most_reported:
            self._report(line)


def shortened(text: str, length: int, secrets: Iterable[str]) -> str:
    """Return a text, or its beginning if it is longer than ``length`` characters."""
    if len(text) <= length:
        return text
    return _without_half_a_secret(text[:length], secrets) + " ..."


def _without_half_a_secret(line: str, secrets: Iterable[str]) -> str:
    """Shorten a line that was cut off: redaction does not recognise half a secret.

    The last word is removed, whatever it is, since a secret may be written in many ways; then the
    beginning of a secret that has several words.
    """
    line = line.rpartition(" ")[0]
    for secret in secrets:
        starts = (secret[:length].rstrip() for length in range(len(secret), 0, -1))
        line = line.removesuffix(next((start for start in starts if line.endswith(start)), ""))
    return line
