"""pg_dump's own options against the table of what is allowed, and against what is counted."""

from __future__ import annotations

import re
import subprocess
from typing import TYPE_CHECKING

import pytest

from pgstash.errors import DumpError, RequiredTableError
from pgstash.events import ignore
from pgstash.pipeline.sql_scanner import SqlScanner, split_name
from pgstash.postgres.dump import required_tables
from pgstash.postgres.dump.pg_dump import dump
from pgstash.postgres.server import login
from pgstash.postgres.tools import installed, pg_dump_options
from pgstash.postgres.tools.tool_run import Limits, ToolRun
from support.postgres import clean_environment

if TYPE_CHECKING:
    from support.postgres import Cluster, Database, MakeDatabase

HELP = re.compile(r"^ +(?:-(\S), )?--([a-z-]+)(=\S)?", re.MULTILINE)
SCHEMA = """
    CREATE SCHEMA shop;
    CREATE TABLE t AS SELECT generate_series(1, 3) AS id;
    CREATE TABLE shop."Odd, name" AS SELECT generate_series(1, 4) AS id;
    CREATE TABLE orders (year int, id int) PARTITION BY LIST (year);
    CREATE TABLE orders_1 PARTITION OF orders FOR VALUES IN (1);
    CREATE TABLE orders_2 PARTITION OF orders FOR VALUES IN (2) PARTITION BY LIST (id);
    CREATE TABLE orders_2_1 PARTITION OF orders_2 FOR VALUES IN (1);
    INSERT INTO orders VALUES (1, 1), (2, 1), (2, 1);
    CREATE TABLE bare (year int) PARTITION BY LIST (year);
    CREATE TABLE empty ();
    CREATE VIEW v AS SELECT 1;
    CREATE MATERIALIZED VIEW m AS SELECT 1;
    CREATE SEQUENCE s;
"""
ALL = {
    ("public", "t"): 3,
    ("shop", "Odd, name"): 4,
    ("public", "orders_1"): 1,
    ("public", "orders_2_1"): 2,
    ("public", "empty"): 0,
}
VALUES = {
    "role": "postgres",
    "superuser": "postgres",
    "schema": "public",
    "table": "public.*",
    "table-and-children": "public.*",
    "extension": "plpgsql",
}


def dumped(database: Database, text: str = "", **excluded: str) -> dict[tuple[str, str], int]:
    """Return the rows of each table in a dump with these options, as a backup makes it."""
    server = login.inspect(database.uri)
    environment = clean_environment(database.bin_dir)
    client = installed.find(server.major, environment["PATH"], environment)
    scanner = SqlScanner()
    with dump(
        server,
        ToolRun(client, environment, ignore),
        pg_dump_options.excluding(**excluded) + pg_dump_options.allowed(text),
        Limits(lock=60, idle=60),
    ) as chunks:
        for _ in scanner.watch(chunks):
            pass
    found = {}
    for name, rows in scanner.rows.items():
        schema, table = (part.decode(server.codec) for part in split_name(name))
        found[schema, table] = rows
    return found


@pytest.fixture
def database(cluster: Cluster, make_database: MakeDatabase) -> Database:
    database = make_database(on=cluster)
    database.run_sql(SCHEMA)
    return database


def options_of(database: Database) -> list[tuple[str, str, bool]]:
    done = subprocess.run(
        [database.bin_dir / "pg_dump", "--help"], capture_output=True, text=True, check=True
    )
    found = [(short, name, bool(value)) for short, name, value in HELP.findall(done.stdout)]
    assert len(found) > 40
    return found


def test_every_option_is_allowed_or_refused_with_a_reason(database: Database) -> None:
    for short, name, has_value in options_of(database):
        words = [f"--{name}" + ("=1" if has_value else "")]
        words += [f"-{short}" + ("1" if has_value else "")] if short else []
        said = set()
        for word in words:
            try:
                pg_dump_options.allowed(word)
                said.add("")
            except ValueError as error:
                said.add(str(error).rpartition("(")[2])
        assert len(said) == 1, words
        assert "not an option that pgstash knows" not in said.pop(), words


