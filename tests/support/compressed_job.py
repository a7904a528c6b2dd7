"""One backup of one of many jobs, at another time: ``compressed_job.py once --job=… …``.

Everything is as in ``pgstash once --job``, but that the time is later by the seconds that are in
the file ``COMPRESSED_BY``.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from pgstash.cli.runner import Command, run
from pgstash.commands.backup import back_up
from pgstash.commands.schedules import blackout_of
from pgstash.runtime import FollowUp, Runtime, utc_now
from pgstash.service.attempt import Attempt

if TYPE_CHECKING:
    from pgstash.events import Emit
    from pgstash.settings import Settings
    from pgstash.signals import Interruption

VARIABLE = "COMPRESSED_BY"


def main(options: dict[str, str]) -> None:
    """Run the backup."""
    later = timedelta(seconds=float(Path(os.environ[VARIABLE]).read_text()))
    attempt = Attempt.read(options["--attempt"])

    def now() -> datetime:
        return utc_now() + later

    def work(values: Settings, emit: Emit, interruption: Interruption) -> None:
        def follow_up(error: BaseException) -> FollowUp:
            return attempt.follow_up(error, now(), blackout_of(values))

        runtime = replace(Runtime(emit, interruption, now=now), follow_up=follow_up)
        back_up(values, runtime, server_now=lambda _: now())

    run(work, Command(job=options["--job"], report_to=int(options["--report-to"])))


if __name__ == "__main__":
    try:
        main(dict(each.split("=", 1) for each in sys.argv[2:]))
    except typer.Exit as done:
        sys.exit(done.exit_code)
