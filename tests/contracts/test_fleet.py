"""The queue of a fleet in a real PostgreSQL: what workers put, take, end and put back."""

from __future__ import annotations

import signal
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from pgstash import events
from pgstash.commands.worker import Plan
from pgstash.errors import (
    ConfigurationError,
    DatabaseLoginError,
    DatabaseUnreachableError,
    Interrupted,
)
from pgstash.fleet import administration, connector, entries, schema
from pgstash.fleet.connector import SCHEMA, Link
from pgstash.fleet.entries import Entry, Outcome, Planned, UnreadableError
from pgstash.fleet.heart import Heart
from pgstash.fleet.queue import MOST_ATTEMPTS, Queue
from support.postgres import Database
from support.proxy import PASS, REFUSE, STALL, TcpProxy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from support.postgres import Cluster, MakeDatabase

SECONDS = 60.0
_WAITS = "SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = 'transactionid'"
START = datetime(2026, 1, 1, tzinfo=UTC)
SHOP = Planned("eu/shop", "backup", "server one #1", START, attempt="{}")


def until(condition: Callable[[], object], step: Callable[[], object] = lambda: None) -> None:
    give_up = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < give_up
        step()
        time.sleep(0.02)


@pytest.fixture
def base(make_database: MakeDatabase) -> Database:
    """The database of a queue, migrated."""
    base = make_database()
    with Link(base.uri) as link:
        assert schema.migrate(link) == ["schema"]
    return base


@pytest.fixture
def link(base: Database) -> Iterator[Link]:
    with Link(base.uri) as link:
        yield link


@pytest.fixture
def queue(link: Link) -> Queue:
    return Queue(link)


def tell(base: Database, what: str) -> str:
    return base.run_sql(f"SET search_path = {SCHEMA}; {what}").strip()


def state(base: Database) -> list[str]:
    return tell(base, "SELECT status FROM procrastinate_jobs ORDER BY id").split()


def old(base: Database) -> None:
    """Let all workers seem to be dead."""
    tell(base, "UPDATE procrastinate_workers SET last_heartbeat = now() - interval '1 hour'")


def put(queue: Queue, planned: Planned = SHOP) -> Entry:
    entry = queue.put(planned)
    assert entry is not None
    return entry


def taken(queue: Queue, number: int, *queues: str) -> Entry:
    entry = queue.take(queues or queue.waiting_queues(), number)
    assert entry is not None
    return entry


class Heard:
    """Collects messages; a message with these words ends the worker like SIGTERM."""

    def __init__(self) -> None:
        self.events: list[events.Event] = []
        self.last_words = ""

    def __call__(self, event: events.Event) -> None:
        self.events.append(event)
        if self.last_words and self.last_words in str(event):
            raise Interrupted(signal.SIGTERM)

    def __contains__(self, words: str) -> bool:
        return any(words in str(event) for event in self.events)


@pytest.fixture
def heard() -> Heard:
    return Heard()


def test_the_schema_is_created_once_and_only_where_nothing_is(base: Database) -> None:
    with Link(base.uri) as link:
        assert schema.migrate(link) == []
        schema.require(link)
        base.run_sql(f"COMMENT ON SCHEMA {SCHEMA} IS 'pgstash: 03.00.00_01.sql'")
        with pytest.raises(ConfigurationError, match=r"earlier version\. Run `pgstash queue mig"):
            schema.require(link)
        base.run_sql(f"COMMENT ON SCHEMA {SCHEMA} IS NULL")
        with pytest.raises(ConfigurationError, match="a schema pgstash_queue that pgstash did not"):
            schema.migrate(link)
    with Link(base.uri) as link, pytest.raises(ConfigurationError, match="has no queue yet"):
        schema.require(link)


def test_a_database_that_cannot_hold_each_name_is_refused(newest_cluster: Cluster) -> None:
    base = newest_cluster.create_database("queue_in_ascii", encoding="SQL_ASCII")
    try:
        with Link(base.uri) as link, pytest.raises(ConfigurationError, match="is not UTF8"):
            schema.migrate(link)
    finally:
        newest_cluster.maintenance.run_sql("DROP DATABASE queue_in_ascii")


def test_an_earlier_schema_is_migrated_to_what_a_new_one_is(
    make_database: MakeDatabase, base: Database
) -> None:
    before = make_database()
    *earlier, last_but_one, last = sorted(schema.folder_of_migrations().glob("*.sql"))
    before.run_sql(
        f"CREATE SCHEMA {SCHEMA}; SET search_path = {SCHEMA}; SET check_function_bodies = false;"
        + "".join(each.read_text() for each in earlier)
        + f"; COMMENT ON SCHEMA {SCHEMA} IS 'pgstash: {earlier[-1].name}'"
    )
    with Link(before.uri) as link:
        assert schema.migrate(link) == [last_but_one.name, last.name]
        schema.require(link)
        run_through(Queue(link))
    functions = (
        "SELECT DISTINCT proname FROM pg_proc WHERE proname LIKE 'procrastinate_%' ORDER BY 1"
    )
    assert set(base.run_sql(functions).split()) <= set(before.run_sql(functions).split())


