"""What makes rows depend on the order in which they are loaded is found, and nothing else is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pgstash.postgres import copying, loader, source

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
}
IN_ANY_ORDER = {
    "functions of PostgreSQL": "CREATE TABLE t (at timestamptz CHECK (at < now()))",
    "a function that keeps its promise": (
        IMMUTABLE.format("RETURN n > 1")
        + OPERATOR
        + "CREATE TABLE t (n int CHECK (own(n) AND @@@ n),"
        " o bool GENERATED ALWAYS AS (own(n)) STORED)"
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
    server = source.look(database.uri)
    with copying.snapshot(server) as snapshot:
        return snapshot.kept_order(), loader.kept_order(server)


@pytest.mark.parametrize("case", ORDERED)
def test_what_needs_an_order(case: str, cluster: Cluster, make_database: MakeDatabase) -> None:
    in_dump, in_restore = reasons(cluster, make_database, ORDERED[case])
    assert in_dump == in_restore
    assert in_dump is not None
    assert "calls function public.own(integer)" in in_dump
    assert "order: constraint " in in_dump or "column is_small of table public.t" in in_dump


@pytest.mark.parametrize("case", IN_ANY_ORDER)
def test_what_needs_none(case: str, cluster: Cluster, make_database: MakeDatabase) -> None:
    assert reasons(cluster, make_database, IN_ANY_ORDER[case]) == (None, None)
