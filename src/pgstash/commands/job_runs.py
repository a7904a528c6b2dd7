"""Runs of jobs as child processes: their command lines, how they end, and what is reported."""

from __future__ import annotations

import signal

from pgstash import events
from pgstash.commands.jobs import Job, Jobs
from pgstash.commands.schedules import blackout_of, schedule_of_job
from pgstash.counting import counted
from pgstash.errors import ConfigurationError, DatabaseLoginError, PgstashError
from pgstash.failure import Fields
from pgstash.postgres.server import conninfo
from pgstash.processes.children import Children, Command, Ended
from pgstash.runtime import FollowUp, Runtime
from pgstash.service import dispatcher
from pgstash.service.attempt import Attempt
from pgstash.service.dispatcher import Run
from pgstash.settings import Settings

ALL = "all databases"
"""What stands for the name of a backup if the databases cannot even be listed."""


def of_server(name: str) -> str:
    """Return the same for one server of a configuration file."""
    return f"{ALL} of {name}"


_MOST_NAMED = 10
_COMMANDS = {"backup": "once", "drill": "drill"}


class RunError(PgstashError):
    """The run of a job failed, in a process of its own, with an exit status."""

    def __init__(self, message: str, status: int, *, retryable: bool, error: str = "") -> None:
        """Store how it ended; a status below zero is a signal. ``error`` is the class there."""
        super().__init__(message, retryable=retryable)
        self.status = status
        self.named_there = error

    @property
    def was_reported(self) -> bool:
        """Whether the process has posted the failure itself."""
        return bool(self.named_there)

    @property
    def how(self) -> str:
        """How it ended, and why, in one line."""
        why = " ".join(self.message.splitlines())
        return why if self.status < 0 else f"exit status {self.status}: {why}"


def start(
    children: Children[Run], run: Run, runtime: Runtime, attempt: Attempt | None = None
) -> RunError | None:
    """Start a run; return why it cannot be started. Raises Interrupted.

    The messages of the run include what follows if an ``attempt`` fails.
    """
    more = [f"--attempt={attempt.text()}"] if attempt else []
    try:
        with runtime.interruption.defer_signals():
            children.start(run, Command([_COMMANDS[run.work], f"--job={run.job}", *more]))
    except OSError as error:
        return RunError(f"the process cannot be started: {error.strerror}", 70, retryable=True)
    except UnicodeEncodeError:
        why = "the locale of pgstash cannot represent the name; set LC_ALL=C.UTF-8"
        return RunError(f"the process cannot be started: {why}", 70, retryable=False)
    finally:
        runtime.interruption.raise_if_interrupted()
    return None


def failure_of(ended: Ended[Run]) -> RunError | None:
    """Return how a run failed; None if it succeeded."""
    if ended.status == 0:
        return None
    if ended.status < 0:
        known = -ended.status in {*signal.Signals}
        name = signal.Signals(-ended.status).name if known else f"signal {-ended.status}"
        more = ", perhaps for want of memory" if ended.status == -signal.SIGKILL else ""
        return RunError(f"the process was ended by {name}{more}", ended.status, retryable=True)
    if ended.outcome is None:
        return RunError("see its lines in the log", ended.status, retryable=False)
    found = ended.outcome
    return RunError(found.message, ended.status, retryable=found.retryable, error=found.error)


def event_of(
    run: Run, failure: RunError, seconds: float, following: FollowUp
) -> events.BackupFailed | events.DrillFailed:
    """Return the report of a failure that the process of the run could not post itself."""
    of_signal = failure.status < 0
    facts = Fields(
        message=failure.how,
        hint="",
        error=type(failure).__name__,
        exit_code=128 - failure.status if of_signal else failure.status,
    )
    if run.work == "drill":
        return events.DrillFailed(run.job, seconds, host="", database=run.job, **facts)
    return events.BackupFailed(
        run.job,
        seconds,
        database=run.job,
        next_attempt=following.at,
        repeated=following.repeated,
        **facts,
    )


def lacking(found: Jobs) -> dict[str, str]:
    """Return the databases that DATABASES names and that are no jobs, each with the reason."""
    unusable = {
        name: "it takes no connections"
        if name in found.closed
        else "an interrupted DROP DATABASE left it invalid"
        for name in found.unusable
    }
    return dict.fromkeys(found.missing, "the server has no such database") | unusable


def not_backed_up(name: str, reason: str) -> events.BackupFailed:
    """Return the report of a database that DATABASES names and that is no job."""
    return events.BackupFailed(
        name,
        0.0,
        f"{reason}, but DATABASES names it",
        "Correct DATABASES, or the database.",
        database=name,
        error=DatabaseLoginError.__name__,
        exit_code=DatabaseLoginError.exit_code,
    )


def in_one_place(found: Jobs) -> dict[str, str]:
    """Return the databases that are no jobs because of their place, each with the reason."""
    return {
        name: f"it has the same store and prefix as {other}. Give it another backup_prefix"
        for name, other in found.clashing.items()
    }


def misplaced(name: str, reason: str) -> events.BackupFailed:
    """Return the report of a database whose backups would be among those of another one."""
    return events.BackupFailed(
        name,
        0.0,
        reason,
        "",
        database=name,
        error=ConfigurationError.__name__,
        exit_code=ConfigurationError.exit_code,
    )


def planned(job: Job) -> dispatcher.Job:
    """Return what decides when a job runs."""
    settings = job.settings
    return dispatcher.Job(
        job.name,
        server=server_of(settings),
        most_at_once=settings.max_backups,
        schedule=schedule_of_job(settings),
        blackout=blackout_of(settings),
        drill_after=settings.verify_interval,
    )


def server_of(settings: Settings) -> str:
    """Return what distinguishes the servers of jobs."""
    source = conninfo.identity(settings.source_url, settings.source_variables)
    address = f"{source.host}:{source.port or 5432}" if source.host else ""
    return address or settings.origin.server


def notes(found: Jobs) -> list[events.Event]:
    """Return reports of databases that are no jobs, although they are selected."""
    reasons: list[tuple[type[events.Informed | events.Warned], list[str], str]] = [
        (events.Warned, found.missing, "DATABASES names them, but the server does not have them"),
        (events.Informed, found.closed, "they take no connections"),
        (events.Warned, found.invalid, "an interrupted DROP DATABASE left them invalid"),
        (events.Warned, found.foreign, "their names are not UTF-8"),
        (events.Warned, found.unused, "they have sections in the file, but are not on the server"),
    ]
    return [
        kind(f"Not backed up: {named(names)}. Reason: {reason}.")
        for kind, names, reason in reasons
        if names
    ]


def named(names: list[str]) -> str:
    """Return names for a message, or the first of them if there are many."""
    shown = ", ".join(names[:_MOST_NAMED])
    more = len(names) - _MOST_NAMED
    return f"{shown} and {counted(more, 'other')}" if more > 0 else shown
