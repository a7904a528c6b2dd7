"""Starts a dump again if others rewrite, replace or drop its tables just while it starts.

Nothing of a dump is stored before each table is known to match the snapshot of the dump, whether
one session dumps or several.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Protocol, TypeVar

from pgstash import events
from pgstash.backup.dump_workers import Plan
from pgstash.errors import DatabaseError, TableRewrittenError
from pgstash.postgres.dump import moment
from pgstash.postgres.dump.baseline import Baseline
from pgstash.postgres.dump.failure_cause import DisturbedError, failed_to_lock
from pgstash.postgres.dump.moment import Moment
from pgstash.postgres.dump.snapshot import LockRefusedError

# The pauses are no multiples of each other, so that they do not keep time with a periodic job.
_FIRST_PAUSE = 0.2  # seconds
_GROWTH = 1.6
_LONGEST_PAUSE = 4.0  # seconds


class Dated(Protocol):
    """A dump that knows the moment of the server just before its snapshot."""

    moment: Moment | None


Made = TypeVar("Made", bound=Dated)


class Retries:
    """Limits for how long a dump is started again, and pauses between the tries."""

    def __init__(self, seconds: float) -> None:
        """Begin to count the ``seconds``."""
        self._began = time.monotonic()
        self._seconds = seconds
        self._pause = _FIRST_PAUSE
        self.tries = 1

    @property
    def spent(self) -> float:
        """The seconds since the first try began."""
        return time.monotonic() - self._began

    def half(self) -> Retries:
        """Return a limit of half the time, which began when this one did."""
        other = Retries(self._seconds / 2)
        other._began = self._began
        return other

    @property
    def is_over(self) -> bool:
        """Whether there is no time for another try."""
        return self.spent + self._pause >= self._seconds

    def wait(self) -> None:
        """Pause before the next try, longer each time."""
        time.sleep(self._pause)
        self._pause = min(self._pause * _GROWTH, _LONGEST_PAUSE)
        self.tries += 1


@contextlib.contextmanager
def started(
    plan: Plan,
    retries: Retries,
    prepare: Callable[[contextlib.ExitStack, Baseline], Made],
) -> Iterator[Made]:
    """Yield a dump that ``prepare`` has started, and whose tables match its snapshot.

    Leaving the block ends what ``prepare`` put on the stack. If a try fails because others changed
    tables, it is dropped and another one begins. Raises what ``prepare`` raises; an error that such
    a change caused, only if there is no time left for another try.
    """
    while True:
        with contextlib.ExitStack() as stack:
            baseline = Baseline(plan.ask, plan.server.codec)
            before = moment.of(plan.server, plan.tool_run.emit)
            try:
                made = prepare(stack, baseline)
            except DatabaseError as error:
                if not _is_transient(error, baseline):
                    raise
                if retries.is_over:
                    raise _last(error, retries) from error
                plan.tool_run.emit(events.Notice(f"Trying again: {error.message}"))
            else:
                made.moment = before
                yield made
                return
        retries.wait()


def _is_transient(error: DatabaseError, baseline: Baseline) -> bool:
    """Return whether a dump failed because others changed tables just while it started."""
    if isinstance(error, TableRewrittenError | LockRefusedError | DisturbedError):
        return True
    return failed_to_lock(error) and bool(baseline.gone())


def _last(error: DatabaseError, retries: Retries) -> DatabaseError:
    if not isinstance(error, TableRewrittenError):
        return error
    return TableRewrittenError(
        f"{error.message}, in each of {retries.tries} tries within {retries.spent:.0f} s"
    )
