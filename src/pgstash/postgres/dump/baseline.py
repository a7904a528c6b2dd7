"""Detects tables that were rewritten or replaced before a dump had locked them.

TRUNCATE, VACUUM FULL and some forms of ALTER TABLE give a table a new file. Under an older snapshot
that file appears empty, and so does a new table with the name of an earlier one: pg_dump stores
either without a warning (https://www.postgresql.org/docs/current/mvcc-caveats.html). Rows are read
by the names of columns, and a column may also have the name of an earlier one. So files, names and
columns are recorded before the snapshot is taken, and compared when the locks protect them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from pgstash.errors import DumpError, TableRewrittenError
from pgstash.postgres.preflight.privileges import some
from pgstash.postgres.server.session import Row

Ask = Callable[[bytes], list[Row]]
"""Asks the server in a session of pgstash.

Its transaction is READ COMMITTED, so that each query sees what was committed before it. Its
search_path is empty, and text arrives as it is stored. Raises DatabaseError.
"""

# Tables of initdb have lower oids, and pg_dump dumps none of their rows.
_FIRST_OID = 16384

# A hash of everything that decides how COPY writes the columns of the table c.
_COLUMNS = """
    SELECT pg_catalog.hashtextextended(
               pg_catalog.string_agg(
                   pg_catalog.format('%s %I %s %s', attnum, attname, atttypid, attisdropped),
                   ',' ORDER BY attnum
               ) COLLATE pg_catalog."C", 0) AS columns,
           pg_catalog.min(pg_catalog.age(xmin)) AS age
    FROM pg_catalog.pg_attribute WHERE attrelid = c.oid AND attnum > 0
"""

# Each as a literal for a later query. They are not parsed here, because there may be many.
_RECORD = f"""
    WITH tables AS (
        SELECT c.oid, c.relfilenode AS file,
               pg_catalog.format('%I.%I', n.nspname, c.relname) AS name,
               COALESCE(a.columns, 0) AS columns
        FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
        CROSS JOIN LATERAL ({_COLUMNS}) a
        WHERE c.relkind = 'r' AND c.relpersistence <> 't' AND c.oid >= {_FIRST_OID}
    )
    SELECT pg_catalog.quote_literal(COALESCE(pg_catalog.array_agg(oid)::text, '{{}}')),
           pg_catalog.quote_literal(COALESCE(pg_catalog.array_agg(file)::text, '{{}}')),
           pg_catalog.quote_literal(COALESCE(pg_catalog.array_agg(name)::text, '{{}}')),
           pg_catalog.quote_literal(COALESCE(pg_catalog.array_agg(columns)::text, '{{}}')),
           (SELECT pg_catalog.quote_literal(pg_catalog.array_agg(oid)::text)
            FROM pg_catalog.pg_namespace),
           (SELECT pg_catalog.quote_literal(pg_catalog.array_agg(nspname)::text)
            FROM pg_catalog.pg_namespace)
    FROM tables
"""  # noqa: S608 - of constants

_BEFORE = """
    before AS (
        SELECT * FROM ROWS FROM (pg_catalog.unnest(%b::pg_catalog.oid[]),
                                 pg_catalog.unnest(%b::pg_catalog.oid[]),
                                 pg_catalog.unnest(%b::pg_catalog.text[]),
                                 pg_catalog.unnest(%b::pg_catalog.int8[]))
                      AS b (oid, file, name, columns)
    )
"""
# A snapshot sees the present state of a table if it was committed before the start of every
# transaction that was running when the snapshot was taken. ``age`` is that of the oldest of these,
# if it is known. Ages are compared, because transaction IDs are reused.
_CHANGED = f"""
    SELECT now.nspname, now.relname, COALESCE(now.name, before.name),
           before.oid IS NOT NULL AND before.name IS DISTINCT FROM now.name,
           now.relpersistence = 'u',
           EXISTS (SELECT FROM pg_catalog.pg_depend d
                   WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass
                         AND d.objid = now.oid AND d.deptype = 'e')
           AND NOT EXISTS (SELECT FROM pg_catalog.pg_extension e
                           WHERE now.oid = ANY (e.extconfig))
    FROM dumped
    LEFT JOIN before ON before.oid = dumped.oid
    LEFT JOIN (
        SELECT c.oid, c.relkind, c.relpersistence, c.relfilenode AS file, n.nspname, c.relname,
               pg_catalog.format('%I.%I', n.nspname, c.relname) AS name,
               COALESCE(a.columns, 0) AS columns,
               LEAST(pg_catalog.age(c.xmin), pg_catalog.age(n.xmin), a.age) AS age
        FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
        CROSS JOIN LATERAL ({_COLUMNS}) a
    ) now ON now.oid = dumped.oid
    WHERE (now.relkind = 'r' OR before.oid IS NOT NULL)
          AND (before.file, before.name, before.columns)
              IS DISTINCT FROM (now.file, now.name, now.columns)
          AND NOT COALESCE(now.age > dumped.age, false)
    ORDER BY 3
"""  # noqa: S608 - of constants

_THESE = """
    dumped AS (SELECT oid, NULL::pg_catalog.int4 AS age
               FROM pg_catalog.unnest('{%b}'::pg_catalog.oid[]) AS t (oid))
