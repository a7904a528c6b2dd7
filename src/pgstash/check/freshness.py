"""Find the newest backup, to decide if it is fresh: for `pgstash healthcheck` and `/readyz`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from pgstash.format.identity import Identity
from pgstash.repository import catalog
from pgstash.repository.owners import Owners
from pgstash.storage.interface import Storage

# A window is listed only if the windows before it have no backup of the source, and a backup as old
# as their start could still be fresh. So the listing depends on the schedule, not on the number of
# backups.
_WINDOWS = tuple(timedelta(days=days) for days in (1 / 24, 1, 31, 366, 3660))

StaleAt = Callable[[datetime], datetime]
"""Returns the time from which a backup that started at the given time is too old."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Which backups to inspect, and when one of them is too old."""

    prefix: str
    source: Identity
    stale_at: StaleAt
    now: datetime


def newest(plan: Plan, storage: Storage, owners: Owners) -> catalog.Backup | None:
    """Return the newest backup of a source, or None if there is none that could be fresh.

    A backup that does not name its source counts only if none that does is found in the listed
    windows. A backup dated in the future is ignored. Raises StorageError.
    """
    doubtful: catalog.Backup | None = None
    for window in _WINDOWS:
        since = plan.now - window
        listed = catalog.within(storage, plan.prefix, since=since, until=plan.now)
        if found := owners.first(reversed(listed), plan.source):
            backup, certain = found
            if certain:
                return backup
            doubtful = doubtful or backup
        if plan.stale_at(since) <= plan.now:
            break
    return doubtful
