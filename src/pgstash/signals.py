"""SIGINT, SIGTERM and SIGHUP as an exception in the main thread, once, and not inside a commit."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

from pgstash.errors import Interrupted

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

# A signal often comes twice, from a terminal and from a parent that passes it on; only one that
# comes later means that somebody has lost patience.
_ECHO_SECONDS = 2.0

COMMIT_SECONDS = 1.5
"""How long a commit that has begun may go on after a signal."""

# Python runs a handler wherever it happens to be. In a finalizer or the callback of a weak
# reference an exception goes nowhere: "Exception ignored in". So it is looked after.
_SECONDS_BETWEEN_LOOKS = 0.25


class Interruption:
    """Turns the first signal into Interrupted; a later one ends the process at once."""

    def __init__(self) -> None:
        """Install nothing yet."""
        self._deferred = False
        self._deadline = 0.0
        self._pending: int | None = None
        self._heard = 0.0

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Handle the signals for the length of the block, and give them back after it.

        One that the caller chose to ignore, as nohup does, stays ignored.
        """
        before = {
            signum: signal.signal(signum, self._handle)
            for signum in _SIGNALS
            if signal.getsignal(signum) != signal.SIG_IGN
        }
        before[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._look)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            for signum, handler in before.items():
                signal.signal(signum, handler)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Put a signal off until the block has ended, though not for long.

        A commit that is cut off half-way cannot say whether the backup exists. After the
        block :meth:`hear` raises what was put off.
        """
        self._deadline = time.monotonic() + COMMIT_SECONDS
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    def hear(self) -> None:
        """Raise Interrupted if a signal came, and whatever it met was finished all the same."""
        if self._pending is not None:
            raise Interrupted(self._pending)

    def _handle(self, signum: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._pending is not None:
            if now - self._heard > _ECHO_SECONDS:
                end_by(signum)
            return
        self._pending, self._heard = signum, now
        first = COMMIT_SECONDS if self._deferred else _SECONDS_BETWEEN_LOOKS
        self._deadline = now + COMMIT_SECONDS
        signal.setitimer(signal.ITIMER_REAL, first, _SECONDS_BETWEEN_LOOKS)
        if not self._deferred:
            raise Interrupted(signum)

    def _look(self, _signum: int, _frame: FrameType | None) -> None:
        """Raise again what a finalizer swallowed, or what was put off for long enough."""
        if self._deferred and time.monotonic() < self._deadline:
            return
        if not _is_handled(sys.exception()):
            self.hear()


def _is_handled(error: BaseException | None) -> bool:
    """Tell whether an Interrupted is on its way, and somebody is cleaning up for it."""
    while error is not None:
        if isinstance(error, Interrupted):
            return True
        error = error.__context__
    return False


@contextlib.contextmanager
def kept_for_this_thread() -> Iterator[None]:
    """Let threads that are started in the block leave the signals to this one.

    The system may give a signal to any thread that takes it, and then the main thread goes on
    waiting. Threads inherit what is blocked, those that they start in turn too.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_by(signum: int) -> NoReturn:
    """End the process by the signal, so that the caller sees what ended it.

    As process 1 of a container nobody can be ended so; then it exits with 128 and the number.
    """
    signal.signal(signum, signal.SIG_DFL)
    os.kill(os.getpid(), signum)
    os._exit(128 + signum)
