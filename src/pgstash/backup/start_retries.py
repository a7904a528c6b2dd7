"""Begins a dump anew while others rewrite, replace or drop its tables just when it begins.

Nothing of a dump is stored before it is known that each table is what its snapshot says, by however
many sessions it is made.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from pgstash import events
from pgstash.errors import DatabaseError, TableRewrittenError
from pgstash.pieces import Plan
from pgstash.postgres.baseline import Baseline
from pgstash.postgres.causes import DisturbedError, failed_to_lock
from pgstash.postgres.copying import LockRefusedError

# No multiple of another, so that they do not keep time with what is done again and again.
_FIRST_PAUSE = 0.2  # seconds
_GROWTH = 1.6
_LONGEST_PAUSE = 4.0  # seconds

Made = TypeVar("Made")


class Patience:
    """For how long a dump is begun anew."""

    def __init__(self, seconds: float) -> None:
        """Begin to count."""
        self._began = time.monotonic()
        self._seconds = seconds
        self._pause = _FIRST_PAUSE
        self.tries = 1

    @property
    def spent(self) -> float:
        """The seconds since the first try began."""
        return time.monotonic() - self._began

    def half(self) -> Patience:
        """Return the same, to be over when half of it is."""
        other = Patience(self._seconds / 2)
        other._began = self._began
        return other

    @property
    def is_over(self) -> bool:
        """Whether no other try may begin."""
        return self.spent + self._pause >= self._seconds

    def wait(self) -> None:
        """Pause before the next try, longer each time."""
        time.sleep(self._pause)
        self._pause = min(self._pause * _GROWTH, _LONGEST_PAUSE)
        self.tries += 1


@contextlib.contextmanager
def begun(
    plan: Plan,
    patience: Patience,
    prepare: Callable[[contextlib.ExitStack, Baseline], Made],
) -> Iterator[Made]:
    """Yield a dump that ``prepare`` has begun, and whose tables are what its snapshot says.

    Leaving the block ends what it put on the stack. A try that fails because others changed tables
    is thrown away, and another one begins. Raises what ``prepare`` raises, TableRewrittenError
    among it, when the patience is over.
    """
    while True:
        with contextlib.ExitStack() as stack:
            baseline = Baseline(plan.ask, plan.server.codec)
            try:
                made = prepare(stack, baseline)
            except DatabaseError as error:
                if not _is_passing(error, baseline):
                    raise
                if patience.is_over:
                    raise _last(error, patience) from error
                plan.emit(events.Notice(f"Trying again: {error.message}"))
            else:
                yield made
                return
        patience.wait()


def _is_passing(error: DatabaseError, baseline: Baseline) -> bool:
    """Tell whether others changed tables just when a dump began, and it failed by that."""
    if isinstance(error, TableRewrittenError | LockRefusedError | DisturbedError):
        return True
    return failed_to_lock(error) and bool(baseline.gone())


def _last(error: DatabaseError, patience: Patience) -> DatabaseError:
    if not isinstance(error, TableRewrittenError):
        return error
    return TableRewrittenError(
        f"{error.message}, in each of {patience.tries} tries within {patience.spent:.0f} s"
    )
