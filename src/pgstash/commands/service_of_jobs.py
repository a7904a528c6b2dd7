"""The service for many databases: starts each job when it is due, in a process of its own."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from typing import NoReturn

from pgstash import events
from pgstash.commands import health, job_runs, job_survey, jobs, reloading
from pgstash.commands.executors import Executor, Local
from pgstash.commands.job_runs import RunError
from pgstash.commands.jobs import Job
from pgstash.commands.listings import Listings
from pgstash.commands.metrics_of_jobs import MetricsOfJobs
from pgstash.commands.reloading import ConfigFile
from pgstash.counting import counted
from pgstash.errors import ConfigurationError, DatabaseLoginError, PgstashError
from pgstash.format.iso_time import iso
from pgstash.monitoring import probes
from pgstash.monitoring.jobs_health import Failure, JobsHealth
from pgstash.processes.children import Children
from pgstash.runtime import Runtime
from pgstash.service.dispatcher import Dispatcher, Run, Stored
from pgstash.service.loop import LONGEST_NAP, SET_BACK
from pgstash.settings import Settings, environment_of_jobs, places
from pgstash.settings.sources import SNAPSHOT_VARIABLE

LISTING = timedelta(minutes=15)
"""From one listing of the databases to the next: a new one waits for its first backup by that much
at most, and a server that sleeps while nobody uses it is not kept awake."""


def serve(settings: Settings, runtime: Runtime) -> NoReturn:
    """Run the service until a signal raises Interrupted.

    Raises ConfigurationError if the configuration file has a problem, such as two jobs in one
    place, or if ``HEALTH_PORT`` is not available; and with EXIT_ON_FIRST_FAILURE
    the error of the first listing if another try would not fix it.
    """
    jobs.refuse_clashes(settings)
    known, measured = JobsHealth(), MetricsOfJobs()
    with contextlib.ExitStack() as stack:
        stack.enter_context(measured.written(settings))
        if settings.health_port is not None:
            stack.enter_context(probes.serving(settings.health_port, known, measured.metrics))
        children: Children[Run] = Children(environment_of_jobs())
        stack.enter_context(children.ending())
        service = Service(settings, runtime, Local(children, runtime, measured), known)
        service.measured = measured
        if (config := settings.origin.config) is not None:
            stack.enter_context(service.following(ConfigFile(config), children))
        while True:
            service.step()


def _share_nothing(_variable: str, _descriptor: int) -> None:
    """Share nothing with new children: the file is not followed."""


class Service:
    """The jobs of all servers, and what runs them."""

    def __init__(
        self,
        settings: Settings,
        runtime: Runtime,
        executor: Executor,
        known: JobsHealth,
        *,
        at_once: int | None = None,
    ) -> None:
        """Start nothing yet; at most ``at_once`` runs are started until they end, or WORKERS."""
        self._settings = settings
        self._runtime = runtime
        self._executor = executor
        self._known = known
        self.measured: MetricsOfJobs | None = None
        self._dispatcher = Dispatcher(at_once or settings.workers, runtime)
        self._started: dict[Run, datetime] = {}
        self._hours: dict[Run, int] = {}  # reported of runs that take long
        self._seen = runtime.now()
        self._listings = Listings(LISTING, runtime, known)
        self._file: ConfigFile | None = None
        self._share: Callable[[str, int], None] = _share_nothing
        self._is_reloaded = False
        self._unusable: set[str] = set()  # no jobs now, but they were
        self._known_settings: dict[str, Settings] = {}

    @contextlib.contextmanager
    def following(self, config: ConfigFile, children: Children[Run]) -> Iterator[None]:
        """Follow the changes of the configuration file inside the block; so do new children."""

        def hangup() -> None:
            config.ask()
            children.wake()

        self._file, self._share = config, children.share
        self._share(SNAPSHOT_VARIABLE, config.snapshot)
        try:
            with self._runtime.interruption.hangup_calls(hangup):
                yield
        finally:
            config.close()

    def _reload(self, config: ConfigFile) -> None:
        """Read the configuration file; if something is wrong with it, go on as before."""
        before = self._settings
        try:
            self._settings = config.read()
        except ConfigurationError as error:
            self._runtime.emit(reloading.refused(error))
            return
        self._share(SNAPSHOT_VARIABLE, config.snapshot)
        self._dispatcher.limit(self._settings.workers)
        for event in reloading.reports(before, self._settings):
            self._runtime.emit(event)
        self._is_reloaded = True
        self._listings.soon()

    def step(self) -> None:
        """Start what is due, and wait until a run ends or something else is due."""
        now = self._runtime.now()
        if self._seen - now > SET_BACK:
            seconds = round((self._seen - now).total_seconds())
            self._runtime.emit(events.Warned(f"The clock was set back by {seconds}s"))
            self._dispatcher.plan_again()
            self._known.set_back(now)
            self._listings.soon()
        self._seen = now
        if self._file and self._file.is_due():
            self._reload(self._file)
            now = self._runtime.now()
        if self._listings.at <= now:
            self._list()
        for run in self._dispatcher.starts():
            self._started[run] = self._runtime.now()
            attempt = self._dispatcher.attempt(run.job) if run.work == "backup" else None
            if failure := self._executor.start(run, attempt):
                self._ended(run, failure)
        for run, failure in self._executor.wait(self._seconds_to_wait()):
            self._ended(run, failure)
        self._runtime.interruption.raise_if_interrupted()
        self._report_long_runs()

    def _report_long_runs(self) -> None:
        """Report each hour what still runs: it may be large, or stuck, and occupies a worker."""
        now = self._runtime.now()
        for run, started in self._started.items():
            hours = (now - started) // timedelta(hours=1)
            if hours > self._hours.get(run, 0):
                self._hours[run] = hours
                what = f"The {run.work} of {run.job} has been running for {hours} h"
                self._runtime.emit(events.Warned(f"{what}, and occupies one of the workers"))

    def _seconds_to_wait(self) -> float:
        now = self._runtime.now()
        wake = min(self._dispatcher.next_at() or self._listings.at, self._listings.at)
        look = self._file.seconds_to_look() if self._file else LONGEST_NAP
        return min(max((wake - now).total_seconds(), 0.0), LONGEST_NAP, look)

    def _list(self) -> None:
        """List the databases; add jobs that are new, and remove those that are gone."""
        try:
            found = jobs.apart(jobs.on_server(self._settings), self._dispatcher.jobs)
        except PgstashError as error:
            self._listings.failed(error, self._settings, has_jobs=bool(self._dispatcher.jobs))
            return
        unlisted = self._listings.unlisted()
        self._listings.succeeded(found, self._settings)
        names = {job.name for job in found.jobs}
        away = tuple(f"{server}/" for server in found.unreachable)
        there = {*self._dispatcher.jobs}
        gone = [
            name
            for name in [*self._dispatcher.jobs, *self._unusable]
            if name not in names and not (away and name.startswith(away))
        ]
        for name in there.intersection(gone):
            self._dispatcher.remove(name)
            self._known.removed(name)
            if self.measured:
                self.measured.removed(name)
        unusable = {*found.closed, *found.invalid, *found.clashing}  # reported above
        self._unusable = (self._unusable - {*gone} - names) | unusable.intersection(gone)
        if gone := [name for name in gone if name not in unusable]:
            who = "the configuration file or the server" if self._is_reloaded else "the server"
            what = f"Not backed up any more, as {who} does not have them: {job_runs.named(gone)}"
            self._runtime.emit(events.Warned(f"{what}. Their backups stay, and are not pruned."))
        self._is_reloaded = False
        there = {*self._dispatcher.jobs}
        self._change([job for job in found.jobs if job.name in there])
        self._add([job for job in found.jobs if job.name not in there], unlisted)
        # Those of servers that do not answer now are compared when they answer again.
        before = {name: each for name, each in self._known_settings.items() if name in there}
        self._known_settings = before | {job.name: job.settings for job in found.jobs}
        if not self._listings.had_success:
            self._listings.had_success = True
            job_survey.gone(self._settings, found, self._runtime)
            self._report_plan()

    def _add(self, new: list[Job], unlisted: Collection[str]) -> None:
        """Add jobs; those of servers that were ``unlisted`` until now have not just appeared."""
        found = job_survey.stored(new, self._runtime)
        if self._listings.had_success:
            names = [job.name for job in new]
            there = [name for name in names if found.get(name, Stored()).backup]
            for what, some in (
                ("New databases, backed up now", [each for each in names if each not in there]),
                ("Databases with backups are there again", there),
            ):
                if some:
                    self._runtime.emit(events.Informed(f"{what}: {job_runs.named(some)}"))
        now = self._runtime.now()
        for job in new:
            late = not self._listings.had_success or job.settings.origin.server in unlisted
            appeared = None if late else now
            planned, stored = job_runs.planned(job), found.get(job.name, Stored())
            known = self._executor.added(job, planned, stored)
            self._dispatcher.add(planned, known, at_once=self._executor.at_once(job.settings))
            rule = health.stale_at(job.settings)
            self._known.added(job.name, rule, backup=stored.backup, appeared=appeared)
            if run := self._executor.under_way(job.name):
                self._dispatcher.resume(run)
                self._started[run] = now
        if self.measured:
            self.measured.added(new, remember=self._settings.health_port is not None)
            for job in new:
                self.measured.planned(job.name, max(self._dispatcher.next_run(job.name).at, now))

    def _change(self, jobs_there: list[Job]) -> None:
        """Let jobs whose settings have changed run by these."""
        changed = [
            job
            for job in jobs_there
            if reloading.differs(self._known_settings.get(job.name), job.settings)
        ]
        moved = [
            job
            for job in changed
            if places.of(self._known_settings[job.name]) != places.of(job.settings)
        ]
        found = job_survey.stored(moved, self._runtime)
        names = {job.name for job in moved}
        for job in changed:
            stored = found.get(job.name, Stored()) if job.name in names else None
            self._dispatcher.change(job_runs.planned(job), stored)
            self._known.changed(job.name, health.stale_at(job.settings))
            if self.measured:
                self.measured.changed(job)

    def _report_plan(self) -> None:
        """Report once how many jobs there are, and when they are due."""
        now, names = self._runtime.now(), self._dispatcher.jobs
        due = [name for name in names if self._dispatcher.next_run(name).at <= now]
        later = [self._dispatcher.next_run(name).at for name in names if name not in due]
        following = f", the next one at {iso(min(later))}" if later else ""
        what = f"{counted(len(names), 'database')} to back up: {len(due)} due now{following}"
        self._runtime.emit(events.Informed(what))

    def _ended(self, run: Run, failure: RunError | None) -> None:
        now = self._runtime.now()
        self._seen = max(self._seen, now)
        following = self._dispatcher.ended(run, failure)
        known = Failure(failure.status, failure.message, now) if failure else None
        started = min(self._started.pop(run), now)
        self._hours.pop(run, None)
        self._known.ended(run.job, drill=run.work == "drill", started=started, failure=known)
        at = None
        if run.work == "backup" and run.job in self._dispatcher.jobs:
            at = self._dispatcher.next_run(run.job).at
            if self.measured:
                self.measured.planned(run.job, at)
        if failure is None:
            return
        if not failure.was_reported:
            seconds, following = (now - started).total_seconds(), replace(following, at=at)
            self._runtime.emit(job_runs.event_of(run, failure, seconds, following))
        how = f" with exit status {failure.status}" if failure.status > 0 else ""
        more = f"; next attempt at {iso(at)}" if at else ""
        self._runtime.emit(events.Informed(f"The {run.work} of {run.job} failed{how}{more}"))
        if failure.status == DatabaseLoginError.exit_code:
            self._listings.soon()  # perhaps it was dropped
