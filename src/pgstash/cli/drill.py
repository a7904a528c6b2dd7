"""`pgstash drill`."""

from __future__ import annotations

from typing import Annotated

import typer

from pgstash.cli.arguments import Source, refuse_needless
from pgstash.cli.runner import Command, run
from pgstash.errors import PgstashError
from pgstash.events import Emit
from pgstash.monitoring import log
from pgstash.runtime import Runtime
from pgstash.settings import Settings
from pgstash.signals import Interruption


def drill(
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

    refuse_needless(source, name)

    def work(values: Settings, emit: Emit, interruption: Interruption) -> None:
        runtime = Runtime(emit, interruption)
        if not all_unproven:
            drill_backup(values, name, runtime, source=source)
            return
        failures = []
        for each in unproven(values, emit, source):
            try:
                drill_backup(values, each, runtime)
            except PgstashError as error:
                log.LOGGER.debug("Traceback of the failure", exc_info=error)
                failures.append(error)
            interruption.raise_if_interrupted()
        if failures:
            raise failures[0]

    run(work, Command(needs=["storage"]))
