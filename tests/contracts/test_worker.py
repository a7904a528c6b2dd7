"""Workers of a fleet in this process: what they take, run, record, put back and report."""

from __future__ import annotations

import contextlib
import json
import signal
import time
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from pgstash import events, settings
from pgstash.commands import fleet, membership, worker
from pgstash.commands.jobs import Job
from pgstash.commands.planner import Planner, QueueClock, QueueLostError
from pgstash.commands.worker import Plan, Worker, plan_of
from pgstash.commands.worker_health import WorkerHealth
from pgstash.errors import ConfigurationError, Interrupted
from pgstash.fleet import administration, entries
from pgstash.fleet.connector import Link
from pgstash.fleet.entries import Outcome, Planned
from pgstash.fleet.heart import Heart
from pgstash.monitoring.jobs_health import JobsHealth
from pgstash.runtime import Runtime, utc_now
from pgstash.service import dispatcher
from pgstash.service.attempt import Attempt
from pgstash.service.blackout import Blackout
from pgstash.service.dispatcher import Run, Stored
from pgstash.service.schedule import Interval
from support import backups
from support.backups import PREFIX
from support.fake_tools import hangs, install_pg_dump
from support.postgres import Database
from support.proxy import PASS, REFUSE, TcpProxy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from pgstash.fleet.queue import Queue
    from pgstash.settings import Settings
    from support.postgres import Cluster, MakeDatabase

SECONDS = 60.0


def until(condition: Callable[[], object], step: Callable[[], object] = lambda: None) -> None:
    give_up = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < give_up
        step()
        time.sleep(0.02)


class Heard:
    """Collects messages."""

    def __init__(self) -> None:
        self.events: list[events.Event] = []

    def __call__(self, event: events.Event) -> None:
        self.events.append(event)

    def __contains__(self, words: str) -> bool:
        return any(words in str(event) for event in self.events)


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def database(
    make_database: MakeDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Database:
    """A database that the environment of this process selects by its name; its queue is there."""
    database = make_database()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "store").mkdir()
    given = backups.settings(Database(database.cluster, "postgres"), tmp_path / "store") | {
        "DATABASES": database.name,
        "DUMP_JOBS": "1",
        "QUEUE_URL": make_database().uri,
        "WORKER_TIMEOUT": "30",
        "WORKER_GRACE": "2",
    }
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PATH", str(database.bin_dir), prepend=":")
    monkeypatch.setattr(worker, "NAP", 0.05)
    fleet.migrate(settings.load())
    return database


def stored(folder: Path, database: Database) -> int:
    return len(
        list((folder / "store" / PREFIX / database.name).glob("backup_????????_??????.sql*"))
    )


@contextlib.contextmanager
def working(heard: Heard, **changes: object) -> Iterator[tuple[Worker, Queue]]:
    """Provide a worker that is alive, and stops at the end; and a queue."""
    plan = replace(plan_of(settings.load(), []), **changes)  # type: ignore[arg-type]
    heart = Heart(plan.opened, plan.timeout, heard)
    own = Worker(plan, Runtime(heard), heart)
    queue = plan.opened()
    with contextlib.closing(queue), heart.beating(), own.stopping():
        yield own, queue


def planned(database: Database, **changes: object) -> Planned:
    facts = Planned(database.name, "backup", "one", utc_now())
    return replace(facts, **changes)  # type: ignore[arg-type]


def status(queue: Queue, number: int) -> str:
    [entry] = queue.of_numbers([number])
    return entry.status


