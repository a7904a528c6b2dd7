"""`pgstash queue migrate` and the other commands for the queue of a fleet."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pgstash.cli.arguments import Json
from pgstash.cli.output import print_line, print_table
from pgstash.cli.runner import Command, run
from pgstash.counting import counted
from pgstash.events import Emit
from pgstash.format.iso_time import iso
from pgstash.monitoring import log
from pgstash.signals import Interruption

if TYPE_CHECKING:
    from pgstash.fleet.administration import Overview, Run
    from pgstash.settings import Settings

app = typer.Typer(
    name="queue",
    help="Create the queue of `pgstash worker`, show it, and change what is in it: QUEUE_URL.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

_COMMAND = Command(needs=(), prints_findings=True, all_jobs=True)
_STATES = {"todo": "waiting", "doing": "running"}

Numbers = Annotated[
    list[int],
    typer.Argument(metavar="ID", help="The number of a run, as `pgstash queue status` shows it."),
]


@app.command()
def migrate() -> None:
    """Create the tables of the queue in the database of QUEUE_URL, or bring them up to date.

    They are in a schema of their own, pgstash_queue. Run it after each upgrade of pgstash; workers
    may go on meanwhile. All of it happens, or nothing.
    """

    def work(values: Settings, _emit: Emit, _interruption: Interruption) -> None:
        from pgstash.commands import fleet

        applied = fleet.migrate(values)
        print_line(f"Applied: {', '.join(applied)}" if applied else "The queue is up to date.")

    run(work, _COMMAND)


@app.command()
def status(*, as_json: Json = False) -> None:
    """Show the workers, what waits and runs, and the last runs that failed."""

    def work(values: Settings, _emit: Emit, _interruption: Interruption) -> None:
        from pgstash.commands import fleet

        found = fleet.overview(values)
        if as_json:
            print_line(json.dumps(_facts(found), indent=2))
            return
        _show(found)

    run(work, _COMMAND)


@app.command()
def retry(
    numbers: Annotated[
        list[int] | None,
        typer.Argument(metavar="ID", help="The number of a failed run."),
    ] = None,
    *,
    all_failed: Annotated[
        bool, typer.Option("--failed", help="All failed runs that no later run has replaced.")
    ] = False,
) -> None:
    """Let failed runs run again at once."""
    if bool(numbers) == all_failed:
        raise typer.BadParameter("give numbers of runs, or --failed", param_hint="ID")

    def work(values: Settings, _emit: Emit, _interruption: Interruption) -> None:
        from pgstash.commands import fleet

        done, refused = fleet.retry(values, None if all_failed else numbers)
        print_line(f"{counted(done, 'run')} put into the queue again.")
        _refuse(refused, "no failed run, or the same run waits or runs already")

    run(work, _COMMAND)


@app.command()
def cancel(numbers: Numbers) -> None:
    """Remove runs that wait from the queue, and end those that run.

    The worker of a run ends it within a few seconds, and nothing of it becomes visible in the
    store. The job runs again at its next scheduled time.
    """

    def work(values: Settings, _emit: Emit, _interruption: Interruption) -> None:
        from pgstash.commands import fleet

        done, refused = fleet.cancel(values, numbers)
        print_line(f"{counted(done, 'run')} cancelled.")
        _refuse(refused, "no run that waits or runs")

    run(work, _COMMAND)


def _refuse(numbers: list[int], why: str) -> None:
    """Raise BadParameter if there are numbers that no change was possible for."""
    if numbers:
        named = ", ".join(map(str, numbers))
        raise typer.BadParameter(
            f"{named}: {why}. `pgstash queue status` shows the runs", param_hint="ID"
        )


def _show(found: Overview) -> None:
    workers = [["WORKER", "STATE", "LAST SIGN OF LIFE", "RUNS"]]
    workers += [
        [str(each.number), "alive" if each.is_alive else "dead", iso(each.seen), str(each.running)]
        for each in found.workers
    ]
    print_table(workers)
    print_line("")
    runs = [["ID", "JOB", "RUN", "STATE", "SINCE", "WORKER", "LABELS", "EXIT STATUS"]]
    runs += [
        [
            str(each.number),
            log.printable(each.job),
            log.printable(each.work),
            _state(each),
            _time(each.at) or "-",
            str(each.worker or "-"),
            log.printable(each.labels) or "-",
            str(each.status) if each.state == "failed" and each.status is not None else "-",
        ]
        for each in found.runs
    ]
    print_table(runs)


def _state(found: Run) -> str:
    return _STATES.get(found.state, found.state)


def _time(moment: datetime | None) -> str | None:
    return iso(moment) if moment else None


def _facts(found: Overview) -> dict[str, Any]:
    return {
        "workers": [{**asdict(each), "seen": iso(each.seen)} for each in found.workers],
        "runs": [
            {**asdict(each), "state": _state(each), "at": _time(each.at)} for each in found.runs
        ],
        "counts": {_STATES.get(state, state): many for state, many in found.counts.items()},
    }
