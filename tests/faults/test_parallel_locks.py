"""A dump by several sessions keeps out of the way of others, and fails as one pg_dump does."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest

from faults.scene import (
    Folder,
    Scene,
    assert_failed,
    assert_nothing_left,
    assert_succeeds,
    complete_archives,
    wait_until,
)
from pgstash.processes.child import Group
from support import backups, pieces
from support.cli import run_pgstash, started_pgstash
from support.compare import compare
from support.pieces import Stop
from support.postgres import Cluster
from support.proxy import Behaviour, TcpProxy
from support.tiers import later

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    from support.postgres import Database, MakeDatabase

KIB = 1024
ONE_PG_DUMP = "Falling back to a single pg_dump for "
WHOLE = re.DOTALL | re.MULTILINE
TABLES = """
    CREATE TABLE a_big AS
        SELECT n, md5(n::text) || md5((-n)::text) AS noise FROM generate_series(1, 20000) n;
    CREATE TABLE b_big AS TABLE a_big;
    CREATE TABLE c_partitioned (n int) PARTITION BY RANGE (n);
    CREATE TABLE c_partition PARTITION OF c_partitioned FOR VALUES FROM (0) TO (100);
    INSERT INTO c_partitioned SELECT generate_series(0, 99);
    CREATE TABLE d_detached (n int);
    INSERT INTO d_detached SELECT generate_series(100, 199);