def test_a_worker_plans_and_runs_a_backup(
    database: Database, tmp_path: Path, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = settings.load()

    class Stopping(Worker):
        def step(self, seconds: float = 0.05) -> None:
            super().step(seconds)
            with contextlib.closing(self.plan.opened()) as queue:
                if queue.last_successes():
                    raise Interrupted(signal.SIGTERM)

    monkeypatch.setattr(membership, "Worker", Stopping)
    with pytest.raises(Interrupted):
        fleet.work(values, Runtime(heard), ["eu"])
    assert stored(tmp_path, database) == 1
    assert "up to 2 at once, near eu" in heard
    assert "This worker plans the runs of all jobs" in heard
    found = fleet.overview(values)
    assert (found.workers, found.runs, found.counts) == ([], [], {"succeeded": 1})


@pytest.mark.usefixtures("database")
def test_what_is_needed_for_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    values = settings.load()
    with pytest.raises(ConfigurationError, match=r"QUEUE_URL is set, so .* `pgstash worker`"):
        fleet.refuse_service(values)
    monkeypatch.delenv("QUEUE_URL")
    monkeypatch.delenv("DATABASES")
    values = settings.load()
    fleet.refuse_service(values)
    with pytest.raises(ConfigurationError) as caught:
        fleet.work(values, Runtime(events.ignore), ["EU!"])
    first, second, third = caught.value.problems
    assert first.startswith("--label EU! is not allowed. Expected: labels of 1 to 30 ")
    assert second.startswith("There is one job only")
    assert third.startswith("QUEUE_URL is missing")
    with pytest.raises(ConfigurationError, match="QUEUE_URL is missing"):
        fleet.overview(values)


def test_failures_are_recorded_and_reported(database: Database, heard: Heard) -> None:
    with working(heard) as (own, queue):
        failing = queue.put(planned(database, job="no_such_database"))
        assert failing
        until(lambda: status(queue, failing.number) == entries.FAILED, own.step)
        [entry] = queue.of_numbers([failing.number])
        assert entry.outcome
        assert (entry.outcome.status, entry.outcome.retryable) == (1, False)
        assert any(isinstance(each, events.BackupFailed) for each in heard.events)
        done, refused = fleet.retry(settings.load(), None)
        assert (done, refused) == (1, [])
        assert fleet.retry(settings.load(), [failing.number, 99]) == (0, [failing.number, 99])
        until(lambda: status(queue, failing.number) == entries.FAILED, own.step)


@pytest.fixture
def hanging(database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Database:
    """The same with a pg_dump that hangs."""
    tools = install_pg_dump(tmp_path / "tools", hangs())
    monkeypatch.setenv("PATH", str(tools), prepend=":")
    return database


def test_a_cancelled_run_ends(hanging: Database, tmp_path: Path, heard: Heard) -> None:
    with working(heard) as (own, queue):
        entry = queue.put(planned(hanging))
        assert entry
        until(lambda: status(queue, entry.number) == entries.RUNNING, own.step)
        assert fleet.cancel(settings.load(), [entry.number, 99]) == (1, [99])
        until(lambda: status(queue, entry.number) == entries.ABORTED, own.step)
        assert "is cancelled" in heard
    assert stored(tmp_path, hanging) == 0
    assert not any(isinstance(each, events.BackupFailed) for each in heard.events)


def test_a_worker_that_stops_puts_back_what_does_not_end(hanging: Database, heard: Heard) -> None:
    with working(heard) as (own, queue):
        entry = queue.put(planned(hanging))
        assert entry
        until(lambda: status(queue, entry.number) == entries.RUNNING, own.step)
    with contextlib.closing(own.plan.opened()) as queue:
        [back] = queue.of_numbers([entry.number])
        assert (back.status, back.attempts) == (entries.WAITING, 1)
    assert "Stopping: 1 run may end within 1 s" in heard
    assert fleet.overview(settings.load()).workers == []


def test_what_runs_goes_on_without_the_queue_and_is_recorded_later(
    database: Database, newest_cluster: Cluster, tmp_path: Path, heard: Heard
) -> None:
    with TcpProxy(newest_cluster.port) as proxy:
        url = plan_of(settings.load(), []).url
        cut = url.replace(f":{newest_cluster.port}", f":{proxy.port}")
        with (
            working(heard, url=cut) as (own, _),
            contextlib.closing(Plan(url, 1).opened()) as queue,
        ):
            entry = queue.put(planned(database))
            assert entry
            until(lambda: status(queue, entry.number) == entries.RUNNING, own.step)
            proxy.behave(replace(PASS, reset_after=0))
            until(lambda: own.queue is None, own.step)
            proxy.behave(REFUSE)
            until(lambda: stored(tmp_path, database), own.step)
            assert status(queue, entry.number) == entries.RUNNING
            proxy.behave(PASS)
            until(lambda: status(queue, entry.number) == entries.SUCCEEDED, own.step)
    assert "What runs goes on; the queue is tried again" in heard
    assert "The queue answers again" in heard


def test_an_entry_whose_answer_was_lost_is_put_back(database: Database, heard: Heard) -> None:
    """The queue gave it to this worker, which never heard of it."""
    with working(heard) as (own, queue):
        entry = queue.put(planned(database, job="no_such_database"))
        number = own.number
        assert entry
        assert number is not None
        assert queue.take(queue.waiting_queues(), number)
        until(lambda: status(queue, entry.number) == entries.FAILED, own.step)
        [again] = queue.of_numbers([entry.number])
        assert again.attempts == 2


def test_a_run_that_was_put_back_goes_on_if_the_same_worker_takes_it(
    hanging: Database, heard: Heard
) -> None:
    with working(heard) as (own, queue):
        entry = queue.put(planned(hanging))
        assert entry
        until(lambda: status(queue, entry.number) == entries.RUNNING, own.step)
        [running] = queue.of_numbers([entry.number])
        assert queue.put_back(running)
        until(lambda: status(queue, entry.number) == entries.RUNNING, own.step)
        own.step()
        assert own.running == [Run(hanging.name, "backup")]


def test_drills_leave_a_place_for_backups(hanging: Database, heard: Heard) -> None:
    with working(heard, workers=2) as (own, queue):
        drills = [
            queue.put(planned(hanging, job=job, work="drill", lock=job))
            for job in ("no_such_database", hanging.name)
        ]
        for _ in range(3):
            own.step()
            taken = [status(queue, each.number) for each in drills if each]
            assert taken.count(entries.RUNNING) <= 1


class TestPlanner:
    @pytest.fixture
    def queue(self, database: Database) -> Iterator[Queue]:
        assert database.name
        with contextlib.closing(plan_of(settings.load(), []).opened()) as queue:
            yield queue

    def job(self, database: Database, values: Settings) -> tuple[Job, dispatcher.Job]:
        facts = dispatcher.Job(database.name, "server", 2, Interval(3600, utc_now()), Blackout())
        return Job(database.name, values), facts

    def test_what_was_under_way_and_when_the_last_backup_was(
        self, database: Database, queue: Queue, heard: Heard
    ) -> None:
        number = queue.register()
        since = datetime(2026, 1, 2, tzinfo=UTC)
        queue.put(planned(database, since=since))
        entry = queue.take(queue.waiting_queues(), number)
        assert entry
        queue.end(entry, None)
        waiting = queue.put(planned(database, work="drill", lock="drill"))
        assert waiting
        mine = Planner(queue, Runtime(heard), 60, lambda _seconds: None)
        job, facts = self.job(database, settings.load())
        before_it = datetime(2026, 1, 1, tzinfo=UTC)
        before = Stored(backup=before_it)
        assert mine.added(job, facts, before) == Stored(backup=since)
        assert mine.added(job, facts, Stored()) == Stored(), "a backup that is gone is missing"
        early = Planner(queue, Runtime(heard, now=lambda: before_it), 60, lambda _seconds: None)
        assert early.added(job, facts, before) == before, "it was planned by a wrong clock"
        run = mine.under_way(job.name)
        assert run == Run(database.name, "drill")
        assert mine.under_way(job.name) is None
        assert list(mine.wait(0)) == []
        with Link(plan_of(settings.load(), []).url) as link:
            administration.cancel(link, waiting.number)
        [(ended, failure)] = mine.wait(0)
        assert ended == run
        assert failure
        assert failure.was_reported
        assert not failure.retryable

    def test_runs_get_the_free_slots_of_their_server(
        self, database: Database, queue: Queue, heard: Heard
    ) -> None:
        mine = Planner(queue, Runtime(heard), 60, lambda _seconds: None)
        names = ["a", "b"]
        for name in names:
            job, facts = self.job(database, settings.load())
            mine.added(replace(job, name=name), replace(facts, name=name), Stored())
        attempt = Attempt(utc_now(), utc_now() - utc_now())
        for name in names:
            assert mine.start(Run(name, "backup"), attempt) is None
        first, second = queue.under_way()
        assert first.lock.removesuffix("#1") == second.lock.removesuffix("#2")
        number = queue.register()
        for outcome in (None, Outcome(13, retryable=True, error="DumpError")):
            entry = queue.take(queue.waiting_queues(), number)
            assert entry
            queue.end(entry, outcome)
        ended = dict(mine.wait(0))
        assert ended[Run("a", "backup")] is None
        failure = ended[Run("b", "backup")]
        assert failure
        assert (failure.status, failure.retryable, failure.named_there) == (13, True, "DumpError")

    def test_a_name_that_is_no_unicode_fails_alone(
        self, database: Database, queue: Queue, heard: Heard
    ) -> None:
        mine = Planner(queue, Runtime(heard), 60, lambda _seconds: None)
        job, facts = self.job(database, settings.load())
        odd = f"{job.name}\udcff"
        for name in (odd, job.name):
            mine.added(replace(job, name=name), replace(facts, name=name), Stored())
        failure = mine.start(Run(odd, "backup"), None)
        assert failure
        assert "is not in UTF-8" in failure.message
        assert not failure.was_reported
        assert mine.start(Run(job.name, "backup"), None) is None

    def test_what_was_retried_by_hand_is_not_put_twice(
        self, database: Database, queue: Queue, heard: Heard
    ) -> None:
        mine = Planner(queue, Runtime(heard), 60, lambda _seconds: None)
        job, facts = self.job(database, settings.load())
        mine.added(job, facts, Stored())
        there = queue.put(planned(database))
        assert mine.start(Run(job.name, "backup"), None) is None
        assert [each.number for each in queue.under_way()] == [there.number if there else None]

    def test_dead_workers_are_looked_for_when_it_has_led_for_long_enough(
        self, database: Database, queue: Queue, heard: Heard
    ) -> None:
        """After an outage of the queue all workers seem to be dead at first."""
        mine = Planner(queue, Runtime(heard), 1, lambda _seconds: None)
        job, facts = self.job(database, settings.load())
        mine.added(job, facts, Stored())
        mine.start(Run(job.name, "backup"), None)
        number = queue.register()
        for attempt in range(3):
            entry = queue.take(queue.waiting_queues(), number)
            assert entry
            queue.leave(number)  # without an end of its run
            began = time.monotonic()
            ended = []
            while status(queue, entry.number) == entries.RUNNING:
                assert time.monotonic() - began < SECONDS
                time.sleep(0.02)
                ended = list(mine.wait(0))
            assert attempt or time.monotonic() - began > 0.5
            number = queue.register()
        assert "another one takes it" in heard
        [(_, failure)] = ended
        assert failure
        assert (failure.was_reported, failure.retryable) == (False, True)

    def test_a_queue_that_is_lost(self, database: Database, queue: Queue, heard: Heard) -> None:
        clock = QueueClock(queue)
        assert abs((clock.now() - utc_now()).total_seconds()) < 5
        mine = Planner(queue, Runtime(heard, now=clock.now), 60, lambda _seconds: None)
        job, facts = self.job(database, settings.load())
        mine.added(job, facts, Stored())
        assert not mine.at_once(job.settings)
        queue.close()
        clock.set_if_late()
        for act in (
            clock.set,
            lambda: mine.wait(0),
            lambda: mine.start(Run(job.name, "drill"), None),
        ):
            with pytest.raises(QueueLostError):
                act()


@pytest.mark.usefixtures("database")
def test_a_worker_that_cannot_plan_says_so(heard: Heard, monkeypatch: pytest.MonkeyPatch) -> None:
    values = settings.load()

    class Stopping(Worker):
        def step(self, seconds: float = 0.05) -> None:
            super().step(seconds)
            assert time.monotonic() < give_up
            if "What runs goes on" in heard:
                raise Interrupted(signal.SIGTERM)

    monkeypatch.setattr(membership, "Worker", Stopping)
    with Link(values.queue_url.get_secret_value() if values.queue_url else "") as link:
        link.run("ALTER FUNCTION pgstash_queue.procrastinate_defer_jobs_v1 RENAME TO gone")
    give_up = time.monotonic() + SECONDS
    with pytest.raises(Interrupted):
        fleet.work(values, Runtime(heard), [])
    assert "the database has no queue of this version" in heard


@pytest.mark.usefixtures("database")
def test_what_readyz_reports(heard: Heard) -> None:
    plan = plan_of(settings.load(), [])
    heart = Heart(plan.opened, plan.timeout, heard)
    known = WorkerHealth(heart)
    assert known.facts()[0] is False
    with heart.beating():
        assert known.facts()[1] == known.facts()[1] | {"status": "ready", "leads": False}
        known.leads(JobsHealth())
        well, facts = known.facts()
        assert (well, facts["status"], facts["leads"]) == (False, "no jobs yet", True)
        assert facts["worker"] == heart.number
        json.dumps(facts)
