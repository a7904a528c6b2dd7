"""What workers do with the queue: plan, take, end, and put back what a dead worker has left.

Two faults of procrastinate are avoided here. A worker that is considered dead loses its row, and
its entries run for nobody: they are put back before the row is removed, and a worker that comes
back finds out and gets a new row. And an entry that cannot be put back, because another one with
the same lock waits, would hold its other lock for ever: it is ended as failed, and the waiting one
takes its place.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import datetime

from procrastinate import exceptions
from procrastinate import jobs as procrastinate_jobs

from pgstash.fleet.connector import at_once
from pgstash.fleet.entries import (
    ABORTED,
    FAILED,
    RUNNING,
    SUCCEEDED,
    WAITING,
    Entry,
    Outcome,
    Planned,
    UnreadableError,
    Work,
)
from pgstash.fleet.membership import Membership

MOST_ATTEMPTS = 3
"""How often an entry is put back, after workers died with it, before it counts as failed."""

DIED = Outcome(-9, retryable=True, error="")

_DAYS_KEPT = 14
_REMOVED_AT_ONCE = 1000
_LATEST = 100_000
_COLUMNS = "SELECT id, task_name, args, status, lock, attempts FROM procrastinate_jobs "


@dataclass(frozen=True, slots=True)
class PutBack:
    """An entry of a worker that died; ``given_up`` if that happened too often."""

    entry: Entry
    given_up: bool


class Queue(Membership):
    """The queue, in one session.

    Methods raise DatabaseError, and ConfigurationError for what the schema or the role lacks; then
    the session is closed.
    """

    def under_way_of(self, planned: Planned) -> Entry | None:
        """Return the entry for the same run, if one waits or runs."""
        query = _COLUMNS + (
            "WHERE queueing_lock = %(lock)s AND status IN ('todo', 'doing') ORDER BY id LIMIT 1"
        )
        return next(iter(self._entries(query, lock=planned.queueing_lock)), None)

    def put(self, planned: Planned) -> Entry | None:
        """Put a run into the queue; return None if the same run waits there already."""
        job = procrastinate_jobs.Job(
            queue=planned.queue,
            priority=planned.priority,
            lock=planned.lock,
            queueing_lock=planned.queueing_lock,
            task_name=planned.work,
            task_kwargs=planned.arguments(),  # type: ignore[arg-type] # objects of JSON
        )
        try:
            with self._link.translated():
                number = self._link.manager.defer_job(job).id or 0
        except exceptions.AlreadyEnqueued:
            return None
        return Entry(number, planned.job, planned.work, WAITING, planned.since, lock=planned.lock)

    def waiting_queues(self) -> list[str]:
        """Return the names of procrastinate's queues that have waiting entries."""
        query = "SELECT DISTINCT queue_name FROM procrastinate_jobs WHERE status = 'todo'"
        with self._link.translated():
            return [str(row["queue_name"]) for row in self._link.rows(query)]

    def take(self, queues: Collection[str], worker: int) -> Entry | None:
        """Take the first entry whose lock is free from these queues, for a worker.

        An entry that pgstash did not write is ended as failed.
        """
        try:
            return self._take(queues, worker)
        except exceptions.UniqueViolation:  # another worker took one with its lock, just now
            return None

    def _take(self, queues: Collection[str], worker: int) -> Entry | None:
        with self._link.translated(whole=True):
            found = at_once(self._link.manager.fetch_job(queues=list(queues), worker_id=worker))
            if found is None or found.id is None:
                return None
            [row] = self._link.rows(_COLUMNS + "WHERE id = %(id)s", id=found.id)
            try:
                return Entry.read(row)
            except UnreadableError:
                self._finish(found.id, FAILED)
                return None

    def under_way(self) -> list[Entry]:
        """Return the entries that wait or run, oldest first."""
        return self._entries(_COLUMNS + "WHERE status IN ('todo', 'doing') ORDER BY id")

    def of_numbers(self, numbers: Collection[int]) -> list[Entry]:
        """Return entries by their numbers."""
        return self._entries(_COLUMNS + "WHERE id = ANY(%(ids)s)", ids=list(numbers))

    def last_successes(self) -> dict[tuple[str, Work], datetime]:
        """Return for each job and kind when its last run that succeeded was planned.

        Only the latest entries count, so that it takes no longer with more of them.
        """
        query = (
            "SELECT DISTINCT ON (task_name, args->>'job') id, task_name, args, status, lock, "
            "attempts FROM procrastinate_jobs WHERE status = 'succeeded' AND id > (SELECT "
            "coalesce(max(id), 0) FROM procrastinate_jobs) - %(latest)s "
            "ORDER BY task_name, args->>'job', id DESC"
        )
        found = self._entries(query, latest=_LATEST)
        return {(each.job, each.work): each.since for each in found}

    def to_end(self, numbers: Collection[int]) -> list[int]:
        """Return those of the entries that run and that somebody wants to be ended."""
        query = (
            "SELECT id FROM procrastinate_jobs WHERE abort_requested AND status = 'doing' "
            "AND id = ANY(%(ids)s)"
        )
        with self._link.translated():
            return [int(row["id"]) for row in self._link.rows(query, ids=list(numbers))]

    def of_worker(self, worker: int) -> list[Entry]:
        """Return the entries that run at a worker, according to the queue."""
        query = _COLUMNS + "WHERE status = 'doing' AND worker_id = %(worker)s"
        return self._entries(query, worker=worker)

    def end(self, entry: Entry, outcome: Outcome | None, *, cancelled: bool = False) -> bool:
        """Record that a run has ended, with an outcome if it failed.

        The entry may have been put back meanwhile, because its worker seemed to be dead. If it
        waits, a success is still recorded; if another worker has it, nothing is. Return
        whether it was recorded.
        """
        status = SUCCEEDED if outcome is None else ABORTED if cancelled else FAILED
        query = "SELECT status, attempts FROM procrastinate_jobs WHERE id = %(id)s FOR UPDATE"
        with self._link.translated(whole=True):
            rows = self._link.rows(query, id=entry.number)
            ours = any(
                (row["status"] == RUNNING and row["attempts"] == entry.attempts)
                or (row["status"] == WAITING and outcome is None)
                for row in rows
            )
            if ours:
                self._finish(entry.number, status, outcome)
        return ours

    def put_back(self, entry: Entry) -> bool:
        """Let another worker take an entry that runs; return whether it waits again.

        If it was to be cancelled, or another entry for the same run waits, it ends as failed.
        """
        query = _COLUMNS + (
            "WHERE id = %(id)s AND status = 'doing' AND attempts = %(attempts)s FOR UPDATE"
        )
        try:
            with self._link.translated(whole=True):
                if self._link.rows(query, id=entry.number, attempts=entry.attempts):
                    return self._retry(entry.number)
        except exceptions.UniqueViolation:  # just now; who leads puts it back later
            pass
        return False

    def _retry(self, number: int) -> bool:
        query = (
            "SELECT NOT EXISTS (SELECT FROM procrastinate_jobs AS other WHERE status = 'todo' "
            "AND other.queueing_lock = entry.queueing_lock) AND NOT entry.abort_requested "
            "AS may_wait, now() AS now FROM procrastinate_jobs AS entry WHERE id = %(id)s"
        )
        [row] = self._link.rows(query, id=number)
        if not row["may_wait"]:
            self._finish(number, FAILED, DIED)
            return False
        # By the clock of the server: one of this machine that is ahead would let it wait.
        self._link.manager.retry_job_by_id(number, row["now"])
        return True

    def put_back_stalled(self, seconds: float) -> list[PutBack]:
        """Put back what runs at workers without a sign of life for ``seconds``, and remove these.

        Only for a session that leads, and that has done so for as long: after an outage of the
        queue all workers seem to be dead at first.
        """
        done = []
        query = _COLUMNS + "WHERE id = ANY(%(ids)s) AND status = 'doing' ORDER BY id FOR UPDATE"
        try:
            with self._link.translated(whole=True):
                stalled = at_once(
                    self._link.manager.get_stalled_jobs(seconds_since_heartbeat=seconds)
                )
                for entry in _read(self._link.rows(query, ids=[each.id for each in stalled])):
                    given_up = entry.attempts + 1 >= MOST_ATTEMPTS
                    if given_up:
                        self._finish(entry.number, FAILED, DIED)
                    done.append(PutBack(entry, given_up or not self._retry(entry.number)))
                at_once(self._link.manager.prune_stalled_workers(seconds))
        except exceptions.UniqueViolation:  # somebody put one of them back by hand, just now
            return []
        return done

    def forget_old(self) -> None:
        """Remove entries that ended long ago, of the oldest ones.

        procrastinate's own function reads all entries and all their events.
        """
        query = (
            "DELETE FROM procrastinate_jobs WHERE id IN (SELECT id FROM (SELECT id, status FROM "
            "procrastinate_jobs ORDER BY id LIMIT %(most)s) AS oldest WHERE status NOT IN ('todo', "
            "'doing') AND (SELECT max(at) FROM procrastinate_events WHERE job_id = oldest.id) < "
            "now() - make_interval(days => %(days)s))"
        )
        with self._link.translated():
            self._link.rows(query, most=_REMOVED_AT_ONCE, days=_DAYS_KEPT)

    def _finish(self, number: int, status: str, outcome: Outcome | None = None) -> None:
        if outcome is not None:
            self._link.rows(
                "UPDATE procrastinate_jobs SET args = args || jsonb_build_object('outcome', "
                "%(outcome)s::jsonb) WHERE id = %(id)s",
                id=number,
                outcome=json.dumps(outcome.written()),
            )
        at_once(
            self._link.manager.finish_job_by_id_async(
                number, procrastinate_jobs.Status(status), delete_job=False
            )
        )

    def _entries(self, query: str, **arguments: object) -> list[Entry]:
        with self._link.translated():
            return list(_read(self._link.rows(query, **arguments)))


def _read(rows: Iterable[dict[str, object]]) -> Iterable[Entry]:
    for row in rows:
        try:
            yield Entry.read(row)
        except UnreadableError:
            continue
