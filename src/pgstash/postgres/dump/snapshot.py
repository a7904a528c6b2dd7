"""Rows of big tables, read by several sessions that see one snapshot.

A table is cut by its pages: a row's ctid begins with the number of its page, and a range of them is
read without the rest since PostgreSQL 14 (tid range scans). psql reads them, which is several times
cheaper than Python is.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import psycopg

from pgstash.errors import DatabaseError
from pgstash.postgres import ordering
from pgstash.postgres.session import Session
from pgstash.postgres.source import Server
from pgstash.postgres.toc import Entry

FIRST_MAJOR = 14
"""The first PostgreSQL that reads a range of pages without the rest of the table."""

CHUNK_BYTES = 32 * 1024 * 1024
"""Size of a chunk on the server's disk, its share of the TOAST table included."""

_SMALLEST = 1024 * 1024  # bytes; what is smaller is left to pg_dump
_MOST_TABLES = 2000  # each is an option of pg_dump
_SECONDS_TO_ANSWER = 60.0
_SECONDS_FOR_LOCK = 2
_NOT_AVAILABLE = "55P03"

# SQL that psql passes on as it is, to its end: nothing in it may begin a command of psql, name a
# variable of psql, end the statement, or hide what follows.
_FOR_SERVER = re.compile(
    rb"""(?: [^\\'"$;:/-] | :: | -(?!-) | /(?!\*) | '[^'\\]*' | "[^"\\]*" )*""", re.VERBOSE
)

# Who is one of these may run programs on the server's machine.
_MIGHTY = """
    SELECT FROM pg_catalog.pg_roles r
    WHERE (r.rolsuper OR r.rolname IN ('pg_execute_server_program', 'pg_read_server_files',
                                       'pg_write_server_files'))
          AND pg_catalog.pg_has_role({}, r.oid, 'MEMBER')
"""

# What an expression needs beside its table, and initdb did not make.
_MADE_BY_SOMEBODY = """
    d.refobjid >= 16384
    AND d.refclassid NOT IN ('pg_catalog.pg_class'::pg_catalog.regclass,
                             'pg_catalog.pg_constraint'::pg_catalog.regclass,
                             'pg_catalog.pg_namespace'::pg_catalog.regclass)
"""

# Tables of extensions may be dumped in part, by a condition that the extension registered.
#
# A range of pages is read by a query, and planning one runs what is constant in expressions of
# indexes and of statistics: functions of whoever owns the table, as us. COPY of a table plans
# nothing, nor does pg_dump. So a table is cut only where no such expression needs anything that
# somebody made, and where its owner, who might add one meanwhile, would gain no power over the
# server by it.
_SIZES = f"""
    SELECT c.oid,
           pg_catalog.pg_relation_size(c.oid) / pg_catalog.current_setting('block_size')::int,
           s.bytes,
           NOT EXISTS (
               SELECT FROM pg_catalog.pg_index i
               JOIN pg_catalog.pg_depend d
                    ON d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass
                       AND d.objid = i.indexrelid
               WHERE i.indrelid = c.oid AND (i.indexprs IS NOT NULL OR i.indpred IS NOT NULL)
                     AND {_MADE_BY_SOMEBODY})
           AND NOT EXISTS (
               SELECT FROM pg_catalog.pg_statistic_ext s
               JOIN pg_catalog.pg_depend d
                    ON d.classid = 'pg_catalog.pg_statistic_ext'::pg_catalog.regclass
                       AND d.objid = s.oid
               WHERE s.stxrelid = c.oid AND {_MADE_BY_SOMEBODY})
           AND (NOT EXISTS ({_MIGHTY.format("session_user")})
                OR EXISTS ({_MIGHTY.format("c.relowner")}))
    FROM pg_catalog.pg_class c JOIN pg_catalog.pg_am a ON a.oid = c.relam,
         -- Without other forks and the TOAST table's index: half the work of pg_table_size().
         LATERAL (SELECT pg_catalog.pg_relation_size(c.oid) + coalesce(
                      pg_catalog.pg_relation_size(nullif(c.reltoastrelid, 0)), 0) OFFSET 0
                 ) s (bytes)
    WHERE c.oid = ANY ('{{%s}}') AND c.relkind = 'r' AND a.amname = 'heap'
          AND s.bytes >= %d
          AND NOT EXISTS (
              SELECT FROM pg_catalog.pg_depend d
              WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.objid = c.oid
                    AND d.deptype = 'e'
          )
    ORDER BY 3 DESC LIMIT %d
"""  # noqa: S608 - of constants

