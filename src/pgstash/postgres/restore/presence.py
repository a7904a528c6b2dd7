"""Which objects of a table of contents a database has, asked of its catalog."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence

from pgstash.postgres.server.quoting import literal
from pgstash.postgres.server.session import Row
from pgstash.postgres.tools.toc import Entry

Run = Callable[[bytes], list[Row]]
"""Runs statements as one message, and returns the rows of the last one."""

_PLACE = re.compile(rb"\{(\w+)\}")

_RELATION = """EXISTS (
    SELECT FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = w.schema AND c.relname = w.tag)"""
_TYPE = """EXISTS (
    SELECT FROM pg_catalog.pg_type t JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace
    WHERE n.nspname = w.schema AND t.typname = w.tag)"""
# As format_function_signature() and format_aggregate_signature() in pg_dump.c write it.
_FUNCTION = """EXISTS (
    SELECT FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
    WHERE n.nspname = w.schema AND w.tag = p.proname::pg_catalog.text || '(' || COALESCE((
        SELECT pg_catalog.string_agg(pg_catalog.format_type(a.type, NULL), ', ' ORDER BY a.place)
        FROM pg_catalog.unnest(p.proargtypes) WITH ORDINALITY AS a (type, place)),
        CASE p.prokind WHEN 'a' THEN '*' ELSE '' END) || ')')"""
# Their tag is the name of the table, a blank, and their own.
_OF_TABLE = """EXISTS (
    SELECT FROM {catalog} o JOIN pg_catalog.pg_class c ON c.oid = o.{relation}
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = w.schema
          AND w.tag = c.relname::pg_catalog.text || ' ' || o.{name}::pg_catalog.text)"""
_NAMED = "EXISTS (SELECT FROM pg_catalog.{0} o WHERE o.{1} = w.tag)"

_TESTS = {
    b"AGGREGATE": _FUNCTION,
    b"DOMAIN": _TYPE,
    b"EXTENSION": _NAMED.format("pg_extension", "extname"),
    b"FOREIGN TABLE": _RELATION,
    b"FUNCTION": _FUNCTION,
    b"MATERIALIZED VIEW": _RELATION,
    b"POLICY": _OF_TABLE.format(
        catalog="pg_catalog.pg_policy", relation="polrelid", name="polname"
    ),
    b"PROCEDURE": _FUNCTION,
    b"RULE": _OF_TABLE.format(
        catalog="pg_catalog.pg_rewrite", relation="ev_class", name="rulename"
    ),
    b"SCHEMA": _NAMED.format("pg_namespace", "nspname"),
    b"SEQUENCE": _RELATION,
    b"SERVER": _NAMED.format("pg_foreign_server", "srvname"),
    b"SHELL TYPE": _TYPE,
    b"TABLE": _RELATION,
    b"TYPE": _TYPE,
    b"VIEW": _RELATION,
}
_MISSING = """
    SELECT w.number
    FROM ROWS FROM (pg_catalog.unnest(ARRAY[{numbers}]), pg_catalog.unnest(ARRAY[{kinds}]),
                    pg_catalog.unnest(ARRAY[{schemas}]), pg_catalog.unnest(ARRAY[{tags}]))
         AS w (number, kind, schema, tag)
    WHERE NOT CASE w.kind {tests} END
"""
_TAKEN = """
    SELECT w.schema, w.name
    FROM ROWS FROM (pg_catalog.unnest(ARRAY[{schemas}]), pg_catalog.unnest(ARRAY[{names}]))
         AS w (schema, name)
    JOIN pg_catalog.pg_namespace n ON n.nspname = w.schema
    JOIN {catalog} o ON o.{namespace} = n.oid AND o.{column} = w.name
"""
# Of all tables, and of all in these schemas: those get a new table at once, and its rows.
_PUBLICATIONS = """
    SELECT p.pubname FROM pg_catalog.pg_publication p
    WHERE p.pubinsert AND (p.puballtables {or_schemas}) ORDER BY 1
