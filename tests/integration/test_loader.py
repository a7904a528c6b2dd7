"""Rows that libpq sends arrive, and whatever goes wrong is said."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from pgstash import events
from pgstash.errors import StatementError, TargetLostError
from pgstash.postgres.restore.copy_loader import Loader
from pgstash.postgres.restore.copy_loader import opened as opened_loaders
from pgstash.postgres.server import login

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.postgres import Cluster, Database, MakeDatabase

HEADER = b"SET client_encoding = 'UTF8';\nSELECT pg_catalog.set_config('search_path', '', false);\n"
COPY = b"COPY public.t (n) FROM stdin;\n"


@pytest.fixture
def database(make_database: MakeDatabase, cluster: Cluster) -> Database:
    return make_database(on=cluster)


@contextmanager
def loader(database: Database) -> Iterator[tuple[Loader, list[events.Event]]]:
    told: list[events.Event] = []
    server = login.inspect(database.uri)
    with opened_loaders(server, HEADER, 2, lc_monetary=None, emit=told.append) as (opened, _):
        yield opened, told


def answer(database: Database, question: str) -> str:
    return database.run_sql(question).strip()


def test_what_stands_behind_the_end_of_the_rows_is_no_row(database: Database) -> None:
    database.run_sql("CREATE TABLE t (n int)")
    with loader(database) as (opened, told):
        opened.load(COPY, [b"1\n2", b"2\n\\.\n\n\n--\n-- Data for Name: u\n--\n\n"])
        opened.load(COPY, [b"\\.\n"])
        opened.load(COPY, [b"333\n", b"\\", b".\n\n\n"])
    assert answer(database, "SELECT string_agg(n::text, ' ' ORDER BY n) FROM t") == "1 22 333"
    assert told == []


def test_what_the_server_says_is_passed_on(database: Database) -> None:
    database.run_sql(
        "CREATE FUNCTION loud(int) RETURNS boolean LANGUAGE plpgsql AS"
        " 'BEGIN RAISE WARNING ''number %'', $1; RETURN true; END';"
        "CREATE TABLE t (n int CHECK (loud(n)))"
    )
    with loader(database) as (opened, told):
        opened.load(COPY, [b"7\n\\.\n"])
    assert events.ToolSaid("server", "WARNING:  number 7") in told


def test_no_commit_waits_for_the_disk_and_nothing_planted_counts(database: Database) -> None:
    """Until the database gets its name nothing counts; that waits for all that was before."""
    database.run_sql(
        "CREATE FUNCTION shown(text) RETURNS text LANGUAGE sql AS 'SELECT current_setting($1)';"
        "CREATE TABLE t (n text CHECK (n = shown('synchronous_commit') || shown('lock_timeout')))"
    )
    database.run_sql(
        f"ALTER DATABASE {database.name} SET lock_timeout = 50;"
        f"ALTER DATABASE {database.name} SET synchronous_commit = 'remote_apply'"
    )
    with loader(database) as (opened, _):
        opened.load(COPY.replace(b"(n)", b""), [b"off0\n\\.\n"])
    assert answer(database, "SELECT n FROM t") == "off0"


def test_a_row_that_is_refused_is_named_with_its_statement(database: Database) -> None:
    database.run_sql("CREATE TABLE t (n int CONSTRAINT is_small CHECK (n < 10))")
    with loader(database) as (opened, _):
        with pytest.raises(StatementError) as caught:
            opened.load(COPY, [b"1\n2\n", b"77\n", b"3\n" * 100_000, b"\\.\n"])
        assert "is_small" in caught.value.message
        assert "COPY t, line 3" in caught.value.message
        assert COPY.decode().strip() in caught.value.message
        assert "violate a CHECK" in caught.value.hint
        # The session is as good as before.
        opened.load(COPY, [b"4\n\\.\n"])
    assert answer(database, "SELECT string_agg(n::text, ' ') FROM t") == "4"


def test_a_table_that_is_not_there(database: Database) -> None:
    with loader(database) as (opened, _), pytest.raises(StatementError, match="does not exist"):
        opened.load(COPY, [b"1\n\\.\n"])


def test_a_session_that_is_ended_while_rows_are_sent(database: Database) -> None:
    database.run_sql("CREATE TABLE t (n int)")

    def rows() -> Iterator[bytes]:
        yield b"1\n"
        database.run_sql(
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
            f" WHERE datname = '{database.name}' AND pid <> pg_backend_pid()"
        )
        for _ in range(200):
            yield b"2\n" * 50_000
        yield b"\\.\n"

    # What is on its way when the server closes resets the connection, its last words with it.
    words = "terminating connection|closed the connection|reset by peer"
    with loader(database) as (opened, _), pytest.raises(TargetLostError, match=words):
        opened.load(COPY, rows())
    assert answer(database, "SELECT count(*) FROM t") == "0"


def test_nobody_waits_for_a_statement_that_takes_for_ever(database: Database) -> None:
    database.run_sql(
        "CREATE FUNCTION slow(int) RETURNS boolean LANGUAGE plpgsql AS"
        " 'BEGIN PERFORM pg_sleep(600); RETURN true; END';"
        "CREATE TABLE t (n int CHECK (slow(n)))"
    )
    failed: list[BaseException] = []

    def load(opened: Loader) -> None:
        try:
            opened.load(COPY, [b"1\n" * 1_000_000] * 20)
        except TargetLostError as error:
            failed.append(error)

    with loader(database) as (opened, _):
        thread = threading.Thread(target=load, args=[opened])
        thread.start()
        give_up = time.monotonic() + 60
        while "PgSleep" not in database.run_sql(
            "SELECT array_agg(wait_event) FROM pg_stat_activity"
        ):
            assert time.monotonic() < give_up
            time.sleep(0.05)
        opened.end()
        thread.join(60)
    assert len(failed) == 1
