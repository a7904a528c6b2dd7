"""What `/readyz` reports of a service for many databases: the freshness of each job."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from pgstash import __version__
from pgstash.format.iso_time import iso

_LONGEST_MESSAGE = 500

StaleAt = Callable[[datetime], datetime]


@dataclass(frozen=True, slots=True)
class Failure:
    """The last failure of a backup or a drill: the exit status, or below zero the signal."""

    status: int
    message: str
    at: datetime

    def facts(self) -> dict[str, object]:
        """Return it as JSON has it."""
        message = self.message[:_LONGEST_MESSAGE]
        return {"status": self.status, "at": iso(self.at), "message": message}


@dataclass(slots=True)
class _Job:
    stale_at: StaleAt
    appeared: datetime | None
    backup: datetime | None = None
    failure: Failure | None = None
    failed_drill: Failure | None = None

    def status(self, now: datetime) -> tuple[str, datetime | None]:
        """Return the status, and since when the newest backup is too old."""
        since = max(filter(None, (self.backup, self.appeared)), default=None)
        stale = self.stale_at(since) if since else None
        is_stale = stale is not None and stale <= now
        if self.failed_drill:
            return "drill failed", stale if is_stale else None
        if self.backup is None and (is_stale or self.appeared is None):
            return "no backup yet", stale
        return ("stale", stale) if is_stale else ("ready", None)


class JobsHealth:
    """The state of all jobs. Safe to use from any thread; messages have no secrets."""

    def __init__(self, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        """Start without jobs, which is not healthy."""
        self._now = now
        self._running_since = now()
        self._lock = threading.Lock()
        self._jobs: dict[str, _Job] = {}
        self._unavailable: dict[str, Failure] = {}

    def unavailable(self, reasons: Mapping[str, Failure]) -> None:
        """Take what cannot be backed up, and is no job: it makes the service unready."""
        with self._lock:
            self._unavailable = dict(reasons)

    def set_back(self, now: datetime) -> None:
        """Count backups from the future as of now, after the clock was set back."""
        with self._lock:
            for job in self._jobs.values():
                job.backup = min(job.backup, now) if job.backup else None
                job.appeared = min(job.appeared, now) if job.appeared else None

    def added(
        self, name: str, stale_at: StaleAt, *, backup: datetime | None, appeared: datetime | None
    ) -> None:
        """Add a job with its newest backup; one that ``appeared`` has time for its first one."""
        with self._lock:
            self._jobs[name] = _Job(stale_at, appeared, backup)

    def changed(self, name: str, stale_at: StaleAt) -> None:
        """Change when the backups of a job are too old."""
        with self._lock:
            self._jobs[name].stale_at = stale_at

    def removed(self, name: str) -> None:
        """Remove a job."""
        with self._lock:
            self._jobs.pop(name, None)

    def ended(self, name: str, *, drill: bool, started: datetime, failure: Failure | None) -> None:
        """Take the end of a backup or a drill."""
        with self._lock:
            if (job := self._jobs.get(name)) is None:
                return
            if drill:
                job.failed_drill = failure
            elif failure:
                job.failure = failure
            else:
                job.backup = started

    def facts(self) -> tuple[bool, dict[str, object]]:
        """Return whether all jobs are healthy, and the body of `/readyz`."""
        now = self._now()
        with self._lock:
            every = {name: (job.status(now), job) for name, job in self._jobs.items()}
            for name, reason in self._unavailable.items():
                every[name] = ("unavailable", None), _Job(lambda last: last, None, failure=reason)
            jobs = {
                name: {
                    "status": status,
                    "last_backup": iso(job.backup) if job.backup else None,
                    "stale_since": iso(since) if since else None,
                    "last_failure": job.failure.facts() if job.failure else None,
                    "last_failed_drill": job.failed_drill.facts() if job.failed_drill else None,
                }
                for name, ((status, since), job) in sorted(every.items())
            }
        bad = [name for name, ((status, _), _) in every.items() if status != "ready"]
        well = bool(jobs) and not bad
        status = "ready" if well else "not ready" if jobs else "no jobs yet"
        return well, {
            "status": status,
            "version": __version__,
            "running_since": iso(self._running_since),
            "not_ready": len(bad),
            "jobs": jobs,
        }