def run_through(queue: Queue) -> None:
    """Put an entry, take it, put it back, take it again and end it."""
    number = queue.register()
    entry = put(queue)
    assert entry.status == entries.WAITING
    first = taken(queue, number)
    assert (first.job, first.work, first.status) == ("eu/shop", "backup", entries.RUNNING)
    assert queue.put_back(first)
    assert not queue.put_back(first), "it waits"
    again = taken(queue, number)
    assert (again.number, again.attempts) == (first.number, 1)
    assert not queue.end(first, Outcome(1, retryable=False, error="X")), "it is not the first one's"
    assert queue.end(again, None)
    assert not queue.end(again, None)
    [ended] = queue.of_numbers([entry.number])
    assert ended.status == entries.SUCCEEDED
    assert queue.last_successes() == {("eu/shop", "backup"): START}
    queue.leave(number)


def test_an_entry_from_put_to_end(queue: Queue) -> None:
    run_through(queue)


def test_one_run_of_a_job_waits_whoever_puts_it(base: Database, queue: Queue) -> None:
    with Link(base.uri) as other:
        entry = put(queue)
        assert Queue(other).put(SHOP) is None
        assert queue.under_way_of(SHOP) == replace(entry, attempt="{}")
        put(Queue(other), replace(SHOP, work="drill"))
        assert [each.work for each in queue.under_way()] == ["backup", "drill"]


def test_one_session_leads(base: Database, queue: Queue) -> None:
    with Link(base.uri) as other:
        assert queue.leads()
        assert not Queue(other).leads()
        queue.close()
        until(Queue(other).leads)


def test_a_worker_that_leads_and_hangs_is_deposed(base: Database, queue: Queue) -> None:
    """A process that was stopped keeps its session, and its lock with it."""
    with Link(base.uri) as link:
        other, number = Queue(link), queue.register()
        queue.belongs_to(number)
        assert queue.leads()
        time.sleep(2.1)
        assert queue.beat(number)
        assert not other.depose(2), "it lives"
        old(base)
        assert not other.depose(600), "its session is new"
        assert other.depose(2)
        with pytest.raises(DatabaseUnreachableError):
            queue.now()
        until(other.leads)
        assert not other.depose(600)


def test_a_lock_that_another_worker_takes_meanwhile(base: Database, queue: Queue) -> None:
    """An entry that somebody retries comes before the one that is just being taken."""
    first = put(queue, replace(SHOP, job="a"))
    number = queue.register()
    assert queue.end(taken(queue, number), Outcome(13, retryable=True, error="DumpError"))
    put(queue, replace(SHOP, job="b"))
    with (
        Link(base.uri) as link,
        Link(base.uri) as slow,
        ThreadPoolExecutor(1) as pool,
        slow.translated(whole=True),
    ):
        assert taken(Queue(slow), number).job == "b"
        assert administration.retry(link, first.number)
        answer = pool.submit(queue.take, ["backup@"], number)
        until(lambda: tell(base, _WAITS) == "1")
        slow.run("COMMIT")
        assert answer.result(SECONDS) is None
    assert queue.is_open


def test_a_lock_is_the_limit_of_a_server(queue: Queue) -> None:
    number = queue.register()
    for job in "abc":
        put(queue, replace(SHOP, job=job, lock="one" if job < "c" else "two"))
    first = taken(queue, number)
    second = taken(queue, number)
    assert (first.job, second.job) == ("a", "c")
    assert queue.take(queue.waiting_queues(), number) is None
    assert queue.end(first, Outcome(13, retryable=True, error="DumpError"))
    assert taken(queue, number).job == "b"
    [failed] = queue.of_numbers([first.number])
    assert (failed.status, failed.outcome) == (
        entries.FAILED,
        Outcome(13, retryable=True, error="DumpError"),
    )


def test_backups_go_before_drills_and_labels_choose_workers(queue: Queue) -> None:
    number = queue.register()
    put(queue, replace(SHOP, work="drill", lock="drill"))
    put(queue, replace(SHOP, job="near", lock="x", labels=["eu", "fast"]))
    put(queue, replace(SHOP, lock="y"))
    waiting = queue.waiting_queues()
    assert set(waiting) == {"drill@", "backup@eu,fast", "backup@"}
    assert entries.suitable(waiting, [], drills=False) == ["backup@"]
    assert set(entries.suitable(waiting, ["us"])) == {"backup@", "drill@"}
    assert set(entries.suitable(waiting, ["us", "fast"])) == set(waiting)
    mine = entries.suitable(waiting, [])
    assert [taken(queue, number, *mine).work for _ in range(2)] == ["backup", "drill"]
    assert queue.take(mine, number) is None
    assert taken(queue, number, "backup@eu,fast").job == "near"


