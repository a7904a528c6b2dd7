"""`pgstash worker`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from pgstash.cli.runner import Command, run
from pgstash.events import Emit
from pgstash.runtime import Runtime
from pgstash.signals import Interruption

if TYPE_CHECKING:
    from pgstash.settings import Settings


def worker(
    label: Annotated[
        list[str] | None,
        typer.Option(
            "--label",
            help="What this worker is near to, instead of WORKER_LABELS; may be given several "
            "times. It runs jobs with one of these labels, and those without any.",
            metavar="LABEL",
        ),
    ] = None,
) -> None:
    """Run as one of several workers that share a queue: QUEUE_URL.

    Start it on any number of machines, each with the same configuration. One of them, whichever is
    alive, decides what is due and puts it into the queue; each of them takes runs from there, at
    most WORKERS at once. After SIGTERM, what does not end within WORKER_GRACE is put back into the
    queue. Create the queue with `pgstash queue migrate` first.
    """

    def work(values: Settings, emit: Emit, interruption: Interruption) -> None:
        from pgstash.commands import fleet

        fleet.work(values, Runtime(emit, interruption), label or [])

    run(work, Command(all_jobs=True))
