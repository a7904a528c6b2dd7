"""The command line: parse, run one operation, turn an error into an exit status."""

from __future__ import annotations

import contextlib
import ctypes
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pgstash import __version__
from pgstash.cli import (
    backups,
    check,
    config,
    copy,
    drill,
    history,
    keys,
    listing,
    policy,
    queue,
    recover,
    restore,
    runs,
    status,
    worker,
)
from pgstash.cli.all_jobs import AllJobs, in_turn, refuse_both, require_several
from pgstash.cli.arguments import Job
from pgstash.cli.runner import Command, run
from pgstash.errors import PgstashError
from pgstash.events import Emit
from pgstash.monitoring import event_log
from pgstash.monitoring.redaction import Scrubber
from pgstash.signals import Interruption

if TYPE_CHECKING:
    from pgstash.settings import Settings

_M_ARENA_MAX = -8  # of glibc's malloc.h

_cli = typer.Typer(
    name="pgstash",
    help="PostgreSQL backups that prove they restore.\n\n"
    "Settings are read from environment variables, from a .env file in the working directory, and "
    "from the configuration file that --config or PGSTASH_CONFIG names.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Run the command line; the entry point of the ``pgstash`` command."""
    _allocate_from_one_arena()
    _cli()


def _allocate_from_one_arena() -> None:
    """Let the threads share what the C library keeps of freed memory; each would keep its own.

    A restore needs 20 MB less. See mallopt(3).
    """
    with contextlib.suppress(AttributeError):  # another C library, such as musl
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)


def _show_version(context: typer.Context, *, value: bool) -> None:
    if value and not context.resilient_parsing:  # true while a shell completes the line
        typer.echo(f"pgstash {__version__}")
        raise typer.Exit


def _name_config(context: typer.Context, path: Path | None) -> None:
    if path is not None and not context.resilient_parsing:
        from pgstash.settings import name_config

        name_config(path)


@_cli.callback()
def _options(
    *,
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Show the version and exit.", callback=_show_version, is_eager=True
        ),
    ] = False,
    config_file: Annotated[
        Path | None,
        typer.Option(
            "--config",
            help="A configuration file with stores, servers and databases, instead of "
            "PGSTASH_CONFIG.",
            metavar="PATH",
            callback=_name_config,
        ),
    ] = None,
) -> None:
    """Take the options that come before a command."""


_cli.command()(runs.once)
_cli.command()(runs.backup)
_cli.command()(worker.worker)


@_cli.command()
def prune(
    *,
    source: Annotated[
        list[str] | None,
        typer.Option(
            help="Prune the backups of this source (DATABASE@ID or DATABASE) instead of those of "
            "the configured one. May be given several times: the sources are treated as one.",
            metavar="SOURCE",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be deleted; delete nothing.")
    ] = False,
    job: Job = None,
    all_jobs: AllJobs = False,
) -> None:
    """Delete the backups that the retention settings no longer keep, and show why.

    Only backups of the configured source are deleted, never its newest one, and only objects that
    pgstash made. `pgstash check` lists other sources under the prefix. Leftovers of failed backups
    are deleted too, but only if a lock in the source database shows that no backup is running;
    everything else works without the database. --all-jobs prunes the backups of each database that
    has some, also of those that are gone; the newest backup of each stays.
    """
    refuse_both(job, all_jobs=all_jobs)
    from pgstash.commands import jobs
    from pgstash.commands.prune import remove_old_backups

    def work(values: Settings, _emit: Emit, interruption: Interruption) -> None:
        away = set[str]()  # a server that cannot be reached is asked once for all jobs

        def one(settings: Settings) -> None:
            remove_old_backups(
                settings,
                event_log.explain,
                sources=source or [],
                dry_run=dry_run,
                away=away,
            )

        if not all_jobs:
            one(values)
            return
        require_several(values)
        which = jobs.with_backups(values)
        in_turn(
            which.jobs,
            lambda each: one(each.settings),
            interruption,
            unreadable=which.unreadable,
        )

    run(work, Command(needs=["storage"], job=job, all_jobs=all_jobs, sums_up=all_jobs))


@_cli.command()
def healthcheck(*, job: Job = None) -> None:
    """Report health in one line, for a container HEALTHCHECK.

    Checks the configuration, the database, the store, and whether the newest backup is as recent
    as BACKUP_INTERVAL or BACKUP_SCHEDULE requires. If no recent backup names the configured source,
    a recent one that names no source counts instead. Exit status 0 means healthy, 41 that there is
    no recent backup; other problems have the same status as in a backup.
    """
    from pgstash.commands import health

    def work(values: Settings, _emit: Emit, _interruption: Interruption) -> None:
        scrub = Scrubber(values.secrets()).scrub
        try:
            typer.echo(scrub(f"healthy: {health.healthcheck(values)}"))
        except PgstashError as error:
            typer.echo(scrub(f"unhealthy: {error.message}"))
            raise

    run(work, Command(prints_findings=True, job=job))


_cli.command()(status.status)
_cli.command()(check.check)
_cli.command("list")(listing.list_backups)
_cli.command()(history.history)
_cli.command()(backups.show)
_cli.command()(backups.cat)
_cli.command()(restore.restore)
_cli.command()(recover.recover)
_cli.command()(drill.drill)
_cli.command()(copy.copy)
_cli.add_typer(keys.app)
_cli.add_typer(config.app)
_cli.add_typer(queue.app)
_cli.command()(policy.policy)
