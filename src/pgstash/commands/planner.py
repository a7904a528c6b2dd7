"""Puts the runs of a service into the queue, and finds out how they ended, for the one that leads.

The session of the queue that makes a worker lead is the one that it puts runs into the queue with:
when the session is lost, another worker leads, and this one can put nothing into the queue.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from pgstash import events
from pgstash.commands.job_runs import RunError
from pgstash.commands.jobs import Job
from pgstash.errors import PgstashError
from pgstash.fleet import entries
from pgstash.fleet.entries import Entry, Planned
from pgstash.runtime import Runtime
from pgstash.service import dispatcher
from pgstash.service.attempt import Attempt
from pgstash.service.dispatcher import Run, Stored
from pgstash.settings import Settings

if TYPE_CHECKING:
    from pgstash.fleet.queue import Queue

_SECONDS_BETWEEN_SETTINGS_OF_CLOCK = 60.0
_SECONDS_BETWEEN_REMOVALS = 60.0
_CANCELLED = "Cancelled"  # names in place of an error, of what is reported elsewhere
_REMOVED = "Removed"
_THERE = "AlreadyThere"
_NOT_UNICODE = (
    "the name is not in UTF-8, so the queue cannot hold it. Rename the database, or back it up "
    "with `pgstash once --job`"
)
_ENDED = (entries.SUCCEEDED, entries.FAILED, entries.CANCELLED, entries.ABORTED)


class QueueLostError(Exception):
    """The queue does not answer, so this worker leads no more."""


@contextlib.contextmanager
def answered() -> Iterator[None]:
    """Raise QueueLostError if the queue does not answer in the block."""
    try:
        yield
    except PgstashError as error:
        raise QueueLostError(error.message) from error


class QueueClock:
    """The clock of the queue's server, so that it does not matter which worker plans."""

    def __init__(self, queue: Queue) -> None:
        """Ask for the time."""
        self._queue = queue
        self.set()

    def set(self) -> None:
        """Ask again. Raises QueueLostError."""
        before = time.monotonic()
        with answered():
            self._time = self._queue.now()
        self._at = (before + time.monotonic()) / 2

    def set_if_late(self) -> None:
        """Ask again if that was long ago. Raises QueueLostError."""
        if time.monotonic() - self._at > _SECONDS_BETWEEN_SETTINGS_OF_CLOCK:
            self.set()

    def now(self) -> datetime:
        """Return the time in UTC."""
        return self._time + timedelta(seconds=time.monotonic() - self._at)


@dataclass(frozen=True, slots=True)
class _Facts:
    """What is needed to put a job into the queue."""

    server: str
    most_at_once: int
    labels: tuple[str, ...]


