"""The loop of the service: run the job when it is due, until a signal ends it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import NoReturn

from pgstash import events
from pgstash.errors import PgstashError
from pgstash.monitoring.log import LOGGER
from pgstash.runtime import Runtime
from pgstash.service.retries import Retries

LONGEST_NAP = 30.0
"""Seconds after which the wall clock is read again: after a suspend, or if the clock was set, a due
run starts late by that much at most."""

SET_BACK = timedelta(minutes=1)
"""If the clock goes back by more, the next run is planned again; less is a correction."""


def run(
    job: Callable[[Runtime], object],
    retries: Retries,
    runtime: Runtime,
    sleep: Callable[[float], None] = time.sleep,
) -> NoReturn:
    """Run the job whenever ``retries`` plans it, one run after the other.

    The runtime that the job is given reports what follows a failure. Only two errors end the loop:
    Interrupted, which a signal raises in ``sleep`` or after a job that deferred it, and an error
    that ends the service according to ``retries``.
    """
    given = replace(runtime, follow_up=retries.follow_up)
    number = 0
    if retries.next_run.reason:
        _wait(runtime.now(), retries, runtime, sleep)
    while True:
        number += 1
        started = runtime.now()
        retries.begin()
        runtime.emit(events.IterationStarted(number))
        _survive(job, given, retries)
        runtime.interruption.raise_if_interrupted()
        _wait(started, retries, runtime, sleep)


def _survive(job: Callable[[Runtime], object], runtime: Runtime, retries: Retries) -> None:
    """Run the job, and plan the next run. Raises an error that ends the service."""
    try:
        job(runtime)
    except PgstashError as error:  # the job has reported it
        retries.follow_up(error)
        if retries.ends_service(error):
            LOGGER.info("The service ends: another try would not fix this.")
            raise
        LOGGER.debug("Traceback of the failure", exc_info=error)
    except Exception as error:  # noqa: BLE001 - a service survives unexpected errors
        retries.follow_up(error)
        LOGGER.exception("Unexpected error. Please report it. The service continues.")
    else:
        retries.succeeded()


def _wait(
    started: datetime, retries: Retries, runtime: Runtime, sleep: Callable[[float], None]
) -> None:
    """Wait until the planned run is due; the last one, if any, began at ``started``."""
    seen, due = started, retries.next_run
    planned = False
    while True:
        now = runtime.now()
        if seen - now > SET_BACK:
            seconds = round((seen - now).total_seconds())
            runtime.emit(events.Warned(f"The clock was set back by {seconds}s"))
            due, planned = retries.plan_again(), False
        seen = now
        left = (due.at - now).total_seconds()
        if not planned:
            planned = True
            runtime.emit(events.NextRunPlanned(due.at, max(left, 0.0), due.reason))
        if left <= 0:
            return
        sleep(min(left, LONGEST_NAP))
