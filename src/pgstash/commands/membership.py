"""Works as a member of a fleet, and leads it if nobody else does.

The one that leads decides what is due, as the service of one machine does, and puts it into the
queue.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Collection
from dataclasses import replace
from typing import NoReturn

from pgstash import events
from pgstash.commands.planner import Planner, QueueClock, QueueLostError, answered
from pgstash.commands.service_of_jobs import Service
from pgstash.commands.worker import NAP, Worker, plan_of
from pgstash.commands.worker_health import WorkerHealth
from pgstash.fleet.heart import Heart
from pgstash.fleet.queue import Queue
from pgstash.monitoring import probes
from pgstash.monitoring.jobs_health import JobsHealth
from pgstash.runtime import Runtime
from pgstash.settings import Settings

_SOON = 60.0  # seconds; planning that failed this early fails perhaps each time
_LONGEST_PAUSE = 60.0
_UNLIMITED = 1_000_000  # the workers limit what runs, and each server what is put into the queue


def work(settings: Settings, runtime: Runtime, labels: Collection[str] = ()) -> NoReturn:
    """Work until a signal raises Interrupted.

    Raises ConfigurationError, also for a port that is not available, and DatabaseError if the queue
    does not answer at the start.
    """
    plan = plan_of(settings, labels)
    heart = Heart(plan.opened, plan.timeout, runtime.emit)
    known = WorkerHealth(heart)
    worker = Worker(plan, runtime, heart)
    with contextlib.ExitStack() as stack:
        if settings.health_port is not None:
            stack.enter_context(probes.serving(settings.health_port, known))
        stack.enter_context(heart.beating())
        stack.enter_context(worker.stopping())
        near = f", near {', '.join(sorted(plan.labels))}" if plan.labels else ""
        what = (
            f"Worker {heart.number} on {socket.gethostname()}: up to {plan.workers} at once{near}"
        )
        runtime.emit(events.Informed(what))
        pause, plan_at = NAP, time.monotonic()
        while True:
            worker.step()
            if (queue := worker.queue) is None or (began := time.monotonic()) < plan_at:
                continue
            try:
                _lead_if_nobody_does(settings, worker, queue, known)
            except QueueLostError as error:
                worker.lost(queue, str(error))
                # What fails each time at once must not read the whole store each time.
                failed_at = time.monotonic()
                pause = min(pause * 2, _LONGEST_PAUSE) if failed_at - began < _SOON else NAP
                plan_at = failed_at + pause


def _lead_if_nobody_does(
    settings: Settings, worker: Worker, queue: Queue, known: WorkerHealth
) -> None:
    """Plan the runs of all jobs, and work, until the queue is lost, unless another worker does.

    Raises QueueLostError.
    """
    with answered():
        if not queue.leads():
            if queue.depose(worker.plan.timeout):
                worker.runtime.emit(events.Warned("The worker that planned the runs was dead"))
            return
    clock = QueueClock(queue)
    runtime = replace(worker.runtime, now=clock.now)
    planner = Planner(queue, runtime, worker.plan.timeout, worker.step)
    state = JobsHealth(clock.now)
    service = Service(settings, runtime, planner, state, at_once=_UNLIMITED)
    runtime.emit(events.Informed("This worker plans the runs of all jobs"))
    known.leads(state)
    try:
        while True:
            clock.set_if_late()
            service.step()
    finally:
        known.leads(None)
