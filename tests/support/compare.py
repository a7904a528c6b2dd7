"""Finds every difference between two databases: what a restore is measured by.

Rows are compared as a multiset: their number, and the sum of their MD5 digests, taken as
two 64-bit numbers each. That is computed inside the servers, does not depend on the order
of rows, needs no key, and tells two equal rows from one.
"""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass, field
from difflib import unified_diff
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import sql
from psycopg.rows import class_row

from support.postgres import clean_environment

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

# Lines of a dump that differ between two dumps of the same database: the random key of
# \restrict, and the version of the server.
_INCIDENTAL = re.compile(rb"^(\\(un)?restrict \w+|-- Dumped (from|by) .*)$")

# The text of a value must not depend on a default of its database.
_SESSION = """
    SET client_encoding = 'UTF8'; SET DateStyle = 'ISO'; SET IntervalStyle = 'postgres';
    SET TimeZone = 'UTC'; SET extra_float_digits = 3; SET bytea_output = 'hex';
    SET lc_monetary = 'C'; SET xmlbinary = 'base64'; SET search_path = ''; SET row_security = off
"""

# The columns by name: a partition's own order of columns is compared with the schema.
_RELATIONS = """
    SELECT n.nspname AS schema, c.relname AS name, c.relkind AS kind, c.relispopulated AS populated,
           ARRAY(
               SELECT a.attname FROM pg_catalog.pg_attribute a
               WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attname
           )::text[] AS columns
    FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'm', 'S')
      AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast')
      AND n.nspname !~ '^pg_(toast_)?temp_'
"""

_LARGE_OBJECTS = """
    SELECT oid, length(content) AS size, md5(content) AS digest, comment
    FROM (
        SELECT oid, pg_catalog.lo_get(oid) AS content,
               pg_catalog.obj_description(oid, 'pg_largeobject') AS comment
        FROM pg_catalog.pg_largeobject_metadata OFFSET 0
    ) AS objects
"""


@dataclass(frozen=True)
class Relation:
    """A table, materialized view or sequence; ``kind`` is the letter of ``pg_class.relkind``."""

    schema: str
    name: str
    kind: str
    populated: bool
    columns: list[str]


@dataclass(frozen=True)
class Contents:
    """What a database holds besides its schema, each part by a name for people."""

    encoding: str
    tables: Mapping[str, tuple[object, ...]] = field(default_factory=dict)
    sequences: Mapping[str, tuple[object, ...]] = field(default_factory=dict)
    large_objects: Mapping[str, tuple[object, ...]] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """The number of rows in all tables and materialized views."""
        return sum(count for count, *_ in self.tables.values() if isinstance(count, int))


def compare(source: str, target: str, *, bin_dir: Path) -> list[str]:
    """Return every difference between two databases, given by conninfo; none if identical.

    ``bin_dir`` holds the pg_dump that writes both schemas: of the newer server's major.
    Owners and privileges are not compared, as an archive does not carry them.
    """
    before, after = read_contents(source), read_contents(target)
    differences = []
    if before.encoding != after.encoding:
        differences.append(f"encoding: {before.encoding} became {after.encoding}")
    differences += _compare_schema(source, target, bin_dir)
    differences += _compare_parts("table", before.tables, after.tables)
    differences += _compare_parts("sequence", before.sequences, after.sequences)
    differences += _compare_parts("large object", before.large_objects, after.large_objects)
    return differences


def read_contents(conninfo: str) -> Contents:
    """Digest everything in a database that a schema dump does not show."""
    with psycopg.connect(conninfo) as connection:
        connection.execute(_SESSION)
        encoding = connection.execute("SHOW server_encoding").fetchone()
        with connection.cursor(row_factory=class_row(Relation)) as cursor:
            relations = cursor.execute(_RELATIONS).fetchall()
        large_objects = connection.execute(_LARGE_OBJECTS).fetchall()
        return Contents(
            encoding=str(encoding and encoding[0]),
            tables={
                f"{relation.schema}.{relation.name}": _digest(connection, relation)
                for relation in relations
                if relation.kind in ("r", "m")
            },
            sequences={
                f"{relation.schema}.{relation.name}": _position(connection, relation)
                for relation in relations
                if relation.kind == "S"
            },
            large_objects={str(oid): tuple(rest) for oid, *rest in large_objects},
        )


def _digest(connection: psycopg.Connection[Any], relation: Relation) -> tuple[object, ...]:
    """Return count and two sums of digests of a relation's own rows, without its children's."""
    if not relation.populated:
        return ("not populated",)
    query = sql.SQL(
        "SELECT count(*),"
        " coalesce(sum(('x' || left(digest, 16))::bit(64)::bigint), 0),"
        " coalesce(sum(('x' || right(digest, 16))::bit(64)::bigint), 0)"
        " FROM (SELECT md5(ROW({columns})::text) AS digest FROM ONLY {relation} AS t OFFSET 0)"
        " AS digests"
    ).format(
        columns=sql.SQL(", ").join(sql.Identifier("t", name) for name in relation.columns),
        relation=sql.Identifier(relation.schema, relation.name),
    )
    return connection.execute(query).fetchone() or ()


def _position(connection: psycopg.Connection[Any], relation: Relation) -> tuple[object, ...]:
    query = sql.SQL("SELECT last_value, is_called FROM {}").format(
        sql.Identifier(relation.schema, relation.name)
    )
    return connection.execute(query).fetchone() or ()


def _compare_parts(
    kind: str, before: Mapping[str, tuple[object, ...]], after: Mapping[str, tuple[object, ...]]
) -> list[str]:
    differences = []
    for name in sorted(before.keys() | after.keys()):
        if name not in after:
            differences.append(f"{kind} {name}: missing")
        elif name not in before:
            differences.append(f"{kind} {name}: was not there before")
        elif before[name] != after[name]:
            differences.append(f"{kind} {name}: {before[name]} became {after[name]}")
    return differences


def _compare_schema(source: str, target: str, bin_dir: Path) -> list[str]:
    before, after = (_schema(conninfo, bin_dir) for conninfo in (source, target))
    return [
        f"schema: {line}" for line in unified_diff(before, after, "source", "target", "", "", 2, "")
    ]


def _schema(conninfo: str, bin_dir: Path) -> list[str]:
    dump = subprocess.run(
        [str(bin_dir / "pg_dump"), "--schema-only", "--no-owner", "--no-acl", "-d", conninfo],
        env=clean_environment(),
        stdout=subprocess.PIPE,
        check=True,
    ).stdout
    lines = (line for line in dump.split(b"\n") if not _INCIDENTAL.match(line))
    return [line.decode(errors="backslashreplace") for line in lines]
