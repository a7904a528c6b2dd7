"""What people see of the queue, and change in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from pgstash.fleet.connector import Link

_RECENT = 20


@dataclass(frozen=True, slots=True)
class Worker:
    """A worker that has not left: its last sign of life, and how many runs it has."""

    number: int
    seen: datetime
    is_alive: bool
    running: int


@dataclass(frozen=True, slots=True)
class Run:
    """An entry of the queue; ``at`` is when its state changed last."""

    number: int
    job: str
    work: str
    state: str
    at: datetime | None
    attempts: int
    worker: int | None
    labels: str
    status: int | None


@dataclass(frozen=True, slots=True)
class Overview:
    """The workers, the runs that wait or run, and the last ones that failed."""

    workers: Sequence[Worker]
    runs: Sequence[Run]
    counts: dict[str, int]


def overview(link: Link, timeout: float) -> Overview:
    """Return the state of the queue; a worker is dead after ``timeout`` seconds."""
    query = (
        "SELECT w.id, w.last_heartbeat AS seen, w.last_heartbeat > now() - make_interval(secs => "
        "%(timeout)s) AS is_alive, (SELECT count(*) FROM procrastinate_jobs AS j WHERE "
        "j.worker_id = w.id AND j.status = 'doing') AS running FROM procrastinate_workers AS w "
        "ORDER BY w.id"
    )
    runs = (
        "SELECT j.id, j.args->>'job' AS job, j.task_name, j.status::text AS state, j.attempts, "
        "j.worker_id, split_part(j.queue_name, '@', 2) AS labels, "
        "(j.args#>>'{outcome,status}')::int AS status, "
        "(SELECT max(e.at) FROM procrastinate_events AS e WHERE e.job_id = j.id) AS at "
        "FROM procrastinate_jobs AS j WHERE j.status IN ('todo', 'doing') OR j.id IN (SELECT id "
        "FROM procrastinate_jobs WHERE status = 'failed' ORDER BY id DESC LIMIT %(recent)s) "
        "ORDER BY j.id"
    )
    counts = (
        "SELECT status::text AS state, count(*) AS many FROM procrastinate_jobs GROUP BY status"
    )
    with link.translated():
        return Overview(
            [
                Worker(row["id"], row["seen"], row["is_alive"], row["running"])
                for row in link.rows(query, timeout=timeout)
            ],
            [
                Run(
                    row["id"],
                    str(row["job"]),
                    row["task_name"],
                    row["state"],
                    row["at"],
                    row["attempts"],
                    row["worker_id"],
                    row["labels"],
                    row["status"],
                )
                for row in link.rows(runs, recent=_RECENT)
            ],
            {row["state"]: row["many"] for row in link.rows(counts)},
        )


def cancel(link: Link, number: int) -> bool:
    """Cancel an entry that waits, or let its worker end it; return whether there is one."""
    with link.translated():
        return link.manager.cancel_job_by_id(number, abort=True)


def failed(link: Link) -> list[int]:
    """Return the failed entries whose job has no later entry of the same kind."""
    query = (
        "SELECT id FROM procrastinate_jobs AS j WHERE status = 'failed' AND NOT EXISTS (SELECT "
        "FROM procrastinate_jobs AS later WHERE later.queueing_lock = j.queueing_lock AND "
        "later.id > j.id) ORDER BY id"
    )
    with link.translated():
        return [row["id"] for row in link.rows(query)]


def retry(link: Link, number: int) -> bool:
    """Put a failed entry into the queue again, unless the same run waits or runs already."""
    query = (
        "SELECT now() AS now FROM procrastinate_jobs AS j WHERE id = %(id)s AND status = 'failed' "
        "AND NOT EXISTS (SELECT FROM procrastinate_jobs AS other WHERE other.queueing_lock = "
        "j.queueing_lock AND other.status IN ('todo', 'doing')) FOR UPDATE"
    )
    with link.translated(whole=True):
        for row in link.rows(query, id=number):
            link.manager.retry_job_by_id(number, row["now"])
            link.rows(
                "UPDATE procrastinate_jobs SET attempts = 0, args = args - 'outcome' "
                "WHERE id = %(id)s",
                id=number,
            )
            return True
    return False
