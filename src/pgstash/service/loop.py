"""The long-running loop: run the job when it is due until a signal ends it, whatever a run does."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import NoReturn, Protocol

from pgstash import events
from pgstash.errors import ConfigurationError, PgstashError
from pgstash.monitoring.log import LOGGER
from pgstash.schedule import Schedule

LONGEST_NAP = 30.0
"""Seconds after which the wall clock is looked at again: a machine that slept, or whose clock
was set, runs what is due that much late at most."""

SET_BACK = timedelta(minutes=1)
"""A clock that goes back by more was set, and the plan is made anew; less is a correction."""


class Clock(Protocol):
    """The time, and a way to let it pass."""

    def now(self) -> datetime:
        """Return the time of the wall clock, in UTC."""
        ...

    def sleep(self, seconds: float) -> None:
        """Return after so many seconds; a signal ends it sooner, with Interrupted."""
        ...


class SystemClock:
    """The machine's clock."""

    def now(self) -> datetime:
        """Return the time of the wall clock, in UTC."""
        return datetime.now(UTC)

    def sleep(self, seconds: float) -> None:
        """Return after so many seconds; a signal ends it sooner, with Interrupted."""
        time.sleep(seconds)


def run(
    job: Callable[[], object],
    schedule: Schedule,
    clock: Clock,
    emit: events.Emit,
    hear: Callable[[], None],
) -> NoReturn:
    """Run the job now and then whenever it is due, one run after the other.

    A job that fails is tried again at its next time. ``hear`` raises Interrupted if a signal
    was put off while the job ran. Only that ends the loop, and ConfigurationError, which no
    further run would mend.
    """
    number = 0
    while True:
        number += 1
        started = clock.now()
        emit(events.IterationStarted(number))
        _survive(job)
        hear()
        _wait(started, schedule, clock, emit)


def _survive(job: Callable[[], object]) -> None:
    try:
        job()
    except ConfigurationError:
        raise
    except PgstashError as error:  # which the job has told of
        LOGGER.debug("What led to it", exc_info=error)
    except Exception:  # noqa: BLE001 - a service outlives what nobody foresaw
        LOGGER.exception("Unforeseen error: please report it. The service goes on")


def _wait(started: datetime, schedule: Schedule, clock: Clock, emit: events.Emit) -> None:
    """Return when the run that follows the one of ``started`` is due."""
    seen = started
    due: datetime | None = None
    while True:
        now = clock.now()
        if seen - now > SET_BACK:
            emit(events.Warned(f"The clock was set back by {round((seen - now).total_seconds())}s"))
            started, due = now, None
        seen = now
        if due is None:
            due = schedule.after(started)
            left = (due - now).total_seconds()
            emit(events.NextRunPlanned(due, max(left, 0.0)))
        left = (due - now).total_seconds()
        if left <= 0:
            return
        clock.sleep(min(left, LONGEST_NAP))
