"""What a restore says when the target refuses a statement: the error comes first."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pgstash import events
from pgstash.errors import RestoreError, StatementError
from pgstash.postgres.restore.psql import Psql
from pgstash.postgres.server import login
from pgstash.postgres.tools import installed
from pgstash.postgres.tools.tool_run import ToolRun
from support.backups import back_up
from support.cli import environment, run_pgstash

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.postgres import Cluster, Database, MakeDatabase

NAME = "refused_and_named"


def refused(target: Database, script: str) -> tuple[RestoreError, list[events.Event]]:
    """Restore a script by psql; return the error, and what was told before it."""
    told: list[events.Event] = []
    server = login.inspect(target.uri)
    psql = Psql(
        server,
        ToolRun(
            installed.ClientTools(target.bin_dir, server.major, server.version),
            os.environ,
            told.append,
        ),
        one_transaction=True,
        lc_monetary=None,
    )
    try:
        with psql:
            psql.feed(script.encode())
            psql.finish()
    except RestoreError as error:
        return error, told
    raise AssertionError("nothing was refused")


@pytest.fixture
def target(cluster: Cluster, make_database: MakeDatabase) -> Database:
    return make_database(on=cluster)


# The SQLSTATE of this warning is that of an error.
CAST = "CREATE CAST (d AS text) WITH FUNCTION f(d); DROP CAST (d AS text);\n"
CASTS = "CREATE DOMAIN d AS int; CREATE FUNCTION f(d) RETURNS text LANGUAGE sql AS 'SELECT ''''';\n"


def warnings(count: int, length: int) -> str:
    return "".join(
        f"DO $$BEGIN RAISE WARNING '{n}%', repeat(' word', {length // 5}) USING ERRCODE = '42P01',"
        " DETAIL = E'one\\ntwo'; END$$;\n"
        for n in range(count)
    )


@pytest.mark.parametrize(
    "before",
    [
        pytest.param("", id="nothing"),
        pytest.param(CASTS + 12 * CAST, id="a dozen of casts"),
        pytest.param(warnings(300, 100), id="hundreds"),
        pytest.param(warnings(30, 20_000), id="long ones"),
    ],
)
def test_the_error_is_the_headline_whatever_was_said_before(target: Database, before: str) -> None:
    error, told = refused(target, before + "\n\nSELECT n FROM\n  missing;\nSELECT 1/0;\n")
    assert isinstance(error, StatementError)
    first, *more = error.message.split("\n")
    assert first.startswith("psql stopped at line ")
    assert first.endswith(': relation "missing" does not exist (SQLSTATE 42P01)')
    assert "STATEMENT: SELECT n FROM" in more
    assert ("before it" in error.message) == bool(before)
    assert len(error.message) < 2_000
    lines = [event.line for event in told if isinstance(event, events.ToolSaid)]
    assert sum(map(len, lines)) < 20_000
    assert not any("missing" in line for line in lines)


def test_a_lost_session_is_named_after_warnings(target: Database) -> None:
    end = "SELECT pg_terminate_backend(pg_backend_pid());\nSELECT 1;\n"
    error, _ = refused(target, CASTS + 12 * CAST + end)
    assert "(SQLSTATE 57P01)" in error.message.split("\n")[0]
    assert "restore again" in error.hint


FUNCTION = """
    CREATE FUNCTION looks_up(int) RETURNS int LANGUAGE plpgsql AS
        'BEGIN RETURN (SELECT count(*) FROM elsewhere); END';
    CREATE TABLE t (n int); INSERT INTO t VALUES (1);
