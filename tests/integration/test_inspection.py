"""What a drill sees of a restored database: each thing that is not as it should be."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pgstash.errors import ScratchError
from pgstash.format.manifest import Table
from pgstash.postgres.scratch import inspection

if TYPE_CHECKING:
    from support.postgres import Cluster, Database, MakeDatabase


@pytest.fixture
def database(cluster: Cluster, make_database: MakeDatabase) -> Database:
    return make_database(on=cluster)


def problems_of_rows(database: Database, *tables: Table) -> list[str]:
    with inspection.opened(database.cluster.maintenance.uri, database.name) as found:
        return list(found.rows(tables).problems)


def test_rows(database: Database) -> None:
    database.run_sql(
        'CREATE TABLE "a ""b"" é" (n int); INSERT INTO "a ""b"" é" VALUES (1), (2);'
        "CREATE TABLE parent (n int); CREATE TABLE child () INHERITS (parent);"
        "INSERT INTO child VALUES (1);"
        "CREATE VIEW v AS SELECT 1"
    )
    assert (
        problems_of_rows(
            database,
            Table("public", 'a "b" é', 2),
            Table("public", "parent", 0),
            Table("public", "child", 1),
        )
        == []
    )
    assert problems_of_rows(database, Table("public", 'a "b" é', 3)) == [
        'public.a "b" é has 2 rows, and the dump had 3'
    ]
    assert problems_of_rows(database, Table("public", 'a "b" é', 1)) != []
    assert problems_of_rows(database, Table("public", "v", 1)) == ["the table public.v is missing"]


def test_rows_that_were_loaded_by_way_of_their_root(database: Database) -> None:
    """pg_dump does so with partitions by the hash of an enum, and counts them as the root's."""
    database.run_sql(
        "CREATE TABLE root (n int) PARTITION BY RANGE (n);"
        "CREATE TABLE low PARTITION OF root FOR VALUES FROM (0) TO (10) PARTITION BY HASH (n);"
        "CREATE TABLE low_1 PARTITION OF low FOR VALUES WITH (MODULUS 1, REMAINDER 0);"
        "CREATE TABLE high PARTITION OF root FOR VALUES FROM (10) TO (20);"
        "CREATE EXTENSION postgres_fdw; CREATE SERVER far FOREIGN DATA WRAPPER postgres_fdw;"
        "CREATE FOREIGN TABLE away PARTITION OF root FOR VALUES FROM (20) TO (30) SERVER far;"
        "INSERT INTO root VALUES (1), (2), (11), (12), (13)"
    )
    high = Table("public", "high", 3)
    assert problems_of_rows(database, Table("public", "root", 2), high) == []
    assert problems_of_rows(database, Table("public", "root", 5)) == []
    assert problems_of_rows(database, Table("public", "root", 5), high) == [
        "public.root has 2 rows, and the dump had 5"
    ]


def test_a_constraint_that_is_not_enforced_is_none_to_validate(database: Database) -> None:
    enforced = "NOT ENFORCED" if database.cluster.major >= 18 else ""
    database.run_sql(f"CREATE TABLE t (n int CHECK (n > 1) {enforced})")
    with inspection.opened(database.cluster.maintenance.uri, database.name) as found:
        assert found.constraints(0).problems == []
        database.run_sql("ALTER TABLE t ADD CHECK (n > 2) NOT VALID")
        assert found.constraints(0).problems != []


def test_a_table_of_an_extension_may_have_more_rows_and_not_fewer(database: Database) -> None:
    database.run_sql(
        "CREATE EXTENSION hstore; CREATE TABLE config (n int);"
        "INSERT INTO config VALUES (1), (2);"
        "ALTER EXTENSION hstore ADD TABLE config"
    )
    assert problems_of_rows(database, Table("public", "config", 1)) == []
    assert problems_of_rows(database, Table("public", "config", 3)) != []


def test_rows_that_a_policy_hides_are_counted(database: Database) -> None:
    database.run_sql(
        "CREATE TABLE a (n int); INSERT INTO a VALUES (1);"
        "ALTER TABLE a ENABLE ROW LEVEL SECURITY; ALTER TABLE a FORCE ROW LEVEL SECURITY;"
        "DROP ROLE IF EXISTS inspecting; CREATE ROLE inspecting LOGIN;"
        "ALTER TABLE a OWNER TO inspecting; GRANT CREATE ON SCHEMA public TO inspecting;"
        f"ALTER DATABASE {database.name} OWNER TO inspecting"
    )
    url = database.cluster.maintenance.uri.replace("admin@", "inspecting@")
    try:
        with inspection.opened(url, database.name) as found:
            assert found.rows([Table("public", "a", 1)]).problems == []
            assert found.rows([Table("public", "a", 2)]).problems != []
            [answer] = found.answers("SELECT count(*) = 1 FROM a")
            assert answer.passed
    finally:
        database.run_sql(
            f"ALTER DATABASE {database.name} OWNER TO admin;"
            "DROP OWNED BY inspecting CASCADE; DROP ROLE inspecting"
        )


