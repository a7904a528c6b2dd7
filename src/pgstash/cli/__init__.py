"""The command line: parse, run one operation, turn an error into an exit status."""

from __future__ import annotations

from typing import Annotated

import typer

from pgstash import __version__, app, service
from pgstash.cli import reading
from pgstash.cli.running import run
from pgstash.events import Emit
from pgstash.monitoring import log
from pgstash.settings import Settings
from pgstash.signals import Interruption

_cli = typer.Typer(
    name="pgstash",
    help="PostgreSQL backups that prove they restore.",
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
    """PostgreSQL backups that prove they restore.

    Settings come from environment variables and a .env file in the working directory.
    """


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
    a running backup with it.
    """

    def work(values: Settings, emit: Emit, interruption: Interruption) -> None:
        clock = service.SystemClock()
        service.run(
            lambda: app.back_up(values, emit, interruption.deferred, interruption.hear),
            app.schedule(values, clock.now()),
            clock,
            emit,
            interruption.hear,
        )

    run(work)


@_cli.command()
def prune(
    *,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be deleted, and delete nothing.")
    ] = False,
) -> None:
    """Delete the backups that the retention no longer keeps, and say why.

    The newest backup is never deleted, and nothing that is not a backup of pgstash.
    """

    def remove(values: Settings, _emit: Emit, _interruption: Interruption) -> None:
        app.remove_old_backups(values, log.explain, dry_run=dry_run)

    run(remove)


_cli.command("list")(reading.list_backups)
_cli.command()(reading.show)
_cli.command()(reading.cat)
_cli.command()(reading.restore)