def test_what_a_dead_worker_had_is_put_back_and_given_up_in_the_end(
    base: Database, queue: Queue
) -> None:
    put(queue)
    for attempt in range(MOST_ATTEMPTS):
        number = queue.register()
        entry = taken(queue, number)
        assert entry.attempts == attempt
        assert queue.put_back_stalled(60) == []
        old(base)
        [back] = queue.put_back_stalled(60)
        assert back.given_up == (attempt == MOST_ATTEMPTS - 1)
        assert not queue.beat(number), "its row is gone"
    assert state(base) == ["failed"]
    [failed] = queue.of_numbers([entry.number])
    assert failed.outcome == Outcome(-9, retryable=True, error="")


def test_a_row_of_a_worker_that_somebody_removed_leaves_no_entry_behind(
    base: Database, queue: Queue
) -> None:
    """procrastinate's own workers prune each other when they start."""
    put(queue)
    number = queue.register()
    taken(queue, number)
    tell(base, "DELETE FROM procrastinate_workers")
    [back] = queue.put_back_stalled(60)
    assert not back.given_up
    assert state(base) == ["todo"]


def test_an_entry_that_cannot_be_put_back_holds_no_lock(base: Database, queue: Queue) -> None:
    """The same run waits already, so its place is taken; its lock must not stay."""
    number = queue.register()
    for work in (queue.put_back_stalled, None):
        put(queue)
        entry = taken(queue, number)
        put(queue)
        assert queue.take(queue.waiting_queues(), number) is None, "the lock is held"
        if work is None:
            assert not queue.put_back(entry)
        else:
            old(base)
            assert [each.given_up for each in queue.put_back_stalled(60)] == [True]
            number = queue.register()
        second = taken(queue, number)
        assert queue.end(second, None)
    assert state(base) == ["failed", "succeeded"] * 2


def test_the_end_of_a_run_that_was_put_back_meanwhile(base: Database, queue: Queue) -> None:
    number = queue.register()
    put(queue)
    lost = taken(queue, number)
    assert queue.put_back(lost)
    assert not queue.end(lost, Outcome(1, retryable=True, error="X")), "it may still succeed"
    assert queue.end(lost, None), "nobody needs to run it again"
    assert state(base) == ["succeeded"]


def test_cancelling_and_retrying(base: Database, link: Link, queue: Queue) -> None:
    number = queue.register()
    waiting = put(queue)
    assert administration.cancel(link, waiting.number)
    assert not administration.cancel(link, waiting.number)
    put(queue)
    running = taken(queue, number)
    assert queue.to_end([running.number]) == []
    assert administration.cancel(link, running.number)
    assert queue.to_end([running.number]) == [running.number]
    assert not queue.put_back(running), "a cancelled run is not run again"
    assert state(base) == ["cancelled", "failed"]
    assert administration.failed(link) == [running.number]
    assert administration.retry(link, running.number)
    assert not administration.retry(link, running.number), "it waits"
    assert not administration.retry(link, waiting.number), "it has not failed"
    again = taken(queue, number)
    assert (again.attempts, again.outcome) == (0, None)
    assert queue.end(again, Outcome(-15, retryable=True, error="X"), cancelled=True)
    assert state(base) == ["cancelled", "aborted"]
    assert administration.failed(link) == []


def test_an_overview(link: Link, queue: Queue, base: Database) -> None:
    first, second = queue.register(), queue.register()
    put(queue, replace(SHOP, labels=["eu"]))
    put(queue, replace(SHOP, job="b"))
    entry = taken(queue, first, "backup@eu")
    found = administration.overview(link, 60)
    assert [(each.number, each.is_alive, each.running) for each in found.workers] == [
        (first, True, 1),
        (second, True, 0),
    ]
    assert [(each.job, each.state, each.labels, each.worker) for each in found.runs] == [
        ("eu/shop", "doing", "eu", first),
        ("b", "todo", "", None),
    ]
    queue.end(entry, Outcome(13, retryable=True, error="X"))
    old(base)
    found = administration.overview(link, 60)
    assert not any(each.is_alive for each in found.workers)
    assert [each.status for each in found.runs] == [13, None]
    assert found.counts == {"failed": 1, "todo": 1}


