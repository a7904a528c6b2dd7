"""The command line: parse, run one operation, turn an error into an exit status."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, NoReturn

import typer

from pgstash import __version__, app, service, settings
from pgstash.errors import EXIT_UNFORESEEN, ConfigurationError, Interrupted, PgstashError
from pgstash.events import Emit
from pgstash.monitoring import log
from pgstash.monitoring.scrub import Scrubber
from pgstash.settings import Settings
from pgstash.signals import Interruption, end_by

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

    _run(work)


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

    _run(work)


@_cli.command()
def prune(
    *,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be deleted, and delete nothing.")
    ] = False,
) -> None:
    """Delete the backups that the retention no longer keeps, and say why.

    The newest backup is never deleted, and nothing that is not a backup of pgstash. What failed
    backups left behind is swept too, if the source database can tell that no backup runs: all
    else needs no database.
    """

    def remove(values: Settings, _emit: Emit, _interruption: Interruption) -> None:
        app.remove_old_backups(values, log.explain, dry_run=dry_run)

    _run(remove, source_needed=False)


def _run(
    work: Callable[[Settings, Emit, Interruption], None], *, source_needed: bool = True
) -> NoReturn:
    """Do the work of a command with settings, log and signals; leave with its exit status."""
    interruption = Interruption()
    try:
        with interruption.installed():
            status = _status_of(work, interruption, source_needed=source_needed)
    except Interrupted as interrupted:
        log.finish()
        end_by(interrupted.signum)
    log.finish()
    raise typer.Exit(status)


def _status_of(
    work: Callable[[Settings, Emit, Interruption], None],
    interruption: Interruption,
    *,
    source_needed: bool,
) -> int:
    log.start(Scrubber(), layout="text", debug=False)
    try:
        values = settings.load(source_needed=source_needed)
        log.start(Scrubber(values.secrets()), layout=values.log_format, debug=values.debug)
        for warning in values.warnings():
            log.LOGGER.warning("%s", warning)
        with app.listening(values) as emit:
            try:
                work(values, emit, interruption)
            finally:
                interruption.hear()
    except ConfigurationError as error:
        for problem in error.problems:
            log.LOGGER.error("%s", problem)
        log.LOGGER.log(
            log.FAILURE, "Nothing was done; problems in the configuration: %d", len(error.problems)
        )
        return error.exit_code
    except PgstashError as error:
        log.LOGGER.debug("What led to it", exc_info=error)
        return error.exit_code
    except Exception:  # noqa: BLE001 - the last line of defence: whatever it is, it is logged
        log.LOGGER.exception("Unforeseen error: please report it")
        return EXIT_UNFORESEEN
    return 0