class Planner:
    """The executor of a service whose runs are in the queue."""

    def __init__(
        self,
        queue: Queue,
        runtime: Runtime,
        timeout: float,
        wait: Callable[[float], None],
    ) -> None:
        """Read what is under way. ``wait`` does what else this process has to do.

        A worker is dead after ``timeout`` seconds without a sign of life. ``runtime`` has the clock
        of the queue. Raises QueueLostError.
        """
        self._queue = queue
        self._runtime = runtime
        self._timeout = timeout
        self._wait = wait
        self._facts: dict[str, _Facts] = {}
        self._found: dict[str, Entry] = {}
        with answered():
            self._last = queue.last_successes()
            for entry in queue.under_way():
                self._found.setdefault(entry.job, entry)
        self._there: dict[Run, Entry] = {}
        self._leads_since = self._looked = time.monotonic()
        self._removed = float("-inf")

    def added(self, job: Job, planned: dispatcher.Job, stored: Stored) -> Stored:
        """Return when the last backup was planned, if that is later than when the stored one began.

        The clocks of the workers, which name backups, may differ. What was planned in the future,
        by a clock that was wrong, counts for nothing: else no backup would be due until then.
        """
        origin = job.settings.origin
        database = job.name.removeprefix(f"{origin.server}/")
        labels = origin.config.labels(origin.server, database) if origin.config else ()
        self._facts[job.name] = _Facts(planned.server, planned.most_at_once, labels)
        last = self._last.get((job.name, "backup"))
        if last is None or last > self._runtime.now():
            return stored
        if stored.backup and stored.backup > last:
            return stored
        return replace(stored, backup=last) if stored.backup else stored

    def at_once(self, _settings: Settings) -> bool:
        """Return False: another worker that leads now is no start of the fleet."""
        return False

    def under_way(self, name: str) -> Run | None:
        """Return the run of a job that is in the queue, if there is one."""
        if (entry := self._found.pop(name, None)) is None:
            return None
        run = Run(entry.job, entry.work)
        self._there[run] = entry
        return run

    def start(self, run: Run, attempt: Attempt | None) -> RunError | None:
        """Put a run into the queue; return why it cannot be there. Raises QueueLostError."""
        if not _is_unicode(run.job):
            return RunError(_NOT_UNICODE, 70, retryable=False)
        facts = self._facts[run.job]
        lock = f"drill of {run.job}"
        if run.work == "backup":
            taken = {entry.lock for entry in self._there.values()}
            lock = entries.free_slot(facts.server, facts.most_at_once, taken)
        planned = Planned(
            run.job,
            run.work,
            lock,
            self._runtime.now(),
            facts.labels,
            attempt.text() if attempt else None,
        )
        with answered():
            # Somebody may have put a failed run back by hand.
            entry = self._queue.under_way_of(planned) or self._queue.put(planned)
        if entry is None:
            return RunError("it waits in the queue already", 0, retryable=True, error=_THERE)
        self._there[run] = entry
        return None

    def wait(self, seconds: float) -> Iterable[tuple[Run, RunError | None]]:
        """Do what else there is to do, and return the runs that have ended.

        Raises QueueLostError.
        """
        self._wait(seconds)
        numbers = {entry.number: run for run, entry in self._there.items()}
        with answered():
            self._look_after_workers()
            found = self._queue.of_numbers(numbers)
        ended = []
        for entry in found:
            if entry.status in _ENDED:
                run = numbers[entry.number]
                del self._there[run]
                ended.append((run, _failure_of(entry)))
        for number in numbers.keys() - {entry.number for entry in found}:
            run = numbers[number]
            del self._there[run]
            lost = RunError(
                "its entry was removed from the queue", 0, retryable=True, error=_REMOVED
            )
            ended.append((run, lost))
        return ended

    def _look_after_workers(self) -> None:
        """Put back what dead workers have left, and remove what ended long ago."""
        now = time.monotonic()
        if now - self._looked < self._timeout / 4 or now - self._leads_since < self._timeout:
            return
        self._looked = now
        for each in self._queue.put_back_stalled(self._timeout):
            what = f"The worker of the {each.entry.work} of {each.entry.job} is dead"
            then = "this is not tried again at once" if each.given_up else "another one takes it"
            self._runtime.emit(events.Warned(f"{what}: {then}"))
        if now - self._removed > _SECONDS_BETWEEN_REMOVALS:
            self._removed = now
            self._queue.forget_old()


def _is_unicode(name: str) -> bool:
    """Return whether a name has no bytes that could not be decoded: PostgreSQL takes any."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _failure_of(entry: Entry) -> RunError | None:
    """Return how a run failed; the worker that ran it has reported that, unless it died."""
    if entry.status == entries.SUCCEEDED:
        return None
    if entry.status in (entries.CANCELLED, entries.ABORTED):
        return RunError("it was cancelled", 0, retryable=False, error=_CANCELLED)
    found = entry.outcome
    if found is None:
        return RunError("its end is unknown", 0, retryable=True)
    message = "see the log of the worker that ran it" if found.error else "its workers died"
    return RunError(message, found.status, retryable=found.retryable, error=found.error)
