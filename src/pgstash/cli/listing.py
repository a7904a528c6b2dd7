"""`pgstash list`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pgstash.cli.all_jobs import AllJobs, in_turn, refuse_both, require_several
from pgstash.cli.arguments import From, Job, Json, given_by, needs_from
from pgstash.cli.output import line_width, print_line, print_table, shown_copies, table_width
from pgstash.cli.runner import Command, run
from pgstash.counting import counted
from pgstash.errors import PgstashError
from pgstash.events import Emit
from pgstash.format.identity import Identity
from pgstash.format.iso_time import iso
from pgstash.monitoring import log
from pgstash.monitoring.messages import size, span
from pgstash.signals import Interruption

if TYPE_CHECKING:
    from pgstash.commands import stored
    from pgstash.settings import Settings

_SHOWN = 20
_ABSENT = "-"


def list_backups(
    *,
    everything: Annotated[
        bool, typer.Option("--all", help=f"List all backups, not only the newest {_SHOWN}.")
    ] = False,
    origin: From = None,
    job: Job = None,
    all_jobs: AllJobs = False,
    as_json: Json = False,
) -> None:
    """List the stored backups, newest first. Needs no encryption key.

    PROVEN is the time of the last drill that restored the backup and passed all checks. A narrow
    terminal shows fewer columns; --json shows everything. With COPY_TO, COPIES names the copies
    that have the backup, with a question mark if a copy cannot be read.
    """
    refuse_both(job, all_jobs=all_jobs)
    from pgstash.commands import jobs, stored
    from pgstash.commands.origin import of_copy, readable, suggested

    newest = None if everything else _SHOWN

    def work(configured: Settings, emit: Emit, interruption: Interruption) -> None:
        chosen = of_copy(configured, origin)
        with suggested(chosen, emit):
            values = readable(chosen, emit)
            if not all_jobs:
                found = stored.list_backups(values, newest=newest, complete=as_json)
                _show(values, [_Part("", values, found)], emit, as_json=as_json)
                return
            require_several(configured)
            which = jobs.with_backups(values, origin)
            parts: list[_Part] = []

            def one(each: jobs.Job) -> None:
                listed = stored.list_backups(each.settings, newest=newest, complete=as_json)
                parts.append(_Part(each.name, each.settings, listed))

            failure: PgstashError | None = None
            try:
                in_turn(which.jobs, one, interruption, quietly=True, unreadable=which.unreadable)
            except PgstashError as error:
                failure = error
            if parts or not failure:
                _show(values, parts, emit, as_json=as_json)
            if failure:
                raise failure

    needs, given = needs_from(origin), given_by(origin)
    run(
        work,
        Command(
            needs=needs,
            given=given,
            only_reads=True,
            stdout_is_data=True,
            job=job,
            all_jobs=all_jobs,
        ),
    )


@dataclass(frozen=True, slots=True)
class _Part:
    """The backups of one job; its name is empty if there is one job only."""

    job: str
    settings: Settings = field(repr=False)
    backups: Sequence[stored.Listed]


def _show(values: Settings, parts: Sequence[_Part], emit: Emit, *, as_json: bool) -> None:
    """Print the backups of one job, or of several with a column that names the job."""
    from pgstash.commands import stored
    from pgstash.commands.listed_copies import presence

    found = [each for part in parts for each in part.backups]
    if not found and (not parts or parts[0].job):
        log.LOGGER.info("No job has backups.")
    elif not found:
        nothing = stored.nothing_stored(values)
        log.LOGGER.info("%s\n%s", nothing.message, values.as_written(nothing.hint))
    if frozen := [each for each in found if each.backup.archived]:
        log.LOGGER.info("%s", _about_frozen(frozen, len(found)))
    names = [part.job for part in parts for _ in part.backups]
    copied = [each for part in parts for each in presence(part.settings, part.backups, emit)]
    if as_json:
        every = [
            ({"job": job} if job else {}) | _facts(each) | ({"copies": copies} if copies else {})
            for job, each, copies in zip(names, found, copied, strict=True)
        ]
        print_line(json.dumps(every, indent=2))
        return
    now = datetime.now(UTC)
    # If all are of one source, or each job has its own, the name of its database is enough.
    by_source = any(len({_source(each) for each in part.backups}) > 1 for part in parts)
    whose = "SOURCE" if by_source else "DATABASE"
    heads = ["NAME", "TIME", "AGE", "SIZE", whose, "SERVER", "ENCRYPTED", "PROVEN"]
    rows = [_row(each, now, by_source=by_source) for each in found]
    if any(part.settings.copy_names for part in parts):
        heads.append("COPIES")
        rows = [[*row, shown_copies(each)] for row, each in zip(rows, copied, strict=True)]
    if any(names):
        heads.insert(0, "JOB")
        rows = [[name, *row] for name, row in zip(names, rows, strict=True)]
    print_table(_fitting([heads, *rows], line_width(), whose))


def _about_frozen(frozen: Sequence[stored.Listed], of: int) -> str:
    classes = " or ".join(sorted({each.backup.archived for each in frozen}))
    return (
        f"Storage class {classes}: {len(frozen)} of {counted(of, 'backup')}. Such a backup has to "
        "be thawed before it can be restored, which takes hours."
    )


def _facts(listed: stored.Listed) -> dict[str, Any]:
    known = listed.metadata
    facts: dict[str, Any] = {
        "name": listed.backup.name,
        "time": iso(listed.backup.started),
        "size": listed.backup.size,
        "encrypted": listed.backup.encrypted,
        "archived": listed.backup.archived or None,
        "proven": iso(listed.backup.proven) if listed.backup.proven else None,
    }
    facts |= {key: known.get(key) for key in ("database", "system", "server", "id")}
    facts |= {key: known[key] for key in ("host", "client", "tool") if key in known}
    facts["source"] = _source(listed)
    for key in ("raw-bytes", "tables", "rows"):
        value = known.get(key, "")
        facts[key.replace("-", "_")] = int(value) if value.isdecimal() else None
    return facts


def _source(listed: stored.Listed) -> str | None:
    identity = Identity.of(listed.metadata)
    return identity.label if identity.database else None


def _row(listed: stored.Listed, now: datetime, *, by_source: bool) -> list[str]:
    backup = listed.backup
    return [
        backup.name,
        iso(backup.started),
        span(max(0.0, (now - backup.started).total_seconds())),
        size(backup.size),
        _source(listed) or _ABSENT if by_source else listed.metadata.get("database", _ABSENT),
        listed.metadata.get("server", _ABSENT),
        "yes" if backup.encrypted else "no",
        iso(backup.proven) if backup.proven else _ABSENT,
    ]


def _fitting(
    table: Sequence[Sequence[str]], width: int | None, whose: str
) -> Sequence[Sequence[str]]:
    """Return a listing without the columns that a line of this width has no room for.

    The first to go are those that the name shows too. Of the time of a proof, the day is kept.
    """
    columns = {cells[0]: cells for cells in zip(*table, strict=True)}
    for head in ("TIME", "ENCRYPTED", "PROVEN", "SERVER", "AGE", "COPIES", whose):
        if width is None or table_width(list(zip(*columns.values(), strict=True))) <= width:
            break
        if head == "PROVEN":
            columns[head] = tuple(cell.partition("T")[0] for cell in columns[head])
        else:
            columns.pop(head, None)
    return list(zip(*columns.values(), strict=True))
