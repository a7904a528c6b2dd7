"""A dump that goes wrong never becomes a backup, and the message says why and what to do."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from psycopg import sql

from faults.conftest import PLACES
from faults.scene import (
    NAME,
    Folder,
    Scene,
    assert_failed,
    assert_nothing_left,
    assert_succeeds,
    complete_archives,
    wait_until,
)
from support import fake_tools as fakes
from support.cli import COMMAND, started_pgstash
from support.fake_tools import MIB, FakePgDump
from support.postgres import PASSWORD, Cluster, Clusters, Database
from support.proxy import PASS, REFUSE, Behaviour, TcpProxy
from support.tiers import later

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.postgres import MakeDatabase

SEVERAL_PARTS = 30 * MIB  # of noisy rows, which become 23 MiB compressed

pytestmark = pytest.mark.newest_first


# What a fake does and a real one does rarely.

DEATHS = {
    "dies midway": (
        fakes.dies_midway(),
        ["server closed the connection", "Was the server restarted"],
    ),
    "dies after several parts": (
        fakes.dies_midway(SEVERAL_PARTS, noisy=True),
        ["server closed the connection", "Was the server restarted"],
    ),
    "fails after a complete dump": (
        fakes.fails_after_complete_dump(),
        ["exit status 1", "could not close output", "server's log"],
    ),
    "fails without a word": (
        FakePgDump(complete=False, status=3),
        ["exit status 3", "without a message", "server's log"],
    ),
    "ends early with status 0": (
        fakes.truncated_but_status_zero(),
        ["dump is not complete", "server's log"],
    ),
    "writes nothing": (fakes.writes_nothing(), ["dump is not complete", "server's log"]),
    "is killed": (fakes.killed(), ["killed by signal 9", "memory"]),
    "lost a table": (
        FakePgDump(
            complete=False,
            status=1,
            stderr='pg_dump: error: query failed: ERROR:  relation "public.t" does not exist\n'
            "pg_dump: detail: Query was: LOCK TABLE public.t IN ACCESS SHARE MODE\n",
        ),
        ["exit status 1", "dropped or altered"],
    ),
    "crashes": (fakes.killed(by="SIGSEGV"), ["killed by signal 11"]),
    "is killed after a complete dump": (FakePgDump(killed_by="SIGKILL"), ["killed by signal 9"]),
}


# An upload in parts is aborted as nothing in a folder is.
DEATHS_AT_PLACES = [(place, death) for place in PLACES for death in DEATHS]
IN_PARTS = ("bucket", "dies after several parts")
ELSEWHERE = [each for each in DEATHS_AT_PLACES if each[0] != PLACES[0] and each != IN_PARTS]


@pytest.mark.parametrize(
    ("place", "death"), later(DEATHS_AT_PLACES, *ELSEWHERE), indirect=["place"]
)
def test_a_dump_that_dies(death: str, scene: Scene) -> None:
    behaviour, words = DEATHS[death]
    scene.fake(behaviour)
    assert_failed(scene.once(), 13, "pg_dump", *words, nothing_left=scene)
    scene.fake(FakePgDump())
    assert_succeeds(scene)


SILENT = {
    "hangs, ignores SIGTERM, has a child": FakePgDump(
        hang="with child", complete=False, ignored_signals=("SIGTERM", "SIGINT", "SIGHUP")
    ),
    "hangs": fakes.hangs(),
    "hangs with a child": fakes.hangs(with_child=True),
    "ignores SIGTERM": fakes.ignores_sigterm(),
    "never begins": FakePgDump(silence=3600.0),
    "hangs after a complete dump": FakePgDump(hang="alone", size=SEVERAL_PARTS, noisy=True),
}


# One that ignores every signal, with a child, is the hardest to end; one that wrote everything is
# the one that could be taken for a backup.
@pytest.mark.parametrize(
    "silence",
    later(SILENT, "hangs", "hangs with a child", "ignores SIGTERM", "never begins"),
)
def test_a_dump_that_falls_silent(silence: str, scene: Scene) -> None:
    scene.fake(SILENT[silence])
    done = scene.once(DUMP_IDLE_TIMEOUT="10")
    assert_failed(done, 13, "wrote nothing for 10 s", "pg_stat_activity", nothing_left=scene)


@pytest.mark.parametrize("flood", later(["lines", "one line"], "lines"))
def test_a_flood_on_stderr_is_drained_and_not_kept(
    flood: str,
    bucket_scene: Scene,
) -> None:
    scene = bucket_scene
    scene.fake(fakes.floods_stderr(256 * MIB, newlines=flood == "lines"))
    peak = 0

    def watch(process: subprocess.Popen[str]) -> None:
        nonlocal peak
        status = Path(f"/proc/{process.pid}/status")
        while process.poll() is None:
            with contextlib.suppress(OSError):
                found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
                peak = max(peak, int(found[1]) * 1024 if found else 0)
            time.sleep(0.01)

    # What it takes to load is a part of its memory.
    with started_pgstash(["once"], scene.environment(), command=(COMMAND,)) as process:
        watcher = threading.Thread(target=watch, args=(process,))
        watcher.start()
        out, err = process.communicate(timeout=60)
        watcher.join()
    assert process.returncode == 0, err[-2000:]
    assert len(out) + len(err) < 2 * MIB
    assert 0 < peak < 300 * MIB
    assert len(complete_archives(scene.place)) == 1


def test_a_password_that_pg_dump_leaks_is_not_passed_on(
    clusters: Clusters, make_database: MakeDatabase, scene: Scene
) -> None:
    scene.database = make_database(on=clusters.get(18, "scram-sha-256"))
    scene.fake(fakes.leaks_password())
    done = scene.once(DEBUG="true")
    assert_failed(done, 13, "detail: password=***", nothing_left=scene)
    assert PASSWORD not in done.stdout + done.stderr


# What the real one dies of, half-way after a plausible beginning.


@pytest.fixture
def reader(cluster: Cluster) -> Iterator[str]:
    """A role that may log in and do nothing else."""
    with cluster.maintenance.connect() as connection:
        connection.execute("CREATE ROLE reader LOGIN")
        yield "reader"
        connection.execute("DROP ROLE reader")


@pytest.fixture
def source(reader: str, cluster: Cluster, make_database: MakeDatabase) -> Database:
    """A database whose first table may be read by the role, and is not small."""
    database = make_database(on=cluster)
    database.run_sql(
        f"""
        CREATE TABLE a_first AS
            SELECT n, md5(n::text) || md5((-n)::text) AS noise FROM generate_series(1, 100000) n;
        GRANT SELECT ON a_first TO {reader};
        """
    )
    return database


@pytest.fixture
def real(source: Database, folder: Folder) -> Iterator[Scene]:
    """That database, the real pg_dump, and a directory."""
    scene = Scene(source, folder, source.bin_dir)
    yield scene
    wait_until(lambda: not scene.processes(), "pg_dump is gone")


FORBIDDEN = {
    "table": (
        "CREATE TABLE b_secret (a int)",
        ["permission denied for table b_secret", "pg_read_all_data"],
    ),
    "schema": (
        "CREATE SCHEMA hidden; CREATE TABLE hidden.t (a int); GRANT SELECT ON hidden.t TO reader",
        ["permission denied for schema hidden", "USAGE on the schema"],
    ),
    "sequence": (
        "CREATE SEQUENCE b_numbers",
        ["sequence", "b_numbers", "SELECT on the table or sequence"],
    ),
    "row-level security": (
        """
        CREATE TABLE b_rows (a int); GRANT SELECT ON b_rows TO reader;
        ALTER TABLE b_rows ENABLE ROW LEVEL SECURITY;
        CREATE POLICY positive ON b_rows USING (a > 0)
        """,
        ["row-level security policy for table", "b_rows", "BYPASSRLS"],
    ),
    "large object": (
        "SELECT lo_from_bytea(4711, 'secret')",
        ["permission denied for large object 4711", "SELECT ON LARGE OBJECT"],
    ),
}


@pytest.mark.parametrize("what", later(FORBIDDEN, "schema", "sequence"))
def test_something_the_role_may_not_read(what: str, real: Scene) -> None:
    statements, words = FORBIDDEN[what]
    real.database.run_sql(statements)
    owner = real.database.uri
    as_reader = owner.replace(f"//{real.database.cluster.user}@", "//reader@")
    assert_failed(real.once(DATABASE_URL=as_reader), 13, *words, nothing_left=real)
    assert_succeeds(real)


def test_a_lost_toast_chunk(real: Scene) -> None:
    real.database.run_sql(
        """
        CREATE TABLE b_wide (a text);
        ALTER TABLE b_wide ALTER a SET STORAGE EXTERNAL;
        INSERT INTO b_wide SELECT repeat('x', 100000);
        CREATE EXTENSION pg_surgery;
        SELECT format('SELECT heap_force_kill(%L::regclass, ARRAY[''(0,2)'']::tid[])',
                      reltoastrelid::regclass)
        FROM pg_class WHERE relname = 'b_wide' \\gexec
        """
    )
    done = real.once()
    assert_failed(done, 13, "b_wide", "toast value", "amcheck", nothing_left=real)
    real.database.run_sql("DROP TABLE b_wide")
    assert_succeeds(real)


@pytest.mark.long
def test_a_value_too_long_for_a_line_of_copy(real: Scene) -> None:
    """Bytea doubles as text, and a line of COPY has no more than 1 GB."""
    real.database.run_sql(
        "CREATE TABLE b_huge AS SELECT convert_to(repeat('x', 600000000), 'SQL_ASCII') AS a"
    )
    assert_failed(real.once(), 13, "b_huge", "1 GB", "large object", nothing_left=real)


# A source that goes away. Its connection is slow, so that there is a middle.

SLOW = Behaviour(rate=2 * MIB)


def through(proxy: TcpProxy, database: Database) -> str:
    return database.uri.replace(f":{database.cluster.port}/", f":{proxy.port}/")


def dumping(database: Database) -> int:
    """Return the process id of the server's side of a pg_dump that reads a table, or 0."""
    with database.cluster.maintenance.connect() as connection:
        row = connection.execute(
            "SELECT pid FROM pg_stat_activity WHERE datname = %s AND query LIKE 'COPY %%'"
            " AND application_name LIKE 'pgstash %%'",
            [database.name],
        ).fetchone()
    return int(row[0]) if row else 0


