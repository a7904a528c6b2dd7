"""When a service lists its databases, and what it reports of those that it cannot list."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from pgstash import events
from pgstash.commands import job_runs
from pgstash.commands.jobs import Jobs
from pgstash.errors import ConfigurationError, DatabaseLoginError, PgstashError
from pgstash.failure import fields
from pgstash.monitoring.jobs_health import Failure, JobsHealth
from pgstash.monitoring.redaction import Scrubber
from pgstash.runtime import Runtime
from pgstash.settings import Settings

UNLISTED = timedelta(hours=1)
"""How long listings may fail until the service is unready: a new database would be missed."""

_FIRST_DELAY = timedelta(minutes=1)
_NEVER = datetime.min.replace(tzinfo=UTC)
_ONLY = ""  # the server that DATABASE_URL leads to


class Listings:
    """The listings of a service: ``at`` is the time of the next one."""

    def __init__(self, interval: timedelta, runtime: Runtime, known: JobsHealth) -> None:
        """List at once, and then again after each ``interval``."""
        self.at = runtime.now()
        self.had_success = False
        self._interval = interval
        self._runtime = runtime
        self._known = known
        self._failures = 0  # in a row
        self._reported: set[events.Event] = set()
        # Servers that do not answer, with the time of the last listing that may have succeeded.
        self._away: dict[str, datetime] = {}
        self._posted: set[str] = set()  # of these, those whose failure was posted
        self._lacking: dict[str, str] = {}
        self._misplaced: dict[str, str] = {}

    def soon(self) -> None:
        """List again as soon as possible."""
        self.at = self._runtime.now()

    def unlisted(self) -> set[str]:
        """Return the servers that were never listed."""
        return {server for server, since in self._away.items() if since == _NEVER}

    def succeeded(self, found: Jobs, settings: Settings) -> None:
        """Report what the listing does not have; plan the next one."""
        self.at = self._runtime.now() + self._interval
        self._report_away(found.unreachable)
        self._report_lacking(job_runs.lacking(found))
        known, self._misplaced = self._misplaced, job_runs.in_one_place(found)
        for name, reason in self._misplaced.items():  # at each listing: its backups are overdue
            repeated = name in known  # messages are sent once
            self._runtime.emit(replace(job_runs.misplaced(name, reason), repeated=repeated))
        self._make_known(found.unreachable, settings)
        notes = job_runs.notes(found)
        for note in notes:
            if note not in self._reported:
                self._runtime.emit(note)
        self._reported = set(notes)

    def failed(self, error: PgstashError, settings: Settings, *, has_jobs: bool) -> None:
        """Report that the databases cannot be listed, once for each outage; try again soon.

        Raises an error that ends the service.
        """
        if not self.had_success and (
            isinstance(error, ConfigurationError)
            or (settings.exit_on_first_failure and not error.retryable)
        ):
            raise error
        self._try_again_soon()
        self._note_away([*self._away, _ONLY])
        self._make_known({_ONLY: error}, settings)
        # The backups of known jobs report what they lack, but a new database would be missed.
        if has_jobs and self._runtime.now() - self._away[_ONLY] < UNLISTED:
            if self._failures == 1:
                what = f"The databases of the server could not be listed: {error.message}"
                self._runtime.emit(events.Warned(what))
            return
        repeated = _ONLY in self._posted
        self._posted.add(_ONLY)
        self._runtime.emit(
            events.BackupFailed(
                job_runs.ALL, 0.0, **fields(error), next_attempt=self.at, repeated=repeated
            )
        )

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
                    events.BackupFailed(what, 0.0, **fields(error), next_attempt=self.at)
                )
        self._posted = set(unreachable)

    def _note_away(self, unreachable: Collection[str]) -> None:
        """Keep since when servers have not answered; one that never did was not listed at all."""
        since = self._runtime.now() if self.had_success else _NEVER
        self._away = {server: self._away.get(server, since) for server in unreachable}

    def _make_known(self, unreachable: Mapping[str, PgstashError], settings: Settings) -> None:
        """Let `/readyz` report what cannot be backed up, and is no job."""
        now, scrubber = self._runtime.now(), Scrubber(settings.secrets())
        found = {
            name: Failure(DatabaseLoginError.exit_code, reason, now)
            for name, reason in self._lacking.items()
        }
        status = ConfigurationError.exit_code
        found |= {name: Failure(status, why, now) for name, why in self._misplaced.items()}
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
        self.at = self._runtime.now() + min(delay, self._interval)
