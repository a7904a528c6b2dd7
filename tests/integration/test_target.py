"""What counts as something that a user made in a target."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pgstash.postgres import source, target

if TYPE_CHECKING:
    from support.postgres import Cluster, MakeDatabase


@pytest.mark.parametrize(
    "made",
    [
        "CREATE SCHEMA a",
        "CREATE VIEW v AS SELECT 1",
        "CREATE SEQUENCE s",
        "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "CREATE TYPE t AS (a int)",
        "CREATE TYPE t AS ENUM ('a')",
        "CREATE DOMAIN d AS int",
        'CREATE COLLATION c FROM "C"',
        "CREATE PUBLICATION p",
        "CREATE EXTENSION postgres_fdw; CREATE SERVER s FOREIGN DATA WRAPPER postgres_fdw",
        "SELECT lo_create(0)",
    ],
)
def test_whatever_a_user_made_counts(
    made: str, cluster: Cluster, make_database: MakeDatabase
) -> None:
    database = make_database(on=cluster)
    server = source.look(database.uri)
    assert target.contents(server).count == 0
    database.run_sql(made)
    assert target.contents(server).count == 1
