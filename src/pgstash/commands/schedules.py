"""When backups are due, and when nothing may start, according to the settings."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from pgstash.service import blackout, schedule
from pgstash.service.blackout import Blackout, Outside
from pgstash.service.schedule import Schedule
from pgstash.settings import Settings


def blackout_of(settings: Settings) -> Blackout:
    """Return when nothing may start."""
    if not settings.blackout:
        return Blackout()
    return Blackout(blackout.parse(settings.blackout), settings.tz)


def schedule_of(settings: Settings, anchor: datetime) -> Schedule:
    """Return when backups are due; an interval is counted from ``anchor``."""
    return anchored(settings)(anchor)


def anchored(settings: Settings) -> Callable[[datetime], Schedule]:
    """Return the same for any anchor, without a reference to the settings."""
    expression, zone = settings.backup_schedule, settings.tz
    seconds, blackout = settings.backup_interval, blackout_of(settings)

    def at(anchor: datetime) -> Schedule:
        every = schedule.chosen(expression, zone, seconds, anchor)
        return Outside(every, blackout) if blackout.windows else every

    return at


def next_run(settings: Settings, last: datetime, now: datetime) -> datetime:
    """Return when the backup after the ``last`` one is or was due; later if nothing may start now.

    One of many jobs has its own times, by its name.
    """
    times = schedule_of_job(settings) if settings.job else schedule_of(settings, last)
    due, over = times.after(last), blackout_of(settings).over(now)
    return max(due, over) if over > now else due


def schedule_of_job(settings: Settings) -> Schedule:
    """Return the same for one of many jobs, whose intervals begin at different times."""
    return schedule_of(settings, schedule.spread_anchor(settings.job, settings.backup_interval))