@pytest.mark.newest_first
def test_each_allowed_option_leaves_a_complete_dump_of_all_rows(database: Database) -> None:
    tried = 0
    names = {name: has_value for _, name, has_value in options_of(database)}
    for name, has_value in names.items():
        if name.startswith("exclude"):
            continue
        word = f"--{name}={VALUES.get(name, 'x')}" if has_value else f"--{name}"
        try:
            pg_dump_options.allowed(word)
        except ValueError:
            continue
        tried += 1
        word = word.replace("=postgres", f"={database.cluster.user}")
        rows = dumped(database, word)
        if name == "load-via-partition-root":
            assert sum(rows.values()) == sum(ALL.values())
        elif name in ("schema", "table", "table-and-children"):
            assert rows == {table: count for table, count in ALL.items() if table[0] == "public"}
        elif name != "extension":
            assert rows == ALL, word
    assert tried > 20


def test_what_is_excluded(database: Database) -> None:
    rows = dumped(
        database, "-T public.orders*", tables='shop."Odd, name",none_*', table_data="public.empty"
    )
    assert rows == {("public", "t"): 3}
    assert ("shop", "Odd, name") not in dumped(database, schemas="sh*")


@pytest.mark.newest_first
@pytest.mark.parametrize("encoding", ["EUC_JP", "LATIN1", "UTF8", "SQL_ASCII"])
def test_names_in_the_encoding_of_the_database(encoding: str, cluster: Cluster) -> None:
    name = "日本" if encoding == "EUC_JP" else "täble"
    database = cluster.create_database(f"names_{encoding.lower()}", encoding=encoding)
    try:
        client = "UTF8" if encoding != "SQL_ASCII" else "SQL_ASCII"
        database.run_sql(
            f"SET client_encoding = '{client}'; CREATE TABLE \"{name}\" AS SELECT 1;"
            f'CREATE TABLE "{name} 2" AS SELECT 1;'
        )
        assert dumped(database, tables=f'"{name}"') == {("public", f"{name} 2"): 1}
        server = login.inspect(database.uri)
        wanted = required_tables.parse(f'{name}:nonempty,"{name} 2"')
        required_tables.check(required_tables.look_up(server, wanted), dumped(database))
        with pytest.raises(RequiredTableError, match="is it excluded"):
            required_tables.check(
                required_tables.look_up(server, wanted), dumped(database, tables=name)
            )
        if encoding == "LATIN1":
            with pytest.raises(DumpError, match="encoding of the database, LATIN1, lacks"):
                dumped(database, tables="日本")
            with pytest.raises(RequiredTableError, match="日本 does not exist"):
                required_tables.look_up(server, required_tables.parse("日本"))
    finally:
        database.drop()


@pytest.mark.parametrize("text", ["--no-such", "-t none --strict-names", "-t nothing_like_it"])
def test_what_pg_dump_itself_refuses_has_a_hint(text: str, database: Database) -> None:
    if text == "--no-such":  # known to newer ones alone
        text = "--no-policies" if database.cluster.major < 18 else "--statistics --no-statistics"
    with pytest.raises(DumpError) as caught:
        dumped(database, text)
    assert "PG_DUMP_EXTRA_ARGS" in caught.value.hint


@pytest.mark.parametrize("text", ["", "--load-via-partition-root"])
def test_required_tables(text: str, database: Database) -> None:
    server = login.inspect(database.uri)
    wanted = 'T:nonempty,empty,orders:nonempty,bare,shop."Odd, name":nonempty'
    wanted += "" if text else ",orders_2:nonempty,orders_1:nonempty"
    required_tables.check(
        required_tables.look_up(server, required_tables.parse(wanted)), dumped(database, text)
    )
    with pytest.raises(RequiredTableError) as caught:
        required_tables.check(
            required_tables.look_up(
                server, required_tables.parse("empty:nonempty,bare:nonempty,orders,t")
            ),
            dumped(database, f"{text} -T orders* -T t"),
        )
    assert str(caught.value).splitlines()[1:] == [
        "public.empty is empty",
        "public.bare is empty",
        "public.orders is not in the dump with its rows: is it excluded?",
        "public.t is not in the dump with its rows: is it excluded?",
    ]


def test_what_is_no_table_on_the_server(database: Database) -> None:
    server = login.inspect(database.uri)
    with pytest.raises(RequiredTableError) as caught:
        required_tables.look_up(server, required_tables.parse("t,users,v,m,s,shop.t,T_pkey"))
    said = str(caught.value).splitlines()[1:]
    assert [line.partition(":")[0] for line in said] == [
        "public.users does not exist in the database",
        "public.v is a view, which has no rows of its own",
        "public.m is a materialized view, whose rows a restore computes again",
        "public.s is a sequence",
        "shop.t does not exist in the database",
        "public.t_pkey does not exist in the database",
    ]
