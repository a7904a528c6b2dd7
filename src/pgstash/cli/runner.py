"""Run a command: settings, log, signals and the exit status are the same for all."""

from __future__ import annotations

import gc
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NoReturn

import typer

from pgstash import events
from pgstash.counting import counted
from pgstash.errors import (
    EXIT_UNEXPECTED,
    ConfigurationError,
    Interrupted,
    JobsFailedError,
    OutputError,
    PgstashError,
)
from pgstash.events import Emit, Event
from pgstash.monitoring import event_log, log
from pgstash.monitoring.redaction import Scrubber
from pgstash.processes import outcome
from pgstash.processes.outcome import Outcome
from pgstash.signals import Interruption, end_by

if TYPE_CHECKING:
    from pgstash.monitoring.job_metrics import JobMetrics
    from pgstash.settings import Need, Settings

    Work = Callable[[Settings, Emit, Interruption], None]

_EVERYTHING: Collection[Need] = ("source", "storage")

_FAILURES = (
    events.BackupFailed,
    events.CopyFailed,
    events.DrillFailed,
    events.PruneFailed,
    events.RestoreFailed,
)


@dataclass(frozen=True, slots=True)
class Command:
    """How a command differs from the others.

    ``needs`` must be configured; ``given`` are variables that the command line sets. With
    ``only_reads``, invalid values of settings this command does not use are ignored. With
    ``stdout_is_data``, the whole log goes to stderr. With ``prints_findings``, no notifications are
    sent; the command prints its own findings. The event that ``opening`` returns is the first line
    of the log. ``job`` is the one of several that the command is for; without it, a command that
    is for ``all_jobs`` gets the settings of all. The last error of one that ``sums_up`` is logged
    in any case. With ``whole_file``, all of the configuration file must be right, and not only what
    the command uses. A process that runs a job for another one reports its failure to the
    descriptor ``report_to``.
    """

    needs: Collection[Need] = _EVERYTHING
    given: Mapping[str, str] = field(default_factory=dict)
    only_reads: bool = False
    stdout_is_data: bool = False
    prints_findings: bool = False
    opening: Callable[[Settings], Event] | None = None
    job: str | None = None
    all_jobs: bool = False
    whole_file: bool = False
    sums_up: bool = False
    report_to: int | None = None


def run(work: Work, command: Command = Command()) -> NoReturn:
    """Do the work of a command with settings, log and signals; exit with its status."""
    interruption = Interruption()
    try:
        with interruption.installed():
            status = _status_of(work, command, interruption)
    except Interrupted as interrupted:
        log.finish()
        end_by(interrupted.signum)
    log.finish()
    raise typer.Exit(status)


def _status_of(work: Work, command: Command, interruption: Interruption) -> int:
    from pgstash import settings  # most of the time of a start: --help and completion do without

    gc.freeze()
    gc.enable()
    run = _Run(command)
    log.start(
        Scrubber(),
        layout=settings.log_format(),
        debug=False,
        stdout_is_data=command.stdout_is_data,
    )
    try:
        values = run.values = _settings_for(command)
        log.start(
            Scrubber(values.secrets()),
            layout=values.log_format,
            debug=values.debug,
            stdout_is_data=command.stdout_is_data,
            job=values.job,
        )
        _log_beginning(values, command)
        if command.prints_findings:
            run.reported = True
            work(values, event_log.listen, interruption)
            return 0
        from pgstash.commands.notifications import listening

        with listening(values, live=command.report_to is None) as emit:
            try:
                work(values, run.listener(emit), interruption)
            finally:
                interruption.raise_if_interrupted()
    except ConfigurationError as error:
        if run.reported and not command.prints_findings:
            return error.exit_code
        for problem in error.problems:
            log.LOGGER.error("%s", problem)
        log.LOGGER.log(
            log.FAILURE,
            "Invalid configuration: %s. Nothing was done.",
            counted(len(error.problems), "problem"),
        )
        return error.exit_code
    except PgstashError as error:
        if not run.reported or command.sums_up or isinstance(error, OutputError | JobsFailedError):
            hint = f"\n{error.hint}" if error.hint else ""
            log.LOGGER.log(log.FAILURE, "%s%s", error.message, hint)
        log.LOGGER.debug("Traceback of the failure", exc_info=error)
        run.report(error)
        return error.exit_code
    except typer.BadParameter:  # a time for --at that TZ makes no time of: reported by typer
        raise
    except Exception as error:  # noqa: BLE001 - the last resort: log whatever it is
        log.LOGGER.exception("Unexpected error. Please report it.")
        run.report(error)
        return EXIT_UNEXPECTED
    run.report(None)
    return 0


def _settings_for(command: Command) -> Settings:
    from pgstash.settings import Request, jobs

    request = Request(command.needs, command.given, command.only_reads)
    if command.whole_file:
        jobs.check_file(request)
    return jobs.chosen(request, command.job, may_be_all=command.all_jobs)


class _Run:
    """What one run of a command has reported so far, to people and for the process above it."""

    def __init__(self, command: Command) -> None:
        self._command = command
        self._figures: JobMetrics | None = None
        self.values: Settings | None = None
        self.reported = False

    def listener(self, emit: Emit) -> Emit:
        """Return a listener that passes events on, and notes failures and figures."""
        figures: Emit = events.ignore
        if self._command.report_to is not None and self.values is not None:
            from pgstash.commands.metrics import figures_of

            figures = self._figures = figures_of(self.values)

        def noted(event: Event) -> None:
            after_backup = getattr(event, "after_backup", False)  # a warning
            self.reported |= isinstance(event, _FAILURES) and not after_backup
            figures(event)
            emit(event)

        return noted

    def report(self, error: Exception | None) -> None:
        """Report the outcome to the process that started this one, if one did.

        That one posts a failure to the webhook, unless this process has posted it.
        """
        descriptor, values = self._command.report_to, self.values
        if descriptor is None or values is None:
            return
        figures = self._figures.text() if self._figures else ""
        if error is None:
            outcome.report(descriptor, Outcome(figures=figures))
            return
        name, text, retryable = type(error).__name__, "", False
        if isinstance(error, PgstashError):
            text, retryable = error.message, error.retryable
        message = Scrubber(values.secrets()).scrub(text) or f"unexpected error: {name}"
        posted = name if self.reported else ""
        outcome.report(descriptor, Outcome(message, retryable, posted, figures))


def _log_beginning(values: Settings, command: Command) -> None:
    """Log what opens the command, then notes and warnings about the settings."""
    if command.opening:
        event_log.listen(command.opening(values))
    if command.prints_findings:
        return
    for note in values.notes:
        log.LOGGER.info("%s", note)
    for warning in values.warnings():
        log.LOGGER.warning("%s", warning)