def test_a_session_that_is_terminated(real: Scene) -> None:
    with TcpProxy(real.database.cluster.port) as proxy:
        proxy.behave(SLOW)
        url = through(proxy, real.database)
        with real.started(DATABASE_URL=url, DUMP_JOBS="1") as process:
            wait_until(lambda: dumping(real.database), "pg_dump reads")
            with real.database.cluster.maintenance.connect() as connection:
                connection.execute("SELECT pg_terminate_backend(%s)", [dumping(real.database)])
            failed = finished(process)
        assert_failed(failed, 13, "a_first", "restarted", nothing_left=real)
    assert_succeeds(real)


@pytest.mark.parametrize("after", [100_000, 3 * MIB], ids=["catalog", "rows"])
def test_a_connection_that_is_cut(after: int, real: Scene) -> None:
    with TcpProxy(real.database.cluster.port) as proxy:
        proxy.behave(Behaviour(reset_after=after))
        done = real.once(DATABASE_URL=through(proxy, real.database))
    assert_failed(done, 13, "connection", "connection cut", nothing_left=real)
    assert_succeeds(real)


@pytest.mark.long
@pytest.mark.parametrize("after", [100_000, 3 * MIB], ids=["catalog", "rows"])
def test_a_connection_that_stalls(after: int, real: Scene) -> None:
    with TcpProxy(real.database.cluster.port) as proxy:
        proxy.behave(Behaviour(stall_after=after))
        done = real.once(DATABASE_URL=through(proxy, real.database), DUMP_IDLE_TIMEOUT="10")
    assert_failed(done, 13, "wrote nothing for 10 s", "pg_stat_activity", nothing_left=real)
    assert_succeeds(real)


