"""`pgstash check`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pgstash.check import report
from pgstash.check.finding import Finding, Part
from pgstash.cli.all_jobs import AllJobs, in_turn, refuse_both, require_several
from pgstash.cli.arguments import Job
from pgstash.cli.output import print_line
from pgstash.cli.runner import Command, run
from pgstash.counting import counted
from pgstash.errors import CheckFailedError
from pgstash.events import Emit, Warned
from pgstash.monitoring import log
from pgstash.monitoring.redaction import Scrubber
from pgstash.signals import Interruption

if TYPE_CHECKING:
    from pgstash.commands.jobs import Jobs
    from pgstash.settings import Settings


def check(
    part: Annotated[
        Part | None,
        typer.Argument(help="Check this part only; `webhook` and `notify` send a test."),
    ] = None,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    job: Job = None,
    all_jobs: AllJobs = False,
) -> None:
    """Check that a backup can be made, and explain how to fix whatever fails.

    Checks the configuration, the login, the client tools, the privileges of the role and the
    connection, and writes objects to the store that it removes again. Exit status 0 means that no
    check failed, 40 that one did; a warning is not a failure.
    """
    refuse_both(job, all_jobs=all_jobs)
    from pgstash.commands import check as preflight
    from pgstash.commands import jobs

    def work(values: Settings, emit: Emit, interruption: Interruption) -> None:
        if not all_jobs:
            found = list(_shown(values, preflight.check(values, part, emit), as_json=as_json))
            if as_json:
                print_line(json.dumps(_facts(found)))
            _refuse_failures(found)
            return
        require_several(values)
        every: dict[str, Sequence[Finding]] = {}

        def one(each: jobs.Job) -> None:
            if not as_json:
                print_line(f"Job {log.printable(each.name)}:")
            findings = preflight.check(each.settings, part, emit)
            every[each.name] = list(_shown(values, findings, as_json=as_json))
            _refuse_failures(every[each.name])

        on_server = jobs.on_server(values)
        silent = {name: error.message for name, error in on_server.unreachable.items()}
        _report_missing(on_server, emit)
        try:
            in_turn(on_server.jobs, one, interruption, quietly=True)
        finally:
            if as_json:
                facts = [{"job": name, **_facts(found)} for name, found in every.items()]
                failed = sum(each["failed"] > 0 for each in facts)
                away = {"missing": on_server.missing, "unreachable": silent}
                away |= {"closed": on_server.closed, "invalid": on_server.invalid}
                print_line(json.dumps({"failed": failed, "jobs": facts} | away))
        _refuse_missing(on_server)

    run(
        work,
        Command(prints_findings=True, job=job, all_jobs=all_jobs, sums_up=all_jobs),
    )


def _shown(values: Settings, findings: Iterator[Finding], *, as_json: bool) -> Iterator[Finding]:
    """Yield the findings without secrets; print each at once, unless they become JSON."""
    scrub = Scrubber(values.secrets()).scrub
    for finding in findings:
        clean = replace(finding, found=scrub(finding.found), remedy=scrub(finding.remedy))
        if not as_json:
            print_line("\n".join(report.lines(clean, colour=sys.stdout.isatty())))
        yield clean


def _report_missing(found: Jobs, emit: Emit) -> None:
    """Warn of the databases that are not checked."""
    from pgstash.commands import job_runs

    for name, error in found.unreachable.items():
        emit(Warned(f"The databases of the server {name} are not known: {error.message}"))
    for note in job_runs.notes(found):
        if isinstance(note, Warned):
            emit(note)


def _refuse_missing(found: Jobs) -> None:
    """Raise the error of a server that did not answer, or that lacks the databases to back up."""
    from pgstash.commands import job_runs

    for error in found.unreachable.values():
        raise error
    if found.missing:
        raise CheckFailedError(
            f"The server does not have {job_runs.named(found.missing)}. Create it, or correct "
            "DATABASES."
        )
    leave_out = "or leave them out of DATABASES by `!NAME`."
    if found.invalid:
        raise CheckFailedError(
            f"An interrupted DROP DATABASE left {job_runs.named(found.invalid)} invalid: no backup "
            f"of it is possible. Drop what is invalid, {leave_out}"
        )
    if found.closed:
        raise CheckFailedError(
            f"No backup is possible of {job_runs.named(found.closed)}: it takes no connections. "
            f"Run ALTER DATABASE … ALLOW_CONNECTIONS true, {leave_out}"
        )
    if not found.jobs:
        raise CheckFailedError("No database of the server is selected. Correct DATABASES.")


def _facts(found: Sequence[Finding]) -> dict[str, Any]:
    return {"failed": _failed(found), "findings": [asdict(finding) for finding in found]}


def _failed(found: Sequence[Finding]) -> int:
    return sum(finding.state == "failure" for finding in found)


def _refuse_failures(found: Sequence[Finding]) -> None:
    if failed := _failed(found):
        raise CheckFailedError(f"{failed} of {counted(len(found), 'check')} failed")
