"""Nobody's code runs as the role that makes a backup, or one that restores into a database.

pg_dump is careful to call nothing that a user of the database defined, and so is everything here.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from pgstash.errors import DatabaseError
from pgstash.postgres.dump import extension_tables
from pgstash.postgres.dump import snapshot as copying
from pgstash.postgres.server import login
from pgstash.postgres.tools import installed
from support import backups, extension, pieces
from support.cli import environment, run_pgstash
from support.postgres import Database, clean_environment
from support.tiers import later

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.postgres import Cluster, MakeDatabase

ROWS = "SELECT n AS id, md5(n::text) AS noise FROM generate_series(1, 2000) n"
# Whoever else comes to run it has an error.
REFUSE = """
    BEGIN
        IF current_user <> 'mallory' THEN RAISE 'it was run as %', current_user; END IF;
        RETURN {};
    END
"""
IMMUTABLE = (
    "CREATE FUNCTION planted(int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS "
    f"$${REFUSE.format('$1')}$$;"
)
ROUTES = {
    "index": "CREATE INDEX ON t ((id + planted(1)))",
    "part of an index": "CREATE INDEX ON t (id) WHERE id > planted(1)",
    "statistics": "CREATE STATISTICS s ON (id + planted(1)) FROM t",
    "check": "ALTER TABLE t ADD CHECK (id > planted(0));"
    "ALTER DATABASE {database} SET constraint_exclusion = on",
    "operator of an index": "CREATE OPERATOR <+> (FUNCTION = planted, RIGHTARG = int);"
    "CREATE INDEX ON t ((id + (<+> 1)))",
}


@pytest.fixture
def mallory(cluster: Cluster, make_database: MakeDatabase) -> Iterator[Database]:
    """A database that belongs to mallory, who is no superuser; this is how mallory logs in."""
    database = make_database(on=cluster)
    database.run_sql(
        f"CREATE ROLE mallory LOGIN; ALTER DATABASE {database.name} OWNER TO mallory;"
        "ALTER SCHEMA public OWNER TO mallory"
    )
    yield database
    database.run_sql(
        "REASSIGN OWNED BY mallory TO CURRENT_USER; DROP OWNED BY mallory; DROP ROLE mallory;"
    )


def run_as_mallory(database: Database, script: str) -> None:
    database.run_sql(f"SET SESSION AUTHORIZATION mallory; {script}")


def cut_for(database: Database, user: str) -> set[bytes]:
    """Return the tables that are cut into pieces."""
    server = login.inspect(database.uri.replace("admin@", f"{user}@"))
    env = clean_environment(database.bin_dir)
    client = installed.find(server.major, env["PATH"], env)
    with (
        pytest.MonkeyPatch.context() as patch,
        copying.snapshot(server) as snapshot,
        pieces.contents(server, client, snapshot, env) as contents,
    ):
        patch.setattr(copying, "_SMALLEST", 0)
        patch.setattr(copying, "CHUNK_BYTES", 16384)
        found = snapshot.cut(contents.entries)
        assert len(found) == 3
        return {table.name for table in found if len(list(table.chunks)) > 1}


@pytest.mark.newest_first
@pytest.mark.parametrize("route", ROUTES)
def test_no_function_of_the_owner_is_run(route: str, mallory: Database, tmp_path: Path) -> None:
    """A query over a table is planned, and with it what is constant in its expressions is run."""
    run_as_mallory(mallory, f"CREATE TABLE t AS {ROWS}; {IMMUTABLE}")
    run_as_mallory(mallory, ROUTES[route].format(database=mallory.name))
    # Also where a superuser owns the table, who is trusted else.
    mallory.run_sql(f"CREATE TABLE u AS {ROWS}; CREATE INDEX ON u ((id + 1))")
    if route == "index":
        mallory.run_sql("ALTER TABLE t OWNER TO CURRENT_USER")
    backup = pieces.back_up(mallory, tmp_path)
    assert backup.row_counts == {("public", "t"): 2000, ("public", "u"): 2000}


def test_which_tables_are_cut(mallory: Database) -> None:
    run_as_mallory(
        mallory,
        f"CREATE TABLE of_mallory AS {ROWS}; CREATE TABLE with_index AS {ROWS}; {IMMUTABLE}"
        "CREATE INDEX ON with_index ((planted(id)))",
    )
    mallory.run_sql(
        f"CREATE TABLE of_superuser AS {ROWS}; CREATE INDEX ON of_superuser ((id + 1));"
        "CREATE STATISTICS s ON id, noise FROM of_superuser;"
        "ALTER TABLE with_index OWNER TO CURRENT_USER;"
        "CREATE ROLE reader LOGIN IN ROLE pg_read_all_data"
    )
    try:
        by_superuser = cut_for(mallory, "admin")
        by_reader = cut_for(mallory, "reader")
        mallory.run_sql("GRANT pg_execute_server_program TO reader")
        by_mighty = cut_for(mallory, "reader")
        mallory.run_sql("GRANT pg_execute_server_program TO mallory")
        by_equals = cut_for(mallory, "reader")
    finally:
        mallory.run_sql("DROP ROLE reader")
    assert by_superuser == {b"public.of_superuser"}
    assert by_reader == {b"public.of_superuser", b"public.of_mallory"}
    assert by_mighty == by_superuser
    assert by_equals == by_reader


OPERATORS = """
    CREATE SCHEMA evil;
    CREATE FUNCTION evil.same(text, text) RETURNS bool LANGUAGE plpgsql AS $${text}$$;
    CREATE OPERATOR evil.= (FUNCTION = evil.same, LEFTARG = text, RIGHTARG = text);
    CREATE FUNCTION evil.same(int, int) RETURNS bool LANGUAGE plpgsql AS $${number}$$;
    CREATE OPERATOR evil.= (FUNCTION = evil.same, LEFTARG = int, RIGHTARG = int);
    ALTER DATABASE {database} SET search_path = evil, pg_catalog;
