"""When the next run is due if the last one failed: sooner, if another try may succeed."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from pgstash.errors import ConfigurationError, PgstashError
from pgstash.runtime import FollowUp, Runtime
from pgstash.service.attempt import Attempt, reason_of
from pgstash.service.blackout import Blackout
from pgstash.service.schedule import Schedule

FIRST_DELAY = timedelta(minutes=1)
"""From the end of a failed run to the next try. It doubles with each failure in a row."""

_MOST_DOUBLINGS = 20  # two years; a schedule is due before that
_SPREAD = 0.25

NEVER = Blackout()

AFTER_FAILURE = "the last one failed, and another try may succeed"


@dataclass(frozen=True, slots=True)
class NextRun:
    """When the next run is due, in UTC; ``early`` if that is before its scheduled time.

    ``reason`` explains the time to people, if it is not simply the scheduled one.
    """

    at: datetime
    early: bool = False
    reason: str = ""


class Retries:
    """Plans the run after each run, and knows which failures of a scheduled run were reported.

    A run is early only if the last one failed by an error that is ``retryable``. The delay grows
    until the scheduled time comes first, and only a success makes it short again, so a long outage
    ends with one try at each scheduled time. Delays differ by up to a quarter, because many
    services may wait for the same server.
    """

    def __init__(
        self,
        schedule: Schedule,
        runtime: Runtime,
        first: NextRun | None = None,
        *,
        exit_on_first_failure: bool = False,
        blackout: Blackout = NEVER,
    ) -> None:
        """Start without a failure; the ``first`` run is due now unless it is given.

        Tries before the next scheduled time are outside the blackout too.
        """
        self._schedule = schedule
        self._now = runtime.now
        self._random = runtime.random
        self._started = runtime.now()
        self._failures = 0
        self._delay: timedelta | None = None
        self._reported: set[str] = set()
        self._blackout = blackout
        self._next = first or NextRun(self._started)
        self._may_exit = exit_on_first_failure
        self._outcome: FollowUp | None = None
        self._delay_if_retried = self._delay_after(1)

    def begin(self) -> None:
        """Begin a run: the planned one."""
        if not self._next.early:
            self._reported.clear()
        self._started, self._outcome, self._delay = self._now(), None, None
        self._delay_if_retried = self._delay_after(self._failures + 1)

    def attempt(self) -> Attempt:
        """Return the run that has begun, for another process that decides what follows it."""
        scheduled = self._schedule.after(self._started)
        early, reported = self._next.early, frozenset(self._reported)
        return Attempt(scheduled, self._delay_if_retried, early=early, reported=reported)

    def follow_up(self, error: BaseException) -> FollowUp:
        """Return what follows the failure of the present run; decided once for each run."""
        if self._outcome is None:
            self._outcome = self._after(error)
        return self._outcome

    def _after(self, error: BaseException) -> FollowUp:
        if not isinstance(error, Exception) or self.ends_service(error):
            return FollowUp()
        reason = reason_of(error)
        repeated = self._next.early and reason in self._reported
        self._reported.add(reason)
        self._failures += 1
        if isinstance(error, PgstashError) and error.retryable:
            self._delay = self._delay_if_retried
        self._next = self._plan(self._started)
        return FollowUp(self._next.at, early=self._next.early, repeated=repeated)

    def succeeded(self) -> None:
        """Forget earlier failures, and plan the next run at its scheduled time."""
        self._failures, self._delay, self._may_exit = 0, None, False
        self._next = self._plan(self._started)

    def ends_service(self, error: Exception) -> bool:
        """Return whether the service ends by an error, because no further run would fix it.

        That is certain of an invalid configuration. Of other errors that are not ``retryable`` it
        is assumed only until the first success, and if the user asked for it.
        """
        if isinstance(error, ConfigurationError):
            return True
        return self._may_exit and isinstance(error, PgstashError) and not error.retryable

    @property
    def next_run(self) -> NextRun:
        """The run that is planned."""
        return self._next

    def plan_again(self) -> NextRun:
        """Plan the next run from now on, after the clock was set back."""
        self._next = self._plan(self._now())
        return self._next

    def _plan(self, since: datetime) -> NextRun:
        scheduled = self._schedule.after(since)
        if self._delay is None:
            return NextRun(scheduled)
        soon = self._blackout.over(self._now() + self._delay)
        if soon < scheduled:
            return NextRun(soon, early=True, reason=AFTER_FAILURE)
        return NextRun(scheduled)

    def _delay_after(self, failures: int) -> timedelta:
        share = int.from_bytes(self._random(2)) / 0x1_0000
        return FIRST_DELAY * (1 + _SPREAD * share) * 2.0 ** min(failures - 1, _MOST_DOUBLINGS)
