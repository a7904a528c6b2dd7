"""Which jobs run now, over simulated days: limits hold, and nobody starves."""

from __future__ import annotations

import itertools
import random
from collections import Counter, defaultdict
from datetime import datetime, timedelta
from typing import Literal

import pytest

from pgstash import events
from pgstash.errors import DatabaseLoginError, DatabaseUnreachableError, PgstashError
from pgstash.runtime import FollowUp, Runtime
from pgstash.service import blackout
from pgstash.service.blackout import Blackout, Outside
from pgstash.service.dispatcher import Dispatcher, Job, Run, Stored
from pgstash.service.loop import LONGEST_NAP
from pgstash.service.schedule import Cron, Interval, Schedule, spread_anchor
from support.clock import START, FakeClock

HOUR = 3600
NEVER = Blackout()
NOTHING = Stored()
AWAY = DatabaseUnreachableError("no server")
REFUSED = DatabaseLoginError("no such role")


def runtime(clock: FakeClock) -> Runtime:
    return Runtime(events.ignore, now=clock.now, random=bytes)


def job(
    name: str,
    *,
    seconds: int = HOUR,
    server: str = "a",
    most_at_once: int = 1,
    drill_after: int | Literal["after-backup"] | None = None,
    schedule: Schedule | None = None,
    windows: Blackout = NEVER,
) -> Job:
    every = schedule or Interval(seconds, spread_anchor(name, seconds))
    every = Outside(every, windows) if windows.windows else every
    return Job(name, server, most_at_once, every, windows, drill_after)


def test_a_changed_job_goes_on_with_what_it_was() -> None:
    """Only another schedule plans its backup again, and only another place is another history."""
    clock = FakeClock()
    dispatcher = Dispatcher(1, runtime(clock))
    backup = clock.now() - timedelta(minutes=10)
    dispatcher.add(job("a"), Stored(backup=backup))
    dispatcher.add(job("b"), Stored(backup=backup))
    planned = dispatcher.next_run("a")
    dispatcher.change(job("a", server="other", most_at_once=3))
    assert dispatcher.next_run("a") == planned
    dispatcher.change(job("a", seconds=60))
    assert dispatcher.starts() == [Run("a", "backup")]
    dispatcher.change(job("a", seconds=7200))
    assert dispatcher.starts() == []
    assert dispatcher.ended(Run("a", "backup"), None) == FollowUp()
    assert dispatcher.next_run("a").at > clock.now() + timedelta(minutes=1)
    dispatcher.change(job("b"), NOTHING)
    assert dispatcher.starts() == [Run("b", "backup")]
    dispatcher.change(job("a"), NOTHING)
    assert dispatcher.starts() == []
    dispatcher.limit(2)
    assert dispatcher.starts() == []  # its server has one running
    dispatcher.change(job("a", server="other"))
    assert dispatcher.starts() == [Run("a", "backup")]


class Simulation:
    """Lets jobs run in simulated time, each for a while, and checks the limits at each start."""

    def __init__(self, workers: int, *jobs: Job, clock: FakeClock | None = None) -> None:
        self.clock = clock or FakeClock()
        self.dispatcher = Dispatcher(workers, runtime(self.clock))
        self.workers = workers
        self.jobs = {each.name: each for each in jobs}
        self.began: dict[Run, list[datetime]] = defaultdict(list)
        self.busy: dict[Run, datetime] = {}
        self.seconds = 60.0
        self.failing: dict[str, PgstashError] = {}

    def add(self, stored: Stored = NOTHING) -> None:
        for each in self.jobs.values():
            self.dispatcher.add(each, stored)

    def until(self, end: datetime) -> None:
        """Do what the service does, until this time."""
        while self.clock.now() < end:
            now = self.clock.now()
            for run in [run for run, over in self.busy.items() if over <= now]:
                del self.busy[run]
                self.dispatcher.ended(run, self.failing.get(run.job))
            for run in self.dispatcher.starts():
                self._check(run, now)
                self.busy[run] = now + timedelta(seconds=self.seconds)
                self.began[run].append(now)
            times = [*self.busy.values(), now + timedelta(seconds=LONGEST_NAP)]
            if (at := self.dispatcher.next_at()) is not None:
                assert at > now
                times.append(at)
            self.clock.set(min(*times, end))

    def _check(self, run: Run, now: datetime) -> None:
        assert run.job not in {each.job for each in self.busy}
        running = [*self.busy, run]
        assert len(running) <= self.workers
        backups = Counter(self.jobs[each.job].server for each in running if each.work == "backup")
        for each in running:
            own = self.jobs[each.job]
            assert backups[own.server] <= own.most_at_once
        assert self.jobs[run.job].blackout.over(now) == now

    def backups(self, name: str) -> list[datetime]:
        return self.began[Run(name, "backup")]

    def drills(self, name: str) -> list[datetime]:
        return self.began[Run(name, "drill")]


