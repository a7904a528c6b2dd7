"""A dump by several sessions is of one moment: nothing is lost, doubled, or of another time."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgstash.events import ignore
from pgstash.postgres.dump import snapshot as copying
from pgstash.postgres.dump.copy_reader import Reader
from pgstash.postgres.server import login
from pgstash.postgres.tools import installed
from pgstash.postgres.tools.tool_run import ToolRun
from support import backups, pieces
from support.cli import environment, run_pgstash
from support.postgres import clean_environment, temporary_database
from support.tiers import later

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from pgstash.postgres.server.connection import Server
    from pgstash.postgres.tools.installed import ClientTools
    from pgstash.postgres.tools.toc import Entry
    from support.postgres import Cluster, Clusters, Database, MakeDatabase

ONE_PG_DUMP = "Falling back to a single pg_dump"
ACCOUNTS = 4000
TOTAL = ACCOUNTS * 1000
REFILLED = 3000

MONEY = f"""
    CREATE TABLE accounts (id int PRIMARY KEY, balance bigint, filler text) WITH (fillfactor = 80);
    INSERT INTO accounts SELECT n, 1000, repeat('x', 200) FROM generate_series(1, {ACCOUNTS}) n;
    CREATE TABLE credits (id int, amount int, filler text);
    CREATE TABLE debits (id int, amount int, filler text);
    INSERT INTO credits SELECT n, n, repeat('x', 300) FROM generate_series(1, 1000) n;
    INSERT INTO debits SELECT n, -n, repeat('x', 300) FROM generate_series(1, 1000) n;
    CREATE TABLE refilled (id int, amount int, filler text);
    INSERT INTO refilled SELECT n, 1, repeat('x', 300) FROM generate_series(1, {REFILLED}) n;
"""
# One line: everything that must be the same whenever one looks.
BALANCE = """
    SELECT (SELECT count(*) || ' ' || sum(balance) FROM accounts),
           (SELECT count(*) FROM credits FULL JOIN debits USING (id)
            WHERE credits.amount + debits.amount IS DISTINCT FROM 0),
           (SELECT count(*) || ' ' || sum(amount) FROM refilled)
