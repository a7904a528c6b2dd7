"""What makes rows, or views, depend on the order of a restore is found, and nothing else is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pgstash.postgres.dump import snapshot as copying
from pgstash.postgres.restore import copy_loader
from pgstash.postgres.server import login

if TYPE_CHECKING:
    from support.postgres import Cluster, MakeDatabase

IMMUTABLE = "CREATE FUNCTION own(n int) RETURNS bool IMMUTABLE LANGUAGE plpgsql AS 'BEGIN {}; END';"
VOLATILE = IMMUTABLE.replace("IMMUTABLE", "VOLATILE")
OPERATOR = "CREATE OPERATOR @@@ (rightarg = int, function = own);"
READS = "RETURN n <= (SELECT max(most) FROM public.limits)"
ORDERED = {
    "a CHECK": VOLATILE.format(READS) + "CREATE TABLE t (n int CHECK (own(n)))",
    "what might read": VOLATILE.format("RETURN n > 1") + "CREATE TABLE t (n int CHECK (own(n)))",
    "a broken promise": IMMUTABLE.format(READS) + "CREATE TABLE t (n int CHECK (own(n)))",
    "a body that is parsed": (
        "CREATE TABLE limits (most int);"
        "CREATE FUNCTION own(n int) RETURNS bool IMMUTABLE LANGUAGE sql"
        " RETURN n <= (SELECT max(most) FROM limits);"
        "CREATE TABLE t (n int CHECK (own(n)))"
    ),
    "a domain": (
        VOLATILE.format(READS) + "CREATE DOMAIN d AS int CHECK (own(VALUE)); CREATE TABLE t (n d)"
    ),
    "an operator": VOLATILE.format(READS) + OPERATOR + "CREATE TABLE t (n int CHECK (@@@ n))",
    "a generated column": (
        IMMUTABLE.format(READS)
        + "CREATE TABLE t (n int, is_small bool GENERATED ALWAYS AS (own(n)) STORED)"
    ),
    "the key of partitions": (
        IMMUTABLE.format(READS) + "CREATE TABLE t (n int) PARTITION BY LIST ((own(n)))"
    ),
    "a table that is read whole": (
        IMMUTABLE.format("RETURN (TABLE public.limits LIMIT 1) > n")
        + "CREATE TABLE t (n int CHECK (own(n)))"
    ),
    "another meaning of backslashes": (
        IMMUTABLE.format(READS) + "CREATE TABLE t (n int CHECK (own(n)));"
        "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET standard_conforming_strings = off',"
        " current_database()); END $$"
    ),
}
IN_ANY_ORDER = {
    "functions of PostgreSQL": "CREATE TABLE t (at timestamptz CHECK (at < now()))",
    "a function that keeps its promise": (
        IMMUTABLE.format("RETURN n > 1")
        + OPERATOR
        + "CREATE TABLE t (n int CHECK (own(n) AND @@@ n),"
        " o bool GENERATED ALWAYS AS (own(n)) STORED)"
    ),
    "other words with FROM": (
        IMMUTABLE.format(
            "RETURN n IS DISTINCT FROM 1 AND EXTRACT(year FROM ''2026-01-01''::date) > n"
        )
        + "CREATE TABLE t (n int CHECK (own(n)))"
    ),
    "what an extension brings": (
        "CREATE EXTENSION hstore;"
        + VOLATILE.format(READS)
        + "ALTER EXTENSION hstore ADD FUNCTION own(int);"
        "CREATE TABLE t (n int CHECK (own(n)))"
    ),
    "what is computed after the rows, or not at all": (
        VOLATILE.format(READS) + "CREATE TABLE t (n int, o bool DEFAULT own(1));"
        "ALTER TABLE t ADD CHECK (own(n)) NOT VALID;"
        "CREATE VIEW v AS SELECT own(n) FROM t;"
        "CREATE RULE r AS ON INSERT TO t WHERE own(new.n) DO INSTEAD NOTHING"
    ),
}


def reasons(cluster: Cluster, make_database: MakeDatabase, script: str) -> tuple[str | None, ...]:
    """Say what is found where a dump looks, and where a restore does."""
    database = make_database(on=cluster)
    database.run_sql(script)
    server = login.inspect(database.uri)
    with copying.snapshot(server) as snapshot:
        return snapshot.kept_order(), copy_loader.order_of_rows(server)


@pytest.mark.parametrize("case", ORDERED)
def test_what_needs_an_order(case: str, cluster: Cluster, make_database: MakeDatabase) -> None:
    in_dump, in_restore = reasons(cluster, make_database, ORDERED[case])
    assert in_dump == in_restore
    assert in_dump is not None
    assert "calls function public.own(integer)" in in_dump
    assert in_dump.startswith(("constraint ", "table public.t ")) or "is_small of t" in in_dump


@pytest.mark.parametrize("case", IN_ANY_ORDER)
def test_what_needs_none(case: str, cluster: Cluster, make_database: MakeDatabase) -> None:
    assert reasons(cluster, make_database, IN_ANY_ORDER[case]) == (None, None)


VIEWS_IN_ORDER = {
    "a function": "SELECT own(1)",
    "a function in a condition": "SELECT 1 WHERE own(1)",
}
VIEWS_IN_ANY_ORDER = {
    "a table": "SELECT * FROM limits",
    "a view of one": "SELECT * FROM other",
    "a function that keeps its promise": "SELECT kept(1)",
}


@pytest.mark.parametrize("query", VIEWS_IN_ORDER | VIEWS_IN_ANY_ORDER)
def test_views(query: str, cluster: Cluster, make_database: MakeDatabase) -> None:
    database = make_database(on=cluster)
    database.run_sql(
        "CREATE TABLE limits (most int);"
        "CREATE MATERIALIZED VIEW other AS SELECT * FROM limits;"
        "CREATE FUNCTION kept(n int) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT n + 1';"
        f"{VOLATILE.format(READS)}"
        "CREATE VIEW plain AS SELECT own(1);"
        f"CREATE MATERIALIZED VIEW m AS {(VIEWS_IN_ORDER | VIEWS_IN_ANY_ORDER)[query]}"
    )
    found = copy_loader.order_of_views(login.inspect(database.uri))
    assert (found is not None) == (query in VIEWS_IN_ORDER)
    assert found is None or "on materialized view public.m calls function public.own(" in found


def test_tables_of_extensions(cluster: Cluster, make_database: MakeDatabase) -> None:
    """They alone may have keys and triggers before their rows come."""
    database = make_database(on=cluster)
    database.run_sql(
        'CREATE EXTENSION hstore; CREATE SCHEMA "Odd"; CREATE TABLE "Odd"."t é" (n int);'
        'CREATE TABLE mine (n int); ALTER EXTENSION hstore ADD TABLE "Odd"."t é"'
    )
    assert copy_loader.tables_of_extensions(login.inspect(database.uri)) == {("Odd", "t é")}
