"""Turns SIGINT, SIGTERM and SIGHUP into an exception in the main thread, not inside a commit."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn

from pgstash.errors import Interrupted

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

# A signal often comes twice, from a terminal and from a parent that passes it on. Only one that
# comes later than this means that the user wants to end the process at once.
_ECHO_SECONDS = 2.0

COMMIT_SECONDS = 1.5
"""How long a commit that has begun may go on after a signal."""

# Python runs a handler at any bytecode. In a finalizer or the callback of a weak reference the
# exception is lost ("Exception ignored in"), so a timer checks whether it has to be raised again.
_SECONDS_BETWEEN_CHECKS = 0.25


class Interruption:
    """Turns the first signal into Interrupted; a later one ends the process at once."""

    def __init__(self) -> None:
        """Install nothing yet."""
        self._deferred = False
        self._deadline = 0.0
        self._pending: int | None = None
        self._received = 0.0

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Handle the signals inside the block, and restore the handlers after it.

        A signal that the caller ignores, as nohup does, stays ignored.
        """
        before = {
            signum: signal.signal(signum, self._handle)
            for signum in _SIGNALS
            if signal.getsignal(signum) != signal.SIG_IGN
        }
        before[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._check)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            for signum, handler in before.items():
                signal.signal(signum, handler)

    @contextlib.contextmanager
    def hangup_calls(self, reload: Callable[[], None]) -> Iterator[None]:
        """Let SIGHUP call this inside the block, unless it comes since the terminal is gone.

        If the caller ignores it, as nohup does, it stays ignored.
        """
        before = signal.getsignal(signal.SIGHUP)
        had_terminal = _has_terminal()

        def handle(signum: int, frame: FrameType | None) -> None:
            if had_terminal and not _has_terminal():
                self._handle(signum, frame)
            else:
                reload()

        if before != signal.SIG_IGN:
            signal.signal(signal.SIGHUP, handle)
        try:
            yield
        finally:
            signal.signal(signal.SIGHUP, before)

    @contextlib.contextmanager
    def defer_signals(self) -> Iterator[None]:
        """Defer a signal until the block has ended, for up to COMMIT_SECONDS.

        After a commit that is cut off half-way it is unknown whether the backup exists. After the
        block :meth:`raise_if_interrupted` raises Interrupted for the deferred signal.
        """
        self._deadline = time.monotonic() + COMMIT_SECONDS
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    def raise_if_interrupted(self) -> None:
        """Raise Interrupted if a signal came, even if the work that it met was finished."""
        if self._pending is not None:
            raise Interrupted(self._pending)

    def _handle(self, signum: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._pending is not None:
            if now - self._received > _ECHO_SECONDS:
                end_by(signum)
            return
        self._pending, self._received = signum, now
        first = COMMIT_SECONDS if self._deferred else _SECONDS_BETWEEN_CHECKS
        self._deadline = now + COMMIT_SECONDS
        signal.setitimer(signal.ITIMER_REAL, first, _SECONDS_BETWEEN_CHECKS)
        if not self._deferred:
            raise Interrupted(signum)

    def _check(self, _signum: int, _frame: FrameType | None) -> None:
        """Raise Interrupted again if a finalizer swallowed it, or it was deferred for too long."""
        if self._deferred and time.monotonic() < self._deadline:
            return
        if not _is_handled(sys.exception()):
            self.raise_if_interrupted()


def _has_terminal() -> bool:
    """Return whether the process has a terminal that controls it."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return False
    return True


def _is_handled(error: BaseException | None) -> bool:
    """Return whether an Interrupted is being handled, so that the process is cleaning up."""
    while error is not None:
        if isinstance(error, Interrupted):
            return True
        error = error.__context__
    return False


@contextlib.contextmanager
def kept_for_this_thread() -> Iterator[None]:
    """Block the signals in threads that are started inside this block.

    The system may deliver a signal to any thread that does not block it, and then the main thread
    goes on waiting. Threads inherit the blocked signals, as do the threads that they start.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_by(signum: int) -> NoReturn:
    """End the process by the signal, so that its parent sees which one it was.

    Process 1 of a container cannot be ended like this; it exits with 128 plus the number instead.
    """
    signal.signal(signum, signal.SIG_DFL)
    os.kill(os.getpid(), signum)
    os._exit(128 + signum)
