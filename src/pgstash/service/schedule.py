"""When the next run is due: pure functions of the time of the last one.

A run that starts late replaces every run that was due until then, so a schedule is asked for the
first time *after the start of the last run*. If that is in the past, because the run took longer
than the interval or the machine was suspended, the next run is due now, once.
"""

from __future__ import annotations

import hashlib
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
    """The times at which a run is due."""

    def after(self, moment: datetime) -> datetime:
        """Return the first of them after ``moment``, in UTC."""
        ...


@dataclass(frozen=True, slots=True)
class Interval:
    """Every ``seconds``, counted from ``anchor`` and not from the last run, so without drift."""

    seconds: int
    anchor: datetime

    def after(self, moment: datetime) -> datetime:
        """Return the first time on the grid after ``moment``, in UTC."""
        step = timedelta(seconds=self.seconds)
        steps = (moment - self.anchor) // step + 1
        return (self.anchor + steps * step).astimezone(UTC)


@dataclass(frozen=True, slots=True)
class Cron:
    """A cron expression of five fields in a time zone, as Debian's cron understands it.

    When the clocks go forward, a time that does not exist runs at the end of the gap; when they
    go back, a time that exists twice runs once. Expressions with a ``*`` in the minute or the
    hour follow elapsed time instead (https://manpages.debian.org/cron.8).
    """

    expression: str
    zone: str = "UTC"

    def __post_init__(self) -> None:
        """Raise ValueError unless the expression is valid and is due some day."""
        check_zone(self.zone)
        if len(self.expression.split()) != _FIELDS:
            raise ValueError("must have five fields: minute, hour, day, month, day of the week")
        try:
            self.after(_ANY_DAY)
        except (CronSimError, ValueError) as error:
            reason = str(error).lower() if isinstance(error, CronSimError) else "no such number"
            raise ValueError(f"is not a cron expression: {reason}") from None
        except StopIteration:
            raise ValueError("names a day that does not exist") from None

    def after(self, moment: datetime) -> datetime:
        """Return the first due time after ``moment``, in UTC."""
        due = CronSim(self.expression, moment.astimezone(ZoneInfo(self.zone)))
        # In an hour that occurs twice, the library starts with the first one.
        while (found := next(due).astimezone(UTC)) <= moment:
            pass
        return found


def spread_anchor(name: str, seconds: int) -> datetime:
    """Return an anchor for the interval of one of many jobs: the same for the same name, always.

    Then the jobs do not all begin at once, and a restart does not change when they begin.
    """
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
    return _ANY_DAY + timedelta(seconds=int.from_bytes(digest[:8]) % seconds)


def chosen(expression: str | None, zone: str, seconds: int, anchor: datetime) -> Schedule:
    """Return the schedule of a cron expression, or else an interval counted from ``anchor``."""
    return Cron(expression, zone) if expression else Interval(seconds, anchor)


def stale_at(schedule: Schedule, last: datetime) -> datetime:
    """Return the time from which a backup that started at ``last`` is too old, in UTC.

    It is the time when the next run was due, plus a grace period for that run: half of the time
    until the following run, at least 15 minutes and at most 12 hours.
    """
    due = schedule.after(last)
    grace = (schedule.after(due) - due) / 2
    return due + min(max(grace, _SHORTEST_GRACE), _LONGEST_GRACE)


def check_zone(name: str) -> None:
    """Raise ValueError unless there is a time zone of this name."""
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError("is not the name of a time zone") from None
