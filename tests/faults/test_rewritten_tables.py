"""A table that is rewritten or replaced just when a backup begins is never stored empty."""

from __future__ import annotations

import contextlib
import gzip
import re
import shlex
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from faults.scene import Folder, Scene, assert_failed, assert_nothing_left, wait_until
from support import backups, pieces
from support.cli import run_pgstash, started_pgstash
from support.pieces import Stop

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterable, Iterator
    from contextlib import AbstractContextManager

    import psycopg

    from support.postgres import Cluster, Database, MakeDatabase

ROWS = 3000
FILL = f"SELECT n, repeat('x', 100) AS filler FROM generate_series(1, {ROWS}) n"
AGAIN = "Trying again: "
ONE_PG_DUMP = "Falling back to a single pg_dump"

# What is done in one transaction, so that no committed state is empty.
REWRITES = {
    "truncate": f"TRUNCATE t; INSERT INTO t {FILL}",
    "truncate in a subtransaction": f"SAVEPOINT s; TRUNCATE t; INSERT INTO t {FILL}; RELEASE s",
    "alter": "ALTER TABLE t ALTER n TYPE bigint",
    "cluster": "CREATE INDEX by_n ON t (n); CLUSTER t USING by_n; DROP INDEX by_n",
    "another of its name": f"CREATE TABLE other AS {FILL}; DROP TABLE t;"
    "ALTER TABLE other RENAME TO t",
    "names exchanged": "ALTER TABLE t RENAME TO x; ALTER TABLE u RENAME TO t;"
    "ALTER TABLE x RENAME TO u",
    "another schema": "ALTER TABLE t SET SCHEMA s; ALTER TABLE s.t SET SCHEMA public; TRUNCATE t;"
    f"INSERT INTO t {FILL}",
}


class Table(Scene):
    """A scene with the tables t and u, both full whenever one looks."""

    more: tuple[str, ...] = ()

    def once(self, **settings: str) -> subprocess.CompletedProcess[str]:
        statements = pieces.statements(*self.more)
        env = self.environment(DEBUG="true", **settings)
        return run_pgstash(["once"], env, statements=statements, timeout=60)

    def started(self, **settings: str) -> AbstractContextManager[subprocess.Popen[str]]:
        env = self.environment(DEBUG="true", **settings)
        return started_pgstash(["once"], env, statements=pieces.statements(*self.more))

    @property
    def stored(self) -> backups.StoredBackup:
        return backups.stored(Path(self.place.settings["STORAGE_URL"].removeprefix("file://")))[-1]

    def assert_full(self) -> None:
        """The newest backup holds all rows of all tables."""
        counts = self.stored.row_counts
        assert set(counts.values()) == {ROWS}, counts


@pytest.fixture
def scene(make_database: MakeDatabase, cluster: Cluster, folder: Folder) -> Table:
    database = make_database(on=cluster)
    database.run_sql(f"CREATE TABLE t AS {FILL}; CREATE TABLE u AS TABLE t; CREATE SCHEMA s")
    return Table(database, folder, database.bin_dir)


def waits_to_lock(database: Database) -> bool:
    with database.cluster.maintenance.connect() as connection:
        row = connection.execute(
            "SELECT FROM pg_stat_activity WHERE datname = %s AND wait_event_type = 'Lock'"
            " AND application_name LIKE 'pgstash%%'",
            [database.name],
        ).fetchone()
    return row is not None