_ROOM = b"""
    SELECT pg_catalog.current_setting('max_locks_per_transaction')::pg_catalog.int8
           * (pg_catalog.current_setting('max_connections')::pg_catalog.int8
              + pg_catalog.current_setting('max_prepared_transactions')::pg_catalog.int8)
           - (SELECT pg_catalog.count(*) FROM pg_catalog.pg_locks WHERE NOT fastpath)
"""


class SnapshotError(DatabaseError):
    """The server does not let several sessions see one snapshot."""

    default_hint = "The backup is made by one pg_dump."


class LockRefusedError(DatabaseError):
    """Somebody has locked a table, or waits to: a try later may go well."""

    default_hint = "The backup is made by one pg_dump, which waits for the lock."


@dataclass(frozen=True, slots=True)
class Table:
    """A big table. ``name`` is as the dump writes it, ``pattern`` is quoted and fits it alone.

    ``columns`` are a list as the dump writes it; ``pages`` are read ``step`` at a time. Where a
    ``condition`` stands behind FROM, the table has one chunk of some rows.
    """

    oid: int
    name: bytes
    pattern: bytes
    columns: bytes
    pages: int
    step: int
    condition: bytes = b""

    @property
    def load(self) -> bytes:
        """The statement by which rows are loaded."""
        return b"COPY " + self.name + b" (" + self.columns + b") FROM stdin;\n"

    @property
    def chunks(self) -> Iterator[Chunk]:
        """All of it, in pieces."""
        for start in range(0, max(1, self.pages), self.step):
            yield Chunk(self, start)


@dataclass(frozen=True, slots=True)
class Chunk:
    """A range of pages of one table, from ``start`` on."""

    table: Table
    start: int

    @property
    def read(self) -> bytes:
        """The query that reads its rows, without its end."""
        table, end = self.table, self.start + self.table.step
        if table.condition:
            some = b" FROM ONLY " + table.pattern + b" " + table.condition + b") TO stdout"
            return b"COPY (SELECT " + table.columns + some
        if table.step >= table.pages:
            return b"COPY " + table.name + b" (" + table.columns + b") TO stdout"
        select = b"COPY (SELECT " + table.columns + b" FROM ONLY " + table.pattern
        pages = b" WHERE ctid >= '(%d,0)'::pg_catalog.tid" % self.start
        # The last one has no end: rows may have come to new pages until the snapshot was taken.
        if end < table.pages:
            pages += b" AND ctid < '(%d,0)'::pg_catalog.tid" % end
        return select + pages + b") TO stdout"


