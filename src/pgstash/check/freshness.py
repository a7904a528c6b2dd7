"""Is the newest backup young enough: the one rule of `pgstash healthcheck` and of `/readyz`."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

from pgstash import catalog
from pgstash.identity import Identity
from pgstash.owners import Owners
from pgstash.storage.interface import Storage

# Each window is listed only where those before it are empty and a backup as old as their
# beginning could still be fresh. So what is listed depends on the schedule, and not on how
# many backups there are.
_WINDOWS = tuple(timedelta(days=days) for days in (1 / 24, 1, 31, 366, 3660))

StaleAt = Callable[[datetime], datetime]
"""From which moment a backup that began at the given one is too old."""


def newest(  # noqa: PLR0913, PLR0917 - what to look at, and by which rule
    storage: Storage,
    prefix: str,
    source: Identity,
    owners: Owners,
    stale_at: StaleAt,
    now: datetime,
) -> catalog.Backup | None:
    """Return the newest backup of a source, or None where there is none that could be fresh.

    One that does not say of which source it is counts if no other does. One that is dated in the
    future stands for nothing. Raises StorageError.
    """
    doubtful: catalog.Backup | None = None
    for window in _WINDOWS:
        since = now - window
        listed = catalog.within(storage, prefix, since=since, until=now)
        if found := owners.first(reversed(listed), source):
            backup, certain = found
            if certain:
                return backup
            doubtful = doubtful or backup
        if stale_at(since) <= now:
            break
    return doubtful