def test_many_jobs_for_days_within_the_limits() -> None:
    """Six servers, workers that are just enough: each job is backed up in each hour."""
    jobs = [
        job(f"db{number}", server=f"s{number % 6}", most_at_once=1 + number % 2)
        for number in range(60)
    ]
    simulation = Simulation(4, *jobs)
    simulation.seconds = 150
    simulation.add()
    simulation.until(START + timedelta(days=2))
    for each in jobs:
        times = simulation.backups(each.name)
        assert len(times) >= 46
        gaps = [later - earlier for earlier, later in itertools.pairwise(times[1:])]
        assert max(gaps) < timedelta(hours=2)


def test_the_oldest_backup_is_the_first_and_none_starves() -> None:
    """More is due than can run: everybody waits equally long."""
    jobs = [job(f"db{number}", seconds=60) for number in range(20)]
    simulation = Simulation(2, *jobs)
    simulation.seconds = 300
    simulation.add()
    simulation.until(START + timedelta(days=1))
    counts = [len(simulation.backups(each.name)) for each in jobs]
    assert max(counts) - min(counts) <= 1
    assert sum(counts) == 24 * 12


def test_the_oldest_stored_backup_is_the_first() -> None:
    clock = FakeClock()
    dispatcher = Dispatcher(1, runtime(clock))
    for name, hours in (("a", 30), ("b", 50), ("c", 40)):
        dispatcher.add(job(name), Stored(START - timedelta(hours=hours)))
    dispatcher.add(job("z"))  # none at all
    order = []
    for _ in range(4):
        [run] = dispatcher.starts()
        order.append(run.job)
        dispatcher.ended(run, None)
    assert order == ["z", "b", "c", "a"]


def test_nothing_starts_in_a_blackout() -> None:
    night = Blackout(blackout.parse("22:00-06:00"), "Europe/Berlin")
    jobs = [job(f"db{number}", windows=night, drill_after=HOUR) for number in range(10)]
    simulation = Simulation(3, *jobs)
    simulation.add()
    simulation.until(START + timedelta(days=3))  # it checks each start
    assert all(len(simulation.backups(each.name)) >= 3 * 15 for each in jobs)
    assert all(len(simulation.drills(each.name)) >= 3 * 7 for each in jobs)


def test_an_attempt_after_a_failure_waits_for_the_end_of_a_blackout() -> None:
    clock = FakeClock(START)  # 02:00
    windows = Blackout(blackout.parse("02:01-02:30"))
    simulation = Simulation(1, job("a", windows=windows), clock=clock)
    simulation.failing["a"] = AWAY
    simulation.add()
    simulation.until(START + timedelta(minutes=31))
    assert simulation.backups("a") == [START, START + timedelta(minutes=30)]