"""
_OR_SCHEMAS = """OR EXISTS (
    SELECT FROM pg_catalog.pg_publication_namespace i
    JOIN pg_catalog.pg_namespace n ON n.oid = i.pnnspid
    WHERE i.pnpubid = p.oid AND n.nspname IN ({schemas}))
"""
_FIRST_WITH_SCHEMAS_PUBLISHED = 15
_SCHEMAS = "SELECT nspname FROM pg_catalog.pg_namespace WHERE nspname IN ({})"


def missing(run: Run, entries: Sequence[Entry]) -> list[Entry]:
    """Return the entries whose objects the database lacks.

    An object counts as present if the catalog cannot be asked for its kind.
    """
    asked = [entry for entry in entries if entry.description in _TESTS]
    if not asked:
        return []
    kinds = {entry.description for entry in asked}
    tests = " ".join(f"WHEN '{kind.decode()}' THEN {_TESTS[kind]}" for kind in sorted(kinds))
    rows = run(
        _filled(
            _MISSING.replace("{tests}", tests),
            numbers=[b"%d" % entry.number for entry in asked],
            kinds=[literal(entry.description) for entry in asked],
            schemas=[literal(entry.schema) for entry in asked],
            tags=[literal(entry.tag) for entry in asked],
        )
    )
    found = {int(number or b"0") for (number,) in rows}
    return [entry for entry in asked if entry.number in found]


def missing_schemas(run: Run, names: Collection[bytes]) -> list[bytes]:
    """Return those of these schemas that the database lacks."""
    quoted = b", ".join(map(literal, names))
    there = {row[0] for row in run(_SCHEMAS.encode().replace(b"{}", quoted))}
    return sorted(name for name in {*names} if name not in there)


def publications(run: Run, schemas: Collection[bytes], major: int) -> list[bytes]:
    """Return the publications that contain each new table in these schemas, with its rows."""
    or_schemas = _OR_SCHEMAS if major >= _FIRST_WITH_SCHEMAS_PUBLISHED else ""
    query = _PUBLICATIONS.replace("{or_schemas}", or_schemas)
    return [row[0] or b"" for row in run(_filled(query, schemas=[*map(literal, schemas)]))]


def taken_relations(run: Run, names: Sequence[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Return those names, each with its schema, that tables, indexes or sequences have."""
    return _taken(run, names, "pg_catalog.pg_class", "relnamespace", "relname")


def taken_tables(run: Run, names: Sequence[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Return those names, each with its schema, that relations or types have.

    A table has a type of its name.
    """
    types = _taken(run, names, "pg_catalog.pg_type", "typnamespace", "typname")
    return list(dict.fromkeys([*taken_relations(run, names), *types]))


def taken_statistics(run: Run, names: Sequence[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Return those names, each with its schema, that statistics objects have."""
    return _taken(run, names, "pg_catalog.pg_statistic_ext", "stxnamespace", "stxname")


def _taken(
    run: Run, names: Sequence[tuple[bytes, bytes]], catalog: str, namespace: str, column: str
) -> list[tuple[bytes, bytes]]:
    if not names:
        return []
    query = (
        _TAKEN.replace("{catalog}", catalog)
        .replace("{namespace}", namespace)
        .replace("{column}", column)
    )
    rows = run(
        _filled(
            query,
            schemas=[literal(schema) for schema, _ in names],
            names=[literal(name) for _, name in names],
        )
    )
    return [(schema or b"", name or b"") for schema, name in rows]


def _filled(query: str, **lists: Sequence[bytes]) -> bytes:
    """Return a query with these lists of literals in their places; a literal is not searched."""

    def listed(place: re.Match[bytes]) -> bytes:
        return b", ".join(lists[place[1].decode()])

    return _PLACE.sub(listed, query.encode())
