"""SqlScanner counts in real dumps what the databases themselves count."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from pgstash.pipeline.sql_scanner import Part, SqlScanner, split_name
from support import databases
from support.postgres import Cluster, Database, MakeDatabase

SAMPLES = (*databases.ROUND_TRIPPING, "breaks_under_clean")
LONGEST_CHUNK = 5000

# Names and counts come as bytes, so that no encoding of a client comes in between. A parent's
# children are counted by themselves, and an extension's tables are not in a dump.
COUNT = """
    CREATE TEMPORARY TABLE counted (schema bytea, name bytea, rows bigint);
    DO $do$
    DECLARE t record; n bigint;
    BEGIN
        FOR t IN
            SELECT nspname::text AS schema, relname::text AS name
            FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
            WHERE relkind = 'r' AND nspname !~ '^pg_' AND nspname <> 'information_schema'
              AND NOT EXISTS (SELECT FROM pg_depend WHERE classid = 'pg_class'::regclass
                              AND objid = c.oid AND deptype = 'e')
        LOOP
            EXECUTE format('SELECT count(*) FROM ONLY %I.%I', t.schema, t.name) INTO n;
            INSERT INTO counted VALUES (
                convert_to(t.schema, getdatabaseencoding()),
                convert_to(t.name, getdatabaseencoding()),
                n
            );
        END LOOP;
    END $do$;
"""


def real_counts(database: Database) -> dict[tuple[bytes, bytes], int]:
    with database.connect() as connection:
        connection.execute(COUNT)
        rows = connection.execute("SELECT schema, name, rows FROM counted").fetchall()
    return {(schema, name): count for schema, name, count in rows}


def tallied(chunks: list[bytes]) -> dict[tuple[bytes, bytes], int]:
    scanner = SqlScanner()
    for _ in scanner.watch(chunks):
        pass
    return {split_name(table): rows for table, rows in scanner.rows.items()}


@pytest.mark.newest_first
@pytest.mark.parametrize("sample", SAMPLES)
def test_the_counts_are_those_of_the_database(
    sample: str, cluster: Cluster, make_database: MakeDatabase
) -> None:
    database = make_database(sample, on=cluster)
    expected = real_counts(database)
    assert bool(expected) == (sample != "empty")

    encoding = f"--encoding={databases.encoding(sample)}"
    dump = database.plain_dump("--no-owner", "--no-acl", "--clean", "--if-exists", encoding)
    assert tallied([dump]) == expected

    chance = random.Random(sample)  # noqa: S311 - the same cuts each time
    chunks, start = [], 0
    while start < len(dump):
        chunks.append(dump[start : (start := start + chance.randint(1, LONGEST_CHUNK))])
    assert tallied(chunks) == expected

    scanner = SqlScanner()
    pieces = list(scanner.split(chunks))
    assert b"".join(piece for piece in pieces if isinstance(piece, bytes)) == dump
    begun = [piece for piece in pieces if isinstance(piece, Part) and piece.table]
    assert [part.table for part in begun] == list(scanner.rows)
    for part, piece in pairwise(pieces):
        if isinstance(part, Part):
            assert isinstance(piece, bytes)
            assert piece.startswith(part.load)