def finished(process: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
    out, err = process.communicate(timeout=60)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


@pytest.fixture
def own_scene(newest_cluster: Cluster, folder: Folder) -> Iterator[Scene]:
    """A server of its own, to be stopped and damaged."""
    with Cluster(newest_cluster.major) as cluster:
        database = cluster.load_sample("empty")
        database.run_sql(
            "CREATE TABLE a_first AS SELECT n, md5(n::text) FROM generate_series(1, 300000) n"
        )
        yield Scene(database, folder, database.bin_dir)


def stored_bytes(scene: Scene) -> int:
    """Return the size of what was stored so far of an archive that is not complete."""
    folder = Path(scene.place.settings["STORAGE_URL"].removeprefix("file://"))
    return sum((folder / key).stat().st_size for key in scene.place.unfinished())


def test_a_server_that_is_stopped_at_once(own_scene: Scene) -> None:
    cluster = own_scene.database.cluster
    with TcpProxy(cluster.port) as proxy:
        proxy.behave(SLOW)
        url = through(proxy, own_scene.database)
        with own_scene.started(DATABASE_URL=url, DUMP_JOBS="1") as process:
            # Not before: other sessions would be lost first, as the one that compares tables.
            wait_until(lambda: stored_bytes(own_scene) > 64 * 1024, "rows were stored")
            assert dumping(own_scene.database)
            cluster.stop()
            failed = finished(process)
    assert_failed(failed, 13, "a_first", "restarted", nothing_left=own_scene)
    done = own_scene.once()
    assert_failed(
        done, 10, "cannot be reached", "whether the server is running", nothing_left=own_scene
    )
    cluster.start()
    assert_succeeds(own_scene)


def test_a_damaged_page(own_scene: Scene) -> None:
    database = own_scene.database
    database.run_sql("CREATE TABLE b_damaged AS TABLE a_first; CHECKPOINT")
    path = database.run_sql("SELECT pg_relation_filepath('b_damaged')").strip()
    database.cluster.stop(signal.SIGINT)
    with (database.cluster.folder / "data" / path).open("r+b") as file:
        file.seek(100 * 8192)
        file.write(b"\xff" * 4096)
    database.cluster.start()
    done = own_scene.once()
    assert_failed(done, 13, "b_damaged", "invalid page", "last good", nothing_left=own_scene)
    database.run_sql("DROP TABLE b_damaged")
    assert_succeeds(own_scene)


# Locks.


@pytest.fixture
def many_tables(source: Database) -> Database:
    """Tables with names so long that the statement that locks them all has 80 KB."""
    source.run_sql(
        """
        DO $$ BEGIN
            FOR n IN 1..1200 LOOP
                EXECUTE format('CREATE TABLE %I (a int)', rpad('t' || n, 60, '_'));
            END LOOP;
        END $$
        """
    )
    return source


def assert_lock_timeout(scene: Scene) -> None:
    done = scene.once(LOCK_TIMEOUT="1")
    assert_failed(done, 14, "LOCK TABLE", "pg_locks", "LOCK_TIMEOUT", nothing_left=scene)


def test_a_locked_table(real: Scene) -> None:
    with real.database.connect() as holder, holder.transaction():
        holder.execute("LOCK TABLE a_first IN ACCESS EXCLUSIVE MODE")
        assert_lock_timeout(real)
    assert_succeeds(real)


HELD = {
    "materialized view": "REFRESH MATERIALIZED VIEW b_held",
    "sequence": "ALTER SEQUENCE b_held RENAME TO c_held",
}


@pytest.mark.parametrize("kind", HELD)
def test_something_locked_that_pg_dump_does_not_time(kind: str, reader: str, real: Scene) -> None:
    """LOCK TABLE is for tables alone; the rest is locked whenever pg_dump looks at it."""
    definition = " AS SELECT 1 AS a" if kind == "materialized view" else ""
    real.database.run_sql(f"CREATE {kind} b_held{definition}; GRANT SELECT ON b_held TO {reader}")
    as_reader = real.database.uri.replace(f"//{real.database.cluster.user}@", f"//{reader}@")
    with real.database.connect() as holder, holder.transaction():
        holder.execute("SET LOCAL application_name = 'the holder'")
        holder.execute(HELD[kind])
        holder.execute("SELECT 'a secret in a query'")
        blocker = f"process {holder.info.backend_pid}"
        done = real.once(LOCK_TIMEOUT="1")
        seen = ["public.b_held", f"{blocker} (the holder, idle in transaction)", "LOCK_TIMEOUT"]
        assert_failed(done, 14, *seen, nothing_left=real)
        assert "a secret" not in done.stderr
        # It may not see the state of the sessions of other roles.
        done = real.once(LOCK_TIMEOUT="1", DATABASE_URL=as_reader)
        assert_failed(
            done, 14, "public.b_held", f"{blocker} (the holder) blocks", nothing_left=real
        )
    assert_succeeds(real, LOCK_TIMEOUT="1")


def test_a_silence_that_is_no_lock(scene: Scene) -> None:
    scene.fake(FakePgDump(silence=3.0))
    assert_succeeds(scene, LOCK_TIMEOUT="1")


def test_a_server_that_is_not_there_to_be_asked(scene: Scene) -> None:
    scene.fake(FakePgDump(silence=3.0))
    with TcpProxy(scene.database.cluster.port) as proxy:
        # All that the backup asks before it dumps comes through, what is asked about locks not.
        proxy.behave(PASS, next_connections=[*[PASS] * 6, REFUSE])
        url = through(proxy, scene.database)
        assert_succeeds(scene, LOCK_TIMEOUT="1", DATABASE_URL=url)
        assert proxy.accepted > 6


FAILED_IN_GERMAN = """\
pg_dump: error: query failed: FEHLER:  {}
pg_dump: detail: Query was: LOCK TABLE public.b_held, public.a_first IN ACCESS SHARE MODE
"""
STATES_IN_GERMAN = {
    "locked": (14, "storniere Anfrage wegen Zeitüberschreitung", ["LOCK_TIMEOUT"]),
    "locked a moment ago": (14, "storniere Anfrage wegen Zeitüberschreitung", ["LOCK_TIMEOUT"]),
    "forbidden": (13, "keine Berechtigung für Tabelle b_held", ["GRANT pg_read_all_data"]),
    "row security": (13, "Sicherheitspolicy für Tabelle »b_held«", ["BYPASSRLS"]),
    "dropped": (13, "Relation »public.b_held« existiert nicht", ["dropped or altered"]),
}


@pytest.mark.parametrize("state", later(STATES_IN_GERMAN, "locked a moment ago", "row security"))
def test_a_failure_in_the_language_of_the_server(
    state: str, source: Database, scene: Scene, reader: str
) -> None:
    """What pg_dump passes on has no code: the server is asked for it."""
    status, words, remedy = STATES_IN_GERMAN[state]
    if state != "dropped":
        source.run_sql("CREATE TABLE b_held (a int)")
    if state == "row security":
        source.run_sql(
            f"GRANT SELECT ON b_held TO {reader}; ALTER TABLE b_held ENABLE ROW LEVEL SECURITY"
        )
    said = FAILED_IN_GERMAN.format(words)
    scene.database = source
    scene.fake(FakePgDump(empty=True, complete=False, status=1, stderr=said))
    url = source.uri
    if state in {"forbidden", "row security"}:
        url = url.replace(f"//{source.cluster.user}@", f"//{reader}@")
    with source.connect() as holder, holder.transaction():
        if state == "locked":
            holder.execute("LOCK TABLE b_held IN ACCESS EXCLUSIVE MODE")
        # What was dropped is tried again for the same time as what is locked.
        done = scene.once(DATABASE_URL=url, DUMP_JOBS="1", LOCK_TIMEOUT="2")
    assert_failed(done, status, words, *remedy, nothing_left=scene)


def test_a_locked_table_among_many(many_tables: Database, real: Scene) -> None:
    with many_tables.connect() as holder, holder.transaction():
        holder.execute(sql.SQL("LOCK TABLE {}").format(sql.Identifier("t1200".ljust(60, "_"))))
        assert_lock_timeout(real)
    assert_succeeds(real)


def test_an_alter_that_waits_in_front_of_us(real: Scene) -> None:
    with (
        real.database.connect() as reading,
        real.database.connect() as altering,
        ThreadPoolExecutor(1) as pool,
    ):
        with reading.transaction():
            reading.execute("SELECT FROM a_first LIMIT 1")
            waiting = pool.submit(altering.execute, "ALTER TABLE a_first ADD b int")
            wait_until(
                lambda: (
                    reading.execute("SELECT FROM pg_locks WHERE NOT granted").fetchone() is not None
                ),
                "ALTER waits",
            )
            assert_lock_timeout(real)
        waiting.result()
    assert_succeeds(real)


# What failed before is no obstacle.


def test_the_messages_name_the_backup_that_failed(scene: Scene) -> None:
    scene.fake(fakes.dies_midway())
    done = scene.once()
    [started] = re.findall(rf"Starting backup: ({NAME})", done.stdout)
    [failed] = re.findall(rf"FAILURE Backup failed after \S+ ({NAME}): ", done.stderr)
    assert started == failed
    assert_nothing_left(scene)
