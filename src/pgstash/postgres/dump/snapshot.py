"""The shared snapshot of a parallel dump, and the chunks of its big tables.

A table is cut by its pages: the ctid of a row begins with the number of its page, and since
PostgreSQL 14 a range of pages can be read without the rest (TID range scans). psql reads them, at a
fraction of the cost of Python.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import psycopg

from pgstash.errors import DatabaseError
from pgstash.postgres.server import query, row_order, time_limits
from pgstash.postgres.server.connection import Server
from pgstash.postgres.server.quoting import identifier, qualified
from pgstash.postgres.server.session import Session
from pgstash.postgres.tools.toc import Entry

FIRST_MAJOR = 14
"""The first PostgreSQL that can read a range of pages without the rest of the table."""

CHUNK_BYTES = 32 * 1024 * 1024
"""Size of a chunk on the server's disk, including its share of the TOAST table."""

_SMALLEST = 1024 * 1024  # bytes; smaller tables are left to pg_dump
_MOST_TABLES = 2000  # each becomes an option of pg_dump
_NOT_AVAILABLE = "55P03"

# SQL that psql passes on unchanged. Nothing in it may begin a command of psql, name a variable of
# psql, end the statement, or hide what follows.
_FOR_SERVER = re.compile(
    rb"""(?: [^\\'"$;:/-] | :: | -(?!-) | /(?!\*) | '[^'\\]*' | "[^"\\]*" )*""", re.VERBOSE
)

# Members of these roles may run programs on the server's machine.
_MAY_RUN_PROGRAMS = """
    SELECT FROM pg_catalog.pg_roles r
    WHERE (r.rolsuper OR r.rolname IN ('pg_execute_server_program', 'pg_read_server_files',
                                       'pg_write_server_files'))
          AND pg_catalog.pg_has_role({}, r.oid, 'MEMBER')
"""

# User-defined objects (oid ≥ 16384) that an expression depends on, other than its table.
_USER_DEFINED = """
    d.refobjid >= 16384
    AND d.refclassid NOT IN ('pg_catalog.pg_class'::pg_catalog.regclass,
                             'pg_catalog.pg_constraint'::pg_catalog.regclass,
                             'pg_catalog.pg_namespace'::pg_catalog.regclass)
"""

# Tables of extensions are not among them: a condition that the extension registered may exclude
# some of their rows.
#
# A range of pages is read by a query. Planning it evaluates constants in the expressions of indexes
# and statistics, and so runs functions of the table's owner with our privileges. COPY of a table
# plans nothing, and pg_dump uses COPY. So a table is cut only if no such expression depends on
# a user-defined object, and if its owner, who might add one meanwhile, could not gain control of
# the server's machine by it.
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
                     AND {_USER_DEFINED})
           AND NOT EXISTS (
               SELECT FROM pg_catalog.pg_statistic_ext s
               JOIN pg_catalog.pg_depend d
                    ON d.classid = 'pg_catalog.pg_statistic_ext'::pg_catalog.regclass
                       AND d.objid = s.oid
               WHERE s.stxrelid = c.oid AND {_USER_DEFINED})
           AND (NOT EXISTS ({_MAY_RUN_PROGRAMS.format("session_user")})
                OR EXISTS ({_MAY_RUN_PROGRAMS.format("c.relowner")}))
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
    """Several sessions cannot share a snapshot on this server."""

    default_hint = "A single pg_dump makes the backup."


class LockRefusedError(DatabaseError):
    """Another session has locked a table, or waits for a lock on it; trying again may succeed."""

    default_hint = "A single pg_dump, which waits for the lock, makes the backup."