"""
COPY = "COPY t FROM stdin;\n1\n\\.\n"
HINTS = {
    "library": (
        "CREATE FUNCTION f() RETURNS int\n    LANGUAGE c\n    AS '$libdir/postgis-3', 'f';",
        ["$libdir/postgis-3", "package"],
    ),
    "extension": ("CREATE EXTENSION IF NOT EXISTS nowhere WITH SCHEMA public;", ["nowhere"]),
    "tablespace": (
        "SET default_tablespace = fast;",
        ["CREATE TABLESPACE fast", "--no-tablespaces"],
    ),
    "tablespace of a table": (
        "CREATE TABLE a (b int) TABLESPACE fast;",
        ["CREATE TABLESPACE fast"],
    ),
    "role": ("CREATE TABLE a (b int); CREATE POLICY p ON a TO nobody_here;", ["Create the role"]),
    "setting": ("SET no_such_setting = 1;", ["newer server"]),
    "function": (f"{FUNCTION} SELECT looks_up(1);", ["SET search_path"]),
    "function in COPY": (
        f"{FUNCTION} ALTER TABLE t ADD CHECK (looks_up(n) >= 0) NOT VALID;\n{COPY}",
        ["SET search_path"],
    ),
    "value in COPY": (
        "CREATE TABLE a (b regclass);\nCOPY a FROM stdin;\nno_such_table\n\\.\n",
        ["Run the statement by itself"],
    ),
    "way": ("CREATE TABLE a (b int); CREATE TABLE a (b int);", ["in the way"]),
}


@pytest.mark.newest_first
@pytest.mark.parametrize("what", HINTS)
def test_a_hint_by_the_code_and_the_statement(what: str, target: Database) -> None:
    script, words = HINTS[what]
    error, _ = refused(target, script + "\n")
    assert [word for word in words if word not in error.hint] == [], error.message


# Of what pg_restore makes, when the rows are in.
AFTER_ROWS = {
    "search_path": (
        """
        CREATE FUNCTION key_of(int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS
            'BEGIN RETURN $1; END';
        CREATE TABLE others (n int);
        CREATE TABLE t (n int); INSERT INTO t VALUES (1);
        CREATE INDEX by_key ON t (key_of(n));
        CREATE OR REPLACE FUNCTION key_of(int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS
            'BEGIN RETURN (SELECT $1 + count(*) FROM others); END';
        """,
        ['INDEX public.by_key: relation "others" does not exist (SQLSTATE 42P01)'],
        ["SET search_path"],
    ),
    "constraint": (
        """
        CREATE TABLE a (n int PRIMARY KEY); CREATE TABLE b (n int REFERENCES a);
        ALTER TABLE b DISABLE TRIGGER ALL; INSERT INTO b VALUES (1);
        """,
        ["FK CONSTRAINT public.b b_n_fkey: ", "(SQLSTATE 23503)", "ALTER TABLE ONLY public.b"],
        ["violate a constraint"],
    ),
    "many warnings": (
        """
        CREATE FUNCTION loud(int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS
            'BEGIN RAISE WARNING ''number %'', $1; RETURN 10 / ($1 - 100); END';
        CREATE TABLE t (n int); INSERT INTO t SELECT generate_series(1, 99);
        SET client_min_messages = error;
        CREATE INDEX by_loudness ON t (loud(n));
        INSERT INTO t SELECT generate_series(101, 150);
        CREATE OR REPLACE FUNCTION loud(int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS
            'BEGIN RAISE WARNING ''number %'', $1; RETURN 10 / ($1 - 150); END';
        """,
        ["INDEX public.by_loudness: division by zero (SQLSTATE 22012)"],
        ["Run the statement by itself"],
    ),
}


@pytest.fixture
def _dropped_later(cluster: Cluster) -> Iterator[None]:
    yield
    cluster.drop_database(NAME)


@pytest.mark.newest_first
@pytest.mark.usefixtures("_dropped_later")
@pytest.mark.parametrize("what", AFTER_ROWS)
def test_an_error_of_pg_restore_is_named_by_its_code(
    what: str, cluster: Cluster, make_database: MakeDatabase, tmp_path: Path
) -> None:
    made, words, hints = AFTER_ROWS[what]
    database = make_database(on=cluster)
    database.run_sql(made)
    back_up(database, tmp_path, DUMP_JOBS="2")
    env = environment(
        database.bin_dir,
        STORAGE_URL=tmp_path.as_uri(),
        RESTORE_URL=cluster.maintenance.uri,
        RESTORE_JOBS="2",
    )
    done = run_pgstash(["restore", "--create", NAME], env)
    assert done.returncode == 62, done.stderr
    failure = done.stderr.partition("FAILURE ")[2]
    assert [word for word in (*words, *hints) if word not in failure] == [], done.stderr
    assert f"pg_restore stopped at {words[0]}" in failure.split("\n")[0]
    assert "PostgreSQL" not in failure  # the versions are the same: nothing to compare
