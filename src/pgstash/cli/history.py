"""`pgstash history`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pgstash.cli.all_jobs import AllJobs, in_turn, refuse_both, require_several
from pgstash.cli.arguments import Job, Json
from pgstash.cli.output import line_width, print_line, print_table, table_width
from pgstash.cli.runner import Command, run
from pgstash.counting import counted
from pgstash.errors import PgstashError
from pgstash.events import Emit
from pgstash.format.iso_time import iso
from pgstash.monitoring import log
from pgstash.monitoring.messages import seconds, size
from pgstash.runtime import utc_now
from pgstash.signals import Interruption

if TYPE_CHECKING:
    from pgstash.commands.history import Entry
    from pgstash.commands.jobs import Job as OneJob
    from pgstash.settings import Settings

_DAYS = 30
_MOST_DAYS = 36_500
_ABSENT = "-"
_LEAST_DETAILS = 20


def history(
    *,
    days: Annotated[
        int,
        typer.Option(help="Show the runs of the last N days.", metavar="N", min=1, max=_MOST_DAYS),
    ] = _DAYS,
    job: Job = None,
    all_jobs: AllJobs = False,
    as_json: Json = False,
) -> None:
    """List backups, drills and their failures, newest first, as the store records them.

    A backup and a failure are shown at their start, a drill that passed at its end. Needs no
    encryption key, except for the messages of failures. Restores are not recorded. A run that was
    killed, or that could not reach the store, leaves no record.
    """
    refuse_both(job, all_jobs=all_jobs)
    from pgstash.commands import jobs
    from pgstash.commands.history import history as history_of
    from pgstash.repository.failures import has_some

    since = utc_now() - timedelta(days=days)

    def work(values: Settings, emit: Emit, interruption: Interruption) -> None:
        found: list[tuple[str, Entry]] = []

        def one(each: OneJob) -> None:
            found.extend((each.name, entry) for entry in history_of(each.settings, since, emit))

        if not all_jobs:
            found += [("", entry) for entry in history_of(values, since, emit)]
            show(found, days, as_json=as_json)
            return
        require_several(values)
        which = jobs.with_backups(values, has=has_some)
        failure: PgstashError | None = None
        try:
            in_turn(which.jobs, one, interruption, quietly=True, unreadable=which.unreadable)
        except PgstashError as error:
            failure = error
        found.sort(key=lambda each: each[1].at, reverse=True)
        if found or not failure:
            show(found, days, as_json=as_json)
        if failure:
            raise failure

    run(
        work,
        Command(
            needs=["storage"], only_reads=True, stdout_is_data=True, job=job, all_jobs=all_jobs
        ),
    )


def show(found: Sequence[tuple[str, Entry]], days: int, *, as_json: bool) -> None:
    """Print the runs, each with the name of its job; that is empty if there is one job only."""
    if as_json:
        every = [({"job": job} if job else {}) | _facts(each) for job, each in found]
        print_line(json.dumps(every, indent=2))
        return
    if not found:
        log.LOGGER.info("No backup, drill or failure in the last %s.", counted(days, "day"))
        return
    heads = ["TIME", "RUN", "RESULT", "TOOK", "DATABASE", "BACKUP", "DETAILS"]
    rows = [_row(each) for _, each in found]
    if any(job for job, _ in found):
        heads.insert(1, "JOB")
        rows = [[row[0], job, *row[1:]] for (job, _), row in zip(found, rows, strict=True)]
    print_table(_fitting([heads, *rows], line_width()))


def _row(entry: Entry) -> list[str]:
    return [
        iso(entry.at),
        entry.operation,
        "FAILED" if entry.failed else "ok",
        _ABSENT if entry.seconds is None else seconds(entry.seconds),
        entry.known.get("database", _ABSENT),
        entry.backup or _ABSENT,
        _details(entry),
    ]


def _details(entry: Entry) -> str:
    if failed := entry.failed:
        status = "unknown" if failed.exit_code is None else f"{failed.exit_code}"
        why = " ".join(entry.reason.message.split()) if entry.reason else failed.error
        return f"exit status {status}, while {failed.phase or 'running'}: {why}"
    if entry.operation == "drill":
        return "restored, and passed all checks"
    known = [
        counted(int(count), what) for what in ("table", "row") if (count := _count(entry, what))
    ]
    return ", ".join([size(entry.size or 0), *known])


def _count(entry: Entry, what: str) -> str:
    value = entry.known.get(f"{what}s", "")
    return value if _is_count(value) else ""


def _is_count(value: str) -> bool:
    return value.isascii() and value.isdecimal() and len(value) <= len(str(2**64))


def _fitting(table: list[list[str]], width: int | None) -> Sequence[Sequence[str]]:
    """Return a table whose last column is cut so that the others fit, if there is room for it."""
    if width is None or table_width(table) <= width:
        return table
    others = table_width([row[:-1] for row in table]) + 2
    room = max(width - others, _LEAST_DETAILS)
    cut = [f"{row[-1][: room - 1]}…" if len(row[-1]) > room else row[-1] for row in table]
    return [[*row[:-1], last] for row, last in zip(table, cut, strict=True)]


def _facts(entry: Entry) -> dict[str, Any]:
    failed, reason = entry.failed, entry.reason
    raw = entry.known.get("raw-bytes", "")
    counts = {what: _count(entry, what) for what in ("table", "row")}
    return {
        "time": iso(entry.at),
        "run": entry.operation,
        "result": "failure" if failed else "success",
        "seconds": entry.seconds,
        "backup": entry.backup or None,
        "database": entry.known.get("database"),
        "source": entry.source,
        "size": entry.size,
        "raw_bytes": int(raw) if _is_count(raw) else None,
        **{f"{what}s": int(count) if count else None for what, count in counts.items()},
        "error": failed.error or None if failed else None,
        "exit_code": failed.exit_code if failed else None,
        "phase": failed.phase or None if failed else None,
        "message": reason.message if reason else None,
        "hint": reason.hint if reason else None,
        "machine": reason.machine if reason else None,
    }
