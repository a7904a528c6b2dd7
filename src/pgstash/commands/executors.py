"""What runs the jobs of a service: its own children, or a queue (`commands/planner.py`)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from pgstash.commands import job_runs
from pgstash.commands.job_runs import RunError
from pgstash.commands.jobs import Job
from pgstash.commands.metrics_of_jobs import MetricsOfJobs
from pgstash.processes.children import Children
from pgstash.runtime import Runtime
from pgstash.service import dispatcher
from pgstash.service.attempt import Attempt
from pgstash.service.dispatcher import Run, Stored
from pgstash.settings import Settings


class Executor(Protocol):
    """Starts runs, and returns those that have ended."""

    def added(self, job: Job, planned: dispatcher.Job, stored: Stored) -> Stored:
        """Take a new job; return what is known of it, in addition to what the store has."""
        ...

    def at_once(self, settings: Settings) -> bool:
        """Return whether the first backup of a job is due at once."""
        ...

    def under_way(self, name: str) -> Run | None:
        """Return the run of a new job that was started before, if there is one."""
        ...

    def start(self, run: Run, attempt: Attempt | None) -> RunError | None:
        """Start a run; return why it cannot be started. Raises Interrupted."""
        ...

    def wait(self, seconds: float) -> Iterable[tuple[Run, RunError | None]]:
        """Wait until a run has ended, for up to ``seconds``; return those that have."""
        ...


class Local:
    """Runs jobs as children of this process, and ends those that run when it ends."""

    def __init__(self, children: Children[Run], runtime: Runtime, measured: MetricsOfJobs) -> None:
        """Start nothing yet; the runs report their figures to ``measured``."""
        self._children = children
        self._runtime = runtime
        self._measured = measured

    def added(self, _job: Job, _planned: dispatcher.Job, stored: Stored) -> Stored:
        """Return what the store has."""
        return stored

    def at_once(self, settings: Settings) -> bool:
        """Return whether BACKUP_ON_START is set: this process has just started."""
        return settings.backup_on_start and "backup_on_start" in settings.model_fields_set

    def under_way(self, _name: str) -> Run | None:
        """Return None: no run outlives the process."""
        return None

    def start(self, run: Run, attempt: Attempt | None) -> RunError | None:
        """Start a run; return why it cannot be started. Raises Interrupted."""
        self._measured.started(run)
        failure = job_runs.start(self._children, run, self._runtime, attempt)
        if failure:
            self._measured.ended(run, None)
        return failure

    def wait(self, seconds: float) -> Iterable[tuple[Run, RunError | None]]:
        """Wait until a run has ended, for up to ``seconds``; return those that have."""
        ended = self._children.wait(seconds)
        for each in ended:
            self._measured.ended(each.key, each)
        return [(each.key, job_runs.failure_of(each)) for each in ended]
