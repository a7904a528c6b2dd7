"""Times of the day at which nothing may start: ``BLACKOUT``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

from pgstash.service.schedule import Schedule

_WINDOW = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)", re.ASCII)
_MINUTES_OF_A_DAY = 24 * 60
_STEP = timedelta(seconds=1)
"""An end is always later; whatever a time zone does, the search for it goes on and ends."""


@dataclass(frozen=True, slots=True)
class Window:
    """From ``start`` to before ``end``, which is on the next day if it is not later."""

    start: time
    end: time

    def has(self, clock: time) -> bool:
        """Return whether a time of the day is in it."""
        if self.start < self.end:
            return self.start <= clock < self.end
        return clock >= self.start or clock < self.end


@dataclass(frozen=True, slots=True)
class Blackout:
    """The windows of each day in a time zone; none means never."""

    windows: tuple[Window, ...] = ()
    zone: str = "UTC"

    def over(self, moment: datetime) -> datetime:
        """Return the first time from ``moment`` on at which something may start, in UTC."""
        zone = ZoneInfo(self.zone)
        while True:
            local = moment.astimezone(zone)
            clock = local.time().replace(tzinfo=None)
            ends = [_end(each, local, zone) for each in self.windows if each.has(clock)]
            if not ends:
                return moment.astimezone(UTC)
            moment = max(*ends, moment + _STEP)


def _end(window: Window, local: datetime, zone: ZoneInfo) -> datetime:
    """Return the end of a window that a time is in, in UTC."""
    clock = local.time().replace(tzinfo=None)
    day: date = local.date() if clock < window.end else local.date() + timedelta(days=1)
    end = datetime.combine(day, window.end, zone)
    # When the clocks go back, a time occurs twice; when they go forward, some do not. Both are over
    # at the later of the two readings.
    return max(end.replace(fold=fold).astimezone(UTC) for fold in (0, 1))


@dataclass(frozen=True, slots=True)
class Outside:
    """The times of another schedule; those in a blackout are moved to its end."""

    schedule: Schedule
    blackout: Blackout

    def after(self, moment: datetime) -> datetime:
        """Return the first of them after ``moment``, in UTC."""
        return self.blackout.over(self.schedule.after(moment))


def parse(text: str) -> tuple[Window, ...]:
    """Read windows such as ``22:00-06:00``, separated by commas. Raises ValueError."""
    windows = []
    for each in text.split(","):
        found = _WINDOW.fullmatch(each.strip())
        if not found:
            raise ValueError(f"has {each.strip()!r}, which is not two times")
        hour, minute, last_hour, last_minute = map(int, found.groups())
        windows.append(Window(time(hour, minute), time(last_hour, last_minute)))
    minutes = (time(*divmod(minute, 60)) for minute in range(_MINUTES_OF_A_DAY))
    if all(any(window.has(minute) for window in windows) for minute in minutes):
        raise ValueError("leaves no time of the day at which anything may start")
    return tuple(windows)
