"""When the next run is due: pure functions of the time of the last one.

A run that starts late stands for every run that was due until then, so a schedule is asked for
the first moment *after the start of the last run*. Where that is in the past, because the run
took longer than the interval or the machine slept, it is due now, and once.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Protocol
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError

_FIELDS = 5
_ANY_DAY = datetime(2024, 1, 1, tzinfo=UTC)

_SHORTEST_GRACE = timedelta(minutes=15)
_LONGEST_GRACE = timedelta(hours=12)


class Schedule(Protocol):
    """Moments at which a run is due."""

    def after(self, moment: datetime) -> datetime:
        """Return the first of them that is later than ``moment``, in UTC."""
        ...


@dataclass(frozen=True, slots=True)
class Interval:
    """Every so many ``seconds``, counted from ``anchor`` and not from the last run: no drift."""

    seconds: int
    anchor: datetime

    def after(self, moment: datetime) -> datetime:
        """Return the first moment on the grid that is later, in UTC."""
        step = timedelta(seconds=self.seconds)
        steps = (moment - self.anchor) // step + 1
        return (self.anchor + steps * step).astimezone(UTC)


@dataclass(frozen=True, slots=True)
class Cron:
    """A cron expression of five fields in a time zone, as Debian's cron understands it.

    Where the clocks go forward, a time that does not exist runs when the gap ends; where they
    go back, a time that exists twice runs once. Expressions with a ``*`` in the minute or the
    hour follow elapsed time instead (https://manpages.debian.org/cron.8).
    """

    expression: str
    zone: str = "UTC"

    def __post_init__(self) -> None:
        """Raise ValueError unless the expression can be read and is due some day."""
        check_zone(self.zone)
        if len(self.expression.split()) != _FIELDS:
            raise ValueError("must have five fields: minute, hour, day, month, day of the week")
        try:
            self.after(_ANY_DAY)
        except (CronSimError, ValueError) as error:
            reason = str(error).lower() if isinstance(error, CronSimError) else "no such number"
            raise ValueError(f"is no cron expression: {reason}") from None
        except StopIteration:
            raise ValueError("names a day that never comes") from None

    def after(self, moment: datetime) -> datetime:
        """Return the first due moment that is later, in UTC."""
        due = CronSim(self.expression, moment.astimezone(ZoneInfo(self.zone)))
        # In an hour that the clocks repeat, the library begins with the first of the two.
        while (found := next(due).astimezone(UTC)) <= moment:
            pass
        return found


def stale_at(schedule: Schedule, last: datetime) -> datetime:
    """Return the moment from which a backup that began at ``last`` is too old, in UTC.

    It is when the next run was due, and then a grace for that run to take its time: half of the
    time until the one after it, 15 minutes at least and 12 hours at most.
    """
    due = schedule.after(last)
    grace = (schedule.after(due) - due) / 2
    return due + min(max(grace, _SHORTEST_GRACE), _LONGEST_GRACE)


def check_zone(name: str) -> None:
    """Raise ValueError unless there is a time zone of this name."""
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError("must be the name of a time zone such as Europe/Berlin") from None
