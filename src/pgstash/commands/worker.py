"""A worker of a fleet: takes runs from the queue, and runs each in a process of its own.

If the queue does not answer, what runs goes on, and its end is recorded later.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime

from pgstash import events
from pgstash.commands import job_runs
from pgstash.commands.job_runs import RunError
from pgstash.counting import counted
from pgstash.errors import PgstashError
from pgstash.fleet.connector import Link
from pgstash.fleet.entries import Entry, Outcome, suitable
from pgstash.fleet.heart import Heart
from pgstash.fleet.queue import Queue
from pgstash.fleet.schema import require
from pgstash.processes.children import Children, Ended
from pgstash.runtime import FollowUp, Runtime
from pgstash.service.attempt import Attempt
from pgstash.service.blackout import Blackout
from pgstash.service.dispatcher import Run
from pgstash.settings import Settings, environment_of_jobs
from pgstash.settings.fleet import split_labels

NAP = 1.0
"""Seconds from one question to the queue to the next."""

_LONGEST_PAUSE = 30.0
_SECONDS_BETWEEN_COMPARISONS = 30.0
_UNLIMITED = 1_000_000  # the workers limit what runs, and each server what is put into the queue
_BUSY = "WriterBusyError"
_SECONDS_AFTER_KILL = 5.0
_BY_SIGNAL = (-signal.SIGTERM, -signal.SIGINT, 128 + signal.SIGTERM, 128 + signal.SIGINT)


@dataclass(frozen=True, slots=True)
class Plan:
    """How a worker works: how many runs at once, near to what, and its times in seconds."""

    url: str = field(repr=False)
    workers: int
    labels: Collection[str] = ()
    timeout: float = 60.0
    grace: float = 8.0

    def opened(self) -> Queue:
        """Open the queue. Raises DatabaseError, and ConfigurationError without its tables."""
        link = Link(self.url)
        try:
            require(link)
        except BaseException:
            link.close()
            raise
        return Queue(link)


def plan_of(settings: Settings, labels: Collection[str]) -> Plan:
    """Return how this worker works, according to the settings; ``labels`` replace theirs."""
    own = split_labels(settings.worker_labels) if settings.worker_labels else []
    return Plan(
        settings.queue_url.get_secret_value() if settings.queue_url else "",
        settings.workers,
        frozenset(labels or own),
        settings.worker_timeout,
        settings.worker_grace,
    )


class Worker:
    """Takes runs from the queue, and ends them; :meth:`step` does what is to be done now."""

    def __init__(self, plan: Plan, runtime: Runtime, heart: Heart) -> None:
        """Start nothing yet."""
        self.plan = plan
        self.runtime = runtime
        self.queue: Queue | None = None
        self._heart = heart
        self._children: Children[Run] = Children(environment_of_jobs())
        self._running: dict[Run, Entry] = {}
        self._began: dict[Run, datetime] = {}
        self._cancelled: set[Run] = set()
        self._unrecorded: list[tuple[Entry, Outcome | None, bool]] = []
        self._unfinished: list[Entry] = []
        self._pause = NAP
        self._open_at = self._compare_at = float("-inf")
        self._is_lost = False

    @property
    def running(self) -> list[Run]:
        """What runs here."""
        return list(self._running)

    @property
    def number(self) -> int | None:
        """The number of this worker in the queue."""
        return self._heart.number

    def step(self, seconds: float = 1.0) -> None:
        """Wait until a run ends, for up to ``seconds`` or a nap; then do what is to be done.

        Raises Interrupted.
        """
        for each in self._children.wait(min(seconds, NAP)):
            self._over(each)
        self.runtime.interruption.raise_if_interrupted()
        try:
            if (queue := self._opened()) is not None:
                self._record(queue)
                self._cancel(queue)
                self._compare(queue)
                self._take(queue)
        except PgstashError as error:
            self._lost(error.message)

    def _opened(self) -> Queue | None:
        """Return the queue; None if it did not answer a moment ago."""
        if self.queue is not None and self.queue.is_open:
            return self.queue
        self.queue = None
        if time.monotonic() < self._open_at:
            return None
        self.queue = self.plan.opened()
        if (number := self._heart.number) is not None:
            self.queue.belongs_to(number)
        if self._is_lost:
            self.runtime.emit(events.Informed("The queue answers again"))
        self._is_lost, self._pause, self._compare_at = False, NAP, float("-inf")
        return self.queue

    def lost(self, queue: Queue, reason: str) -> None:
        """Report that planning failed with this queue, unless it was opened again since."""
        if self.queue is queue:
            self._lost(reason)

    def _lost(self, reason: str) -> None:
        if not self._is_lost:
            what = f"{reason}. What runs goes on; the queue is tried again"
            self.runtime.emit(events.Warned(what))
        if self.queue is not None:
            self.queue.close()
        self.queue, self._is_lost = None, True
        self._open_at = time.monotonic() + self._pause
        self._pause = min(self._pause * 2, _LONGEST_PAUSE)

    def _record(self, queue: Queue) -> None:
        """Record the ends of runs that the queue does not know yet."""
        while self._unrecorded:
            entry, outcome, cancelled = self._unrecorded[0]
            queue.end(entry, outcome, cancelled=cancelled)
            self._unrecorded.pop(0)

    def _cancel(self, queue: Queue) -> None:
        """End the runs that somebody cancelled."""
        runs = {entry.number: run for run, entry in self._running.items()}
        for number in queue.to_end(runs) if runs else []:
            if (run := runs[number]) not in self._cancelled:
                self.runtime.emit(events.Informed(f"The {run.work} of {run.job} is cancelled"))
                self._cancelled.add(run)
                self._children.stop(run)

    def _compare(self, queue: Queue) -> None:
        """Put back what this worker has according to the queue, but does not know of.

        The answer to a request for an entry may have been lost with the connection.
        """
        if time.monotonic() < self._compare_at or (number := self._heart.worker) is None:
            return
        known = {entry.number for entry in self._running.values()}
        for entry in queue.of_worker(number):
            if entry.number not in known:
                queue.put_back(entry)
        self._compare_at = time.monotonic() + _SECONDS_BETWEEN_COMPARISONS

    def _take(self, queue: Queue) -> None:
        """Take as many runs as may run here."""
        while len(self._running) < self.plan.workers:
            if (number := self._heart.worker) is None:
                return
            drills = sum(run.work == "drill" for run in self._running)
            # Of several places, drills leave one for backups.
            may_drill = drills < max(1, self.plan.workers - 1)
            queues = suitable(queue.waiting_queues(), self.plan.labels, drills=may_drill)
            entry = queue.take(queues, number) if queues else None
            if entry is None:
                return
            self._start(entry)

    def _start(self, entry: Entry) -> None:
        run = Run(entry.job, entry.work)
        if run in self._running:  # it was put back while it went on here
            self._running[run] = entry
            return
        self._running[run], self._began[run] = entry, self.runtime.now()
        if failure := job_runs.start(self._children, run, self.runtime, _attempt_of(entry)):
            self._failed(run, self._running.pop(run), failure)

    def _over(self, ended: Ended[Run], *, stopping: bool = False) -> None:
        run, failure = ended.key, job_runs.failure_of(ended)
        entry = self._running.pop(run)
        if failure is None:
            self._unrecorded.append((entry, None, False))
        elif run in self._cancelled:
            self._unrecorded.append((entry, _outcome_of(failure), True))
        elif stopping and (ended.was_stopped or failure.status in _BY_SIGNAL):
            self._unfinished.append(entry)
        else:
            self._failed(run, entry, failure)
        self._cancelled.discard(run)

    def _failed(self, run: Run, entry: Entry, failure: RunError) -> None:
        self._unrecorded.append((entry, _outcome_of(failure), False))
        if not failure.was_reported:
            now, attempt = self.runtime.now(), _attempt_of(entry)
            following = attempt.follow_up(failure, now, Blackout()) if attempt else FollowUp()
            seconds = (now - self._began[run]).total_seconds()
            self.runtime.emit(job_runs.event_of(run, failure, seconds, following))
        how = f" with exit status {failure.status}" if failure.status > 0 else ""
        self.runtime.emit(events.Informed(f"The {run.work} of {run.job} failed{how}"))

    @contextlib.contextmanager
    def stopping(self) -> Iterator[None]:
        """At the end of the block, let runs end for half of the grace, then end them.

        What did not end by itself is put back into the queue.
        """
        try:
            yield
        finally:
            self._stop()

    def _stop(self) -> None:
        half = self.plan.grace / 2
        if self._running:
            many = counted(len(self._running), "run")
            self.runtime.emit(events.Informed(f"Stopping: {many} may end within {half:g} s"))
        self._wait_for_children(half)
        with self._children.ending(max(half - 1, 0.5)):
            for run in list(self._running):
                self._children.stop(run, max(half - 1, 0.5))
            self._wait_for_children(half + _SECONDS_AFTER_KILL)
        self._unfinished += self._running.values()
        self._heart.stop()
        try:
            queue = self.queue if self.queue and self.queue.is_open else self.plan.opened()
            self._record(queue)
            for entry in self._unfinished:
                queue.put_back(entry)
            if (number := self._heart.number) is not None:
                for entry in queue.of_worker(number):
                    queue.put_back(entry)
                queue.leave(number)
            queue.close()
        except PgstashError as error:
            what = (
                f"{error.message}. Runs that have not ended are put back in {self.plan.timeout:g} s"
            )
            self.runtime.emit(events.Warned(what))

    def _wait_for_children(self, seconds: float) -> None:
        give_up = time.monotonic() + seconds
        while self._children and (left := give_up - time.monotonic()) > 0:
            for each in self._children.wait(left):
                self._over(each, stopping=True)


def _outcome_of(failure: RunError) -> Outcome:
    error = failure.named_there or type(failure).__name__
    return Outcome(failure.status, failure.retryable, error)


def _attempt_of(entry: Entry) -> Attempt | None:
    """Return what follows if the run fails.

    That the first worker of an entry that was put back still has the lock is no news.
    """
    if entry.attempt is None or entry.work != "backup":
        return None
    try:
        found = Attempt.read(entry.attempt)
    except (ValueError, OverflowError, RecursionError):
        return None
    if not entry.attempts:
        return found
    return replace(found, early=True, reported=frozenset({*found.reported, _BUSY}))