"""


@dataclass
class InPieces(Scene):
    """A scene in which every table is read in pieces; ``more`` are statements of the program."""

    more: list[str] = field(default_factory=list)

    def once(self, **settings: str) -> subprocess.CompletedProcess[str]:
        env = self.environment(**settings)
        return run_pgstash(["once"], env, statements=pieces.statements(*self.more), timeout=60)

    def started(self, **settings: str) -> AbstractContextManager[subprocess.Popen[str]]:
        env = self.environment(**settings)
        return started_pgstash(["once"], env, statements=pieces.statements(*self.more))

    def stop(self, moment: str, talk: Path) -> Stop:
        """Let each run from now on wait at this moment for the test."""
        talk.mkdir()
        stop = Stop(moment, talk)
        self.more = [stop.statement]
        return stop

    def sessions(self) -> int:
        """Return how many sessions of ours are on the server."""
        with self.database.cluster.maintenance.connect() as connection:
            row = connection.execute(
                "SELECT count(*) FROM pg_stat_activity"
                " WHERE datname = %s AND application_name LIKE 'pgstash%%'",
                [self.database.name],
            ).fetchone()
        return int(row[0]) if row else 0


@pytest.fixture
def real(make_database: MakeDatabase, folder: Folder) -> Iterator[InPieces]:
    """A database, the real tools, and a directory."""
    database = make_database()
    database.run_sql(TABLES)
    scene = InPieces(database, folder, database.bin_dir)
    yield scene
    wait_until(lambda: not scene.processes(), "all children are gone")
    wait_until(lambda: not scene.sessions(), "all sessions are gone")


def finished(process: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
    out, err = process.communicate(timeout=60)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def assert_complete(scene: Scene, target: Database) -> None:
    """What is stored is one backup, and it is the database."""
    assert len(complete_archives(scene.place)) == 1
    assert scene.place.unfinished() == []
    [backup] = backups.stored(Path(scene.place.settings["STORAGE_URL"].removeprefix("file://")))
    backup.restore(target)
    source = scene.database
    assert compare(source.conninfo, target.conninfo, bin_dir=source.bin_dir) == []


def assert_by_several(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 0, done.stdout + done.stderr
    assert ONE_PG_DUMP not in done.stdout + done.stderr, done.stderr


def assert_by_one(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """The run succeeded, with a warning that says why one pg_dump did it."""
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    [why] = re.findall(rf"WARNING [^\n]*{ONE_PG_DUMP}(.*?)(?=^\d{{4}}-|\Z)", said, WHOLE)
    for word in words:
        assert word in why, why


def waits(database: Database, query: str) -> bool:
    """Tell whether a session waits for a lock, in a query that begins like this."""
    with database.cluster.maintenance.connect() as connection:
        row = connection.execute(
            "SELECT FROM pg_stat_activity WHERE datname = %s AND wait_event_type = 'Lock'"
            " AND starts_with(query, %s)",
            [database.name, query],
        ).fetchone()
    return row is not None


# Locks of others.


def test_an_alter_that_waits_behind_us(
    real: InPieces, make_database: MakeDatabase, tmp_path: Path
) -> None:
    alter = "ALTER TABLE a_big ADD later int DEFAULT 1"
    stop = real.stop(pieces.LOCKED_BY_ALL, tmp_path / "talk")
    with real.database.connect() as other, ThreadPoolExecutor(1) as pool, real.started() as process:
        with stop.reached():
            altering = pool.submit(other.execute, alter)
            wait_until(lambda: waits(real.database, alter), "ALTER waits")
        done = finished(process)
        altering.result(timeout=30)
    assert_by_several(done)
    real.database.run_sql("ALTER TABLE a_big DROP later")
    assert_complete(real, make_database())


@pytest.mark.parametrize("wanted", later(["one table", "all tables"], "one table"))
def test_a_table_that_is_locked_for_a_short_time(
    wanted: str, real: InPieces, make_database: MakeDatabase
) -> None:
    """The lock is held when the dump begins: on a table, or on all of them."""
    tables = "a_big" if wanted == "one table" else "a_big, b_big, c_partitioned, d_detached"
    with real.database.connect() as holder, real.started() as process:
        with holder.transaction():
            holder.execute(f"LOCK TABLE {tables} IN ACCESS EXCLUSIVE MODE")
            wait_until(lambda: waits(real.database, "LOCK TABLE"), "pg_dump waits")
        done = finished(process)
    assert_by_several(done)
    assert_complete(real, make_database())


def test_a_table_that_is_locked_for_long(real: InPieces) -> None:
    began = time.monotonic()
    with real.database.connect() as holder, holder.transaction():
        holder.execute("LOCK TABLE a_big IN ACCESS EXCLUSIVE MODE")
        done = real.once(LOCK_TIMEOUT="1")
    assert_failed(done, 14, "LOCK TABLE", "pg_locks", "LOCK_TIMEOUT", nothing_left=real)
    assert time.monotonic() - began < 30
    assert_succeeds(real)


def test_a_materialized_view_that_is_locked_for_long(real: InPieces) -> None:
    """Its lock is none of those that pg_dump itself gives up on."""
    real.database.run_sql("CREATE MATERIALIZED VIEW held AS SELECT 1 AS a")
    with real.database.connect() as holder, holder.transaction():
        holder.execute("REFRESH MATERIALIZED VIEW held")
        done = real.once(LOCK_TIMEOUT="1")
    assert_failed(done, 14, "public.held", "LOCK_TIMEOUT", nothing_left=real)
    assert_succeeds(real)


MOMENTS = {"first": pieces.LOCKED_BY_FIRST, "cut": pieces.CUT}
OFTEN = [(moment, times) for moment in MOMENTS for times in (1, 3)]


@pytest.mark.parametrize(("moment", "times"), later(OFTEN, ("first", 3), ("cut", 1)))
def test_an_alter_that_comes_between_the_locks(
    moment: str, times: int, real: InPieces, make_database: MakeDatabase, tmp_path: Path
) -> None:
    """It waits for the first pg_dump, and the readers would wait for it: so all begin anew."""
    alter = "ALTER TABLE a_big ALTER noise SET STORAGE EXTERNAL"
    stop = real.stop(MOMENTS[moment], tmp_path / "talk")
    for number in range(times, 4):
        (tmp_path / "talk" / f"go on {number}").touch()
    with real.database.connect() as other, ThreadPoolExecutor(1) as pool, real.started() as process:
        for number in range(times):
            with stop.reached(number):
                altering = pool.submit(other.execute, alter)
                wait_until(lambda: waits(real.database, alter), "ALTER waits")
            altering.result(timeout=30)
        done = finished(process)
    if times == 3:
        assert_by_one(done, "lock")
    else:
        assert_by_several(done)
    assert len(list((tmp_path / "talk").glob("arrived *"))) == min(times + 1, 3)
    assert_complete(real, make_database())


def test_a_refresh_that_comes_between_the_locks(
    real: InPieces, make_database: MakeDatabase, tmp_path: Path
) -> None:
    """It waits for the first pg_dump, which looked at what a view reads, and the second for it."""
    real.database.run_sql(
        "CREATE MATERIALIZED VIEW inner_one AS SELECT count(*) FROM a_big;"
        "CREATE VIEW outer_one AS SELECT * FROM inner_one"
    )
    refresh = "REFRESH MATERIALIZED VIEW inner_one"
    stop = real.stop(pieces.CUT, tmp_path / "talk")
    (tmp_path / "talk" / "go on 1").touch()
    with real.database.connect() as other, ThreadPoolExecutor(1) as pool, real.started() as process:
        with stop.reached():
            refreshing = pool.submit(other.execute, refresh)
            wait_until(lambda: waits(real.database, refresh), "REFRESH waits")
        refreshing.result(timeout=30)
        done = finished(process)
    assert_by_several(done)
    assert_complete(real, make_database())


def test_schemas_that_take_each_others_names(real: InPieces, tmp_path: Path) -> None:
    """No lock on a table keeps the name of its schema, and pieces are read by name."""
    real.database.run_sql(
        "CREATE SCHEMA staging; CREATE TABLE staging.a_big AS TABLE a_big; CREATE SCHEMA live;"
        "ALTER TABLE a_big SET SCHEMA live"
    )
    stop = real.stop(pieces.LOCKED_BY_ALL, tmp_path / "talk")
    with real.started() as process:
        with stop.reached():
            real.database.run_sql(
                "ALTER SCHEMA live RENAME TO old; ALTER SCHEMA staging RENAME TO live;"
                "ALTER SCHEMA old RENAME TO staging"
            )
        done = finished(process)
    assert_failed(done, 13, "a_big or its schema was renamed", nothing_left=real)
    real.more = []
    assert_succeeds(real)


STATEMENTS = {
    "attach": "ALTER TABLE c_partitioned ATTACH PARTITION d_detached"
    " FOR VALUES FROM (100) TO (200)",
    "detach": "ALTER TABLE c_partitioned DETACH PARTITION c_partition",
    "drop": "DROP TABLE a_big",
    "truncate": "TRUNCATE a_big",
    "vacuum full": "VACUUM FULL a_big",
    "rewrite": "ALTER TABLE b_big ALTER n TYPE bigint",
}


@pytest.mark.parametrize("what", later(STATEMENTS, "detach", "drop", "vacuum full"))
def test_what_changes_a_table_waits_for_the_end(
    what: str, real: InPieces, make_database: MakeDatabase, tmp_path: Path
) -> None:
    statement = STATEMENTS[what]
    before = make_database()
    before.run_sql(TABLES)
    stop = real.stop(pieces.LOCKED_BY_ALL, tmp_path / "talk")
    with real.database.connect() as other, ThreadPoolExecutor(1) as pool, real.started() as process:
        with stop.reached():
            waiting = pool.submit(other.execute, statement)
            wait_until(lambda: waits(real.database, statement), f"{what} waits")
            # It gives up by itself, too, and nothing comes of that.
            with real.database.connect() as hasty:
                hasty.execute("SET lock_timeout = 100")
                with pytest.raises(psycopg.errors.LockNotAvailable):
                    hasty.execute(statement)
            assert not waiting.done()
        done = finished(process)
        waiting.result(timeout=30)
    assert_by_several(done)
    [backup] = backups.stored(Path(real.place.settings["STORAGE_URL"].removeprefix("file://")))
    target = make_database()
    backup.restore(target)
    # As it was before.
    assert compare(before.conninfo, target.conninfo, bin_dir=before.bin_dir) == []


# What cannot be shared.


def test_a_server_with_little_room_for_locks(
    newest_cluster: Cluster, make_database: MakeDatabase, folder: Folder
) -> None:
    """A lock table that is full is full for everybody."""
    few = {"max_locks_per_transaction": "10", "max_connections": "20"}
    tables = "".join(f"CREATE TABLE t{n} (n int);" for n in range(90))
    with Cluster(newest_cluster.major, settings=few) as cluster:
        database = cluster.create_database("many")
        database.run_sql(tables)
        scene = InPieces(database, folder, database.bin_dir)
        assert_by_one(scene.once(), "max_locks_per_transaction")
        assert_complete(scene, make_database())
        database.run_sql("".join(f"DROP TABLE t{n};" for n in range(10, 90)))
        assert_by_several(scene.once())


def test_an_option_that_wants_a_snapshot_of_its_own(
    real: InPieces, make_database: MakeDatabase
) -> None:
    done = real.once(PG_DUMP_EXTRA_ARGS="--serializable-deferrable")
    assert_by_one(done, "--serializable-deferrable", "cannot be shared")
    assert_complete(real, make_database())


@pytest.fixture
def role(newest_cluster: Cluster) -> Iterator[str]:
    """A role that may read everything, and no superuser."""
    with newest_cluster.maintenance.connect() as connection:
        connection.execute("CREATE ROLE limited LOGIN IN ROLE pg_read_all_data")
        yield "limited"
        connection.execute("DROP ROLE limited")


def login(role: str, database: Database) -> str:
    return database.uri.replace(f"//{database.cluster.user}@", f"//{role}@")


@pytest.mark.parametrize("limit", later([3, 4], 4))
def test_a_role_with_few_connections(
    limit: int, role: str, real: InPieces, make_database: MakeDatabase
) -> None:
    real.database.run_sql(f"ALTER ROLE {role} CONNECTION LIMIT {limit}")
    done = real.once(DATABASE_URL=login(role, real.database))
    assert_by_one(done, "too many connections")
    assert_complete(real, make_database())


@pytest.mark.long
def test_a_role_with_fewer_connections_than_one_pg_dump_needs(role: str, real: InPieces) -> None:
    real.database.run_sql(f"ALTER ROLE {role} CONNECTION LIMIT 2")
    done = real.once(DATABASE_URL=login(role, real.database))
    assert_failed(done, 11, "too many connections", nothing_left=real)


def test_a_role_that_may_not_export_a_snapshot(
    role: str, real: InPieces, make_database: MakeDatabase
) -> None:
    function = "FUNCTION pg_catalog.pg_export_snapshot() FROM PUBLIC"
    real.database.run_sql(f"REVOKE EXECUTE ON {function}")
    done = real.once(DATABASE_URL=login(role, real.database))
    real.database.run_sql(f"GRANT EXECUTE ON {function.replace('FROM', 'TO')}")
    assert_by_one(done, "no snapshot can be shared", "permission denied")
    assert_complete(real, make_database())


@pytest.mark.parametrize(
    "moment",
    later([pieces.SNAPSHOT_TAKEN, pieces.LOCKED_BY_FIRST, pieces.CUT], pieces.SNAPSHOT_TAKEN),
)
def test_a_snapshot_that_is_gone_when_it_is_wanted(
    moment: str, real: InPieces, make_database: MakeDatabase, tmp_path: Path
) -> None:
    """As where connections do not lead to one and the same server."""
    stop = real.stop(moment, tmp_path / "talk")
    (tmp_path / "talk" / "go on 1").touch()
    with real.started() as process:
        with stop.reached(), real.database.cluster.maintenance.connect() as connection:
            gone = connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = %s AND application_name = 'pgstash'"
                " AND state = 'idle in transaction'",
                [real.database.name],
            ).fetchall()
            assert gone == [(True,)]
        done = finished(process)
    assert_by_one(done)
    assert_complete(real, make_database())


# Ends in the middle.


@contextlib.contextmanager
def slowly_read(scene: InPieces) -> Iterator[subprocess.Popen[str]]:
    """Start a dump over a slow connection; enter the block when a reader reads."""
    port = scene.database.cluster.port
    with TcpProxy(port) as proxy:
        proxy.behave(Behaviour(rate=300 * KIB))
        url = scene.database.uri.replace(f":{port}/", f":{proxy.port}/")
        with scene.started(DATABASE_URL=url) as process:
            wait_until(lambda: backends(scene), "a reader reads")
            yield process


def backends(scene: InPieces) -> list[int]:
    """Return the process ids of the server's sides of readers in the middle of a piece."""
    with scene.database.cluster.maintenance.connect() as connection:
        rows = connection.execute(
            "SELECT pid FROM pg_stat_activity WHERE datname = %s AND query LIKE 'COPY (%%'",
            [scene.database.name],
        ).fetchall()
    return [int(row[0]) for row in rows]


