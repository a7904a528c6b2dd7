"""What `/readyz` reports of a worker: whether it takes part, and all jobs if it leads."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pgstash import __version__
from pgstash.monitoring.jobs_health import JobsHealth

if TYPE_CHECKING:
    from pgstash.fleet.heart import Heart


class WorkerHealth:
    """The state of a worker. Safe to use from any thread."""

    def __init__(self, heart: Heart) -> None:
        """Start without jobs."""
        self._heart = heart
        self._jobs: JobsHealth | None = None

    def leads(self, jobs: JobsHealth | None) -> None:
        """Take the state of all jobs while this worker plans their runs."""
        self._jobs = jobs

    def facts(self) -> tuple[bool, dict[str, object]]:
        """Return whether the worker is healthy, and the body of `/readyz`."""
        jobs, is_alive = self._jobs, self._heart.worker is not None
        about = {"worker": self._heart.number, "leads": jobs is not None}
        if is_alive and jobs:
            well, facts = jobs.facts()
            return well, {**facts, **about}
        status = "ready" if is_alive else "no queue"
        return is_alive, {"status": status, "version": __version__, **about}
