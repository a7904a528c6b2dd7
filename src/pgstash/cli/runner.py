"""What every command has in common: settings, log, signals, and the exit status."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import NoReturn

import typer

from pgstash import app, settings
from pgstash.errors import (
    EXIT_UNFORESEEN,
    ConfigurationError,
    Interrupted,
    OutputError,
    PgstashError,
)
from pgstash.events import Emit
from pgstash.monitoring import listener, log
from pgstash.monitoring.scrub import Scrubber
from pgstash.settings import Need, Settings
from pgstash.signals import Interruption, end_by

Work = Callable[[Settings, Emit, Interruption], None]

_EVERYTHING: Collection[Need] = ("source", "storage")


def run(  # noqa: PLR0913 - how each command differs from the others
    work: Work,
    *,
    needs: Collection[Need] = _EVERYTHING,
    given: Mapping[str, str] | None = None,
    only_reads: bool = False,
    stdout_is_data: bool = False,
    only_looks: bool = False,
) -> NoReturn:
    """Do the work of a command with settings, log and signals; leave with its exit status.

    ``needs`` is what must be configured, ``given`` are variables that the command line sets. A
    command that ``only_reads`` what is stored minds no setting that others use.
    With ``stdout_is_data`` the log goes to stderr, all of it, and an error that no event told
    of is logged. Of a command that ``only_looks`` nobody else is told, and it tells itself what
    it found.
    """
    interruption = Interruption()
    try:
        with interruption.installed():
            status = _status_of(
                work,
                interruption,
                needs,
                given or {},
                only_reads=only_reads,
                stdout_is_data=stdout_is_data,
                only_looks=only_looks,
            )
    except Interrupted as interrupted:
        log.finish()
        end_by(interrupted.signum)
    log.finish()
    raise typer.Exit(status)


def _status_of(  # noqa: PLR0913 - what run() was given
    work: Work,
    interruption: Interruption,
    needs: Collection[Need],
    given: Mapping[str, str],
    *,
    only_reads: bool,
    stdout_is_data: bool,
    only_looks: bool,
) -> int:
    log.start(Scrubber(), layout="text", debug=False, stdout_is_data=stdout_is_data)
    try:
        values = settings.load(needs=needs, given=given, only_reads=only_reads)
        log.start(
            Scrubber(values.secrets()),
            layout=values.log_format,
            debug=values.debug,
            stdout_is_data=stdout_is_data,
        )
        if only_looks:
            work(values, listener.listen, interruption)
            return 0
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
        if stdout_is_data or isinstance(error, OutputError):
            hint = f"\n{error.hint}" if error.hint else ""
            log.LOGGER.log(log.FAILURE, "%s%s", error.message, hint)
        log.LOGGER.debug("What led to it", exc_info=error)
        return error.exit_code
    except Exception:  # noqa: BLE001 - the last line of defence: whatever it is, it is logged
        log.LOGGER.exception("Unforeseen error: please report it")
        return EXIT_UNFORESEEN
    return 0
