"""`pgstash drill`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated

import typer

from pgstash.cli.all_jobs import AllJobs, in_turn, refuse_both, require_several
from pgstash.cli.arguments import (
    From,
    Job,
    ReportTo,
    Source,
    given_by,
    needs_from,
    refuse_needless,
)
from pgstash.cli.outcome import JsonOutcome, reporting
from pgstash.cli.runner import Command, run
from pgstash.errors import PgstashError
from pgstash.events import Emit
from pgstash.monitoring import log
from pgstash.runtime import Runtime
from pgstash.signals import Interruption

if TYPE_CHECKING:
    from pgstash.settings import Settings


def drill(  # noqa: PLR0913 - one argument for each option
    name: Annotated[
        str,
        typer.Argument(metavar="BACKUP", help="latest, the name of a backup or the end of it."),
    ] = "latest",
    *,
    all_unproven: Annotated[
        bool,
        typer.Option(
            "--all-unproven", help="Drill every backup that no drill has proven, newest first."
        ),
    ] = False,
    source: Source = None,
    origin: From = None,
    job: Job = None,
    all_jobs: AllJobs = False,
    as_json: JsonOutcome = False,
    report_to: ReportTo = None,
) -> None:
    """Prove that a backup restores: restore it into a scratch database, check it, drop it.

    The scratch database is created on the server of VERIFY_DATABASE_URL, or on a throwaway server
    that the drill starts. The drill checks every digest, the rows of every table, indexes,
    constraints and sequences, and the conditions of MIN_TABLE_COUNT and VERIFY_SQL. Exit status 0
    means that the backup passed and the proof is stored next to it.
    """
    option = "--all-unproven" if all_unproven else "--all-jobs"
    if (all_unproven or all_jobs) and name != "latest":
        raise typer.BadParameter("cannot be combined with the name of a backup", param_hint=option)
    refuse_needless(source, name)
    refuse_both(job, all_jobs=all_jobs)
    from pgstash.commands import jobs
    from pgstash.commands.origin import of_copy

    wanted = _Wanted(name, source, all_unproven=all_unproven, as_json=as_json)

    def work(configured: Settings, emit: Emit, interruption: Interruption) -> None:
        values, runtime = of_copy(configured, origin), Runtime(emit, interruption)
        if not all_jobs:
            _drill(values, wanted, runtime)
            return
        require_several(configured)
        which = jobs.with_backups(values, origin)
        in_turn(
            which.jobs,
            lambda each: _drill(each.settings, wanted, runtime),
            interruption,
            unreadable=which.unreadable,
        )

    run(
        work,
        Command(
            needs=needs_from(origin),
            given=given_by(origin),
            stdout_is_data=as_json,
            job=job,
            all_jobs=all_jobs,
            sums_up=all_jobs,
            report_to=report_to,
        ),
    )


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What is drilled of each job, and how the outcome is printed."""

    name: str
    source: str | None
    all_unproven: bool
    as_json: bool


def _drill(values: Settings, wanted: _Wanted, runtime: Runtime) -> None:
    """Drill one backup of a job, or all unproven ones. Raises the first failure."""
    from pgstash.commands.drill import drill_backup, unproven

    def one(backup: str, source: str | None = None) -> None:
        with reporting(values, runtime.emit, as_json=wanted.as_json) as heard:
            drill_backup(values, backup, replace(runtime, emit=heard), source=source)

    if not wanted.all_unproven:
        one(wanted.name, wanted.source)
        return
    failures = []
    for each in unproven(values, runtime.emit, wanted.source):
        try:
            one(each)
        except PgstashError as error:
            log.LOGGER.debug("Traceback of the failure", exc_info=error)
            failures.append(error)
        runtime.interruption.raise_if_interrupted()
    if failures:
        raise failures[0]
