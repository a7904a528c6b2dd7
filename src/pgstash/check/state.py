"""The state of the backups of one job, by as few requests as possible: for `pgstash status`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from statistics import median

from pgstash.format.identity import Identity
from pgstash.repository import catalog
from pgstash.repository.catalog import CLOCKS_APART, Backup
from pgstash.repository.owners import Owners
from pgstash.service import schedule
from pgstash.service.schedule import Schedule
from pgstash.storage.interface import Storage

_COMPARED = 5
_RUNS_LISTED = 100
_OBJECTS_OF_A_BACKUP = 8  # rarely more: proofs
_PAGE = 1000  # objects in one response of most stores


@dataclass(frozen=True, slots=True)
class Plan:
    """Which backups to inspect.

    Without a ``source`` all under the prefix count. ``schedule`` returns the times of the runs that
    follow a backup from a given time, ``due`` when the next one is or was due. Only objects newer
    than ``window`` are listed, if that is enough; None lists all.
    """

    prefix: str
    source: Identity | None
    schedule: Callable[[datetime], Schedule]
    due: Callable[[datetime], datetime]
    window: timedelta | None
    now: datetime


@dataclass(frozen=True, slots=True)
class State:
    """The backups of one job. Times are in UTC, sizes in bytes.

    ``last`` is the newest backup of the source, ``usual_size`` the median size of the backups
    before it. ``proven`` is the time of the newest drill that passed, of any backup. ``stale_at``
    is the time from which the last backup is too old, ``due`` when the next run is or was due. All
    are None if there is no such backup.
    """

    last: Backup | None = None
    usual_size: int | None = None
    proven: datetime | None = None
    stale_at: datetime | None = None
    due: datetime | None = None

    def is_stale(self, now: datetime) -> bool:
        """Return whether the last backup is too old."""
        return self.stale_at is not None and self.stale_at <= now


def look(plan: Plan, storage: Storage, owners: Owners) -> State:
    """Return the state of a job. Raises StorageError.

    One listing is enough if the window has a backup of the source, and a proof. The metadata of
    the newest archive are read too, to know its source.
    """
    since = plan.now - plan.window if plan.window else None
    found = _backups(plan, storage, since)
    last = _last(found, plan.source, owners)
    proven = _proven(found, plan.now)
    if since and (last is None or proven is None):
        found = _backups(plan, storage, None)
        last = last or _last(found, plan.source, owners)
        proven = _proven(found, plan.now)
    if last is None:
        return State(proven=proven)
    times = plan.schedule(last.started)
    before = [each.size for each in found if each.started < last.started][-_COMPARED:]
    return State(
        last=last,
        usual_size=round(median(before)) if before else None,
        proven=proven,
        stale_at=schedule.stale_at(times, last.started),
        due=plan.due(last.started),
    )


def window(times: Schedule, now: datetime, *, kept_days: int, drilled: float) -> timedelta | None:
    """Return how far back to list first: all, if one page has it, or else the last 100 runs.

    ``kept_days`` is how long backups are kept, ``drilled`` the seconds between drills.
    """
    due = times.after(now)
    interval = times.after(due) - due
    kept = timedelta(days=kept_days)
    if kept / interval * _OBJECTS_OF_A_BACKUP <= _PAGE:
        return None
    return max(interval * _RUNS_LISTED, timedelta(seconds=drilled) * 2)


def _backups(plan: Plan, storage: Storage, since: datetime | None) -> list[Backup]:
    """Return the backups that are neither empty nor dated in the future, the oldest first."""
    listed = catalog.read(storage, plan.prefix, since=since)
    until = plan.now + CLOCKS_APART
    return [each for each in listed.backups if each.size and each.started <= until]


def _last(found: Sequence[Backup], source: Identity | None, owners: Owners) -> Backup | None:
    """Return the newest backup of the source.

    If the server did not identify itself, it is the newest one that can be of the source.
    """
    newest_first = found[::-1]
    if source is None:
        return next(iter(newest_first), None)
    if source.system:
        certain = owners.first(newest_first, source)
        return certain[0] if certain else None
    for backup in newest_first:
        [origin] = owners.origins([backup])
        if source.relation(origin.identity) != "other":
            return backup
    return None


def _proven(found: Sequence[Backup], now: datetime) -> datetime | None:
    times = [proven for backup in found if (proven := backup.proven_by(now))]
    return max(times, default=None)
