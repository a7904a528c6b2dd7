"""Checks a restored database: is everything there, and is it valid.

Names are bytes here, as they are stored: in a database of SQL_ASCII they may be of any encoding.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import conninfo

from pgstash.errors import DatabaseError, ScratchError, TargetLostError
from pgstash.format.manifest import Table
from pgstash.postgres.restore import session_settings, target
from pgstash.postgres.scratch import verify_sql
from pgstash.postgres.server import login, query
from pgstash.postgres.server.connection import Server
from pgstash.postgres.server.quoting import identifier, literal, qualified

_NAMED = 10


# The last column is whether pg_dump dumps only some of the rows.
_TABLES = """
    SELECT n.nspname, c.relname, c.relkind::text, EXISTS (
        SELECT FROM pg_catalog.pg_depend d
        WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.objid = c.oid
              AND d.deptype = 'e'),
        NOT EXISTS (
        SELECT FROM pg_catalog.pg_extension e
        CROSS JOIN LATERAL ROWS FROM (pg_catalog.unnest(e.extconfig),
                                      pg_catalog.unnest(e.extcondition)) AS u (oid, condition)
        WHERE u.oid = c.oid AND u.condition = '')
    FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p', 'f') AND n.nspname <> 'information_schema'
          AND n.nspname !~ '^pg_'
"""

# The index of a partitioned table is rightly invalid if a partition has none to attach to it.
_INVALID_INDEXES = """
    SELECT i.indexrelid::pg_catalog.regclass::text
    FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid
    WHERE c.relkind = 'i' AND NOT (i.indisvalid AND i.indisready)
"""

# Constraints that partitions inherit are not in a script by themselves.
_UNVALIDATED = """
    SELECT pg_catalog.pg_describe_object('pg_catalog.pg_constraint'::pg_catalog.regclass, oid, 0)
    FROM pg_catalog.pg_constraint
    WHERE NOT convalidated AND conparentid = 0 AND (conislocal OR contypid <> 0)
"""
_FIRST_UNENFORCED = 18  # these are not validated, without NOT VALID in the script

# Tables whose policies apply to their owner too.
_FORCED = """
    SELECT n.nspname, c.relname
    FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relforcerowsecurity AND pg_catalog.row_security_active(c.oid)
"""

# Sequences that fill a column of unique values.
_SEQUENCES = """
    SELECT sn.nspname, s.relname, tn.nspname, t.relname, a.attname, q.seqincrement,
           EXISTS (SELECT FROM pg_catalog.pg_depend m
                   WHERE m.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND m.objid = s.oid
                     AND m.deptype = 'e')
    FROM pg_catalog.pg_depend d
    JOIN pg_catalog.pg_class s ON s.oid = d.objid AND s.relkind = 'S'
    JOIN pg_catalog.pg_sequence q ON q.seqrelid = s.oid AND NOT q.seqcycle
    JOIN pg_catalog.pg_class t ON t.oid = d.refobjid
    JOIN pg_catalog.pg_attribute a ON a.attrelid = t.oid AND a.attnum = d.refobjsubid
    JOIN pg_catalog.pg_namespace sn ON sn.oid = s.relnamespace
    JOIN pg_catalog.pg_namespace tn ON tn.oid = t.relnamespace
    WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass
      AND d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass
      AND d.deptype IN ('a', 'i')
      AND a.atttypid IN ('int2'::pg_catalog.regtype, 'int4'::pg_catalog.regtype,
                         'int8'::pg_catalog.regtype)
      AND EXISTS (SELECT FROM pg_catalog.pg_index i
                  WHERE i.indrelid = t.oid AND i.indisunique AND i.indpred IS NULL
                        AND i.indnkeyatts = 1
                        AND i.indkey[0] = a.attnum)
"""


_SET_IN_SOURCE = "if it is the same in the source, set it there with setval()"
_OF_EXTENSION = (
    "it belongs to an extension, and older versions of pgstash did not store its value: back up "
    "again with a role that may read it (`pgstash check` names the GRANT)"
)

# The owner of the database owns everything restored; a login may set another role.
_AS_OWNER = """
    SELECT pg_catalog.set_config('role', pg_catalog.pg_get_userbyid(datdba)::text, false)
    FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database()
