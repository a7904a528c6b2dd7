"""Statements that are added to a dump for the tables of extensions.

Of the objects of an extension, pg_dump dumps only the rows of tables and the values of sequences
that the extension registers (:mod:`pgstash.postgres.dump.registered_tables`). Two kinds of
statements make such tables the same after a restore: one removes the rows that CREATE EXTENSION has
just created, if rows of the dump replace them; the others set the sequences that fill columns of
these tables. Both are plain SQL.
"""

from __future__ import annotations

import graphlib
import re
import secrets
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from pgstash.postgres.dump.registered_tables import (
    FillingSequence,
    Registered,
    asking,
    registered,
    sequences,
)
from pgstash.postgres.server import query
from pgstash.postgres.server.connection import Server
from pgstash.postgres.server.quoting import identifier, literal, qualified

_FIRST_WITH_SEQUENCE_DATA = 18
_TAG_BYTES = 8

# Rows are removed only if the condition of their table has this form.
_WHERE = re.compile(rb"\s*(?:WHERE\s.*)?", re.IGNORECASE | re.DOTALL)

WATCHERS = """
    SELECT FROM pg_catalog.pg_event_trigger t
    JOIN pg_catalog.pg_depend d
         ON d.classid = 'pg_catalog.pg_event_trigger'::pg_catalog.regclass AND d.objid = t.oid
            AND d.deptype = 'e'
    JOIN pg_catalog.pg_extension e ON e.oid = d.refobjid
    WHERE t.evtenabled <> 'D' AND e.extconfig IS NOT NULL LIMIT 1
"""
"""Finds event triggers of extensions.

They exist from CREATE EXTENSION on, and some check that everything that their tables name exists.
That is not so before the end of a restore.
"""
_SILENCED = b"""\
--
-- Event triggers of extensions do not fire while what they watch is incomplete
--

DO $pgstash$
BEGIN
  PERFORM pg_catalog.set_config('session_replication_role', 'replica', false);
EXCEPTION WHEN insufficient_privilege THEN
  NULL;
END $pgstash$;


"""
# Rows that the dump leaves to CREATE EXTENSION may refer to rows that it holds. These come back, so
# no foreign key may delete or change the rows that refer to them.
_EMPTYING = b"""\
  pgstash_made := ARRAY(
    SELECT pgstash_rows.ctid
    FROM (SELECT %b.ctid, %b.xmin FROM ONLY %b
      %b
    ) pgstash_rows
    WHERE pgstash_rows.xmin = (
      SELECT e.xmin FROM pg_catalog.pg_extension e WHERE e.extname = %b));
  IF pg_catalog.cardinality(pgstash_made) > 0 THEN
    BEGIN
      IF EXISTS (
        SELECT FROM pg_catalog.pg_constraint
        WHERE contype = 'f' AND confrelid = %b::pg_catalog.regclass
              AND confdeltype NOT IN ('a', 'r')) THEN
        RAISE foreign_key_violation;
      END IF;
      DELETE FROM ONLY %b WHERE ctid = ANY (pgstash_made);
    EXCEPTION WHEN foreign_key_violation THEN
      PERFORM pg_catalog.set_config('session_replication_role', 'replica', true);
      DELETE FROM ONLY %b WHERE ctid = ANY (pgstash_made);
      PERFORM pg_catalog.set_config('session_replication_role', 'origin', true);
    END;
  END IF;
"""

_KEYS = """
    SELECT DISTINCT conrelid, confrelid FROM pg_catalog.pg_constraint
    WHERE contype = 'f' AND conrelid <> confrelid AND conrelid = ANY ('{%s}')
          AND confrelid = ANY ('{%s}')
"""


@dataclass(frozen=True, slots=True)
class Additions:
    """Statements to add to a dump: before all rows, and next to those that set sequences.

    ``conditions`` are those of the registered tables, by oid.
    """

    before_rows: bytes
    sequences: bytes
    conditions: dict[int, bytes]


def additions(
    server: Server, options: Sequence[str], dumped: Collection[int] | None = None
) -> Additions:
    """Return what to add to a dump whose snapshot has been taken.

    ``dumped`` are the oids of the tables whose rows it holds; None if only its options decide.
    Raises DatabaseError.
    """
    with asking(server, options) as ask:
        tables = registered(ask, server, options, dumped)
        values = _values(ask, server, [s for s in sequences(ask, tables) if s.readable])
        emptied = _referring_first(ask, [t for t in tables if _WHERE.fullmatch(t.condition)])
        silenced = _SILENCED if tables and ask(WATCHERS) else b""
    conditions = {table.oid: table.condition for table in tables}
    return Additions(_emptying(emptied) + silenced, values, conditions)


def _values(ask: query.Ask, server: Server, filling: Sequence[FillingSequence]) -> bytes:
    """Return the statements that set these sequences to their present values."""
    if not filling:
        return b""
    each = (
        b"SELECT %d AS place, last_value, is_called FROM %b" % (place, _source(sequence, server))
        for place, sequence in enumerate(filling)
    )
    rows = ask(b" UNION ALL ".join(each) + b" ORDER BY place")
    # A number, even if something else has taken the name of the sequence: others run the script.
    statements = b"".join(
        b"SELECT pg_catalog.setval(%b, %d, %b);\n"
        % (literal(sequence.quoted), int(value), b"true" if called == b"t" else b"false")
        for sequence, (_, value, called) in zip(filling, rows, strict=True)
        if value is not None  # it was dropped
    )
    return b"--\n-- Sequences of extensions that pg_dump leaves out\n--\n\n" + statements + b"\n\n"


def _source(sequence: FillingSequence, server: Server) -> bytes:
    """Return what to read a sequence from: its oid, or its name, which it may lose meanwhile."""
    if server.major >= _FIRST_WITH_SEQUENCE_DATA:
        return b"pg_catalog.pg_get_sequence_data(%d)" % sequence.oid
    return sequence.quoted


def _referring_first(ask: query.Ask, tables: Sequence[Registered]) -> list[Registered]:
    """Return the tables in an order in which their rows can be removed."""
    if not tables:
        return []
    oids = ",".join(str(table.oid) for table in tables)
    by_oid = {table.oid: table for table in tables}
    graph: dict[int, set[int]] = {oid: set() for oid in by_oid}
    for referring, referred in ask(_KEYS % (oids, oids)):
        graph[int(referred or b"0")].add(int(referring or b"0"))
    try:
        order = list(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError:
        order = list(by_oid)
    return [by_oid[oid] for oid in order]


def _emptying(tables: Sequence[Registered]) -> bytes:
    """Return the statement that removes rows of CREATE EXTENSION that the dump has, too.

    It finds them by the transaction that created the extension. Rows that a user of the target
    added later have another one, and stay. It needs no privilege if there are no such rows.
    """
    if not tables:
        return b""
    body = b"".join(_EMPTYING % _parts(table) for table in tables)
    tag = b"$pgstash$"
    while tag in body:
        tag = b"$pgstash_" + secrets.token_hex(_TAG_BYTES).encode() + b"$"
    return (
        b"--\n-- What CREATE EXTENSION puts into tables whose rows follow\n--\n\n"
        b"DO " + tag + b"\n#variable_conflict use_column\n"
        b"DECLARE pgstash_made pg_catalog.tid[];\nBEGIN\n" + body + b"END " + tag + b";\n\n\n"
    )


def _parts(table: Registered) -> tuple[bytes, ...]:
    relation, name = qualified(table.schema, table.name), identifier(table.name)
    extension, known = literal(table.extension), literal(relation)
    return name, name, relation, table.condition, extension, known, relation, relation
