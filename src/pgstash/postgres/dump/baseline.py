"""Notices tables that were rewritten or replaced before a dump had locked them.

TRUNCATE, VACUUM FULL and some kinds of ALTER TABLE give a table a new file. Under an older snapshot
that file looks empty, and so does a new table that took the name of another: pg_dump stores either
without a word (https://www.postgresql.org/docs/current/mvcc-caveats.html). Rows are read by the
names of columns, too, and a column may have taken the name of another. So files, names and columns
are recorded before the snapshot is taken, and compared when the locks are held, which keep them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from pgstash.errors import DumpError, TableRewrittenError
from pgstash.postgres.rights import some
from pgstash.postgres.session import Row

Ask = Callable[[bytes], list[Row]]
"""Asks the server in a session of ours.

Its transaction is READ COMMITTED, so that each question sees what was committed before it, its
search_path is empty, and text arrives as it is stored. Raises DatabaseError.
"""

# Those of initdb are below, and pg_dump dumps no rows of them.
_FIRST_OID = 16384

# A number for what COPY makes of the columns of the table c.
_COLUMNS = """
    SELECT pg_catalog.hashtextextended(
               pg_catalog.string_agg(
                   pg_catalog.format('%s %I %s %s', attnum, attname, atttypid, attisdropped),
                   ',' ORDER BY attnum
               ) COLLATE pg_catalog."C", 0) AS columns,
           pg_catalog.min(pg_catalog.age(xmin)) AS age
    FROM pg_catalog.pg_attribute WHERE attrelid = c.oid AND attnum > 0
"""

# Each as a literal for a later question: nothing is made of them here, however many there are.
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
# A snapshot sees a table as it is now if that was committed before any transaction began that was
# running when the snapshot was taken: ``age`` is that of the oldest of these, where it is known.
# Numbers of transactions are used again, so their ages are compared.
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
# Of the sessions of other roles everybody sees the process id and the name, and all locks.
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
# At the end of a transaction this lock is the first that goes.
_IN_TRANSACTION = """
    SELECT FROM pg_catalog.pg_stat_activity a JOIN pg_catalog.pg_locks l ON l.pid = a.pid
    WHERE pg_catalog.right(a.application_name, %d) = '%b'
          AND l.locktype = 'virtualxid' AND l.virtualxid = l.virtualtransaction
"""
_MAY_SEE = b"""
    SELECT pg_catalog.has_table_privilege('pg_catalog.pg_stat_activity', 'SELECT')
"""
# What is known of sessions is kept until the end of a transaction otherwise.
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
    """A table that is not what it was: rewritten, altered, replaced, renamed or dropped.

    ``name`` is its schema and its own name as bytes, None if it was dropped; ``shown`` is the name
    for messages. It is ``gone`` if it has not the name any more that it had, and ``unregistered``
    if it belongs to an extension that has its rows left out of dumps.
    """

    name: tuple[bytes, bytes] | None
    shown: str
    gone: bool
    unlogged: bool
    unregistered: bool


class Baseline:
    """What the tables of a database were when it was made, to compare with what they are now."""

    def __init__(self, ask: Ask, codec: str) -> None:
        """Record them; ``codec`` is that of names. Raises DatabaseError."""
        self._ask = ask
        self._codec = codec
        [row] = ask(_RECORD.encode())
        *tables, self._schemas, self._schema_names = (cell or b"" for cell in row)
        self._before = _BEFORE.encode() % tuple(tables)

    def of_tables(self, oids: Iterable[int]) -> list[Changed]:
        """Return which of these tables have changed. Raises DatabaseError."""
        return self._changed(_THESE.encode() % b",".join(b"%d" % oid for oid in oids))

    def of_session(self, mark: str) -> list[Changed]:
        """Return which tables have changed of those that a session of a dump has locked.

        ``mark`` is how its application_name ends. If there is no such session any more, or none can
        be seen, return which of all tables have changed. Raises DatabaseError.
        """
        if self._ask(_MAY_SEE) != [[b"t"]]:
            return self._changed(_ALL.encode())
        session = len(mark), mark.encode()
        found = self._changed(_LOCKED.encode() % session)
        if self._ask(_ANEW + _IN_TRANSACTION.encode() % session):
            return found
        return self._changed(_ALL.encode())

    def gone(self) -> list[Changed]:
        """Return the tables that have not the name any more that they had. Raises DatabaseError."""
        return [each for each in self._changed(_RECORDED.encode()) if each.gone]

    def refuse_renamed(self, dumped: Iterable[tuple[bytes, bytes]]) -> None:
        """Raise DumpError if the schema of a table was renamed: no lock keeps its name.

        ``dumped`` are schema and name of the tables that were read, each of them by name.
        """
        rows = self._ask(_RENAMED.encode() % (self._schemas, self._schema_names))
        renamed = {name for [name] in rows}
        for schema, table in dumped:
            if schema in renamed:
                name = b".".join((schema, table)).decode(self._codec, "replace")
                raise DumpError(
                    f"{name} was renamed while it was read, it or its schema",
                    hint="Run the backup again, while no schema is renamed.",
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
