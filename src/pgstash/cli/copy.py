"""`pgstash copy`."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from pgstash import events
from pgstash.cli.all_jobs import AllJobs, in_turn, refuse_both, require_several
from pgstash.cli.arguments import Job, Source, refuse_needless
from pgstash.cli.outcome import JsonOutcome, scrubbed
from pgstash.cli.output import print_line
from pgstash.cli.runner import Command, run
from pgstash.errors import OutputError
from pgstash.monitoring.redaction import Scrubber
from pgstash.runtime import Runtime
from pgstash.signals import Interruption

if TYPE_CHECKING:
    from pgstash.commands.copying import Request
    from pgstash.settings import Need, Settings


def copy(  # noqa: PLR0913 - one argument for each option
    name: Annotated[
        str,
        typer.Argument(
            metavar="BACKUP",
            help="latest, the name of a backup or the end of it, or its time as `pgstash list` "
            "shows it.",
        ),
    ] = "latest",
    *,
    to: Annotated[
        list[str] | None,
        typer.Option(
            "--to",
            help="Copy to this place: a name in COPY_TO, an existing folder (a path with a /), or "
            "the URL of another store, which is opened with the settings of the primary. May be "
            "given several times. Without it, to all of COPY_TO.",
            metavar="PLACE",
        ),
    ] = None,
    everything: Annotated[
        bool,
        typer.Option(
            "--all",
            help="Copy all backups of the source that the place lacks, the newest first.",
        ),
    ] = False,
    source: Source = None,
    job: Job = None,
    all_jobs: AllJobs = False,
    as_json: JsonOutcome = False,
) -> None:
    """Copy a backup to other stores, or to a folder such as a disk that is taken home.

    The copy has the same objects with the same names, and needs no encryption key. The archive is
    compared with the SHA-256 that its manifest records, and becomes visible once it is complete.
    What the place has already is not sent again. Nothing there is overwritten or deleted.
    --all-jobs copies the latest backup of each database that has some, with --all all of them.
    """
    option = "--all" if everything else "--all-jobs"
    if (everything or all_jobs) and name != "latest":
        raise typer.BadParameter("cannot be combined with the name of a backup", param_hint=option)
    refuse_needless(source, name)
    refuse_both(job, all_jobs=all_jobs)
    from pgstash.commands import copy_targets, copying, jobs

    request = copying.Request(to or (), name, source, everything)

    def work(values: Settings, emit: events.Emit, interruption: Interruption) -> None:
        def one(settings: Settings) -> None:
            with _reporting(settings, emit, as_json=as_json) as listener:
                copying.copy_backups(settings, request, Runtime(listener, interruption))

        if not all_jobs:
            one(values)
            return
        require_several(values)
        which = jobs.with_backups(values)
        copy_targets.refuse_one_place([each.settings for each in which.jobs], request.to)
        in_turn(
            which.jobs,
            lambda each: one(each.settings),
            interruption,
            unreadable=which.unreadable,
        )

    run(
        work,
        Command(
            needs=_needs(request),
            only_reads=True,
            stdout_is_data=as_json,
            job=job,
            all_jobs=all_jobs,
            sums_up=all_jobs,
        ),
    )


def _needs(request: Request) -> Sequence[Need]:
    """Return what must be configured: the copies only if one of them is wanted."""
    if request.to and all("/" in place for place in request.to):
        return ["storage"]
    return ["storage", "copies"]


@contextlib.contextmanager
def _reporting(settings: Settings, emit: events.Emit, *, as_json: bool) -> Iterator[events.Emit]:
    """Yield where the events go; print the outcome if ``as_json``. Raises OutputError."""
    outcome = _Outcome(emit)
    try:
        yield outcome
    except BaseException:
        if as_json and outcome.copies:
            with contextlib.suppress(OutputError):  # the error matters more, and has its status
                outcome.print(settings)
        raise
    if as_json:
        outcome.print(settings)


class _Outcome:
    """Collects the events of one command."""

    def __init__(self, emit: events.Emit) -> None:
        """Pass all events on to ``emit``."""
        self._emit = emit
        self._warnings: list[str] = []
        self.copies: list[dict[str, object]] = []

    def __call__(self, event: events.Event) -> None:
        """Take an event."""
        match event:
            case events.CopySucceeded():
                self.copies.append(
                    _described(event, "present" if event.already else "copied")
                    | {
                        "location": event.location,
                        "sent_bytes": event.sent_bytes,
                        "inside_bytes": event.inside_bytes,
                        "verified": event.verified,
                        "exit_code": 0,
                    }
                )
            case events.CopyFailed():
                self.copies.append(
                    _described(event, "failed")
                    | {
                        "message": event.message,
                        "hint": event.hint,
                        "error": event.error,
                        "exit_code": event.exit_code,
                    }
                )
            case events.Warned():
                self._warnings.append(event.message)
            case _:
                pass
        self._emit(event)

    def print(self, settings: Settings) -> None:
        """Print the outcome without secrets. Raises OutputError."""
        failed = [each for each in self.copies if each["exit_code"]]
        facts: dict[str, object] = {"job": settings.job} if settings.job else {}
        facts |= {
            "operation": "copy",
            "status": "failure" if failed else "success",
            "copies": self.copies,
            "warnings": self._warnings,
            "exit_code": failed[0]["exit_code"] if failed else 0,
        }
        print_line(json.dumps(scrubbed(facts, Scrubber(settings.secrets()).scrub)))


def _described(event: events.CopySucceeded | events.CopyFailed, status: str) -> dict[str, object]:
    return {
        "backup": event.name or None,
        "copy": event.copy,
        "status": status,
        "seconds": round(event.seconds, 3),
    }
