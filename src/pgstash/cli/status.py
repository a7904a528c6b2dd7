"""`pgstash status`."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pgstash.cli.arguments import Job, Json
from pgstash.cli.output import (
    line_width,
    print_line,
    print_table,
    shown_copies,
    without_columns,
    writing,
)
from pgstash.cli.runner import Command, run
from pgstash.counting import counted
from pgstash.errors import PgstashError, StaleBackupError
from pgstash.events import Emit
from pgstash.format.iso_time import iso
from pgstash.monitoring import log
from pgstash.monitoring.messages import size, span
from pgstash.monitoring.redaction import Scrubber
from pgstash.runtime import utc_now
from pgstash.signals import Interruption

if TYPE_CHECKING:
    from pgstash.commands.status import Line, Overview
    from pgstash.settings import Settings

_SECONDS = 60
_ABSENT = "-"
_MOST_NAMED = 5
_CLEARED = "\x1b[H\x1b[2J"  # the cursor at the top left, and an empty screen
_OPTIONAL = ("COPIES", "REASON")
# The first to go if a line is too long.
_LEAST_IMPORTANT = ("LAST", "FRESH UNTIL", "REASON", "COPIES", "NEXT", "TREND", "PROVEN", "SIZE")


def status(
    *,
    watch: Annotated[
        bool,
        typer.Option("--watch", help="Show it on the terminal again and again, until Ctrl-C."),
    ] = False,
    every: Annotated[
        int, typer.Option("--every", help="With --watch, the seconds in between.", min=1)
    ] = _SECONDS,
    job: Job = None,
    as_json: Json = False,
) -> None:
    """Show the state of the backups in one line, with DATABASES one for each database.

    The worst come first. STATE is `never` without a backup, `unknown` if the store refuses to list
    the backups, `stale` if the newest is older than BACKUP_INTERVAL or BACKUP_SCHEDULE allows,
    `ok`, or `gone` for backups of a database that is no longer backed up. AGE is that of the newest
    backup, TREND compares its size with the median of the five before it. PROVEN is how long ago
    a drill passed, NEXT when the next backup is due. COPIES names the copies of COPY_TO that have
    the newest backup, with a question mark if a copy cannot be read. Only the store must answer: if
    the server does not, the databases are those that have backups. A narrow terminal shows fewer
    columns; --json shows everything. Exit status 41 means that a job is stale, unknown, or has no
    backup.
    """
    if watch and (as_json or not sys.stdout.isatty()):
        raise typer.BadParameter(
            "needs a terminal, and cannot be combined with --json", param_hint="--watch"
        )
    from pgstash.commands.status import overview

    def work(values: Settings, emit: Emit, interruption: Interruption) -> None:
        scrub = Scrubber(values.secrets()).scrub

        def look() -> Overview:
            found = overview(values, utc_now(), emit)
            clean = [replace(each, reason=scrub(each.reason)) for each in found.lines]
            return replace(found, lines=clean, unanswered=scrub(found.unanswered))

        while watch:
            _show(look)
            interruption.raise_if_interrupted()
            time.sleep(every)
        found = look()
        if as_json:
            print_line(json.dumps(_facts(found), indent=2))
        else:
            if found.unanswered:
                log.LOGGER.warning("%s", _without_server(found))
            print_table(_table(found, line_width()))
        _refuse_bad(found)

    # With findings of its own, a command has no progress bar, which would disturb the screen.
    run(
        work,
        Command(
            needs=["storage"],
            stdout_is_data=True,
            prints_findings=watch,
            job=job,
            all_jobs=True,
        ),
    )


def _refuse_bad(found: Overview) -> None:
    """Raise StaleBackupError if any job is stale, unknown, or has no backup."""
    bad = [each.job for each in found.lines if each.is_bad]
    if not bad:
        return
    named = ", ".join(bad[:_MOST_NAMED])
    more = f" and {counted(len(bad) - _MOST_NAMED, 'other')}" if len(bad) > _MOST_NAMED else ""
    verb = "has" if len(bad) == 1 else "have"
    raise StaleBackupError(
        f"{len(bad)} of {counted(len(found.lines), 'job')} {verb} no recent backup: {named}{more}"
    )


def _show(look: Callable[[], Overview]) -> None:
    """Show the present state on an empty screen, as many lines as fit."""
    width, height = shutil.get_terminal_size()
    try:
        found = look()
        table = _table(found, width)
        notes = [_without_server(found)] if found.unanswered else []
    except PgstashError as error:
        table, notes = [], [error.message, error.hint]
    room = max(2, height - len(notes) - 2)
    if left := len(table[room:]):
        notes.append(f"… and {counted(left, 'other')}")
    with writing():
        sys.stdout.write(_CLEARED)
    print_line(iso(utc_now()))
    print_table(table[:room])
    for note in notes:
        print_line(log.printable(note))


def _without_server(found: Overview) -> str:
    return f"The server could not be asked, so this is what is stored: {found.unanswered}"


def _table(found: Overview, width: int | None) -> Sequence[Sequence[str]]:
    heads = [
        *("JOB", "STATE", "AGE", "SIZE", "TREND", "PROVEN"),
        *("NEXT", "FRESH UNTIL", "LAST", "COPIES", "REASON"),
    ]
    table: Sequence[Sequence[str]] = [heads, *(_row(line, found.now) for line in found.lines)]
    empty = [
        head
        for number, head in enumerate(heads)
        if head in _OPTIONAL and all(row[number] == _ABSENT for row in table[1:])
    ]
    table = without_columns(table, None, empty)
    return table if width is None else without_columns(table, width, _LEAST_IMPORTANT)


def _row(line: Line, now: datetime) -> list[str]:
    found, last = line.found, line.found.last
    return [
        line.job,
        line.condition,
        _ago(last.started if last else None, now),
        size(last.size) if last else _ABSENT,
        _trend(line),
        _ago(found.proven, now),
        _next(found.due, now),
        iso(found.stale_at) if found.stale_at else _ABSENT,
        iso(last.started) if last else _ABSENT,
        shown_copies(line.copies),
        line.reason or _ABSENT,
    ]


def _ago(moment: datetime | None, now: datetime) -> str:
    return span(max(0.0, (now - moment).total_seconds())) if moment else _ABSENT


def _next(due: datetime | None, now: datetime) -> str:
    if due is None:
        return _ABSENT
    return "now" if due <= now else f"in {span((due - now).total_seconds())}"


def _trend(line: Line) -> str:
    last, usual = line.found.last, line.found.usual_size
    return f"{(last.size / usual - 1) * 100:+.0f}%" if last and usual else _ABSENT


def _facts(found: Overview) -> dict[str, Any]:
    return {
        "time": iso(found.now),
        "server_error": found.unanswered or None,
        "jobs": [_facts_of(line, found.now) for line in found.lines],
    }


def _facts_of(line: Line, now: datetime) -> dict[str, Any]:
    found, last = line.found, line.found.last
    return {
        "job": line.job,
        "state": line.condition,
        "reason": line.reason or None,
        "name": last.name if last else None,
        "started": iso(last.started) if last else None,
        "age_seconds": int((now - last.started).total_seconds()) if last else None,
        "fresh_until": iso(found.stale_at) if found.stale_at else None,
        "due": iso(found.due) if found.due else None,
        "size": last.size if last else None,
        "usual_size": found.usual_size,
        "proven": iso(found.proven) if found.proven else None,
        "copies": line.copies,
    }
