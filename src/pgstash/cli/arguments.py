"""Arguments and options that several commands share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pgstash import events
from pgstash.cli import times
from pgstash.runtime import utc_now

if TYPE_CHECKING:
    from pgstash.commands.stored import Wanted
    from pgstash.settings import Need, Settings

Name = Annotated[
    str,
    typer.Argument(
        metavar="BACKUP",
        help="latest, the name of a backup or the end of it, its time as `pgstash list` shows it, "
        "the path of a file (containing a /), or - for stdin.",
    ),
]


def _written(text: str) -> times.Written:
    try:
        return times.read(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--at") from None


At = Annotated[
    times.Written | None,
    typer.Option(
        "--at",
        help='Take the newest backup that started at or before this time: "2026-01-31 23:00" (in '
        'the time zone TZ, or with an offset such as +01:00 or Z), "yesterday 18:00" or '
        '"3 hours ago". A date alone, and a time with seconds but no offset, are in UTC.',
        parser=_written,
        metavar="TIME",
    ),
]


Source = Annotated[
    str | None,
    typer.Option(
        "--source",
        help="Take the latest backup of this source (DATABASE@ID or DATABASE), if several sources "
        "have backups under BACKUP_PREFIX. `pgstash list` shows them.",
        metavar="SOURCE",
    ),
]


From = Annotated[
    str | None,
    typer.Option(
        "--from",
        help="Read a copy instead of the primary store: a name in COPY_TO, a folder (a path with a "
        "/), or the URL of another store.",
        metavar="PLACE",
    ),
]


Job = Annotated[
    str | None,
    typer.Option(
        "--job",
        help="The job that is meant: with DATABASES a database, with a configuration file "
        "SERVER/DATABASE.",
        metavar="JOB",
    ),
]


ReportTo = Annotated[int | None, typer.Option("--report-to", hidden=True)]
"""The descriptor where a process that runs a job for another one reports its failure."""


Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


Mark = Annotated[
    bool,
    typer.Option(
        "--mark",
        help="Mark the restored database, so that `pgstash recover` skips it from then on.",
    ),
]


Unverified = Annotated[
    bool,
    typer.Option(
        "--unverified", help="Read a backup that cannot be verified (it has no manifest)."
    ),
]


def refuse_needless(source: str | None, name: str, at: times.Written | None = None) -> None:
    """Refuse --source and --at if a backup is named. Raises BadParameter."""
    if at is not None and name != "latest":
        raise typer.BadParameter("cannot be combined with the name of a backup", param_hint="--at")
    if source is not None and name != "latest":
        raise typer.BadParameter(
            "can only be used for the latest backup, not with the name of one",
            param_hint="--source",
        )


def needs_of(wanted: Wanted, origin: str | None, *others: Need) -> Sequence[Need]:
    """Return what must be configured to read a backup; a file needs no storage.

    Raises BadParameter for a file with --from.
    """
    if not wanted.is_file:
        return (*needs_from(origin), *others)
    if origin is not None:
        raise typer.BadParameter("cannot be combined with a file", param_hint="--from")
    return others


def needs_from(origin: str | None) -> Sequence[Need]:
    """Return what must be configured to read from there: a copy does not need the primary.

    Raises BadParameter if --from is empty: an unset variable of the shell must not lead to the
    primary.
    """
    if origin is not None and not origin.strip():
        raise typer.BadParameter("is empty", param_hint="--from")
    return ("storage",) if origin is None or "/" in origin else ("copies",)


def given_by(origin: str | None) -> dict[str, str]:
    """Return the variables that --from sets for this command: the URL of the store."""
    if origin is None or "/" not in origin:
        return {}
    place = origin.strip()
    return {"STORAGE_URL": place if "://" in place else Path(place).absolute().as_uri()}


def at_time(
    wanted: Wanted, at: times.Written | None, settings: Settings, emit: events.Emit
) -> Wanted:
    """Return the same with the moment that was given by --at, if any. Raises BadParameter."""
    if at is None:
        return wanted
    try:
        found = at.moment(utc_now(), settings.tz)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--at") from None
    if found.warning:
        emit(events.Warned(found.warning))
    return replace(wanted, at=found.at)