"""


@dataclass(frozen=True, slots=True)
class Found:
    """How many objects of a kind were checked, and the problems, in words."""

    checked: int
    problems: Sequence[str]


class Inspection:
    """The checks of one restored database."""

    def __init__(self, session: query.Connection, server: Server) -> None:
        """Check by this session with a database of the server."""
        self._session = session
        self._codec = server.codec
        self._major = server.major
        self.version = server.version

    def rows(self, tables: Sequence[Table]) -> Found:
        """Count the rows of every table, and compare them with those of the dump.

        A table of an extension may have more, unless all its rows are dumped: CREATE EXTENSION
        adds rows.
        """
        there = {
            (schema, name): (kind, extension and in_part)
            for schema, name, kind, extension, in_part in self._all(_TABLES)
            if kind != b"f"
        }
        counted = {(self._bytes(each.schema), self._bytes(each.name)) for each in tables}
        problems = []
        for table in tables:
            schema, name = (self._bytes(part) for part in (table.schema, table.name))
            shown = self._shown(schema, name)
            if (schema, name) not in there:
                problems.append(f"the table {shown} is missing")
                continue
            kind, may_have_more = there[schema, name]
            parts = [(schema, name)]
            if kind == b"p":  # rows that load through the root were counted as those of the root
                parts = [part for part in self._partitions(schema, name) if part not in counted]
            count = sum(self._count(*part) for part in parts)
            if count < table.rows or (count > table.rows and not may_have_more):
                problems.append(f"{shown} has {count} rows, and the dump had {table.rows}")
        return Found(len(tables), problems)

    def _count(self, schema: bytes, name: bytes) -> int:
        [[count]] = self._all(b"SELECT count(*) FROM ONLY " + qualified(schema, name))
        return int(count)

    def _partitions(self, schema: bytes, name: bytes) -> list[tuple[bytes, bytes]]:
        return self._all(
            b"SELECT n.nspname, c.relname"
            b" FROM pg_catalog.pg_partition_tree(%b::pg_catalog.regclass) t"
            b" JOIN pg_catalog.pg_class c ON c.oid = t.relid AND c.relkind = 'r'"
            b" JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace"
            % literal(qualified(schema, name))
        )

    def table_count(self) -> int:
        """Return the number of ordinary and partitioned tables, without those of extensions."""
        return sum(
            kind != b"f" and not extension for _, _, kind, extension, _ in self._all(_TABLES)
        )

    def indexes(self) -> Found:
        """Find indexes that are not valid."""
        [[count]] = self._all("SELECT count(*) FROM pg_catalog.pg_index")
        return Found(
            count,
            [f"the index {self._text(name)} is invalid" for [name] in self._all(_INVALID_INDEXES)],
        )

    def constraints(self, expected_unvalidated: int) -> Found:
        """Find constraints that are not validated, beyond the number of those in the dump."""
        [[count]] = self._all("SELECT count(*) FROM pg_catalog.pg_constraint")
        enforced = " AND conenforced" if self._major >= _FIRST_UNENFORCED else ""
        names = [self._text(name) for [name] in self._all(_UNVALIDATED + enforced)]
        if len(names) <= expected_unvalidated:
            return Found(count, [])
        named = ", ".join(names[:_NAMED])
        what = f"{len(names)} are not validated, and the dump had {expected_unvalidated}: {named}"
        return Found(count, [what])

    def sequences(self) -> Found:
        """Find sequences whose next value is already in their unique column."""
        rows = self._all(_SEQUENCES)
        problems = []
        for schema, name, table_schema, table, column, increment, of_extension in rows:
            sequence = qualified(schema, name)
            [[last, called]] = self._all(b"SELECT last_value, is_called FROM " + sequence)
            upcoming = last + increment if called else last
            [[taken]] = self._all(
                b"SELECT EXISTS (SELECT FROM %b WHERE %b = (%d))"
                % (qualified(table_schema, table), identifier(column), upcoming)
            )
            if taken:
                filled = f"{self._shown(table_schema, table)}.{self._text(column)}"
                problems.append(
                    f"the next value of the sequence {self._shown(schema, name)} is {upcoming}, "
                    f"which {filled} has already; "
                    f"{_OF_EXTENSION if of_extension else _SET_IN_SOURCE}"
                )
        return Found(len(rows), problems)

    def answers(self, statements: str) -> Iterator[verify_sql.Answer]:
        """Run the user's statements, and yield the answer to each of them."""
        return verify_sql.run(self._session, statements, self._codec)

    def _all(self, statement: str | bytes) -> list[tuple[Any, ...]]:
        return self._session.execute(statement).fetchall()

    def _bytes(self, name: str) -> bytes:
        return name.encode(self._codec, "surrogateescape")

    def _text(self, name: bytes) -> str:
        return name.decode(self._codec, "backslashreplace")

    def _shown(self, schema: bytes, name: bytes) -> str:
        return f"{self._text(schema)}.{self._text(name)}"


@contextlib.contextmanager
def opened(url: str, database: str) -> Iterator[Inspection]:
    """Open a session with a restored database, on the server of ``url``.

    Raises ScratchError if the session is lost.
    """
    try:
        server = login.inspect(login_of(url, database))
        with query.connected(server) as session:
            session.execute(session_settings.statements(session_settings.NEUTRAL, None).encode())
            session.execute(_AS_OWNER)
            # A policy that would hide rows is an error then, instead of a wrong count.
            session.execute("SET row_security = off")
            # So switch off policies for the owner: the database is dropped anyway.
            for schema, name in session.execute(_FORCED).fetchall():
                session.execute(
                    b"ALTER TABLE %b NO FORCE ROW LEVEL SECURITY" % qualified(schema, name)
                )
            yield Inspection(session, server)
    except (psycopg.Error, DatabaseError, TargetLostError) as error:
        raise ScratchError(
            f"the restored database cannot be checked: {' '.join(str(error).split())}",
            hint="Check the log of that server.",
        ) from error


def login_of(url: str, database: str) -> str:
    """Return the conninfo for a login that settings and triggers of the database do not affect."""
    # A role that the database sets need not have privileges in it.
    words = [str(conninfo.conninfo_to_dict(url).get("options") or ""), "-c role=none"]
    if target.may_fire_no_event_triggers(login.inspect(url)):
        words.append(target.NO_EVENT_TRIGGERS)
    return conninfo.make_conninfo(url, dbname=database, options=" ".join(words).strip())