def test_entries_that_pgstash_did_not_write(base: Database, queue: Queue) -> None:
    number = queue.register()
    for args in (
        "{}",
        '{"job": "a", "since": "x"}',
        '{"job": "a", "since": "2026-01-01T00:00:00"}',  # no zone: comparable with no other time
        '{"job": 1, "since": "2026-01-01T00:00:00Z"}',
    ):
        tell(
            base,
            "INSERT INTO procrastinate_jobs (queue_name, task_name, args) VALUES "
            f"('backup@', 'backup', '{args}')",
        )
        assert queue.take(["backup@"], number) is None
    assert state(base) == ["failed"] * 4
    assert queue.under_way() == []
    with pytest.raises(UnreadableError):
        Entry.read({"id": 1, "task_name": "other", "args": {"job": "a", "since": "2026-01-01"}})
    assert Outcome.read({"status": "1"}) is None


def test_old_entries_are_removed(base: Database, queue: Queue) -> None:
    run_through(queue)
    queue.forget_old()
    assert state(base) == ["succeeded"]
    tell(base, "UPDATE procrastinate_events SET at = now() - interval '31 days'")
    queue.forget_old()
    assert state(base) == []


def test_slots_of_a_server() -> None:
    one, two = (entries.free_slot("db.example.com:5432", 2, taken) for taken in ([], ["x"]))
    assert one == two
    assert "example" not in one
    other = entries.free_slot("db.example.com:5432", 2, [one])
    assert other != one
    assert entries.free_slot("db.example.com:5432", 2, [one, other]) == one


def test_a_queue_that_does_not_answer(
    base: Database, newest_cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DatabaseUnreachableError, match="QUEUE_URL: the database cannot be reached"):
        Link("postgresql://u:secret@127.0.0.1:1/x")
    with pytest.raises(DatabaseLoginError, match="QUEUE_URL: the database refused the login"):
        Link(Database(newest_cluster, "no_such_database").uri)
    monkeypatch.setattr(connector, "_ANSWER", 0.5)
    with TcpProxy(newest_cluster.port) as proxy:
        queue = Queue(Link(base.uri.replace(f":{newest_cluster.port}", f":{proxy.port}")))
        queue.now()
        proxy.behave(STALL)
        with pytest.raises(DatabaseUnreachableError, match="the queue does not answer"):
            queue.now()
        assert not queue.is_open
        with pytest.raises(DatabaseUnreachableError):
            queue.put(SHOP)


def test_what_the_role_may_not(base: Database) -> None:
    base.run_sql("CREATE ROLE clerk LOGIN")
    try:
        user = Database(replace(base.cluster, user="clerk"), base.name)
        hint = "Use the role that ran `pgstash queue migrate`"
        with Link(user.uri) as link, pytest.raises(ConfigurationError, match=hint):
            schema.require(link)
        base.run_sql(f"GRANT USAGE ON SCHEMA {SCHEMA} TO clerk")
        with Link(user.uri) as link:
            schema.require(link)
            with pytest.raises(ConfigurationError, match=hint):
                Queue(link).register()
    finally:
        base.run_sql("DROP OWNED BY clerk; DROP ROLE clerk")


def test_a_signal_during_a_question_closes_the_session(link: Link) -> None:
    def ask() -> None:
        with link.translated():
            raise Interrupted(signal.SIGTERM)

    with pytest.raises(Interrupted):
        ask()
    assert not link.is_open


def test_variables_of_the_source_do_not_complete_the_url_of_the_queue(
    base: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"PGHOST": "nowhere", "PGHOSTADDR": "127.0.0.9", "PGDATABASE": "x"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PGCLIENTENCODING", "LATIN1")
    with Link(base.uri) as link:
        schema.require(link)
        put(Queue(link), replace(SHOP, job="eu/店"))


class TestHeart:
    def test_it_beats_until_it_stops(self, base: Database, heard: Heard) -> None:
        heart = Heart(Plan(base.uri, 1).opened, 0.6, heard)
        with heart.beating():
            first = heart.number
            assert heart.worker == first
            query = f"SELECT last_heartbeat FROM procrastinate_workers WHERE id = {first}"
            before = tell(base, query)
            until(lambda: tell(base, query) != before)
            tell(base, "DELETE FROM procrastinate_workers")
            until(lambda: heart.number != first)
            assert "This worker was considered dead" in heard
        until(lambda: heart.worker is None)

    def test_it_goes_on_after_an_outage(
        self, base: Database, newest_cluster: Cluster, heard: Heard
    ) -> None:
        with TcpProxy(newest_cluster.port) as proxy:
            url = base.uri.replace(f":{newest_cluster.port}", f":{proxy.port}")
            heart = Heart(Plan(url, 1).opened, 0.6, heard)
            with heart.beating():
                number = heart.number
                proxy.behave(REFUSE)
                tell(
                    base,
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE "
                    "application_name = 'pgstash queue' AND datname = current_database()",
                )
                until(lambda: heart.worker is None)
                proxy.behave(PASS)
                until(lambda: heart.worker == number)
