"""Back up all databases of a server once, each in a process of its own."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from pgstash import events
from pgstash.commands import job_runs, job_survey, jobs
from pgstash.commands.job_runs import RunError
from pgstash.commands.metrics_of_jobs import MetricsOfJobs
from pgstash.counting import counted
from pgstash.errors import DatabaseError, JobsFailedError
from pgstash.failure import fields
from pgstash.processes.children import Children
from pgstash.runtime import FollowUp, Runtime
from pgstash.service.blackout import Blackout
from pgstash.service.dispatcher import Dispatcher, Run
from pgstash.settings import Settings, environment_of_jobs

_SECONDS = 30.0


def back_up_all(settings: Settings, runtime: Runtime) -> None:
    """Run each job once, as many at once as the settings allow.

    The failure of a job touches no other. Raises JobsFailedError at the end, which names those
    that failed; DatabaseError if the databases cannot be listed, and ConfigurationError before
    anything starts.
    """
    jobs.refuse_clashes(settings)
    try:
        found = jobs.apart(jobs.on_server(settings))
    except DatabaseError as error:
        runtime.emit(events.BackupFailed(job_runs.ALL, 0.0, **fields(error)))
        raise
    for note in job_runs.notes(found):
        runtime.emit(note)
    job_survey.gone(settings, found, runtime)
    for server, unreached in found.unreachable.items():
        runtime.emit(events.BackupFailed(job_runs.of_server(server), 0.0, **fields(unreached)))
    lacking = job_runs.lacking(found)
    for name, lack in lacking.items():
        runtime.emit(job_runs.not_backed_up(name, lack))
    misplaced = job_runs.in_one_place(found)
    for name, reason in misplaced.items():
        runtime.emit(job_runs.misplaced(name, reason))
    failed = [f"{name}: {reason}" for name, reason in (lacking | misplaced).items()]
    failed += [f"{server}/*: {each.message}" for server, each in found.unreachable.items()]
    dispatcher = Dispatcher(settings.workers, runtime)
    for job in found.jobs:
        # Whoever runs this command decides when.
        dispatcher.add(replace(job_runs.planned(job), blackout=Blackout(), drill_after=None))
    measured = MetricsOfJobs()
    measured.added(found.jobs, remember=False)
    with measured.written(settings):
        failures = _run_all(dispatcher, runtime, measured)
    failed += [f"{name}: {error.how}" for name, error in sorted(failures.items())]
    every = len(found.jobs) + len(lacking) + len(misplaced) + len(found.unreachable)
    if not every:
        patterns = f"DATABASES={settings.databases}" if settings.databases else "The configuration"
        raise JobsFailedError(
            f"{patterns} selects no database of the server",
            hint="See the databases with `psql -l`, and correct the patterns.",
        )
    if failed:
        what = f"{len(failed)} of {counted(every, 'job')} failed"
        raise JobsFailedError(
            "\n".join([what, *failed]),
            hint="The lines of the log that begin with the name of a job show what happened in it.",
        )
    runtime.emit(events.Informed(f"All jobs succeeded: {counted(every, 'backup')}"))


def _run_all(
    dispatcher: Dispatcher, runtime: Runtime, measured: MetricsOfJobs
) -> dict[str, RunError]:
    """Run each job once; return the failures."""
    failures: dict[str, RunError] = {}
    began: dict[Run, datetime] = {}

    def ended(run: Run, failure: RunError | None) -> None:
        dispatcher.ended(run, failure)
        if failure and not failure.was_reported:
            seconds = (runtime.now() - began[run]).total_seconds()
            runtime.emit(job_runs.event_of(run, failure, seconds, FollowUp()))
        dispatcher.remove(run.job)
        if failure:
            failures[run.job] = failure

    children: Children[Run] = Children(environment_of_jobs())
    with children.ending():
        while dispatcher.jobs:
            for run in dispatcher.starts():
                began[run] = runtime.now()
                if failure := job_runs.start(children, run, runtime):
                    measured.ended(run, None)
                    ended(run, failure)
            for each in children.wait(_SECONDS if children else 0):
                measured.ended(each.key, each)
                ended(each.key, job_runs.failure_of(each))
            runtime.interruption.raise_if_interrupted()
    return failures
