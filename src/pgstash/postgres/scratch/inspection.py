"""Looks at a restored database: is everything there, and is it as it should be.

Names are bytes here, as the database has them: in one of SQL_ASCII they may be anything.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import conninfo

from pgstash.errors import DatabaseError, ScratchError, TargetLostError
from pgstash.manifest import Table
from pgstash.postgres import source, target
from pgstash.postgres.restore import NEUTRAL, settings
from pgstash.postgres.source import Server

_SECONDS_TO_CONNECT = 10
_NAMED = 10

_Session = psycopg.Connection[tuple[Any, ...]]

# The last column tells whether pg_dump dumps only some of the rows.
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

# Of a partitioned table an index may be invalid in all honesty: one partition has none to attach.
_INVALID_INDEXES = """
    SELECT i.indexrelid::pg_catalog.regclass::text
    FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid
    WHERE c.relkind = 'i' AND NOT (i.indisvalid AND i.indisready)
"""

# What the partitions of a table have of it was not written by itself.
_UNVALIDATED = """
    SELECT pg_catalog.pg_describe_object('pg_catalog.pg_constraint'::pg_catalog.regclass, oid, 0)
    FROM pg_catalog.pg_constraint
    WHERE NOT convalidated AND conparentid = 0 AND (conislocal OR contypid <> 0)
"""
_FIRST_UNENFORCED = 18  # what is not enforced is not validated, and needs no NOT VALID to say so

# Tables whose policies bind us although we own them.
_FORCED = """
    SELECT n.nspname, c.relname
    FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relforcerowsecurity AND pg_catalog.row_security_active(c.oid)
"""

# Sequences that fill a column in which no value may come twice.
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


_SET_IN_SOURCE = "if it is so in the source, set it there with setval()"
_OF_EXTENSION = (
    "it belongs to an extension, and older versions of pgstash did not store its value: back up "
    "again, and let the role read it (`pgstash check` names the GRANT)"
)

# All that was restored is the role's that the restore was made by, which a login may set.
_AS_OWNER = """
    SELECT pg_catalog.set_config('role', pg_catalog.pg_get_userbyid(datdba)::text, false)
    FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database()
"""


@dataclass(frozen=True, slots=True)
class Found:
    """What was found of one thing: how many were looked at, and what is wrong, in sentences."""

    looked_at: int
    problems: Sequence[str]


@dataclass(frozen=True, slots=True)
class Answer:
    """What one statement of the user's returned: ``passed`` is whether that is true, or rows."""

    passed: bool
    found: str