def finished(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, out + err
    return out + err


def often(values: Iterable[object], *chosen: object) -> list[object]:
    """Return parameters of which the chosen ones alone are not in the second tier."""
    return [
        value if value in chosen else pytest.param(value, marks=pytest.mark.long)
        for value in values
    ]


JOBS = pytest.mark.parametrize("jobs", ["1", "2"])


@contextlib.contextmanager
def rewriting(database: Database, statements: str) -> Iterator[psycopg.Connection[tuple[object]]]:
    """Hold a lock on t in a transaction that has run these statements, which the test commits."""
    with database.connect() as session:
        session.execute("BEGIN")
        session.execute("LOCK TABLE t IN ACCESS EXCLUSIVE MODE")
        session.execute(statements)
        yield session


@pytest.mark.newest_first
@JOBS
@pytest.mark.parametrize("rewrite", often(REWRITES, "truncate", "another of its name"))
def test_a_table_that_is_rewritten_while_the_lock_is_waited_for(
    rewrite: str, jobs: str, scene: Table
) -> None:
    with (
        rewriting(scene.database, REWRITES[rewrite]) as session,
        scene.started(DUMP_JOBS=jobs) as process,
    ):
        wait_until(lambda: waits_to_lock(scene.database), "pg_dump waits")
        session.execute("COMMIT")
        said = finished(process)
    scene.assert_full()
    assert AGAIN in said
    assert ONE_PG_DUMP not in said


# What becomes of the columns of c (a, b), with one row of 1 and 2, and how it is dumped then.
COLUMNS = {
    "exchanged": (
        "ALTER TABLE c RENAME a TO x; ALTER TABLE c RENAME b TO a; ALTER TABLE c RENAME x TO b",
        b"COPY public.c (b, a) FROM stdin;\n1\t2\n",
    ),
    "another of its name": (
        "ALTER TABLE c DROP a; ALTER TABLE c ADD a int DEFAULT 7",
        b"COPY public.c (b, a) FROM stdin;\n2\t7\n",
    ),
}


@pytest.mark.newest_first
@JOBS
@pytest.mark.parametrize("change", COLUMNS)
def test_columns_that_change_their_names_while_the_lock_is_waited_for(
    change: str, jobs: str, scene: Table
) -> None:
    statements, dumped = COLUMNS[change]
    scene.database.run_sql("CREATE TABLE c AS SELECT 1 AS a, 2 AS b")
    with (
        rewriting(scene.database, statements) as session,
        scene.started(DUMP_JOBS=jobs) as process,
    ):
        wait_until(lambda: waits_to_lock(scene.database), "pg_dump waits")
        session.execute("COMMIT")
        said = finished(process)
    assert dumped in gzip.decompress(scene.stored.archive.read_bytes())
    assert f"{AGAIN}public.c was" in said


@pytest.mark.newest_first
@JOBS
def test_a_table_that_is_dropped_while_the_lock_is_waited_for(jobs: str, scene: Table) -> None:
    with (
        rewriting(scene.database, "DROP TABLE t") as session,
        scene.started(DUMP_JOBS=jobs) as process,
    ):
        wait_until(lambda: waits_to_lock(scene.database), "pg_dump waits")
        session.execute("COMMIT")
        said = finished(process)
    assert scene.stored.row_counts == {("public", "u"): ROWS}
    assert AGAIN in said
    assert ONE_PG_DUMP not in said


@pytest.mark.newest_first
@pytest.mark.parametrize(
    "options",
    [
        {"EXCLUDE_TABLE_DATA": "t"},
        {"PG_DUMP_EXTRA_ARGS": "--no-unlogged-table-data"},
        {"EXCLUDE_TABLES": "t"},
    ],
    ids=lambda options: next(iter(options)),
)
def test_a_table_of_which_no_rows_are_dumped_may_be_rewritten(
    options: dict[str, str], scene: Table
) -> None:
    scene.database.run_sql("ALTER TABLE t SET UNLOGGED; CREATE VIEW v AS SELECT * FROM t")
    with (
        rewriting(scene.database, REWRITES["truncate"]) as session,
        scene.started(DUMP_JOBS="1", **options) as process,
    ):
        wait_until(lambda: waits_to_lock(scene.database), "pg_dump waits")
        session.execute("COMMIT")
        said = finished(process)
    assert scene.stored.row_counts == {("public", "u"): ROWS}
    assert AGAIN not in said


@pytest.mark.newest_first
def test_a_pattern_that_does_not_mean_what_it_seems_to(scene: Table) -> None:
    """pg_dump reads it by the search_path of the role: the data of another t is left out."""
    database = scene.database
    database.run_sql(
        f"CREATE TABLE s.t (n int); ALTER DATABASE {database.name} SET search_path = s, public"
    )
    with (
        rewriting(database, REWRITES["truncate"].replace(" t", " public.t")) as session,
        scene.started(DUMP_JOBS="1", EXCLUDE_TABLE_DATA="t") as process,
    ):
        wait_until(lambda: waits_to_lock(database), "pg_dump waits")
        session.execute("COMMIT")
        out, err = process.communicate(timeout=60)
    assert process.returncode == 9, out + err
    assert "public.t was rewritten or replaced" in err
    assert_nothing_left(scene)


@pytest.mark.newest_first
@JOBS
def test_a_table_that_is_rewritten_each_time(jobs: str, scene: Table) -> None:
    """It is named in the end, and nothing is stored."""
    stopping = threading.Event()

    def rewrite_again_and_again() -> None:
        while not stopping.is_set():
            with rewriting(scene.database, REWRITES["truncate"]) as session:
                while not stopping.is_set() and not waits_to_lock(scene.database):
                    time.sleep(0.01)
                session.execute("COMMIT")

    with ThreadPoolExecutor(1) as pool:
        working = pool.submit(rewrite_again_and_again)
        try:
            done = scene.once(LOCK_TIMEOUT="3", DUMP_JOBS=jobs)
        finally:
            stopping.set()
        working.result(timeout=30)
    words = ("public.t was rewritten or replaced", "tries within", "LOCK_TIMEOUT", "EXCLUDE_TABLE")
    assert_failed(done, 9, *words, nothing_left=scene)


def fails_once(tools: Path, database: Database, said: str) -> Path:
    """Return a folder with the real tools, whose pg_dump fails at first, with these words."""
    tools.mkdir()
    for tool in database.bin_dir.iterdir():
        (tools / tool.name).symlink_to(tool)
    (tools / "pg_dump").unlink()
    (tools / "pg_dump").write_text(
        "#!/bin/sh\n"
        f'case "$*" in *--version*) exec {database.bin_dir}/pg_dump "$@";; esac\n'
        f'mkdir {tools}/failed 2>/dev/null || exec {database.bin_dir}/pg_dump "$@"\n'
        f"echo {shlex.quote(said)} >&2\nexit 1\n"
    )
    (tools / "pg_dump").chmod(0o755)
    return tools


@pytest.mark.newest_first
@JOBS
@pytest.mark.parametrize(
    "said", ["cache lookup failed for index 16412", "could not open relation with OID 16412"]
)
def test_a_pg_dump_that_stumbles_over_a_change(
    said: str, jobs: str, scene: Table, tmp_path: Path
) -> None:
    words = f"pg_dump: error: query failed: FEHLER:  {said}"
    scene.tools = fails_once(tmp_path / "tools", scene.database, words)
    done = scene.once(DUMP_JOBS=jobs)
    assert done.returncode == 0, done.stdout + done.stderr
    assert ONE_PG_DUMP not in done.stderr
    assert said in done.stdout
    assert AGAIN in done.stdout
    scene.assert_full()


def test_what_is_no_change_is_not_tried_again(scene: Table, tmp_path: Path) -> None:
    words = "pg_dump: error: query failed: FEHLER:  kein Speicher"
    scene.tools = fails_once(tmp_path / "tools", scene.database, words)
    done = scene.once(DUMP_JOBS="1")
    assert_failed(done, 13, "kein Speicher", nothing_left=scene)
    assert AGAIN not in done.stdout


@pytest.mark.newest_first
def test_a_role_that_may_not_see_sessions(scene: Table) -> None:
    """Then all tables are compared."""
    database = scene.database
    role = f"blind_{database.name}"
    login = database.uri.replace(f"//{database.cluster.user}@", f"//{role}@")
    view = "pg_catalog.pg_stat_activity"
    database.run_sql(
        f"CREATE ROLE {role} LOGIN; GRANT SELECT ON t, u TO {role};"
        f"REVOKE SELECT ON {view} FROM PUBLIC"
    )
    try:
        with (
            rewriting(database, REWRITES["truncate"]) as session,
            scene.started(DATABASE_URL=login, DUMP_JOBS="1") as process,
        ):
            wait_until(lambda: waits_to_lock(database), "pg_dump waits")
            session.execute("COMMIT")
            said = finished(process)
    finally:
        database.run_sql(f"DROP OWNED BY {role}; DROP ROLE {role}")
    scene.assert_full()
    assert AGAIN in said


@pytest.mark.newest_first
def test_a_schema_that_takes_the_name_of_another(scene: Table, tmp_path: Path) -> None:
    """No lock on a table keeps the name of its schema, and pg_dump reads by name."""
    (talk := tmp_path / "talk").mkdir()
    stop = Stop("single_dump.SingleDump, 'archive'", talk)
    scene.more = ("from pgstash.backup import single_dump", stop.statement)
    scene.database.run_sql("CREATE TABLE s.t AS TABLE t; CREATE SCHEMA live; CREATE SCHEMA none")
    scene.database.run_sql("ALTER TABLE t SET SCHEMA live")
    with scene.started(DUMP_JOBS="1") as process:
        with stop.reached():
            scene.database.run_sql(
                "ALTER SCHEMA live RENAME TO old; ALTER SCHEMA s RENAME TO live;"
                "ALTER SCHEMA old RENAME TO s; ALTER SCHEMA none RENAME TO other"
            )
        out, err = process.communicate(timeout=60)
    assert process.returncode == 13, out + err
    assert "live.t or its schema was renamed while it was read" in err
    assert_nothing_left(scene)


@pytest.mark.newest_first
def test_a_schema_without_tables_may_be_renamed(scene: Table, tmp_path: Path) -> None:
    (talk := tmp_path / "talk").mkdir()
    stop = Stop("single_dump.SingleDump, 'archive'", talk)
    scene.more = ("from pgstash.backup import single_dump", stop.statement)
    with scene.started(DUMP_JOBS="1") as process:
        with stop.reached():
            scene.database.run_sql("ALTER SCHEMA s RENAME TO other")
        finished(process)
    scene.assert_full()


def refilling(database: Database, pause: float, stopping: threading.Event) -> int:
    """Rewrite t in a transaction again and again, which rests in between; return how often."""
    count = 0
    with database.connect() as session:
        while not stopping.wait(pause):
            with session.transaction():
                session.execute("TRUNCATE t")
                session.execute(f"INSERT INTO t {FILL}")
            count += 1
    return count


@pytest.mark.newest_first
@JOBS
@pytest.mark.parametrize("pause", often([0.0, 0.05, 0.2, 1.0, 3.0], 0.2))
def test_backups_against_refills(
    pause: float, jobs: str, request: pytest.FixtureRequest, scene: Table
) -> None:
    """Each holds all rows, or failed and named the table."""
    runs = 5 if request.node.get_closest_marker("long") else 2
    stopping = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        working = pool.submit(refilling, scene.database, pause, stopping)
        try:
            for _ in range(runs):
                done = scene.once(DUMP_JOBS=jobs, LOCK_TIMEOUT="10")
                if done.returncode == 0:
                    scene.assert_full()
                else:
                    assert done.returncode in {9, 14}, done.stdout + done.stderr
                    assert re.search(r"public\.t\b", done.stderr), done.stderr
        finally:
            stopping.set()
        assert working.result(timeout=30) > 0