"""
BALANCED = f"{ACCOUNTS} {TOTAL}|0|{REFILLED} {REFILLED}\n"

Session = psycopg.Connection[tuple[object, ...]]


def move(session: Session, chance: random.Random) -> None:
    with session.transaction():
        # In one order: two that do it at once must not wait for each other.
        low, high = sorted(chance.sample(range(1, ACCOUNTS + 1), 2))
        amount = chance.randint(-500, 500)
        for account, change in ((low, amount), (high, -amount)):
            changed = session.execute(
                "UPDATE accounts SET balance = balance + %s WHERE id = %s", [change, account]
            )
            if changed.rowcount != 1:  # somebody replaces it just now
                raise psycopg.Rollback


def pair(session: Session, chance: random.Random) -> None:
    number = chance.randint(1, 10**9)
    with session.transaction():
        session.execute(
            "INSERT INTO credits SELECT %(n)s + i, i, repeat('y', 300)"
            " FROM generate_series(0, 20) i",
            {"n": number},
        )
        session.execute(
            "INSERT INTO debits SELECT %(n)s + i, -i, repeat('y', 300)"
            " FROM generate_series(0, 20) i",
            {"n": number},
        )
    oldest = "SELECT id FROM credits ORDER BY ctid LIMIT 20"
    with session.transaction():
        session.execute(
            f"WITH gone AS (DELETE FROM credits WHERE id IN ({oldest}) RETURNING id)"
            " DELETE FROM debits USING gone WHERE debits.id = gone.id"
        )


def replace_account(session: Session, chance: random.Random) -> None:
    """The row is deleted, and comes back at another place."""
    with session.transaction():
        session.execute(
            "WITH gone AS (DELETE FROM accounts WHERE id = %s RETURNING *)"
            " INSERT INTO accounts SELECT -id, balance, filler FROM gone",
            [account := chance.randint(1, ACCOUNTS)],
        )
        session.execute("UPDATE accounts SET id = -id WHERE id = %s", [-account])


def refill(session: Session, _chance: random.Random) -> None:
    with session.transaction():
        session.execute("TRUNCATE refilled")
        session.execute(
            "INSERT INTO refilled SELECT n, 1, repeat('z', 300) FROM generate_series(1, %s) n",
            [REFILLED],
        )


def vacuum(session: Session, chance: random.Random) -> None:
    table = chance.choice(["accounts", "credits", "debits", "refilled"])
    session.execute(f"VACUUM {chance.choice(['', '(FULL)'])} {table}")


WRITERS = (move, move, pair, replace_account)
# Seconds after each transaction: long enough to leave the backup some of the processor, and short
# enough for many transactions between two pieces.
REST = 0.01
# They want a table for themselves, and do not wait long for it.
LOCKERS = (refill, vacuum)


@contextlib.contextmanager
def written_to(
    database: Database, *writers: Callable[[Session, random.Random], None]
) -> Iterator[dict[str, int]]:
    """Let writers work in threads of their own until the block ends; yield how often each did."""
    stopping = threading.Event()
    failures: list[BaseException] = []
    done: dict[str, int] = dict.fromkeys((writer.__name__ for writer in writers), 0)

    def work(writer: Callable[[Session, random.Random], None], seed: int) -> None:
        chance = random.Random(seed)  # noqa: S311 - no secret
        try:
            with database.connect() as session:
                session.execute("SET lock_timeout = '100ms'")
                while not stopping.is_set():
                    with contextlib.suppress(
                        psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected
                    ):
                        writer(session, chance)
                        done[writer.__name__] += 1
                    time.sleep(chance.uniform(0.3, 1.0) if writer in LOCKERS else REST)
        except BaseException as error:  # noqa: BLE001 - told in the thread of the test
            failures.append(error)

    threads = [
        threading.Thread(target=work, args=(writer, number))
        for number, writer in enumerate(writers)
    ]
    for thread in threads:
        thread.start()
    try:
        yield done
    finally:
        stopping.set()
        for thread in threads:
            thread.join(30)
    assert not any(thread.is_alive() for thread in threads)
    assert failures == []
    assert database.run_sql(BALANCE) == BALANCED


def back_up(database: Database, folder: Path, statements: Sequence[str]) -> str:
    env = environment(database.bin_dir, **backups.settings(database, folder))
    done = run_pgstash(["once"], env, statements=statements, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def balance_after_restore(folder: Path, make_database: MakeDatabase) -> str:
    target = make_database()
    try:
        backups.stored(folder)[-1].restore(target)
        return target.run_sql(BALANCE)
    finally:
        target.drop()


@pytest.fixture
def money(make_database: MakeDatabase) -> Database:
    database = make_database()
    database.run_sql(MONEY)
    assert database.run_sql(BALANCE) == BALANCED
    return database


@pytest.mark.parametrize("runs", [3, pytest.param(25, marks=pytest.mark.long)])
def test_money_that_moves_during_the_dump(
    runs: int, money: Database, make_database: MakeDatabase, tmp_path: Path
) -> None:
    for _ in range(runs):
        with written_to(money, *WRITERS) as done:
            said = back_up(money, tmp_path, pieces.statements(pieces.slow(0.03)))
        assert ONE_PG_DUMP not in said
        assert min(done.values()) > 0, done
        assert balance_after_restore(tmp_path, make_database) == BALANCED


@pytest.mark.parametrize("runs", [3, pytest.param(40, marks=pytest.mark.long)])
def test_money_in_tables_that_are_rewritten_around_the_dump(
    runs: int, money: Database, make_database: MakeDatabase, tmp_path: Path
) -> None:
    """Also where one pg_dump does it in the end."""
    by_several = 0
    for _ in range(runs):
        with written_to(money, *WRITERS, *LOCKERS):
            said = back_up(money, tmp_path, pieces.statements(pieces.slow(0.03)))
        assert balance_after_restore(tmp_path, make_database) == BALANCED
        by_several += ONE_PG_DUMP not in said
    assert by_several


REWRITES = ["TRUNCATE", "VACUUM FULL", "another of its name"]


@pytest.mark.parametrize("rewrite", later(REWRITES, "VACUUM FULL"))
def test_a_table_that_is_rewritten_between_the_snapshot_and_the_lock(
    rewrite: str, money: Database, make_database: MakeDatabase, tmp_path: Path
) -> None:
    (talk := tmp_path / "talk").mkdir()
    (folder := tmp_path / "storage").mkdir()
    stop = pieces.Stop(pieces.SNAPSHOT_TAKEN, talk)
    (talk / "go on 1").touch()
    (talk / "go on 2").touch()
    said = []
    running = threading.Thread(
        target=lambda: said.append(back_up(money, folder, pieces.statements(stop.statement)))
    )
    running.start()
    with stop.reached(), money.connect() as session:
        if rewrite == "TRUNCATE":
            refill(session, random.Random())  # noqa: S311 - no secret
        elif rewrite == "another of its name":
            session.execute(
                "BEGIN; CREATE TABLE made (LIKE accounts INCLUDING ALL);"
                "INSERT INTO made SELECT * FROM accounts;"
                "ALTER TABLE accounts RENAME TO old; ALTER TABLE made RENAME TO accounts; COMMIT"
            )
        else:
            session.execute("VACUUM FULL accounts")
    running.join(60)
    assert said
    assert balance_after_restore(folder, make_database) == BALANCED


@pytest.mark.parametrize("smallest", [0, 1 << 20], ids=["read in pieces", "left to pg_dump"])
@pytest.mark.parametrize("rewrite", ["TRUNCATE t", "ALTER TABLE t ALTER n TYPE bigint"])
def test_a_small_table_that_is_rewritten_before_the_second_lock(
    rewrite: str, smallest: int, make_database: MakeDatabase, tmp_path: Path
) -> None:
    """All that the first pg_dump writes fits into its pipe: it has ended, and holds no lock."""
    source = make_database()
    source.run_sql("CREATE TABLE t AS SELECT n FROM generate_series(1, 1000) n")
    (talk := tmp_path / "talk").mkdir()
    (folder := tmp_path / "storage").mkdir()
    stop = pieces.Stop(pieces.CUT, talk)
    (talk / "go on 1").touch()
    statements = pieces.statements(f"snapshot._SMALLEST = {smallest}", stop.statement)
    said: list[str] = []
    running = threading.Thread(target=lambda: said.append(back_up(source, folder, statements)))
    running.start()
    with stop.reached(), source.connect() as session:
        session.execute(f"BEGIN; {rewrite}; INSERT INTO t SELECT generate_series(1, 500); COMMIT")
    running.join(60)
    assert said
    [(_, rows)] = backups.stored(folder)[0].row_counts.items()
    assert rows == int(source.run_sql("SELECT count(*) FROM t"))


# All chunks together are the table.


@dataclass(frozen=True)
class Stage:
    """A table that is filled anew again and again, and how it is read in pieces."""

    database: Database
    server: Server
    client: ClientTools
    entries: Sequence[Entry]

    @contextlib.contextmanager
    def reader(self, snapshot: copying.Snapshot) -> Iterator[Reader]:
        with Reader(
            self.server,
            ToolRun(self.client, clean_environment(), ignore),
            snapshot=snapshot.name,
            role=None,
            idle_seconds=60,
        ) as reader:
            yield reader

    def table(self, snapshot: copying.Snapshot) -> list[bytes]:
        """Return the rows as a session sees them that reads all at once."""
        with self.database.connect() as session, session.cursor() as cursor:
            cursor.execute("BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            cursor.execute(f"SET TRANSACTION SNAPSHOT '{snapshot.name}'")
            with cursor.copy("COPY wide (id, short, value) TO STDOUT") as copy:
                return sorted(bytes(row) for row in copy)


@pytest.fixture(scope="module")
def stage(clusters: Clusters, major: int) -> Iterator[Stage]:
    cluster: Cluster = clusters.get(major)
    with temporary_database(cluster) as database:
        database.run_sql(
            """
            CREATE TABLE wide (id int, short text, value text);
            ALTER TABLE wide ALTER value SET STORAGE EXTERNAL;
            ALTER TABLE wide SET (autovacuum_enabled = off, toast_tuple_target = 256);
            """
        )
        server = login.inspect(database.uri)
        env = clean_environment(database.bin_dir)
        client = installed.find(server.major, env["PATH"], env)
        with (
            copying.snapshot(server) as snapshot,
            pieces.contents(server, client, snapshot, env) as contents,
        ):
            entries = contents.entries
        yield Stage(database, server, client, entries)


INSERT = """
    INSERT INTO wide SELECT n, repeat('s', n %% %(short)s), repeat(n::text, n %% %(value)s)
    FROM generate_series(%(first)s::int, %(last)s::int) n