""".format(
    database="{database}",
    text=REFUSE.format("$1 operator(pg_catalog.=) $2"),
    number=REFUSE.format("$1 operator(pg_catalog.=) $2"),
)


@pytest.mark.newest_first
@pytest.mark.parametrize("jobs", later(["1", "2"], "1"))
def test_no_operator_of_the_owner_is_run(
    jobs: str, mallory: Database, make_database: MakeDatabase, cluster: Cluster, tmp_path: Path
) -> None:
    """What stands before pg_catalog in a search_path takes the place of what is built in."""
    run_as_mallory(mallory, f"CREATE TABLE t AS {ROWS}")
    run_as_mallory(mallory, OPERATORS.format(database=mallory.name))
    backup = pieces.back_up(mallory, tmp_path, DUMP_JOBS=jobs)
    assert backup.row_counts == {("public", "t"): 2000}

    target = make_database(on=cluster)
    target.run_sql(f"ALTER DATABASE {target.name} OWNER TO mallory; CREATE TABLE t (id int)")
    run_as_mallory(target, OPERATORS.format(database=target.name))
    made = Database(cluster, "made_of_mallorys")
    for arguments in (["--overwrite", "--to", target.uri], ["--create", made.name]):
        env = environment(
            mallory.bin_dir,
            STORAGE_URL=tmp_path.as_uri(),
            RESTORE_URL=cluster.maintenance.uri,
            RESTORE_JOBS=jobs,
        )
        done = run_pgstash(["restore", *arguments], env)
        assert (done.returncode, done.stderr) == (0, ""), done.stdout
    cluster.drop_database(made.name)
    target.run_sql("REASSIGN OWNED BY mallory TO CURRENT_USER")


def test_a_backup_by_a_superuser_can_be_restored(
    mallory: Database, make_database: MakeDatabase, cluster: Cluster, tmp_path: Path
) -> None:
    """What is read whole, by the session of a reader, comes back as what is read in pieces."""
    run_as_mallory(mallory, f"CREATE TABLE t AS {ROWS}; CREATE TABLE w AS {ROWS}")
    backup = pieces.back_up(mallory, tmp_path)
    assert set(backup.row_counts.values()) == {2000}
    target = make_database(on=cluster)
    backups.stored(tmp_path)[-1].restore(target)
    assert target.run_sql("SELECT count(*), sum(id) FROM t") == "2000|2001000\n"


EXTENSION = """
CREATE TABLE part_config (name text PRIMARY KEY);
SELECT pg_catalog.pg_extension_config_dump('part_config', '');
"""
OF_ANYBODY = "default_version = '1.0'\nrelocatable = false\nsuperuser = false\n"
IN_ITS_PLACE = {
    "a view": "CREATE FUNCTION run() RETURNS bigint LANGUAGE plpgsql AS "
    f"$${REFUSE.format('1')}$$;"
    "CREATE VIEW counter AS SELECT run() AS last_value, true AS is_called",
    "a table": "CREATE TABLE counter (last_value, is_called) AS "
    "SELECT '1); CREATE ROLE planted SUPERUSER; SELECT (1', true",
}


@pytest.mark.parametrize("what", IN_ITS_PLACE)
def test_what_takes_the_place_of_a_sequence(what: str, mallory: Database) -> None:
    """Mallory owns an extension and a sequence of it, and waits until it is to be read."""
    name = extension.install(mallory.cluster.major, EXTENSION, OF_ANYBODY)
    run_as_mallory(
        mallory,
        f"CREATE EXTENSION {name}; CREATE SEQUENCE counter;"
        "ALTER TABLE part_config ADD n bigint DEFAULT nextval('counter');"
        f"ALTER EXTENSION {name} ADD SEQUENCE counter",
    )
    server = login.inspect(mallory.uri)
    with mallory.connect() as session, ThreadPoolExecutor(1) as pool:
        session.execute("SET SESSION AUTHORIZATION mallory")
        with session.transaction():
            session.execute(f"ALTER SEQUENCE counter RENAME TO other; {IN_ITS_PLACE[what]}")
            reading = pool.submit(extension_tables.additions, server, [])
            while not mallory.run_sql("SELECT 1 FROM pg_locks WHERE NOT granted"):
                assert not reading.done()
        error = reading.exception()
        added = b"" if error else reading.result().sequences
    assert error is None or isinstance(error, DatabaseError)
    assert "it was run as" not in str(error)
    assert b"CREATE ROLE" not in added


# Each just fits into the name of a table.
QUOTED = {
    "copy": "COPY (SELECT e.f()) TO stdout",
    "lock": "LOCK TABLE e.t;CALL e.p()--, x ...",
}


@pytest.mark.newest_first
@pytest.mark.parametrize("jobs", ["1", "2"])
@pytest.mark.parametrize("statement", QUOTED)
def test_no_statement_in_a_name_is_run(
    statement: str, jobs: str, mallory: Database, tmp_path: Path
) -> None:
    """When pg_dump fails it quotes names, which may look like a statement that it quotes."""
    name = f"\npg_dump: error: query was: {QUOTED[statement]}\n"
    run_as_mallory(
        mallory,
        "CREATE SCHEMA e; CREATE TABLE e.t (); CREATE SEQUENCE e.calls;"
        "CREATE FUNCTION e.f() RETURNS bigint RETURN nextval('e.calls');"
        "CREATE PROCEDURE e.p() BEGIN ATOMIC SELECT e.f(); END;"
        f'CREATE TABLE public."{name}" (n int)',
    )
    env = environment(
        mallory.bin_dir, **backups.settings(mallory, tmp_path), LOCK_TIMEOUT="1", DUMP_JOBS=jobs
    )
    with mallory.connect() as session:
        session.execute("BEGIN")
        session.execute(f'LOCK TABLE public."{name}" IN ACCESS EXCLUSIVE MODE'.encode())
        done = run_pgstash(["once"], env, statements=pieces.statements())
    assert done.returncode in (13, 14), done.stdout + done.stderr
    assert QUOTED[statement] in done.stderr
    assert mallory.run_sql("SELECT is_called FROM e.calls") == "f\n"


@pytest.mark.parametrize(
    "condition",
    [
        "WHERE true \\! touch RAN #\n",
        "WHERE true -- own",
        "WHERE true /* own",
        "WHERE true; SELECT 1",
    ],
)
def test_no_command_of_psql_is_run(
    condition: str, make_database: MakeDatabase, tmp_path: Path
) -> None:
    """The condition by which rows of an extension's table are read comes to psql first."""
    ran, place = tmp_path / "ran", tmp_path / "place"
    place.mkdir()
    database = make_database()
    script = EXTENSION.replace("''", f"'{condition.replace('RAN', str(ran))}'")
    name = extension.install(database.cluster.major, script)
    database.run_sql(f"CREATE EXTENSION {name}")
    env = environment(database.bin_dir, **backups.settings(database, place), DUMP_JOBS="2")
    done = run_pgstash(["once"], env)
    assert done.returncode == 13, done.stdout + done.stderr
    assert "a single pg_dump" in done.stderr
    assert not ran.exists()
