"""The command line: parse, run one operation, turn an error into an exit status."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace
from typing import Annotated

import typer

from pgstash import __version__, app, recovery, service, watch
from pgstash.check import table
from pgstash.cli import reading
from pgstash.cli.running import run
from pgstash.errors import CheckFailedError, PgstashError
from pgstash.events import Emit
from pgstash.monitoring import listener
from pgstash.monitoring.scrub import Scrubber
from pgstash.settings import Settings
from pgstash.signals import Interruption

_cli = typer.Typer(
    name="pgstash",
    help="PostgreSQL backups that prove they restore.\n\n"
    "Settings come from environment variables and a .env file in the working directory.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Run the command line; the entry point of the ``pgstash`` command."""
    _cli()


def _show_version(*, value: bool) -> None:
    if value:
        typer.echo(f"pgstash {__version__}")
        raise typer.Exit


@_cli.callback()
def _options(
    *,
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Show the version and exit.", callback=_show_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Take what goes before any command."""


@_cli.command()
def once() -> None:
    """Back the database up once, for cron, a Kubernetes CronJob or by hand.

    Then delete what the retention no longer keeps; if only that fails, it is a warning.
    Exit status 0 means that a complete backup is in the store.
    """

    def work(values: Settings, emit: Emit, interruption: Interruption) -> None:
        app.back_up(values, emit, interruption.deferred, interruption.hear)

    run(work)


@_cli.command()
def backup() -> None:
    """Back the database up now, and then on and on: the service.

    The next run comes every BACKUP_INTERVAL seconds, or when BACKUP_SCHEDULE says. A run that
    fails is logged and tried again at the next time. SIGTERM or SIGINT ends the service, and
    a running backup with it. With VERIFY_INTERVAL it proves backups too, as `pgstash drill` does.
    """

    def work(values: Settings, emit: Emit, interruption: Interruption) -> None:
        clock = service.SystemClock()
        with watch.health_port(values, emit) as tell:
            service.run(
                lambda: recovery.back_up_and_drill(
                    values, tell, interruption.deferred, interruption.hear
                ),
                app.schedule(values, clock.now()),
                clock,
                tell,
                interruption.hear,
            )

    run(work)


@_cli.command()
def prune(
    *,
    source: Annotated[
        list[str] | None,
        typer.Option(
            help="Prune the backups of this source, as DATABASE@ID or DATABASE, and not those of "
            "the configured one. Given several times, all of them count as one.",
            metavar="SOURCE",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be deleted, and delete nothing.")
    ] = False,
) -> None:
    """Delete the backups that the retention no longer keeps, and say why.

    Only backups of the configured source are deleted, never its newest one, and nothing that is
    not a backup of pgstash. `pgstash check` lists other sources under the prefix. What failed
    backups left behind is swept too, if the source database can tell that no backup runs: all
    else needs no database.
    """

    def remove(values: Settings, _emit: Emit, _interruption: Interruption) -> None:
        app.remove_old_backups(values, listener.explain, sources=source or [], dry_run=dry_run)

    run(remove, needs=["storage"])


@_cli.command()
def check(
    part: Annotated[
        watch.Part | None,
        typer.Argument(help="Look at this alone; a test notification goes to the webhook."),
    ] = None,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Look whether a backup can be made, and say of everything that fails what to do.

    Looks at the configuration, the login, the client tools, what the role may read, what
    stands in between, and tries the store with objects that it removes again. Exit status 0
    means that nothing failed, 40 that something did; a warning is no failure.
    """

    def look(values: Settings, emit: Emit, _interruption: Interruption) -> None:
        scrub = Scrubber(values.secrets()).scrub
        found = []
        for finding in watch.check(values, part, emit):
            clean = replace(finding, found=scrub(finding.found), remedy=scrub(finding.remedy))
            found.append(clean)
            if not as_json:
                reading.print_line("\n".join(table.lines(clean, colour=sys.stdout.isatty())))
        failed = sum(finding.state == "failure" for finding in found)
        if as_json:
            findings = [asdict(finding) for finding in found]
            reading.print_line(json.dumps({"failed": failed, "findings": findings}))
        if failed:
            raise CheckFailedError(f"{failed} of {len(found)} checks failed")

    run(look, only_looks=True)


@_cli.command()
def healthcheck() -> None:
    """Say in one line whether all is well, for the HEALTHCHECK of a container.

    Looks at the configuration, the database, the store, and whether the newest backup is as
    fresh as BACKUP_INTERVAL or BACKUP_SCHEDULE promises. Exit status 0 means yes; 41 that
    there is no fresh backup; what else is wrong has the status that it has in a backup.
    """

    def look(values: Settings, _emit: Emit, _interruption: Interruption) -> None:
        scrub = Scrubber(values.secrets()).scrub
        try:
            typer.echo(scrub(f"healthy: {watch.healthcheck(values)}"))
        except PgstashError as error:
            typer.echo(scrub(f"unhealthy: {error.message}"))
            raise

    run(look, only_looks=True)


_cli.command("list")(reading.list_backups)
_cli.command()(reading.show)
_cli.command()(reading.cat)
_cli.command()(reading.restore)
_cli.command()(reading.drill)
