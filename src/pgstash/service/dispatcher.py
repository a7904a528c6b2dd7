"""Decides which of many jobs run now: pure logic over jobs, their schedules, limits and a clock.

Each job has its own schedule and retries. A backup that is due waits for a free worker, and until
its server has fewer backups running than it may have; among those that wait, the job with the
oldest backup is the first. A drill follows a backup of its job, as in a service for one database.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from pgstash.errors import PgstashError
from pgstash.runtime import FollowUp, Runtime
from pgstash.service.attempt import Attempt
from pgstash.service.blackout import Blackout
from pgstash.service.loop import SET_BACK
from pgstash.service.retries import NextRun, Retries
from pgstash.service.schedule import Schedule

Work = Literal["backup", "drill"]

_LONG_AGO = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Job:
    """What decides when a job runs.

    ``most_at_once`` is how many backups of its ``server`` may run at a time. ``drill_after`` is the
    age of the last proof, in seconds, from which a drill is due after a backup.
    """

    name: str
    server: str
    most_at_once: int
    schedule: Schedule
    blackout: Blackout
    drill_after: int | Literal["after-backup"] | None = None


@dataclass(frozen=True, slots=True)
class Stored:
    """When the newest backup of a job started, and when its last drill passed, in UTC."""

    backup: datetime | None = None
    proof: datetime | None = None


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a job."""

    job: str
    work: Work


class _State:
    """A job, with what ran and what is due."""

    def __init__(self, job: Job, retries: Retries, stored: Stored) -> None:
        self.job = job
        self.retries = retries
        self.newest = stored.backup
        self.proof = stored.proof
        self.wants_drill = False
        self.running: Work | None = None
        self.started = _LONG_AGO
        self.leaves = False

    def is_drill_due(self, now: datetime) -> bool:
        """Return whether a drill follows the backup that has ended."""
        if self.job.drill_after is None or self.job.drill_after == "after-backup":
            return self.job.drill_after is not None
        return self.proof is None or (now - self.proof).total_seconds() >= self.job.drill_after