@dataclass(frozen=True, slots=True)
class Table:
    """A big table, or one of an extension.

    ``name`` and the list ``columns`` are as in the dump, ``pattern`` is quoted and matches only
    this table. ``pages`` are read ``step`` at a time. If there is a ``condition``, SQL that follows
    FROM, the table is one chunk of the rows that meet it.
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
        """The statement that loads the rows."""
        return b"COPY " + self.name + b" (" + self.columns + b") FROM stdin;\n"

    @property
    def chunks(self) -> Iterator[Chunk]:
        """All chunks of the table."""
        for start in range(0, max(1, self.pages), self.step):
            yield Chunk(self, start)


@dataclass(frozen=True, slots=True)
class Chunk:
    """A range of pages of one table, from ``start`` on."""

    table: Table
    start: int

    @property
    def read(self) -> bytes:
        """The query that reads its rows, without the semicolon."""
        table, end = self.table, self.start + self.table.step
        if table.condition:
            some = b" FROM ONLY " + table.pattern + b" " + table.condition + b") TO stdout"
            return b"COPY (SELECT " + table.columns + some
        if table.step >= table.pages:
            return b"COPY " + table.name + b" (" + table.columns + b") TO stdout"
        select = b"COPY (SELECT " + table.columns + b" FROM ONLY " + table.pattern
        pages = b" WHERE ctid >= '(%d,0)'::pg_catalog.tid" % self.start
        # The last chunk is open: rows may have been added to new pages before the snapshot.
        if end < table.pages:
            pages += b" AND ctid < '(%d,0)'::pg_catalog.tid" % end
        return select + pages + b") TO stdout"


class Snapshot:
    """A transaction that holds a snapshot for other sessions, and the name of the snapshot."""

    def __init__(self, session: Session, name: str) -> None:
        """Keep the session that exported a snapshot of this name."""
        self._session = session
        self.name = name

    def cut(self, entries: Sequence[Entry]) -> list[Table]:
        """Return the big ones of these tables, the largest first.

        pg_dump must have locked them. Raises SnapshotError, LockRefusedError.
        """
        named = {entry.oid: entry for entry in entries if _is_own(entry)}
        if not named:
            return []
        oids = ",".join(map(str, named))
        # Reading a size takes a lock for a moment, and queues behind other sessions.
        self._ask(b"SET LOCAL lock_timeout = '%ds'" % time_limits.LOCK)
        tables = []
        for *numbers, divisible in self._ask((_SIZES % (oids, _SMALLEST, _MOST_TABLES)).encode()):
            oid, pages, size = (int(cell or b"0") for cell in numbers)
            if into := named[oid].loads_into:
                step = max(1, pages * CHUNK_BYTES // max(1, size)) if divisible == b"t" else pages
                name = _name(named[oid])
                tables.append(Table(oid, into[0], name, into[1], pages, max(1, step)))
        return tables

    def of_extensions(
        self, entries: Sequence[Entry], conditions: Mapping[int, bytes]
    ) -> list[Table]:
        """Return the tables of extensions among these whose rows can be read by :class:`Chunk`.

        In this order: rows of one may refer to rows of an earlier one. ``conditions``, by oid,
        select the rows to dump. Raises SnapshotError if psql may interpret one as its own command.
        """
        named = {entry.oid for entry in entries}
        if not all(_FOR_SERVER.fullmatch(conditions[oid]) for oid in conditions if oid in named):
            raise SnapshotError("an extension registered a condition that psql may misread")
        return [
            Table(entry.oid, into[0], _name(entry), into[1], 0, 1, conditions[entry.oid])
            for entry in entries
            if _is_own(entry) and entry.oid in conditions and (into := entry.loads_into)
        ]

    def room_for_locks(self) -> int:
        """Return how many more locks the server has room for.

        https://www.postgresql.org/docs/current/runtime-config-locks.html
        """
        [[room]] = self._ask(_ROOM)
        return int(room or b"0")

    def kept_order(self) -> str | None:
        """Return why rows must keep their order; None if they need not. Raises SnapshotError."""
        rows = self._ask(row_order.OF_ROWS)
        return row_order.reason(rows[0]) if rows else None

    def _ask(self, statement: bytes) -> list[list[bytes | None]]:
        try:
            return self._session.ask(statement)
        except psycopg.Error as error:
            raise refused(str(error), error.sqlstate) from error


@contextlib.contextmanager
def snapshot(server: Server) -> Iterator[Snapshot]:
    """Open a transaction and export its snapshot. Raises SnapshotError if that is refused."""
    with Session(server.connection) as session:
        begin = query.begin(server.major, "REPEATABLE READ")
        try:
            [[name]] = session.ask(f"{begin}; SELECT pg_catalog.pg_export_snapshot()")
        except psycopg.Error as error:
            raise SnapshotError(f"no snapshot can be shared: {error}") from error
        yield Snapshot(session, (name or b"").decode())


def refused(said: str, state: str | None = None) -> DatabaseError:
    """Return the error for a refusal of the server: LockRefusedError or SnapshotError."""
    if state == _NOT_AVAILABLE or _NOT_AVAILABLE in said:  # psql includes it in the message
        return LockRefusedError(f"a table is locked: {' '.join(said.split())}")
    return SnapshotError(f"no snapshot can be shared: {' '.join(said.split())}")


def _is_own(entry: Entry) -> bool:
    """Return whether the rows are loaded into the table itself, not into its root partition."""
    into = entry.loads_into
    return (
        into is not None
        and into[1] != b""
        and into[0]
        in {
            schema + b"." + name
            for schema in (entry.schema, identifier(entry.schema))
            for name in (entry.tag, identifier(entry.tag))
        }
    )


def _name(entry: Entry) -> bytes:
    return qualified(entry.schema, entry.tag)
