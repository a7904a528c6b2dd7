"""The service for many databases: starts each job when it is due, in a process of its own."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import NoReturn

from pgstash import events
from pgstash.commands import health, job_runs, job_survey, jobs
from pgstash.commands.job_runs import RunError
from pgstash.commands.jobs import Job
from pgstash.counting import counted
from pgstash.errors import ConfigurationError, DatabaseLoginError, PgstashError
from pgstash.failure import fields
from pgstash.format.iso_time import iso
from pgstash.monitoring import health_server
from pgstash.monitoring.jobs_health import Failure, JobsHealth
from pgstash.monitoring.redaction import Scrubber
from pgstash.processes.children import Children
from pgstash.runtime import Runtime
from pgstash.service.dispatcher import Dispatcher, Run, Stored
from pgstash.service.loop import LONGEST_NAP, SET_BACK
from pgstash.settings import Settings, environment_of_jobs

LISTING = timedelta(minutes=15)
"""From one listing of the databases to the next: a new one waits for its first backup by that much
at most, and a server that sleeps while nobody uses it is not kept awake."""

UNLISTED = timedelta(hours=1)
"""How long listings may fail until the service is unready: a new database would be missed."""

_FIRST_DELAY = timedelta(minutes=1)
_NEVER = datetime.min.replace(tzinfo=UTC)
_ONLY = ""  # the server that DATABASE_URL leads to


def serve(settings: Settings, runtime: Runtime) -> NoReturn:
    """Run the service until a signal raises Interrupted.

    Raises ConfigurationError if ``HEALTH_PORT`` is not available, and with EXIT_ON_FIRST_FAILURE
    the error of the first listing if another try would not fix it.
    """
    known = JobsHealth()
    with contextlib.ExitStack() as stack:
        if settings.health_port is not None:
            stack.enter_context(health_server.serving(settings.health_port, known))
        children: Children[Run] = Children(environment_of_jobs())
        stack.enter_context(children.ending())
        service = _Service(settings, runtime, children, known)
        while True:
            service.step()


class _Service:
    """The jobs of a server, and the processes that run them."""

    def __init__(
        self, settings: Settings, runtime: Runtime, children: Children[Run], known: JobsHealth
    ) -> None:
        self._settings = settings
        self._runtime = runtime
        self._children = children
        self._known = known
        self._dispatcher = Dispatcher(settings.workers, runtime)
        self._started: dict[Run, datetime] = {}
        self._seen = runtime.now()
        self._list_at = self._seen
        self._was_listed = False
        self._failures = 0  # of listings, in a row
        self._reported: set[events.Event] = set()
        # Servers that do not answer, with the time of the last listing that may have succeeded.
        self._away: dict[str, datetime] = {}
        self._posted: set[str] = set()  # of these, those whose failure was posted
        self._lacking: dict[str, str] = {}

    def step(self) -> None:
        """Start what is due, and wait until a run ends or something else is due."""
        now = self._runtime.now()
        if self._seen - now > SET_BACK:
            seconds = round((self._seen - now).total_seconds())
            self._runtime.emit(events.Warned(f"The clock was set back by {seconds}s"))
            self._dispatcher.plan_again()
            self._known.set_back(now)
            self._list_at = now
        self._seen = now
        if self._list_at <= now:
            self._list()
        for run in self._dispatcher.starts():
            self._started[run] = self._runtime.now()
            attempt = self._dispatcher.attempt(run.job) if run.work == "backup" else None
            if failure := job_runs.start(self._children, run, self._runtime, attempt):
                self._ended(run, failure)
        for each in self._children.wait(self._seconds_to_wait()):
            self._ended(each.key, job_runs.failure_of(each))
        self._runtime.interruption.raise_if_interrupted()

    def _seconds_to_wait(self) -> float:
        now = self._runtime.now()
        wake = min(self._dispatcher.next_at() or self._list_at, self._list_at)
        return min(max((wake - now).total_seconds(), 0.0), LONGEST_NAP)

    def _list(self) -> None:
        """List the databases; add jobs that are new, and remove those that are gone."""
        try:
            found = jobs.on_server(self._settings)
        except PgstashError as error:
            if isinstance(error, ConfigurationError) and not self._was_listed:
                raise
            self._not_listed(error)
            return
        self._list_at = self._runtime.now() + LISTING
        unlisted = {server for server, since in self._away.items() if since == _NEVER}
        self._report_away(found.unreachable)
        self._report_lacking(job_runs.lacking(found))
        self._make_known(found.unreachable)
        notes = job_runs.notes(found)
        for note in notes:
            if note not in self._reported:
                self._runtime.emit(note)
        self._reported = set(notes)
        names = {job.name for job in found.jobs}
        away = tuple(f"{server}/" for server in found.unreachable)
        gone = [
            name
            for name in self._dispatcher.jobs
            if name not in names and not (away and name.startswith(away))
        ]
        for name in gone:
            self._dispatcher.remove(name)
            self._known.removed(name)
        unusable = {*found.closed, *found.invalid}  # reported above
        if gone := [name for name in gone if name not in unusable]:
            what = (
                f"Not backed up any more, as the server does not have them: {job_runs.named(gone)}"
            )
            self._runtime.emit(events.Warned(f"{what}. Their backups stay, and are not pruned."))
        there = {*self._dispatcher.jobs}
        self._add([job for job in found.jobs if job.name not in there], unlisted)
        if not self._was_listed:
            self._was_listed = True
            job_survey.gone(self._settings, found, self._runtime)
            self._report_plan()

    def _report_away(self, unreachable: Mapping[str, PgstashError]) -> None:
        """Report servers that did not answer, once for each outage; try again soon."""
        if unreachable:
            self._try_again_soon()
        else:
            self._failures = 0
        self._note_away(unreachable)
        for server, error in unreachable.items():
            if server not in self._posted:
                what = job_runs.of_server(server)
                self._runtime.emit(
                    events.BackupFailed(what, 0.0, **fields(error), next_attempt=self._list_at)
                )
        self._posted = set(unreachable)

    def _note_away(self, unreachable: Collection[str]) -> None:
        """Keep since when servers have not answered; one that never did was not listed at all."""
        since = self._runtime.now() if self._was_listed else _NEVER
        self._away = {server: self._away.get(server, since) for server in unreachable}

    def _make_known(self, unreachable: Mapping[str, PgstashError]) -> None:
        """Let `/readyz` report what cannot be backed up, and is no job."""
        now, scrubber = self._runtime.now(), Scrubber(self._settings.secrets())
        found = {
            name: Failure(DatabaseLoginError.exit_code, reason, now)
            for name, reason in self._lacking.items()
        }
        for server, error in unreachable.items():
            if now - self._away[server] >= UNLISTED:
                what = job_runs.of_server(server) if server else job_runs.ALL
                message = scrubber.scrub(error.message)
                found[what] = Failure(error.exit_code, message, now)
        self._known.unavailable(found)

    def _report_lacking(self, lacking: dict[str, str]) -> None:
        """Report databases that must exist and are no jobs, once each."""
        for name, reason in lacking.items():
            if name not in self._lacking:
                self._runtime.emit(job_runs.not_backed_up(name, reason))
        self._lacking = lacking

    def _try_again_soon(self) -> None:
        self._failures += 1
        delay = _FIRST_DELAY * 2.0 ** min(self._failures - 1, 10)
        self._list_at = self._runtime.now() + min(delay, LISTING)

    def _not_listed(self, error: PgstashError) -> None:
        """Report that the databases cannot be listed, once for each outage; try again soon."""
        if not self._was_listed and self._settings.exit_on_first_failure and not error.retryable:
            raise error
        self._try_again_soon()
        self._note_away([*self._away, _ONLY])
        self._make_known({_ONLY: error})
        # The backups of known jobs report what they lack, but a new database would be missed.
        if self._dispatcher.jobs and self._runtime.now() - self._away[_ONLY] < UNLISTED:
            if self._failures == 1:
                what = f"The databases of the server could not be listed: {error.message}"
                self._runtime.emit(events.Warned(what))
            return
        repeated = _ONLY in self._posted
        self._posted.add(_ONLY)
        self._runtime.emit(
            events.BackupFailed(
                job_runs.ALL,
                0.0,
                **fields(error),
                next_attempt=self._list_at,
                repeated=repeated,
            )
        )

    def _add(self, new: list[Job], unlisted: Collection[str]) -> None:
        """Add jobs; those of servers that were ``unlisted`` until now have not just appeared."""
        found = job_survey.stored(new, self._runtime)
        if self._was_listed:
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
            late = not self._was_listed or job.settings.origin.server in unlisted
            appeared = None if late else now
            planned, stored = job_runs.planned(job), found.get(job.name, Stored())
            on_start = job.settings.backup_on_start and (
                "backup_on_start" in job.settings.model_fields_set
            )
            self._dispatcher.add(planned, stored, at_once=on_start)
            rule = health.stale_at(job.settings)
            self._known.added(job.name, rule, backup=stored.backup, appeared=appeared)

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
        self._known.ended(run.job, drill=run.work == "drill", started=started, failure=known)
        if failure is None:
            return
        at = None
        if run.work == "backup" and run.job in self._dispatcher.jobs:
            at = self._dispatcher.next_run(run.job).at
        if not failure.was_reported:
            seconds, following = (now - started).total_seconds(), replace(following, at=at)
            self._runtime.emit(job_runs.event_of(run, failure, seconds, following))
        how = f" with exit status {failure.status}" if failure.status > 0 else ""
        more = f"; next attempt at {iso(at)}" if at else ""
        self._runtime.emit(events.Informed(f"The {run.work} of {run.job} failed{how}{more}"))
        if failure.status == DatabaseLoginError.exit_code:
            self._list_at = now  # perhaps it was dropped
