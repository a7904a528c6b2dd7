"""The metrics of many jobs: their runs report theirs, and the store has those from before."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime

from pgstash.commands import health, metrics
from pgstash.commands.job_survey import place_of
from pgstash.commands.jobs import Job
from pgstash.commands.source import configured_source
from pgstash.errors import PgstashError
from pgstash.format.identity import Identity
from pgstash.monitoring.log import LOGGER
from pgstash.monitoring.metrics import Metrics
from pgstash.processes.children import Ended
from pgstash.runtime import utc_now
from pgstash.service.dispatcher import Run
from pgstash.settings import Settings
from pgstash.signals import kept_for_this_thread


class MetricsOfJobs:
    """The metrics of all jobs of a process. Nothing here waits for a store or a disk."""

    def __init__(self) -> None:
        """Begin without jobs."""
        self.metrics = Metrics()
        self._write: Callable[[], None] = lambda: None

    @contextlib.contextmanager
    def written(self, settings: Settings) -> Iterator[None]:
        """Write METRICS_FILE after each run in the block, if it is set."""
        if settings.metrics_file is None or not metrics.is_usable("METRICS_FILE"):
            yield
            return
        with metrics.written(settings.metrics_file, self.metrics) as file:
            self._write = file.write_soon
            yield

    def added(self, new: Sequence[Job], *, remember: bool) -> None:
        """Add jobs; with ``remember``, a thread takes what the store knows of them."""
        for job in new:
            self.metrics.add(metrics.labels_of(job.settings), metrics.figures_of(job.settings))
        if remember and new:
            with kept_for_this_thread():
                threading.Thread(target=self._remember, args=(new,), daemon=True).start()

    def removed(self, job: str) -> None:
        """Remove a job."""
        self.metrics.remove(job)

    def changed(self, job: Job) -> None:
        """Take the new settings of a job: its schedule, and where its database is."""
        if figures := self.metrics.of(job.name):
            figures.judge_by(health.stale_at(job.settings))
            self.metrics.remove(job.name)
            self.metrics.add(metrics.labels_of(job.settings), figures)

    def planned(self, job: str, at: datetime) -> None:
        """Record when the next backup of a job is due."""
        if figures := self.metrics.of(job):
            figures.planned(at)

    def started(self, run: Run) -> None:
        """Record that a run has started."""
        if figures := self.metrics.of(run.job):
            figures.started(run.work)

    def ended(self, run: Run, ended: Ended[Run] | None, next_at: datetime | None = None) -> None:
        """Take what a run reports; None if its process could not be started."""
        if (figures := self.metrics.of(run.job)) is None:
            return
        figures.ended()
        reported = ended.outcome.figures if ended and ended.outcome else ""
        if reported:
            figures.add(reported)
        elif ended is None or ended.status != 0:
            figures.killed(run.work)
        if next_at:
            figures.planned(next_at)
        self._write()

    def _remember(self, new: Sequence[Job]) -> None:
        silent = set()
        for job in new:
            figures, place = self.metrics.of(job.name), place_of(job.settings)
            if place in silent:  # asking it for each of its jobs would take hours
                continue
            try:
                if figures:
                    metrics.remember(job.settings, figures, _source(job.settings), utc_now())
            except PgstashError as error:
                LOGGER.debug("The figures of %s are unknown: %s", job.name, error)
                silent.add(place)


def _source(settings: Settings) -> Identity:
    return configured_source(settings) or Identity()