class Inspection:
    """Questions to one restored database."""

    def __init__(self, session: _Session, server: Server) -> None:
        """Ask by this session with a database of the server."""
        self._session = session
        self._codec = server.codec
        self._major = server.major
        self.version = server.version

    def rows(self, tables: Sequence[Table]) -> Found:
        """Count the rows of every table, and compare them with those of the dump.

        A table of an extension may have more, unless all its rows are dumped: CREATE EXTENSION
        makes them.
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
            if kind == b"p":  # what loads through the root of its partitions was counted as its own
                parts = [part for part in self._partitions(schema, name) if part not in counted]
            count = sum(self._count(*part) for part in parts)
            if count < table.rows or (count > table.rows and not may_have_more):
                problems.append(f"{shown} has {count} rows, and the dump had {table.rows}")
        return Found(len(tables), problems)

    def _count(self, schema: bytes, name: bytes) -> int:
        [[count]] = self._all(b"SELECT count(*) FROM ONLY " + _qualified(schema, name))
        return int(count)

    def _partitions(self, schema: bytes, name: bytes) -> list[tuple[bytes, bytes]]:
        return self._all(
            b"SELECT n.nspname, c.relname"
            b" FROM pg_catalog.pg_partition_tree(%b::pg_catalog.regclass) t"
            b" JOIN pg_catalog.pg_class c ON c.oid = t.relid AND c.relkind = 'r'"
            b" JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace"
            % _literal(_qualified(schema, name))
        )

    def table_count(self) -> int:
        """Return the number of ordinary and partitioned tables that are of no extension."""
        return sum(
            kind != b"f" and not extension for _, _, kind, extension, _ in self._all(_TABLES)
        )

    def indexes(self) -> Found:
        """Look for indexes that are not valid."""
        [[count]] = self._all("SELECT count(*) FROM pg_catalog.pg_index")
        return Found(
            count,
            [f"the index {self._text(name)} is invalid" for [name] in self._all(_INVALID_INDEXES)],
        )

    def constraints(self, expected_unvalidated: int) -> Found:
        """Look for constraints that are not validated beyond those that were dumped so."""
        [[count]] = self._all("SELECT count(*) FROM pg_catalog.pg_constraint")
        enforced = " AND conenforced" if self._major >= _FIRST_UNENFORCED else ""
        names = [self._text(name) for [name] in self._all(_UNVALIDATED + enforced)]
        if len(names) <= expected_unvalidated:
            return Found(count, [])
        named = ", ".join(names[:_NAMED])
        what = f"{len(names)} are not validated, and the dump had {expected_unvalidated}: {named}"
        return Found(count, [what])

    def sequences(self) -> Found:
        """Look for sequences whose next value is in their unique column already."""
        rows = self._all(_SEQUENCES)
        problems = []
        for schema, name, table_schema, table, column, increment, of_extension in rows:
            sequence = _qualified(schema, name)
            [[last, called]] = self._all(b"SELECT last_value, is_called FROM " + sequence)
            upcoming = last + increment if called else last
            [[taken]] = self._all(
                b"SELECT EXISTS (SELECT FROM %b WHERE %b = (%d))"
                % (_qualified(table_schema, table), _quoted(column), upcoming)
            )
            if taken:
                filled = f"{self._shown(table_schema, table)}.{self._text(column)}"
                problems.append(
                    f"the next value of the sequence {self._shown(schema, name)} is {upcoming}, "
                    f"which {filled} has already; "
                    f"{_OF_EXTENSION if of_extension else _SET_IN_SOURCE}"
                )
        return Found(len(rows), problems)

    def answers(self, statements: str) -> Iterator[Answer]:
        """Run the user's statements, and yield what each of them returned.

        One that returns rows passes if there is one; a single boolean must be true. One that
        returns none passes. The first error ends it, and is the last answer.
        """
        # Statements see the database as its users do.
        self._session.execute("RESET search_path")
        try:
            cursor = self._session.execute(statements.encode(self._codec, "surrogateescape"))
        except psycopg.Error as error:
            yield Answer(passed=False, found=" ".join(str(error).split()))
            return
        except UnicodeEncodeError:
            yield Answer(passed=False, found="it has characters that the database's encoding lacks")
            return
        more: bool | None = True
        while more:
            yield _answer(cursor)
            more = cursor.nextset()

    def _all(self, query: str | bytes) -> list[tuple[Any, ...]]:
        return self._session.execute(query).fetchall()

    def _bytes(self, name: str) -> bytes:
        return name.encode(self._codec, "surrogateescape")

    def _text(self, name: bytes) -> str:
        return name.decode(self._codec, "backslashreplace")

    def _shown(self, schema: bytes, name: bytes) -> str:
        return f"{self._text(schema)}.{self._text(name)}"


@contextlib.contextmanager
def opened(url: str, database: str) -> Iterator[Inspection]:
    """Open a session with a database that was restored into, on the server of ``url``.

    Raises ScratchError where it is lost.
    """
    try:
        server = source.look(_address(url, database))
        with source.connect_again(server, _SECONDS_TO_CONNECT) as session:
            session.execute(settings(NEUTRAL, None).encode())
            session.execute(_AS_OWNER)
            # Rows that a policy hides are no reason to count fewer of them in silence.
            session.execute("SET row_security = off")
            # Nor to count none: the database is thrown away.
            for schema, name in session.execute(_FORCED).fetchall():
                session.execute(
                    b"ALTER TABLE %b NO FORCE ROW LEVEL SECURITY" % _qualified(schema, name)
                )
            yield Inspection(session, server)
    except (psycopg.Error, DatabaseError, TargetLostError) as error:
        raise ScratchError(
            f"the restored database cannot be looked at: {' '.join(str(error).split())}",
            hint="Look into the log of that server.",
        ) from error


def _address(url: str, database: str) -> str:
    """Return the address of the database, for a login that nothing in it has a say in."""
    # A role that the database sets need not have a right in what was restored.
    words = [str(conninfo.conninfo_to_dict(url).get("options") or ""), "-c role=none"]
    if target.may_fire_no_event_triggers(source.look(url)):
        words.append(target.NO_EVENT_TRIGGERS)
    return conninfo.make_conninfo(url, dbname=database, options=" ".join(words).strip())


def _answer(cursor: psycopg.Cursor[tuple[Any, ...]]) -> Answer:
    if cursor.description is None:
        return Answer(passed=True, found=f"ran ({cursor.statusmessage})")
    row = cursor.fetchone()
    if row is None:
        return Answer(passed=False, found="returned no row")
    if cursor.rowcount == 1 and len(row) == 1:
        if row[0] is None:
            return Answer(passed=False, found="returned NULL")
        if isinstance(row[0], bool):
            return Answer(passed=row[0], found=f"returned {str(row[0]).lower()}")
    return Answer(passed=True, found=f"returned {cursor.rowcount} row{'s'[: cursor.rowcount != 1]}")


def _literal(text: bytes) -> bytes:
    return b"'" + text.replace(b"'", b"''") + b"'"


def _quoted(name: bytes) -> bytes:
    return b'"' + name.replace(b'"', b'""') + b'"'


def _qualified(schema: bytes, name: bytes) -> bytes:
    return _quoted(schema) + b"." + _quoted(name)
