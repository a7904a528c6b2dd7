"""Tables are made in a schema of their own, and get names that are free."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from pgstash.errors import StatementError
from pgstash.events import ignore
from pgstash.postgres.restore import placing
from pgstash.postgres.restore.placing import Objects, Placement
from pgstash.postgres.restore.target import Outcome
from pgstash.postgres.restore.transaction import Transaction
from pgstash.postgres.server import login

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.postgres import Database, MakeDatabase

TABLE, SEQUENCE, INDEX = (b"s", b"t"), (b"s", b"t_id_seq"), (b"s", b"t_pkey")
# Two that would get the same name, and one that has it.
ALIKE = [(b"s", b"x"), (b"s", b"t_x"), (b"s", b"copy_x")]
OBJECTS = Objects([TABLE], [SEQUENCE], [INDEX, *ALIKE], [])
CREATE = (
    b"CREATE TABLE s.t (id int);",
    b"CREATE SEQUENCE s.t_id_seq OWNED BY s.t.id;",
    b"ALTER TABLE ONLY s.t ADD CONSTRAINT t_pkey PRIMARY KEY (id);",
    *(b"CREATE INDEX %s ON s.t USING btree (id);" % name for _, name in ALIKE),
)


@contextmanager
def transaction(database: Database) -> Iterator[Transaction]:
    server = login.inspect(database.uri)
    with Transaction(server, b"SET xmloption = content", lc_monetary=None, emit=ignore) as made:
        yield made


@pytest.fixture
def database(make_database: MakeDatabase) -> Database:
    made = make_database()
    made.run_sql("CREATE SCHEMA s; CREATE TABLE s.t (id serial PRIMARY KEY)")
    return made


def placed(made: Transaction) -> Placement:
    return placing.place(made.run, OBJECTS, placing.renaming(TABLE, (b"s", b"copy")), TABLE)


def create(made: Transaction, placement: Placement) -> None:
    placement.begin(made.run)
    for definition in CREATE:
        made.run(placement.created(definition))


def test_names_that_are_free(database: Database) -> None:
    database.run_sql("CREATE VIEW s.copy_pkey AS SELECT 1; CREATE TABLE s.copy_pkey_2 ()")
    with transaction(database) as made:
        placement = placed(made)
        create(made, placement)
        placement.finish(made.run)
        made.commit()
    assert made.outcome is Outcome.COMMITTED
    names = "SELECT relname FROM pg_class WHERE relname LIKE 'copy%' AND relkind IN ('r', 'i', 'S')"
    assert database.run_sql(f"{names} ORDER BY 1").split() == [
        "copy",
        "copy_copy_x",
        "copy_id_seq",
        "copy_pkey_2",
        "copy_pkey_3",
        "copy_x_2",
        "copy_x_3",
    ]


# Each of these does what no definition of pg_dump is known to do, but might.
@pytest.mark.parametrize(
    "statement",
    [
        b"ALTER TABLE s.t ADD x int",
        b"INSERT INTO s.t DEFAULT VALUES",
        b"SELECT setval('s.t_id_seq', 99)",
        b"ALTER TABLE <stage>.t ALTER id SET DEFAULT nextval('s.t_id_seq')",
        b"CREATE POLICY p ON <stage>.t USING (EXISTS (SELECT FROM s.t o))",
        b"ALTER TABLE <stage>.t ADD FOREIGN KEY (id) REFERENCES s.t",
    ],
    ids=["alter", "insert", "sequence", "default", "policy", "foreign key"],
)
def test_what_exists_is_not_touched(database: Database, statement: bytes) -> None:
    before = database.run_sql("SELECT * FROM pg_attribute WHERE attrelid = 's.t'::regclass")
    with transaction(database) as made:
        placement = placed(made)
        create(made, placement)
        [stage] = placement.stages.values()
        made.run(statement.replace(b"<stage>", stage))
        with pytest.raises(StatementError, match="which is in use"):
            placement.finish(made.run)
    assert made.outcome is Outcome.NOTHING
    after = database.run_sql("SELECT * FROM pg_attribute WHERE attrelid = 's.t'::regclass")
    assert after == before
    assert database.run_sql("SELECT count(*) FROM s.t") == "0\n"


def test_a_statement_that_names_none_of_the_objects(database: Database) -> None:
    """It is not run: whatever it concerns exists already."""
    with transaction(database) as made:
        placement = placed(made)
        with pytest.raises(StatementError, match="names none of the objects"):
            placement.created(b"SELECT pg_catalog.setval('s.other', 1)")


@pytest.mark.parametrize(
    ("base", "end", "wanted"),
    [
        (b"a" * 63, b"", b"a" * 63),
        (b"a" * 70, b"_2", b"a" * 61 + b"_2"),
        ("ä".encode() * 40, b"", "ä".encode() * 31),
        (b"\xe4", b"_2", b"\xe4_2"),
    ],
)
def test_a_name_is_short_enough(base: bytes, end: bytes, wanted: bytes) -> None:
    assert placing.shortened(base, end) == wanted
