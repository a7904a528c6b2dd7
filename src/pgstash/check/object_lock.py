"""The preflight of locks: do they keep backups longer than the retention."""

from __future__ import annotations

from dataclasses import dataclass

from pgstash.check.finding import Finding
from pgstash.counting import counted

_TOPIC = "object lock"


@dataclass(frozen=True, slots=True)
class Lock:
    """How new backups are locked; the bucket was asked whether it has locks."""

    days: int
    mode: str
    retention_days: int


def look(lock: Lock) -> Finding:
    """Return how long backups are locked, and a warning if they would otherwise be removed."""
    found = f"for {counted(lock.days, 'day')}, in {lock.mode} mode"
    if lock.days <= lock.retention_days:
        return Finding(_TOPIC, "ok", found)
    return Finding(
        _TOPIC,
        "warning",
        f"{found}: backups stay longer than BACKUP_RETENTION_DAYS "
        f"({counted(lock.retention_days, 'day')})",
        "Pruning removes them when the lock has ended. Set S3_OBJECT_LOCK_DAYS to at most "
        "BACKUP_RETENTION_DAYS, unless this is meant.",
    )