class Dispatcher:
    """Plans the runs of all jobs. Call it from one thread."""

    def __init__(self, workers: int, runtime: Runtime) -> None:
        """Start without jobs; at most ``workers`` run at once."""
        self._workers = workers
        self._runtime = runtime
        self._jobs: dict[str, _State] = {}
        self._busy: list[_State] = []

    @property
    def jobs(self) -> list[str]:
        """The names of all jobs, without those that were removed."""
        return [name for name, state in self._jobs.items() if not state.leaves]

    def add(self, job: Job, stored: Stored = Stored(), *, at_once: bool = False) -> None:
        """Add a job. Its first backup is due ``at_once``, or counted from the stored one."""
        if (there := self._jobs.get(job.name)) is not None:
            there.leaves = False
            return
        # Not now: a clock that is set back would delay what is due at once.
        due = _LONG_AGO
        if stored.backup is not None and not at_once:
            due = job.schedule.after(stored.backup)
        retries = Retries(job.schedule, self._runtime, NextRun(due), blackout=job.blackout)
        self._jobs[job.name] = _State(job, retries, stored)

    def change(self, job: Job, stored: Stored | None = None) -> None:
        """Change a job; a run of it goes on. If its place has changed, ``stored`` is what is there.

        With another schedule or blackout, its next backup is planned again.
        """
        state = self._jobs[job.name]
        before, state.job = state.job, job
        if stored is not None:
            state.newest, state.proof = stored.backup, stored.proof
        elif (before.schedule, before.blackout) == (job.schedule, job.blackout):
            return
        due = job.schedule.after(state.newest) if state.newest else _LONG_AGO
        state.retries = Retries(job.schedule, self._runtime, NextRun(due), blackout=job.blackout)

    def limit(self, workers: int) -> None:
        """Let at most this many run at once from now on."""
        self._workers = workers

    def remove(self, name: str) -> None:
        """Remove a job; a run of it goes on."""
        if self._jobs[name].running:
            self._jobs[name].leaves = True
        else:
            del self._jobs[name]

    def starts(self) -> list[Run]:
        """Return the runs that start now. Call :meth:`ended` for each at its end."""
        now = self._runtime.now()
        idle = [
            state
            for state in self._jobs.values()
            if not state.running and state.job.blackout.over(now) <= now
        ]
        idle.sort(key=lambda state: (state.proof or _LONG_AGO, state.job.name))
        drills = [self._begin(each, "drill", now) for each in idle if self._may_drill(each)]
        idle.sort(key=lambda state: (state.newest or _LONG_AGO, state.job.name))
        backups = [
            self._begin(each, "backup", now) for each in idle if self._may_back_up(each, now)
        ]
        return drills + backups

    def _begin(self, state: _State, work: Work, now: datetime) -> Run:
        if work == "backup":
            state.retries.begin()
        else:
            state.wants_drill = False
        state.running, state.started = work, now
        self._busy.append(state)
        return Run(state.job.name, work)

    def resume(self, run: Run) -> None:
        """Take a run that was started before. Call :meth:`ended` at its end."""
        self._begin(self._jobs[run.job], run.work, self._runtime.now())

    def _may_drill(self, state: _State) -> bool:
        """Return whether a drill may start: of several workers, it leaves one for backups."""
        drills = sum(each.running == "drill" for each in self._busy)
        return (
            state.wants_drill
            and len(self._busy) < self._workers
            and drills < max(1, self._workers - 1)
        )

    def _may_back_up(self, state: _State, now: datetime) -> bool:
        if state.running or state.retries.next_run.at > now or len(self._busy) >= self._workers:
            return False
        server = state.job.server
        there = sum(each.running == "backup" and each.job.server == server for each in self._busy)
        return there < state.job.most_at_once

    def ended(self, run: Run, failure: PgstashError | None) -> FollowUp:
        """Plan and return what follows a run that ended, with a failure or without."""
        state, now = self._jobs[run.job], self._runtime.now()
        following = FollowUp()
        state.running = None
        self._busy.remove(state)
        if run.work == "drill":
            if failure is None:
                state.proof = now
        elif failure is None:
            state.retries.succeeded()
            state.newest = min(state.started, now)
            state.wants_drill = state.is_drill_due(now)
        else:
            following = state.retries.follow_up(failure)
            each_backup = state.job.drill_after == "after-backup"
            state.wants_drill = not (following.early or each_backup) and state.is_drill_due(now)
        if state.started - now > SET_BACK:
            state.retries.plan_again()
        if state.leaves:
            del self._jobs[run.job]
        return following

    def attempt(self, name: str) -> Attempt:
        """Return the backup of a job that runs, with what would follow its failure."""
        return self._jobs[name].retries.attempt()

    def next_run(self, name: str) -> NextRun:
        """Return the next backup of a job, as planned."""
        return self._jobs[name].retries.next_run

    def next_at(self) -> datetime | None:
        """Return when something can start next, if no run ends before; None if nothing can."""
        now = self._runtime.now()
        return min(self._times(now), default=None)

    def _times(self, now: datetime) -> Iterable[datetime]:
        for state in self._jobs.values():
            if state.running:
                continue
            for due in (state.retries.next_run.at, *([now] if state.wants_drill else [])):
                at = state.job.blackout.over(max(due, now))
                if at > now:  # what could have started already waits for a run to end
                    yield at

    def plan_again(self) -> None:
        """Plan each next run that is not due from now on, after the clock was set back.

        What happened in the future counts as of now: else its job would be the last, and its drill
        would wait until then.
        """
        now = self._runtime.now()
        for state in self._jobs.values():
            state.newest = min(state.newest, now) if state.newest else None
            state.proof = min(state.proof, now) if state.proof else None
            if not state.running and state.retries.next_run.at > now:
                state.retries.plan_again()
