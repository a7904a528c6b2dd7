"""What is true of every child process: all that it started ends with it, its words are bounded."""

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
"""How long a group may take to end when it is told to, before it is killed."""

_SECONDS_BETWEEN_LOOKS = 0.01
_SECONDS_TO_EXIT = 60.0
_LONGEST_LINE = 4096  # bytes
_LINES_TOLD = 200
_LINES_KEPT = 20


class Group:
    """A child that was started in a session of its own, and all that it started in there."""

    def __init__(self, leader: subprocess.Popen[bytes]) -> None:
        """Take charge of the child and its group."""
        self._leader = leader
        self._ending = threading.RLock()  # whoever reads from the child may end it, too

    def exits(self, seconds: float) -> bool:
        """Wait until the child has exited, and leave it a zombie: so its id stays its own."""
        give_up = time.monotonic() + seconds
        how = os.WEXITED | os.WNOWAIT | os.WNOHANG
        # Another thread may have been at its end a moment ago: then there is no child any more.
        with contextlib.suppress(ChildProcessError):
            while os.waitid(os.P_PID, self._leader.pid, how) is None:
                if time.monotonic() >= give_up:
                    return False
                time.sleep(_SECONDS_BETWEEN_LOOKS)
        return True

    def end(self, seconds: float = SECONDS_TO_TERMINATE) -> None:
        """End the whole group, also what outlived the child itself: politely, then surely."""
        with self._ending:
            self._end(seconds)

    def _end(self, seconds: float) -> None:
        if self._leader.returncode is not None:
            return  # done before; the group's id may be somebody else's by now
        for signum, patience in ((signal.SIGTERM, seconds), (signal.SIGKILL, SECONDS_TO_TERMINATE)):
            # Where it is not ours to end, what it has done is done all the same.
            with contextlib.suppress(OSError):
                os.killpg(self._leader.pid, signum)
            # pg_dump asks the server to cancel its query when it is told to stop.
            self.exits(patience)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._leader.wait(_SECONDS_TO_EXIT)


class Lines:
    """Makes lines of what a child writes, however long a line and however many.

    Of a long line the beginning is kept: pg_dump quotes whole statements, and one that locks
    thousands of tables must not push the reason out of the last lines.
    """

    def __init__(
        self,
        tell: Callable[[str], None],
        secrets: Sequence[str],
        most_told: float = _LINES_TOLD,
    ) -> None:
        """Tell the first lines; ``secrets`` are those that the child may write."""
        self._tell = tell
        self._secrets = secrets
        self._most_told = most_told
        self._last: collections.deque[str] = collections.deque(maxlen=_LINES_KEPT)
        self._line = b""
        self._cut = False
        self._count = 0

    @property
    def last(self) -> list[str]:
        """The last lines so far."""
        return list(self._last.copy())  # at one blow: another thread may still append

    def feed(self, data: bytes) -> None:
        """Take what the child wrote next."""
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
        """Tell what is left at the end."""
        self._end_line()
        if self._count > self._most_told:
            self._tell(f"({self._count - self._most_told:.0f} more lines were left out)")

    def _end_line(self) -> None:
        line = self._line.decode(errors="replace").rstrip()
        if line and not self._cut:
            self._keep(line)
        self._line, self._cut = b"", False

    def _keep(self, line: str) -> None:
        self._last.append(line)
        self._count += 1
        if self._count <= self._most_told:
            self._tell(line)


def shortened(text: str, length: int, secrets: Iterable[str]) -> str:
    """Return the beginning of a text that is longer than so many characters."""
    if len(text) <= length:
        return text
    return _without_half_a_secret(text[:length], secrets) + " ..."


def _without_half_a_secret(line: str, secrets: Iterable[str]) -> str:
    """Shorten a line that was cut off: half a secret is one that nobody recognises any more.

    The last word goes, whatever it is, since a secret may be written in many ways; then the
    beginning of a secret that has several words.
    """
    line = line.rpartition(" ")[0]
    for secret in secrets:
        starts = (secret[:length].rstrip() for length in range(len(secret), 0, -1))
        line = line.removesuffix(next((start for start in starts if line.endswith(start)), ""))
    return line
