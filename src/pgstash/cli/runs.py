"""`pgstash once` and `pgstash backup`."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from pgstash.cli.arguments import Job, ReportTo
from pgstash.cli.runner import Command, run
from pgstash.events import Emit
from pgstash.runtime import FollowUp, Runtime
from pgstash.service import loop
from pgstash.service.attempt import Attempt
from pgstash.signals import Interruption

if TYPE_CHECKING:
    from pgstash.settings import Settings

Planned = Annotated[Attempt | None, typer.Option("--attempt", parser=Attempt.read, hidden=True)]
"""Which attempt of a service this is."""


def once(*, job: Job = None, report_to: ReportTo = None, attempt: Planned = None) -> None:
    """Back up the database once: for cron, a Kubernetes CronJob, or by hand.

    Afterwards, backups that the retention settings no longer keep are deleted, and the backup is
    copied to the stores of COPY_TO; if only that fails, it is a warning. Exit status 0 means that a
    complete backup is in the store. With DATABASES or a configuration file, all databases are
    backed up, each in a process of its own; exit status 53 means that at least one of them failed.
    """

    def work(values: Settings, emit: Emit, interruption: Interruption) -> None:
        from pgstash.settings import jobs

        runtime = Runtime(emit, interruption)
        if jobs.are_several(values):
            from pgstash.commands.once_for_all import back_up_all

            back_up_all(values, runtime)
            return
        from pgstash.commands.backup import back_up_and_copy
        from pgstash.commands.schedules import blackout_of

        def follow_up(error: BaseException) -> FollowUp:
            if attempt is None:
                return FollowUp()
            return attempt.follow_up(error, runtime.now(), blackout_of(values))

        back_up_and_copy(values, replace(runtime, follow_up=follow_up))

    run(work, Command(job=job, all_jobs=True, report_to=report_to))


def backup() -> None:
    """Run as a service: back up now, then repeatedly on a schedule.

    BACKUP_SCHEDULE sets the times of further runs; without it, a run starts every BACKUP_INTERVAL
    seconds. A failed run is logged. If another try may succeed, it follows in a minute, then after
    twice the time, until the next scheduled run. With BACKUP_ON_START=false the first run is due
    when the newest stored backup is an interval old. SIGTERM or SIGINT ends the service and a
    running backup. With VERIFY_INTERVAL the service also runs drills, like `pgstash drill`. With
    DATABASES or a configuration file, each database is backed up in a process of its own, when its
    own backup is due.
    """
    from pgstash.commands import fleet

    def work(values: Settings, emit: Emit, interruption: Interruption) -> None:
        from pgstash.settings import jobs

        fleet.refuse_service(values)
        if jobs.are_several(values):
            from pgstash.commands import service_of_jobs

            service_of_jobs.serve(values, Runtime(emit, interruption))
        from pgstash.commands import service

        with service.health_port(values, emit) as emit_all:
            runtime = Runtime(emit_all, interruption)
            with service.copies(values, runtime) as copy:
                loop.run(
                    lambda given: service.back_up_and_drill(values, given, copy),
                    service.plan(values, runtime),
                    runtime,
                )

    run(work, Command(all_jobs=True))
