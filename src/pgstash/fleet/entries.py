"""What the queue holds: names of jobs, kinds of runs, times and outcomes, and no secret."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, Self, get_args

Work = Literal["backup", "drill"]

WAITING, RUNNING = "todo", "doing"
SUCCEEDED, FAILED, CANCELLED, ABORTED = "succeeded", "failed", "cancelled", "aborted"

_LABELS = "@"


class UnreadableError(ValueError):
    """An entry that pgstash did not write."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run failed: its exit status, below zero the signal, and whether another try may help.

    ``error`` is the name of the error.
    """

    status: int
    retryable: bool
    error: str

    def written(self) -> dict[str, object]:
        """Return it as :meth:`read` takes it."""
        return {"status": self.status, "retryable": self.retryable, "error": self.error}

    @classmethod
    def read(cls, value: object) -> Self | None:
        """Return what was written; None if it is something else."""
        match value:
            case {"status": int(status), "retryable": bool(retryable), "error": str(error)}:
                return cls(status, retryable, error)
        return None


@dataclass(frozen=True, slots=True)
class Planned:
    """A run to put into the queue.

    ``labels`` are those of workers that may run it, none for any worker; ``lock`` is held while it
    runs. ``since`` is when it was planned, by the clock of the queue, and ``attempt`` the text of
    what follows if it fails.
    """

    job: str
    work: Work
    lock: str
    since: datetime
    labels: Collection[str] = ()
    attempt: str | None = None

    @property
    def queue(self) -> str:
        """The name of procrastinate's queue."""
        return f"{self.work}{_LABELS}{','.join(sorted(self.labels))}"

    @property
    def queueing_lock(self) -> str:
        """What only one waiting entry can have."""
        return f"{self.work} {self.job}"

    @property
    def priority(self) -> int:
        """Which of several entries a worker takes first: a backup, since a drill can wait."""
        return int(self.work == "backup")

    def arguments(self) -> dict[str, object]:
        """Return what is stored, as JSON."""
        return {"job": self.job, "since": self.since.isoformat(), "attempt": self.attempt}


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry of the queue. ``attempts`` is how often it was put back or has ended."""

    number: int
    job: str
    work: Work
    status: str
    since: datetime
    lock: str = ""
    attempts: int = 0
    attempt: str | None = None
    outcome: Outcome | None = None

    @classmethod
    def read(cls, row: Mapping[str, object]) -> Self:
        """Return a row of the table of jobs. Raises UnreadableError if pgstash did not write it."""
        work = next((each for each in get_args(Work) if each == row["task_name"]), None)
        match row["args"]:
            case {"job": str(job), "since": str(since), **more} if work is not None:
                pass
            case _:
                raise UnreadableError(f"entry {row['id']} of the queue is not one of pgstash")
        attempt = more.get("attempt")
        try:
            planned = datetime.fromisoformat(since)
        except ValueError as error:
            raise UnreadableError(f"entry {row['id']} of the queue has no time") from error
        if planned.tzinfo is None:
            raise UnreadableError(f"entry {row['id']} of the queue has a time without a zone")
        return cls(
            int(str(row["id"])),
            job,
            work,
            str(row["status"]),
            planned,
            lock=str(row["lock"] or ""),
            attempts=int(str(row["attempts"])),
            attempt=attempt if isinstance(attempt, str) else None,
            outcome=Outcome.read(more.get("outcome")),
        )


def suitable(queues: Iterable[str], labels: Collection[str], *, drills: bool = True) -> list[str]:
    """Return those queues that a worker with these labels takes entries from."""
    found = []
    for queue in queues:
        work, _, wanted = queue.partition(_LABELS)
        near = not wanted or any(each in labels for each in wanted.split(","))
        if near and (work == "backup" or (drills and work == "drill")):
            found.append(queue)
    return found


def free_slot(server: str, most: int, taken: Collection[str]) -> str:
    """Return the lock of a backup: one of as many as may run on its server at once.

    If all of them are taken, the first one: then the backup waits. The lock does not disclose the
    address of the server.
    """
    digest = hashlib.sha256(server.encode("utf-8", "surrogateescape")).hexdigest()[:16]
    every = [f"server {digest} #{number + 1}" for number in range(most)]
    return next((each for each in every if each not in taken), every[0])