class Snapshot:
    """A transaction that holds a snapshot for others to use, and its name."""

    def __init__(self, session: Session, name: str) -> None:
        """Hold what was exported."""
        self._session = session
        self.name = name

    def cut(self, entries: Sequence[Entry]) -> list[Table]:
        """Return the big ones of the tables, the largest first, and their chunks.

        pg_dump must have locked them. Raises SnapshotError, LockRefusedError.
        """
        named = {entry.oid: entry for entry in entries if _is_own(entry)}
        if not named:
            return []
        oids = ",".join(map(str, named))
        # To ask for a size takes a lock, for a moment: behind whoever waits for one.
        self._ask(b"SET LOCAL lock_timeout = '%ds'" % _SECONDS_FOR_LOCK)
        tables = []
        for *numbers, divisible in self._ask((_SIZES % (oids, _SMALLEST, _MOST_TABLES)).encode()):
            oid, pages, size = (int(cell or b"0") for cell in numbers)
            if into := named[oid].loads_into:
                step = max(1, pages * CHUNK_BYTES // max(1, size)) if divisible == b"t" else pages
                name = _qualified(named[oid])
                tables.append(Table(oid, into[0], name, into[1], pages, max(1, step)))
        return tables

    def of_extensions(
        self, entries: Sequence[Entry], conditions: Mapping[int, bytes]
    ) -> list[Table]:
        """Return the tables of extensions among these whose rows can be read by :class:`Chunk`.

        In their order: rows of one may refer to rows of an earlier one. ``conditions`` say which
        rows are dumped, by oid. Raises SnapshotError if psql may take one for a command of its own.
        """
        named = {entry.oid for entry in entries}
        if not all(_FOR_SERVER.fullmatch(conditions[oid]) for oid in conditions if oid in named):
            raise SnapshotError("an extension registered a condition that psql may misread")
        return [
            Table(entry.oid, into[0], _qualified(entry), into[1], 0, 1, conditions[entry.oid])
            for entry in entries
            if _is_own(entry) and entry.oid in conditions and (into := entry.loads_into)
        ]

    def room_for_locks(self) -> int:
        """Return how many locks the server has room for, beside those that are held now.

        https://www.postgresql.org/docs/current/runtime-config-locks.html
        """
        [[room]] = self._ask(_ROOM)
        return int(room or b"0")

    def kept_order(self) -> str | None:
        """Say why rows may not be written in any order, if they may not. Raises SnapshotError."""
        rows = self._ask(ordering.OF_ROWS)
        return ordering.reason(rows[0]) if rows else None

    def _ask(self, statement: bytes) -> list[list[bytes | None]]:
        try:
            return self._session.ask(statement, _SECONDS_TO_ANSWER)
        except psycopg.Error as error:
            raise refused(str(error), error.sqlstate) from error


@contextlib.contextmanager
def snapshot(server: Server) -> Iterator[Snapshot]:
    """Open a transaction and export its snapshot. Raises SnapshotError where that is refused."""
    # Text as it is stored, both ways.
    with contextlib.closing(Session(server.connection, client_encoding="SQL_ASCII")) as session:
        try:
            row = session.ask(
                "BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY;"
                "SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = 0;"
                "SET LOCAL idle_in_transaction_session_timeout = 0;"
                "SET LOCAL search_path = '';"
                "SELECT pg_catalog.pg_export_snapshot()",
                _SECONDS_TO_ANSWER,
            )[0]
            if server.major >= 17:  # noqa: PLR2004 - the first that has it
                session.ask("SET LOCAL transaction_timeout = 0", _SECONDS_TO_ANSWER)
        except psycopg.Error as error:
            raise SnapshotError(f"no snapshot can be shared: {error}") from error
        yield Snapshot(session, (row[0] or b"").decode())


def refused(said: str, state: str | None = None) -> DatabaseError:
    """Return the error for what a server refused: LockRefusedError or SnapshotError."""
    if state == _NOT_AVAILABLE or _NOT_AVAILABLE in said:  # psql writes it into the message
        return LockRefusedError(f"a table is locked: {' '.join(said.split())}")
    return SnapshotError(f"no snapshot can be shared: {' '.join(said.split())}")


def _is_own(entry: Entry) -> bool:
    """Tell whether the rows load into the table that they come from, and not into its root."""
    into = entry.loads_into
    return (
        into is not None
        and into[1] != b""
        and into[0]
        in {
            schema + b"." + name
            for schema in (entry.schema, _identifier(entry.schema))
            for name in (entry.tag, _identifier(entry.tag))
        }
    )


def _qualified(entry: Entry) -> bytes:
    return _identifier(entry.schema) + b"." + _identifier(entry.tag)


def _identifier(name: bytes) -> bytes:
    return b'"' + name.replace(b'"', b'""') + b'"'