def test_jobs_of_an_interval_are_spread_and_stay_so_after_a_restart() -> None:
    jobs = [job(f"db{number}") for number in range(40)]
    minutes: dict[str, set[int]] = defaultdict(set)
    for start in (START, START + timedelta(days=1, minutes=17)):
        simulation = Simulation(40, *[*jobs], clock=FakeClock(start))
        simulation.jobs = {each.name: _with(each, most_at_once=40) for each in jobs}
        for each in simulation.jobs.values():
            simulation.dispatcher.add(each, Stored(start))
        simulation.until(start + timedelta(hours=3))
        for each in jobs:
            minutes[each.name] |= {time.minute for time in simulation.backups(each.name)}
    assert all(len(found) == 1 for found in minutes.values())
    per_minute = Counter(next(iter(found)) for found in minutes.values())
    assert len(per_minute) > 20
    assert max(per_minute.values()) <= 5


def _with(each: Job, *, most_at_once: int) -> Job:
    return Job(each.name, each.server, most_at_once, each.schedule, each.blackout, each.drill_after)


def test_times_of_cron_are_kept() -> None:
    jobs = [job(f"db{number}", schedule=Cron("0 3 * * *"), most_at_once=5) for number in range(5)]
    simulation = Simulation(5, *jobs)
    simulation.add(Stored(START))
    simulation.until(START + timedelta(hours=12))
    due = START + timedelta(hours=1)
    assert [simulation.backups(each.name) for each in jobs] == [[due]] * 5


def test_a_restart_makes_no_backup_that_is_not_due() -> None:
    clock = FakeClock()
    dispatcher = Dispatcher(1, runtime(clock))
    dispatcher.add(job("fresh", schedule=Interval(HOUR, START)), Stored(START))
    dispatcher.add(job("asked for"), Stored(START), at_once=True)
    assert [run.job for run in dispatcher.starts()] == ["asked for"]
    assert dispatcher.next_run("fresh").at == START + timedelta(hours=1)


def test_a_job_that_fails_is_tried_again_and_touches_no_other() -> None:
    simulation = Simulation(2, *(job(name, seconds=86_400) for name in ("away", "refused", "well")))
    simulation.jobs = {name: _with(each, most_at_once=2) for name, each in simulation.jobs.items()}
    simulation.seconds = 0
    simulation.failing = {"away": AWAY, "refused": REFUSED}
    simulation.add()
    simulation.until(START + timedelta(minutes=20))
    minutes = [(at - START).total_seconds() / 60 for at in simulation.backups("away")]
    assert minutes == [0, 1, 3, 7, 15]
    assert len(simulation.backups("refused")) == 1
    assert len(simulation.backups("well")) == 1


@pytest.mark.parametrize(
    ("drill_after", "failure", "drills"),
    [
        (None, None, 0),
        ("after-backup", None, 1),
        (HOUR, None, 1),
        ("after-backup", REFUSED, 0),
        (HOUR, REFUSED, 1),  # of an older backup
        (HOUR, AWAY, 0),  # it waits for the next try
        (3 * 86_400, None, 0),  # proven two days ago
    ],
)
def test_a_drill_follows_a_backup_if_it_is_due(
    drill_after: int | Literal["after-backup"] | None, failure: PgstashError | None, drills: int
) -> None:
    clock = FakeClock()
    dispatcher = Dispatcher(1, runtime(clock))
    days = timedelta(days=2)
    dispatcher.add(job("a", drill_after=drill_after), Stored(START - days, START - days))
    [run] = dispatcher.starts()
    assert run == Run("a", "backup")
    dispatcher.ended(run, failure)
    found = dispatcher.starts()
    assert found == [Run("a", "drill")] * drills
    for each in found:
        dispatcher.ended(each, None)
    assert dispatcher.starts() == []


def test_drills_leave_a_worker_for_backups() -> None:
    clock = FakeClock()
    dispatcher = Dispatcher(2, runtime(clock))
    for name in ("a", "b"):
        dispatcher.add(job(name, drill_after="after-backup", most_at_once=2))
    for run in dispatcher.starts():
        dispatcher.ended(run, None)
    assert dispatcher.starts() == [Run("a", "drill")]
    dispatcher.add(job("new"))
    assert dispatcher.starts() == [Run("new", "backup")]
    dispatcher.ended(Run("new", "backup"), None)
    dispatcher.ended(Run("a", "drill"), None)
    assert dispatcher.starts() == [Run("b", "drill")]