"""
_RECORDED = "dumped AS (SELECT oid, NULL::pg_catalog.int4 AS age FROM before)"
_ALL = f"""
    dumped AS (
        SELECT oid, NULL::pg_catalog.int4 AS age FROM before
        UNION
        SELECT oid, NULL FROM pg_catalog.pg_class
        WHERE relkind = 'r' AND relpersistence <> 't' AND oid >= {_FIRST_OID}
    )
"""  # noqa: S608 - of constants
# Every role sees the process ID and the name of the sessions of other roles, and all locks.
_LOCKED = f"""
    dumped AS (
        SELECT l.relation AS oid, pg_catalog.max(pg_catalog.age(a.backend_xmin)) AS age
        FROM pg_catalog.pg_stat_activity a JOIN pg_catalog.pg_locks l ON l.pid = a.pid
        WHERE pg_catalog.right(a.application_name, %d) = '%b'
              AND l.locktype = 'relation' AND l.granted AND l.relation >= {_FIRST_OID}
              AND l.database = (SELECT oid FROM pg_catalog.pg_database
                                WHERE datname = pg_catalog.current_database())
        GROUP BY 1
    )
"""  # noqa: S608 - of constants
# This lock is the first to be released at the end of a transaction.
_IN_TRANSACTION = """
    SELECT FROM pg_catalog.pg_stat_activity a JOIN pg_catalog.pg_locks l ON l.pid = a.pid
    WHERE pg_catalog.right(a.application_name, %d) = '%b'
          AND l.locktype = 'virtualxid' AND l.virtualxid = l.virtualtransaction
"""
_MAY_SEE = b"""
    SELECT pg_catalog.has_table_privilege('pg_catalog.pg_stat_activity', 'SELECT')
"""
# Without it, the statistics of sessions stay the same until the end of a transaction.
_ANEW = b"SELECT pg_catalog.pg_stat_clear_snapshot();"

_RENAMED = """
    SELECT before.name
    FROM ROWS FROM (pg_catalog.unnest(%b::pg_catalog.oid[]),
                    pg_catalog.unnest(%b::pg_catalog.text[])) AS before (oid, name)
    JOIN pg_catalog.pg_namespace n ON n.oid = before.oid
    WHERE n.nspname <> before.name
"""


@dataclass(frozen=True, slots=True)
class Changed:
    """A table that has changed: rewritten, altered, replaced, renamed or dropped.

    ``name`` is its schema and its own name as bytes, None if it was dropped; ``shown`` is the name
    for messages. It is ``gone`` if it no longer has its former name, and ``unregistered`` if it
    belongs to an extension that excludes its rows from dumps.
    """

    name: tuple[bytes, bytes] | None
    shown: str
    gone: bool
    unlogged: bool
    unregistered: bool


class Baseline:
    """The state of the tables of a database at one moment, to compare with their present state."""

    def __init__(self, ask: Ask, codec: str) -> None:
        """Record the tables; ``codec`` is that of names. Raises DatabaseError."""
        self._ask = ask
        self._codec = codec
        [row] = ask(_RECORD.encode())
        *tables, self._schemas, self._schema_names = (cell or b"" for cell in row)
        self._before = _BEFORE.encode() % tuple(tables)

    def of_tables(self, oids: Iterable[int]) -> list[Changed]:
        """Return which of these tables have changed. Raises DatabaseError."""
        return self._changed(_THESE.encode() % b",".join(b"%d" % oid for oid in oids))

    def of_session(self, mark: str) -> list[Changed]:
        """Return which of the tables that a session of a dump has locked have changed.

        ``mark`` is the end of its application_name. If there is no such session any more, or
        sessions are not visible, return which of all tables have changed. Raises DatabaseError.
        """
        if self._ask(_MAY_SEE) != [[b"t"]]:
            return self._changed(_ALL.encode())
        session = len(mark), mark.encode()
        found = self._changed(_LOCKED.encode() % session)
        if self._ask(_ANEW + _IN_TRANSACTION.encode() % session):
            return found
        return self._changed(_ALL.encode())

    def gone(self) -> list[Changed]:
        """Return the tables that no longer have their former name. Raises DatabaseError."""
        return [each for each in self._changed(_RECORDED.encode()) if each.gone]

    def refuse_renamed(self, dumped: Iterable[tuple[bytes, bytes]]) -> None:
        """Raise DumpError if the schema of a table was renamed, which no lock prevents.

        ``dumped`` are schema and name of the tables, which were read by name.
        """
        rows = self._ask(_RENAMED.encode() % (self._schemas, self._schema_names))
        renamed = {name for [name] in rows}
        for schema, table in dumped:
            if schema in renamed:
                name = b".".join((schema, table)).decode(self._codec, "replace")
                raise DumpError(
                    f"{name} or its schema was renamed while it was read",
                    hint="Run the backup again while no schema is renamed.",
                )

    def _changed(self, dumped: bytes) -> list[Changed]:
        parts = (_ANEW, b" WITH ", self._before, b", ", dumped, _CHANGED.encode())
        return [
            Changed(
                (schema, table) if schema is not None and table is not None else None,
                (shown or b"").decode(self._codec, "replace"),
                *(flag == b"t" for flag in flags),
            )
            for schema, table, shown, *flags in self._ask(b"".join(parts))
        ]


def refuse(changed: Sequence[Changed]) -> None:
    """Raise TableRewrittenError if any table has changed."""
    if changed:
        names = some([each.shown for each in changed])
        verb = "was" if len(changed) == 1 else "were"
        raise TableRewrittenError(f"{names} {verb} rewritten or replaced when the dump began")