def test_who_sees_all_rows_changes_nothing(database: Database) -> None:
    """An event trigger would be told of it, and may refuse it or write it down."""
    database.run_sql(
        "CREATE TABLE a (n int); INSERT INTO a VALUES (1);"
        "ALTER TABLE a ENABLE ROW LEVEL SECURITY; ALTER TABLE a FORCE ROW LEVEL SECURITY;"
        "CREATE FUNCTION refuse() RETURNS event_trigger LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE 'no DDL'; END $$;"
        "CREATE EVENT TRIGGER refuses ON ddl_command_end EXECUTE FUNCTION refuse()"
    )
    assert problems_of_rows(database, Table("public", "a", 1)) == []


def test_an_invalid_index(database: Database) -> None:
    database.run_sql("CREATE TABLE a (n int); CREATE INDEX a_n ON a (n)")
    with inspection.opened(database.cluster.maintenance.uri, database.name) as found:
        assert found.indexes().problems == []
        database.run_sql(
            "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'a_n'::regclass"
        )
        assert found.indexes().problems == ["the index public.a_n is invalid"]


def test_an_index_of_a_partitioned_table_may_be_invalid(database: Database) -> None:
    database.run_sql(
        "CREATE TABLE a (n int) PARTITION BY RANGE (n);"
        "CREATE TABLE a1 PARTITION OF a FOR VALUES FROM (1) TO (2);"
        "CREATE INDEX a_n ON ONLY a (n)"
    )
    with inspection.opened(database.cluster.maintenance.uri, database.name) as found:
        assert found.indexes().problems == []


def test_constraints_that_are_not_validated(database: Database) -> None:
    database.run_sql(
        "CREATE TABLE a (n int); ALTER TABLE a ADD CONSTRAINT c CHECK (n > 0) NOT VALID;"
        "CREATE DOMAIN d AS int; ALTER DOMAIN d ADD CONSTRAINT dc CHECK (VALUE > 0) NOT VALID"
    )
    with inspection.opened(database.cluster.maintenance.uri, database.name) as found:
        assert found.constraints(2).problems == []
        [problem] = found.constraints(1).problems
    assert problem.startswith("2 are not validated, and the dump had 1: ")
    assert "constraint c on table" in problem


IDENTITY = "CREATE TABLE a (n int GENERATED ALWAYS AS IDENTITY ({}) UNIQUE); INSERT INTO a {}"


@pytest.mark.newest_first
@pytest.mark.parametrize(
    ("script", "behind"),
    [
        ("CREATE TABLE a (n serial PRIMARY KEY); INSERT INTO a VALUES (1)", True),
        ("CREATE TABLE a (n serial PRIMARY KEY); INSERT INTO a DEFAULT VALUES", False),
        ("CREATE TABLE a (n serial); INSERT INTO a VALUES (1)", False),
        (IDENTITY.format("INCREMENT -1", "OVERRIDING SYSTEM VALUE VALUES (-1)"), True),
        (IDENTITY.format("INCREMENT -1", "OVERRIDING SYSTEM VALUE VALUES (7)"), False),
        (IDENTITY.format("MAXVALUE 5 CYCLE", "OVERRIDING SYSTEM VALUE VALUES (4)"), False),
        ("CREATE TABLE a (n serial PRIMARY KEY)", False),
        # One that was given by hand, far from what the sequence gives.
        ("CREATE TABLE a (n serial PRIMARY KEY); INSERT INTO a VALUES (2147483647)", False),
        (
            """
            CREATE TABLE a (n bigserial PRIMARY KEY);
            SELECT setval('a_n_seq', 9223372036854775807); INSERT INTO a VALUES (1);
            """,
            False,
        ),
        (IDENTITY.format("INCREMENT 2", "OVERRIDING SYSTEM VALUE VALUES (2)"), False),
        (
            """
            CREATE TABLE a (n serial, gone bool); CREATE UNIQUE INDEX ON a (n) WHERE NOT gone;
            INSERT INTO a VALUES (1, true);
            """,
            False,
        ),
    ],
    ids=[
        *("explicit", "default", "not unique", "downwards", "above", "cycles", "empty"),
        *("far away", "at its end", "between", "unique for some"),
    ],
)
def test_sequences(script: str, behind: bool, database: Database) -> None:  # noqa: FBT001 - a table
    database.run_sql(script)
    with inspection.opened(database.cluster.maintenance.uri, database.name) as found:
        assert bool(found.sequences().problems) == behind


def test_the_number_of_tables(database: Database) -> None:
    database.run_sql(
        "CREATE TABLE a (n int) PARTITION BY RANGE (n);"
        "CREATE TABLE a1 PARTITION OF a FOR VALUES FROM (1) TO (2);"
        "CREATE VIEW v AS SELECT 1; CREATE MATERIALIZED VIEW m AS SELECT 1;"
        "CREATE SCHEMA other; CREATE TABLE other.b ()"
    )
    with inspection.opened(database.cluster.maintenance.uri, database.name) as found:
        assert found.table_count() == 3


def test_a_database_that_is_not_there(cluster: Cluster) -> None:
    with (
        pytest.raises(ScratchError, match="cannot be checked"),
        inspection.opened(cluster.maintenance.uri, "gone"),
    ):
        pass