def children(process: subprocess.Popen[str], name: str) -> list[int]:
    found = []
    for each in Path(f"/proc/{process.pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += [int(child) for child in each.read_text().split()]
    named = []
    for child in found:
        with contextlib.suppress(OSError):
            if Path(f"/proc/{child}/comm").read_text().strip() == name:
                named.append(child)
    return named


def test_a_reader_that_is_killed(real: InPieces) -> None:
    with slowly_read(real) as process:
        os.kill(children(process, "psql")[-1], signal.SIGKILL)
        done = finished(process)
    assert_failed(done, 13, "psql was killed by signal 9", "memory", nothing_left=real)
    assert_succeeds(real)


def test_a_pg_dump_of_the_rest_that_is_killed(real: InPieces) -> None:
    real.database.run_sql(
        "CREATE TABLE e AS SELECT repeat('x', 1000000) FROM generate_series(1, 9)"
    )
    real.more = ["snapshot._SMALLEST = 1 << 20"]
    with slowly_read(real) as process:
        os.kill(children(process, "pg_dump")[-1], signal.SIGKILL)
        done = finished(process)
    assert_failed(done, 13, "pg_dump was killed by signal 9", nothing_left=real)
    assert_succeeds(real)


def test_a_session_of_a_reader_that_is_terminated(real: InPieces) -> None:
    with slowly_read(real) as process:
        with real.database.cluster.maintenance.connect() as connection:
            connection.execute("SELECT pg_terminate_backend(%s)", [backends(real)[0]])
        done = finished(process)
    assert_failed(done, 13, "psql", "Was the server restarted", nothing_left=real)
    assert_succeeds(real)


@pytest.mark.parametrize(
    "moment", later(["reading", pieces.CUT, pieces.LOCKED_BY_ALL], pieces.LOCKED_BY_ALL)
)
def test_a_signal(moment: str, real: InPieces, tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        if moment == "reading":
            process = stack.enter_context(slowly_read(real))
        else:
            stop = real.stop(moment, tmp_path / "talk")
            process = stack.enter_context(real.started())
            stack.enter_context(stop.reached())
        group = children(process, "psql") + children(process, "pg_dump")
        assert group
        sent = time.monotonic()
        process.send_signal(signal.SIGTERM)
        done = finished(process)
        took = time.monotonic() - sent
    assert done.returncode == -signal.SIGTERM, done.stdout + done.stderr
    assert took < 5, f"{took:.1f} s"
    assert ": interrupted by SIGTERM" in done.stderr
    assert "Traceback" not in done.stderr
    assert not [pid for pid in group if Path(f"/proc/{pid}").exists()]
    assert_nothing_left(real)
    real.more = []
    assert_succeeds(real)


def test_a_child_that_one_thread_ends_while_another_waits_for_it() -> None:
    with ThreadPoolExecutor(1) as pool:
        for _ in range(20):
            with subprocess.Popen(["sleep", "60"], start_new_session=True) as process:
                group = Group(process)
                waiting = pool.submit(group.exits, 30)
                group.end()
                assert waiting.result(timeout=30)


def test_a_manifest_that_nobody_would_read_is_none(real: InPieces) -> None:
    """Of some eight terabytes of rows and more; here of a few kilobytes."""
    real.more = ["from pgstash.format import manifest", "manifest.LARGEST = 2000"]
    words = ("would be larger than what a restore reads", "EXCLUDE_TABLES")
    assert_failed(real.once(), 13, *words, nothing_left=real)
