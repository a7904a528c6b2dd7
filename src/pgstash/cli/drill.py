"""`pgstash drill`."""

from __future__ import annotations

from typing import Annotated

import typer

from pgstash.cli.arguments import From, Job, Source, given_by, needs_from, refuse_needless
from pgstash.cli.outcome import JsonOutcome, reporting
from pgstash.cli.runner import Command, run
from pgstash.errors import PgstashError
from pgstash.events import Emit
from pgstash.monitoring import log
from pgstash.runtime import Runtime
from pgstash.settings import Settings
from pgstash.signals import Interruption


def drill(  # noqa: PLR0913 - one argument for each option
    name: Annotated[
        str,
        typer.Argument(metavar="BACKUP", help="latest, the name of a backup or the end of it."),
    ] = "latest",
    *,
    all_unproven: Annotated[
        bool,
        typer.Option(
            "--all-unproven", help="Drill every backup that no drill has proven, newest first."
        ),
    ] = False,
    source: Source = None,
    origin: From = None,
    job: Job = None,
    as_json: JsonOutcome = False,
) -> None:
    """Prove that a backup restores: restore it into a scratch database, check it, drop it.

    The scratch database is created on the server of VERIFY_DATABASE_URL, or on a throwaway server
    that the drill starts. The drill checks every digest, the rows of every table, indexes,
    constraints and sequences, and the conditions of MIN_TABLE_COUNT and VERIFY_SQL. Exit status 0
    means that the backup passed and the proof is stored next to it.
    """
    if all_unproven and name != "latest":
        raise typer.BadParameter(
            "cannot be combined with the name of a backup", param_hint="--all-unproven"
        )
    from pgstash.commands.drill import drill_backup, unproven
    from pgstash.commands.origin import of_copy

    refuse_needless(source, name)

    def work(configured: Settings, emit: Emit, interruption: Interruption) -> None:
        values = of_copy(configured, origin)

        def one(backup: str, source: str | None = None) -> None:
            with reporting(values, emit, as_json=as_json) as heard:
                drill_backup(values, backup, Runtime(heard, interruption), source=source)

        if not all_unproven:
            one(name, source)
            return
        failures = []
        for each in unproven(values, emit, source):
            try:
                one(each)
            except PgstashError as error:
                log.LOGGER.debug("Traceback of the failure", exc_info=error)
                failures.append(error)
            interruption.raise_if_interrupted()
        if failures:
            raise failures[0]

    run(
        work,
        Command(needs=needs_from(origin), given=given_by(origin), stdout_is_data=as_json, job=job),
    )