"""
CHANGES = {
    "update": "UPDATE wide SET short = short || 'u' WHERE id %% %(each)s = 0",
    "update value": "UPDATE wide SET value = value || id WHERE id %% %(each)s = 1",
    "delete": "DELETE FROM wide WHERE id %% %(each)s = 0",
    "delete the last": "DELETE FROM wide WHERE id > 1000 / %(each)s",
    "vacuum": "VACUUM (TRUNCATE off) wide",
    "truncate empty pages": "VACUUM wide",
    "vacuum full": "VACUUM FULL wide",
}
changes = st.lists(st.tuples(st.sampled_from(sorted(CHANGES)), st.integers(1, 12)), max_size=5)
# What rewrites the table is refused under the older snapshot.
harmless = changes.filter(lambda chosen: "vacuum full" not in dict(chosen))
inserts = st.fixed_dictionaries(
    {"rows": st.integers(0, 1500), "short": st.integers(1, 900), "value": st.integers(1, 700)}
)


def insert(session: Session, first: int, rows: int, short: int, value: int) -> None:
    given = {"first": first, "last": first + rows - 1, "short": short, "value": value}
    session.execute(INSERT, given)


@pytest.mark.newest_first
@given(
    fillfactor=st.integers(10, 100),
    first=inserts,
    before=changes,
    again=inserts,
    after=harmless,
    later=inserts,
    chunk_bytes=st.sampled_from([1, 8192, 30_000, 100_000, 10_000_000]),
    sized_before=st.booleans(),
)
@settings(max_examples=25)
def test_all_chunks_together_are_the_table(  # noqa: PLR0917
    stage: Stage,
    fillfactor: int,
    first: dict[str, int],
    before: list[tuple[str, int]],
    again: dict[str, int],
    after: list[tuple[str, int]],
    later: dict[str, int],
    chunk_bytes: int,
    sized_before: bool,  # noqa: FBT001
) -> None:
    """Nothing is lost or doubled, whatever changes before; what changes later is not seen.

    Rows may come to new pages when the size is taken already: the last chunk has no end.
    """
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.ExitStack() as stack,
        stage.database.connect() as session,
    ):
        patch.setattr(copying, "_SMALLEST", 0)
        patch.setattr(copying, "CHUNK_BYTES", chunk_bytes)
        session.execute("TRUNCATE wide")
        session.execute(f"ALTER TABLE wide SET (fillfactor = {fillfactor})")
        insert(session, 1, **first)
        for change, each in before:
            session.execute(CHANGES[change], {"each": each})
        tables = []
        if sized_before:
            with copying.snapshot(stage.server) as early:
                tables = early.cut(stage.entries)
        insert(session, 10_001, **again)
        snapshot = stack.enter_context(copying.snapshot(stage.server))
        expected = stage.table(snapshot)
        # Pages are given back in none of these while somebody sees a snapshot.
        insert(session, 20_001, **later)
        for change, each in after:
            session.execute(CHANGES[change], {"each": each})
        if not sized_before:
            tables = snapshot.cut(stage.entries)
        [table] = tables
        reader = stack.enter_context(stage.reader(snapshot))
        reader.begin(tables)
        rows: list[bytes] = []
        for chunk in table.chunks:
            rows += b"".join(reader.read(chunk)).splitlines(keepends=True)
        assert sorted(rows) == expected
        if chunk_bytes == 1 and not sized_before and len(expected) > 1000:
            assert len(list(table.chunks)) > 1
