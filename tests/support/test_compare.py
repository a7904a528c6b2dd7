"""The comparer finds what a restore can get wrong, and nothing where all is well."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support.compare import compare, read_contents

if TYPE_CHECKING:
    from support.postgres import Database, MakeDatabase


def differences(source: Database, target: Database) -> list[str]:
    return compare(source.conninfo, target.conninfo, bin_dir=source.bin_dir)


DAMAGES = {
    "one byte of a value": (
        "mixed",
        "UPDATE wide SET filler = overlay(filler PLACING '!' FROM 9) WHERE id = 7",
    ),
    "one of equal rows": (
        "mixed",
        "DELETE FROM duplicates WHERE ctid = (SELECT min(ctid) FROM duplicates WHERE value = 1)",
    ),
    "one row twice instead of another": (
        "mixed",
        (
            "UPDATE duplicates SET value = 2"
            " WHERE ctid = (SELECT min(ctid) FROM duplicates WHERE value = 1)"
        ),
    ),
    "minus zero": ("mixed", "UPDATE numbers SET double = 0 WHERE id = 3"),
    "trailing zero of a numeric": ("mixed", "UPDATE numbers SET exact = 1.1 WHERE id = 7"),
    "an empty string for NULL": ("nasty_text", "UPDATE lines SET value = '' WHERE value IS NULL"),
    "a row without columns": (
        "nasty_text",
        "DELETE FROM no_columns WHERE ctid = (SELECT min(ctid) FROM no_columns)",
    ),
    "a row in another child": (
        "structure",
        (
            "WITH gone AS (DELETE FROM ONLY cities WHERE name = 'Graz' RETURNING *)"
            " INSERT INTO capitals (name, people) SELECT name, people FROM gone"
        ),
    ),
    "a sequence off by one": (
        "structure",
        "SELECT setval('odd', (SELECT last_value - 1 FROM odd))",
    ),
    "a sequence that was called": ("structure", "SELECT setval('untouched', 5, true)"),
    "contents of a materialized view": (
        "structure",
        (
            "UPDATE events_2024_click SET kind = 'tap' WHERE kind = 'click';"
            " REFRESH MATERIALIZED VIEW per_kind"
        ),
    ),
    "a view that is populated": ("structure", "REFRESH MATERIALIZED VIEW not_yet"),
    "an index": ("structure", "DROP INDEX people_trigrams"),
    "a trigger's state": ("structure", "ALTER TABLE audited ENABLE TRIGGER sleeping"),
    "a comment": ("structure", "COMMENT ON COLUMN people.name IS 'other'"),
    "the last byte of a large object": (
        "large_objects",
        "SELECT lo_truncate(lo_open(900005, 131072), 1599999)",
    ),
    "one byte within a large object": ("large_objects", r"SELECT lo_put(900004, 1000, '\x00')"),
    "an empty large object": ("large_objects", "SELECT lo_unlink(900001)"),
    "a large object's comment": ("large_objects", "COMMENT ON LARGE OBJECT 900001 IS NULL"),
}


@pytest.mark.parametrize(
    "sample", ["mixed", "nasty_text", "structure", "large_objects", "sql_ascii"]
)
def test_copies_do_not_differ(make_database: MakeDatabase, sample: str) -> None:
    assert differences(make_database(sample), make_database(sample)) == []


def test_the_order_of_rows_does_not_matter(make_database: MakeDatabase) -> None:
    source, target = make_database("mixed"), make_database("mixed")
    target.run_sql(
        "CREATE TABLE t AS TABLE wide; TRUNCATE wide; "
        "INSERT INTO wide SELECT * FROM t ORDER BY id DESC; DROP TABLE t"
    )
    assert differences(source, target) == []


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_found(make_database: MakeDatabase, damage: str) -> None:
    sample, statement = DAMAGES[damage]
    source, target = make_database(sample), make_database(sample)
    target.run_sql(f"BEGIN; {statement}; COMMIT;")
    assert differences(source, target)


def test_another_encoding_is_found(make_database: MakeDatabase) -> None:
    assert differences(make_database("empty"), make_database("latin1"))[0].startswith("encoding")


def test_rows_are_counted(make_database: MakeDatabase) -> None:
    database = make_database()
    database.run_sql("CREATE TABLE t AS SELECT generate_series(1, 7); CREATE TABLE u AS TABLE t")
    assert read_contents(database.conninfo).rows == 14
