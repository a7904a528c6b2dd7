"""`pgstash recover`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from pgstash.cli import recovery_report
from pgstash.cli.arguments import At, From, at_time, given_by, needs_from
from pgstash.cli.outcome import scrubbed
from pgstash.cli.output import print_line
from pgstash.cli.runner import Command, run
from pgstash.events import Emit
from pgstash.monitoring.redaction import Scrubber
from pgstash.runtime import Runtime
from pgstash.signals import Interruption

if TYPE_CHECKING:
    from pgstash.settings import Settings
    from pgstash.settings.databases import Selection


def _selection(text: str) -> Selection:
    from pgstash.settings import databases

    try:
        return databases.parse(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--only") from None


def recover(  # noqa: PLR0913 - one argument for each option
    *,
    to: Annotated[
        str,
        typer.Option(
            help="The server to restore to: postgresql://user@host:5432. Leave the password to "
            "RESTORE_URL, with the same user, host and port, or to a PGPASSFILE.",
            metavar="URL",
        ),
    ],
    at: At = None,
    only: Annotated[
        str | None,
        typer.Option(
            help="Restore only databases whose name matches: patterns as in DATABASES, such as "
            "shop,crm_* or !test_*.",
            metavar="PATTERNS",
        ),
    ] = None,
    server: Annotated[
        str | None,
        typer.Option(
            help="The lost server, if the configuration file describes several.", metavar="NAME"
        ),
    ] = None,
    origin: From = None,
    parallel: Annotated[
        int,
        typer.Option(help="How many databases to restore at a time.", min=1, max=64, metavar="N"),
    ] = 2,
    skip_superuser_objects: Annotated[
        bool,
        typer.Option(
            "--skip-superuser-objects",
            help="Leave out what the restoring role may not create, and write its SQL to a file "
            "for an administrator, one for each database.",
        ),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Inspect the backups and the target, and show what would be done."
        ),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the report to stdout as one JSON object.")
    ] = False,
) -> None:
    """Restore all databases of a lost server to another one, usually an empty one.

    Of each database that has backups under BACKUP_PREFIX, the newest is restored, after the roles.
    A database that exists is never changed, except an empty one called postgres. What fails does
    not stop the rest: correct it, and run the same command again, which skips the databases that
    are restored. Exit status 0 means that everything is back, 55 that something is not: the report
    names it, with the reason.
    """
    from pgstash.commands.maintenance_database import MAINTENANCE
    from pgstash.commands.recover import Request, recover
    from pgstash.commands.recovery_choice import Wish
    from pgstash.commands.stored import Wanted
    from pgstash.postgres.server import conninfo

    if not to.strip():
        # An unset variable of the shell must not turn this into a recovery to RESTORE_URL.
        raise typer.BadParameter("is empty", param_hint="--to")

    selection = None if only is None else _selection(only)

    def work(values: Settings, emit: Emit, interruption: Interruption) -> None:
        moment = at_time(Wanted("latest"), at, values, emit).at
        request = Request(
            Wish(selection, moment, estimates=dry_run),
            server=server,
            origin=origin,
            parallel=parallel,
            skip_superuser_objects=skip_superuser_objects,
            dry_run=dry_run,
        )
        report = recover(values, request, Runtime(emit, interruption))
        scrub = Scrubber(values.secrets()).scrub
        if as_json:
            print_line(json.dumps(scrubbed(recovery_report.facts(report, dry_run=dry_run), scrub)))
        else:
            recovery_report.show(report, scrub, dry_run=dry_run)
        if not report.is_whole:
            raise recovery_report.failure(report, dry_run=dry_run)

    run(
        work,
        Command(
            needs=(*needs_from(origin), "target"),
            given={"RESTORE_URL": conninfo.with_some_database(to, MAINTENANCE)} | given_by(origin),
            only_reads=True,
            stdout_is_data=True,
            all_jobs=True,
        ),
    )