def test_backups_and_drills_share_the_workers() -> None:
    jobs = [job(f"db{number}", drill_after="after-backup") for number in range(4)]
    simulation = Simulation(2, *jobs)
    simulation.add()
    simulation.seconds = 1000
    simulation.until(START + timedelta(days=1))
    for each in jobs:
        assert len(simulation.backups(each.name)) >= 15
        assert len(simulation.drills(each.name)) >= 15


def test_a_job_that_is_removed_while_it_runs_ends_and_is_gone() -> None:
    dispatcher = Dispatcher(1, runtime(FakeClock()))
    dispatcher.add(job("a"))
    [run] = dispatcher.starts()
    dispatcher.remove("a")
    assert dispatcher.jobs == []
    dispatcher.ended(run, None)
    assert dispatcher.starts() == []
    assert dispatcher.next_at() is None


def test_a_job_that_comes_back_while_it_runs_stays() -> None:
    dispatcher = Dispatcher(1, runtime(FakeClock()))
    dispatcher.add(job("a"))
    [run] = dispatcher.starts()
    dispatcher.remove("a")
    dispatcher.add(job("a"))
    dispatcher.ended(run, None)
    assert dispatcher.jobs == ["a"]


@pytest.mark.parametrize("running", [False, True])
def test_a_clock_that_was_set_back_does_not_delay_a_job(running: bool) -> None:  # noqa: FBT001 - parameter
    clock = FakeClock(START + timedelta(days=30))
    dispatcher = Dispatcher(1, runtime(clock))
    dispatcher.add(job("a"))
    [run] = dispatcher.starts()
    if not running:
        dispatcher.ended(run, None)
    clock.set(START)
    dispatcher.plan_again()
    if running:
        dispatcher.ended(run, None)
    assert dispatcher.next_run("a").at <= START + timedelta(hours=1)


def test_a_clock_that_was_set_back_does_not_delay_a_first_backup() -> None:
    clock = FakeClock(START + timedelta(days=30))
    dispatcher = Dispatcher(1, runtime(clock))
    dispatcher.add(job("a"))
    clock.set(START)
    dispatcher.plan_again()
    assert dispatcher.starts() == [Run("a", "backup")]


def test_any_faults_for_days_within_the_limits() -> None:
    """Runs of any length fail at random; jobs come and go."""
    chance = random.Random(7)  # noqa: S311 - the same faults at each run
    night = Blackout(blackout.parse("01:00-03:00,12:00-12:30"))
    jobs = [
        job(f"db{number}", server=f"s{number % 3}", windows=night, drill_after=6 * HOUR)
        for number in range(30)
    ]
    simulation = Simulation(5, *jobs)
    simulation.add()
    end = START + timedelta(days=5)
    while simulation.clock.now() < end:
        simulation.seconds = chance.choice([1, 30, 200, 900])
        names = chance.sample(list(simulation.jobs), 5)
        simulation.failing = {name: chance.choice([AWAY, REFUSED]) for name in names}
        simulation.until(simulation.clock.now() + timedelta(minutes=20))
        there = set(simulation.dispatcher.jobs)
        for each in chance.sample(jobs, 2):
            if each.name in there:
                simulation.dispatcher.remove(each.name)
            else:
                simulation.dispatcher.add(each)
    assert all(len(simulation.backups(each.name)) > 10 for each in jobs)


def test_a_proof_from_the_future_does_not_delay_a_drill() -> None:
    clock = FakeClock(START + timedelta(days=300))
    dispatcher = Dispatcher(1, runtime(clock))
    dispatcher.add(job("a", drill_after=HOUR))
    for _ in ("backup", "drill"):
        [run] = dispatcher.starts()
        dispatcher.ended(run, None)
    clock.set(START)
    dispatcher.plan_again()
    clock.set(START + timedelta(hours=2))
    [run] = dispatcher.starts()
    dispatcher.ended(run, None)
    assert dispatcher.starts() == [Run("a", "drill")]
