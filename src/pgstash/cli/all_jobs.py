"""One command for each of several jobs in turn: the option --all-jobs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated

import typer

from pgstash.counting import counted
from pgstash.errors import ConfigurationError, OutputError, PgstashError
from pgstash.monitoring import log
from pgstash.signals import Interruption

if TYPE_CHECKING:
    from pgstash.commands.jobs import Job
    from pgstash.settings import Settings

_MOST_NAMED = 5

AllJobs = Annotated[
    bool,
    typer.Option(
        "--all-jobs",
        help="With DATABASES or a configuration file, do this for each job in turn. A failure does "
        "not stop the others; the exit status is that of the first.",
    ),
]


def refuse_both(job: str | None, *, all_jobs: bool) -> None:
    """Refuse --all-jobs together with --job. Raises BadParameter."""
    if all_jobs and job is not None:
        raise typer.BadParameter("cannot be combined with --job", param_hint="--all-jobs")


def require_several(settings: Settings) -> None:
    """Raise ConfigurationError unless there are several jobs."""
    from pgstash.settings import jobs

    if not jobs.are_several(settings):
        raise ConfigurationError(
            ["--all-jobs is given, but there is one job only: DATABASES is not set."]
        )


def in_turn(
    which: Sequence[Job],
    work: Callable[[Job], None],
    interruption: Interruption,
    *,
    quietly: bool = False,
    unreadable: Mapping[str, PgstashError] = MappingProxyType({}),
) -> None:
    """Do the work for each job; unless ``quietly``, a line of the log names it first.

    The jobs of ``unreadable`` servers are not known, each for its reason: a failure, too. Raises
    the first failure with a message that names all jobs that failed. ConfigurationError and
    OutputError end it at once: they would occur for each job.
    """
    failed: list[tuple[str, PgstashError]] = []
    for server, reason in unreadable.items():
        log.LOGGER.warning("The backups of %s cannot be listed: %s", server, reason.message)
        failed.append((f"{server}/*", reason))
    if not (which or failed or quietly):
        log.LOGGER.info("No job has backups.")
    every = len(which) + len(failed)
    for job in which:
        if not quietly:
            log.LOGGER.info("Job %s", log.printable(job.name))
        try:
            work(job)
        except (ConfigurationError, OutputError):
            raise
        except PgstashError as error:
            log.LOGGER.debug("Traceback of the failure", exc_info=error)
            hint = f"\n{error.hint}" if error.hint else ""
            log.LOGGER.warning("Job %s failed: %s%s", log.printable(job.name), error.message, hint)
            failed.append((job.name, error))
        interruption.raise_if_interrupted()
    if not failed:
        return
    named = ", ".join(log.printable(name) for name, _ in failed[:_MOST_NAMED])
    more = f" and {counted(len(failed) - _MOST_NAMED, 'other')}" if failed[_MOST_NAMED:] else ""
    first = failed[0][1]
    first.message = f"{len(failed)} of {counted(every, 'job')} failed: {named}{more}"
    first.hint = ""
    raise first
