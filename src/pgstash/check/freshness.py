"""Is the newest backup young enough: the one rule of `pgstash healthcheck` and of `/readyz`."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

from pgstash import catalog
from pgstash.storage.interface import Storage

# Each window is listed only where those before it are empty and a backup as old as their
# beginning could still be fresh. So what is listed depends on the schedule, and not on how
# many backups there are.
_WINDOWS = tuple(timedelta(days=days) for days in (1 / 24, 1, 31, 366, 3660))

StaleAt = Callable[[datetime], datetime]
"""From which moment a backup that began at the given one is too old."""


def newest(
    storage: Storage, prefix: str, stale_at: StaleAt, now: datetime
) -> catalog.Backup | None:
    """Return the newest backup, or None where there is none that could be fresh.

    One that is dated in the future stands for nothing. Raises StorageError.
    """
    for window in _WINDOWS:
        since = now - window
        if found := catalog.newest(storage, prefix, since=since, until=now):
            return found
        if stale_at(since) <= now:
            break
    return None
