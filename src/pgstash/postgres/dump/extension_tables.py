"""Tables and sequences of extensions: what pg_dump leaves out of them, and what is added to a dump.

Of an extension's own objects pg_dump dumps the rows of the tables that the extension registers, and
the values of the sequences that it registers
(https://www.postgresql.org/docs/current/extend-extensions.html#EXTEND-EXTENSIONS-CONFIG-TABLES).
Two kinds of statements are added, so that such tables are in a restore what they were: one removes
the rows that CREATE EXTENSION itself has just made, where the rows of the dump take their place;
the others set the sequences that fill columns of these tables. Both are plain SQL.
"""

from __future__ import annotations

import contextlib
import graphlib
import re
import secrets
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import psycopg

from pgstash.errors import DatabaseUnreachableError
from pgstash.manifest import LeftOut
from pgstash.postgres import inquiry, patterns, target
from pgstash.postgres import options as dump_options
from pgstash.postgres.session import Row, Session
from pgstash.postgres.source import Server

_SECONDS_TO_ANSWER = 60.0
_SECONDS_FOR_LOCK = 2
_NOT_AVAILABLE = "55P03"
_FIRST_WITH_SEQUENCE_DATA = 18
_SHOWN = 5
_TAG_BYTES = 8

# The condition is what follows FROM in pg_dump's query: empty, or WHERE … (anything else is rare,
# and nothing is removed by it).
_REGISTERED = """
    SELECT c.oid, n.nspname, c.relname, e.extname, u.condition
    FROM pg_catalog.pg_extension e
    CROSS JOIN LATERAL ROWS FROM (pg_catalog.unnest(e.extconfig),
                                  pg_catalog.unnest(e.extcondition)) AS u (oid, condition)
    JOIN pg_catalog.pg_class c ON c.oid = u.oid
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind = 'r'
    ORDER BY n.nspname, c.relname
"""
_WHERE = re.compile(rb"\s*(?:WHERE\s.*)?", re.IGNORECASE | re.DOTALL)

_NOT_DUMPED = (
    "A restore has only the rows that CREATE EXTENSION makes. If you added a table yourself, run "
    "ALTER EXTENSION … DROP TABLE …, and it is backed up. Keep other rows elsewhere."
)
# Event triggers of extensions are there from CREATE EXTENSION on, and some watch whether all that
# their tables name is there: it is not before the end of a restore.
_WATCHERS = """
    SELECT FROM pg_catalog.pg_event_trigger t
    JOIN pg_catalog.pg_depend d
         ON d.classid = 'pg_catalog.pg_event_trigger'::pg_catalog.regclass AND d.objid = t.oid
            AND d.deptype = 'e'
    JOIN pg_catalog.pg_extension e ON e.oid = d.refobjid
    WHERE t.evtenabled <> 'D' AND e.extconfig IS NOT NULL LIMIT 1
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
_MAY_SILENCE = """
    SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname = session_user
"""
SILENT = "-c session_replication_role=replica"
"""What a login says so that no event trigger fires in it, whatever the major."""

_ROLE = "SELECT pg_catalog.quote_ident(current_user)"

# As pg_dump does: whoever puts a view in the place of a sequence must not have code of it run.
_NO_VIEWS = """
    SELECT pg_catalog.set_config(name, 'view, foreign-table', false)
    FROM pg_catalog.pg_settings WHERE name = 'restrict_nonsystem_relation_kind'
"""

# Rows that the dump leaves to CREATE EXTENSION may refer to some that it holds: these come back,
# and no key that deletes or changes what refers to them may do so.
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

# Sequences that a column of one of these tables owns, or has in its default.
_SEQUENCES = """
    SELECT s.oid, n.nspname, s.relname,
           pg_catalog.has_schema_privilege(n.oid, 'USAGE')
           AND pg_catalog.has_sequence_privilege(s.oid, 'SELECT')
    FROM pg_catalog.pg_class s JOIN pg_catalog.pg_namespace n ON n.oid = s.relnamespace
    WHERE s.relkind = 'S'
          AND EXISTS (
              SELECT FROM pg_catalog.pg_depend d
              JOIN pg_catalog.pg_extension e ON e.oid = d.refobjid
              WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.objid = s.oid
                    AND d.refclassid = 'pg_catalog.pg_extension'::pg_catalog.regclass
                    AND d.deptype = 'e'
                    AND NOT s.oid = ANY (COALESCE(e.extconfig, '{}')))
          AND (EXISTS (
              SELECT FROM pg_catalog.pg_depend d
              WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.objid = s.oid
                    AND d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass
                    AND d.deptype IN ('a', 'i') AND d.refobjid = ANY ('{%s}'))
          OR EXISTS (
              SELECT FROM pg_catalog.pg_depend d
              JOIN pg_catalog.pg_attrdef a ON a.oid = d.objid
              WHERE d.classid = 'pg_catalog.pg_attrdef'::pg_catalog.regclass
                    AND d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass
                    AND d.refobjid = s.oid AND a.adrelid = ANY ('{%s}')))
    ORDER BY 2, 3
"""

# Both estimates may be missing: then only the size tells that there are rows.
_ESTIMATE = "GREATEST(c.reltuples::pg_catalog.int8, pg_catalog.pg_stat_get_live_tuples(c.oid), 0)"
_NOT_REGISTERED = f"""
    SELECT n.nspname, c.relname, e.extname, {_ESTIMATE}
    FROM pg_catalog.pg_depend d
    JOIN pg_catalog.pg_extension e ON e.oid = d.refobjid
    JOIN pg_catalog.pg_class c ON c.oid = d.objid
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.deptype = 'e'
          AND d.refclassid = 'pg_catalog.pg_extension'::pg_catalog.regclass
          AND c.relkind = 'r' AND c.relpersistence <> 't'
          AND NOT c.oid = ANY (COALESCE(e.extconfig, '{{}}'))
          AND %s
    ORDER BY n.nspname, c.relname
"""  # noqa: S608 - of constants
_HAS_PAGES = "pg_catalog.pg_relation_size(c.oid) > 0"
_MAY_HAVE_ROWS = f"(c.relpages > 0 OR {_ESTIMATE} > 0)"


@dataclass(frozen=True, slots=True)
class Registered:
    """A table whose rows pg_dump dumps although it is an extension's.

    ``condition`` is SQL that stands behind FROM where only some rows are dumped. All in the
    database's encoding.
    """

    oid: int
    schema: bytes
    name: bytes
    extension: bytes
    condition: bytes


@dataclass(frozen=True, slots=True)
class _Sequence:
    """A sequence that is in no dump; ``readable`` is whether the role may read it."""

    oid: int
    schema: bytes
    name: bytes
    readable: bool

    @property
    def quoted(self) -> bytes:
        return _quoted(self.schema) + b"." + _quoted(self.name)


@dataclass(frozen=True, slots=True)
class Additions:
    """Statements that belong into a dump: before all rows, and where sequences are set.

    ``conditions`` are those of the registered tables, by oid.
    """

    before_rows: bytes
    sequences: bytes
    conditions: dict[int, bytes]


@dataclass(frozen=True, slots=True)
class Found:
    """What of extensions is in no dump: rows of tables, and values of sequences.

    ``closed`` are the sequences that the ``role`` may not read, quoted as SQL wants them.
    """

    left_out: Sequence[LeftOut]
    closed: Sequence[str]
    role: str


def look(server: Server, options: Sequence[str]) -> Found:
    """Ask what a dump with these options leaves out without an error. Raises DatabaseError."""
    rows = _not_registered(server, options)
    with _session(server, options) as session:
        tables = _registered(session, server, options, None)
        sequences = _sequences(session, tables)
        [[role]] = session.ask(_ROLE, _SECONDS_TO_ANSWER)
    dumped, read = patterns.dumped(options), patterns.read(options)
    left_out = []
    for schema, name, extension, estimate in rows:
        table = LeftOut(
            schema=_text(schema, server),
            name=_text(name, server),
            extension=_text(extension, server),
            rows=int(estimate or b"0") or None,
        )
        if dumped(table.schema, table.name) and read(table.schema, table.name):
            left_out.append(table)
    closed = [inquiry.text(each.quoted, server) for each in sequences if not each.readable]
    return Found(left_out, closed, _text(role, server))


def told_of(found: Found) -> list[tuple[str, str]]:
    """Return what is missing in a backup, and for each kind what to do about it."""
    told = []
    if found.left_out:
        told.append((f"pg_dump leaves out {rows_of(found.left_out)}", _NOT_DUMPED))
    if closed := found.closed:
        lost = _few("sequence of an extension", "sequences of extensions", closed)
        problem = f"{found.role} may not read {lost}: in a restore they begin anew"
        grants = (f"GRANT SELECT ON SEQUENCE {each} TO {found.role};" for each in closed[:_SHOWN])
        told.append((problem, "\n".join(grants)))
    return told


def rows_of(tables: Sequence[LeftOut]) -> str:
    """Return in words the rows that are in no dump."""
    names = [
        f"{each.schema}.{each.name} ({_rows(each.rows)}, extension {each.extension})"
        for each in tables
    ]
    lost = _few("table that belongs to an extension", "tables that belong to extensions", names)
    return f"the rows of {lost}"


def must_be_silenced(server: Server) -> bool:
    """Tell whether a session has to say :data:`SILENT`, and may, to make what comes after the rows.

    Raises TargetLostError.
    """
    with target.connected(server) as session:
        watched = session.execute(_WATCHERS).fetchone() is not None
        return watched and session.execute(_MAY_SILENCE).fetchone() == (True,)


def additions(
    server: Server, options: Sequence[str], dumped: Collection[int] | None = None
) -> Additions:
    """Return what to add to a dump whose snapshot was taken already.

    ``dumped`` are the oids of the tables whose rows it holds; None if only its options say which.
    Raises DatabaseError.
    """
    with _session(server, options) as session:
        tables = _registered(session, server, options, dumped)
        values = _values(session, server, [s for s in _sequences(session, tables) if s.readable])
        emptied = _referring_first(session, [t for t in tables if _WHERE.fullmatch(t.condition)])
        silenced = _SILENCED if tables and session.ask(_WATCHERS, _SECONDS_TO_ANSWER) else b""
    conditions = {table.oid: table.condition for table in tables}
    return Additions(_emptying(emptied) + silenced, values, conditions)


@contextlib.contextmanager
def _session(server: Server, options: Sequence[str]) -> Iterator[Session]:
    # Not by psycopg's own connection: the database's name need not be UTF-8.
    with contextlib.closing(Session(server.connection, client_encoding="SQL_ASCII")) as session:
        try:
            session.ask(
                f"SET search_path = ''; SET lock_timeout = '{_SECONDS_FOR_LOCK}s'",
                _SECONDS_TO_ANSWER,
            )
            session.ask(_NO_VIEWS, _SECONDS_TO_ANSWER)
            if role := dump_options.role(options):
                inquiry.take(role, server, lambda taken: session.ask(taken, _SECONDS_TO_ANSWER))
            yield session
        except (psycopg.Error, ValueError) as error:
            raise DatabaseUnreachableError(
                "the database does not say what belongs to its extensions: "
                f"{' '.join(str(error).split())}"
            ) from error


def _not_registered(server: Server, options: Sequence[str]) -> list[Row]:
    """Return the tables with rows that no dump holds; to ask for their sizes takes locks."""
    try:
        with _session(server, options) as session:
            return session.ask(_NOT_REGISTERED % _HAS_PAGES, _SECONDS_TO_ANSWER)
    except DatabaseUnreachableError as error:
        if getattr(error.__cause__, "sqlstate", None) != _NOT_AVAILABLE:
            raise
    with _session(server, options) as session:
        return session.ask(_NOT_REGISTERED % _MAY_HAVE_ROWS, _SECONDS_TO_ANSWER)


def _registered(
    session: Session, server: Server, options: Sequence[str], dumped: Collection[int] | None
) -> list[Registered]:
    rows = session.ask(_REGISTERED, _SECONDS_TO_ANSWER)
    found = [
        Registered(int(oid or b"0"), *((cell or b"") for cell in others)) for oid, *others in rows
    ]
    if dumped is not None:
        return [table for table in found if table.oid in dumped]
    if any(option.startswith(("--extension=", "--exclude-extension=")) for option in options):
        return []
    defined, read = patterns.dumped(options), patterns.read(options)
    return [
        table
        for table in found
        if defined(*(names := (_text(table.schema, server), _text(table.name, server))))
        and read(*names)
    ]


def _sequences(session: Session, tables: Sequence[Registered]) -> list[_Sequence]:
    """Return what fills columns of these tables."""
    if not tables:
        return []
    oids = ",".join(str(table.oid) for table in tables)
    rows = session.ask(_SEQUENCES % (oids, oids), _SECONDS_TO_ANSWER)
    return [
        _Sequence(int(oid or b"0"), schema or b"", name or b"", readable == b"t")
        for oid, schema, name, readable in rows
    ]


def _values(session: Session, server: Server, sequences: Sequence[_Sequence]) -> bytes:
    """Return the statements that set these sequences to what they are now."""
    if not sequences:
        return b""
    each = (
        b"SELECT %d AS place, last_value, is_called FROM %b" % (place, _source(sequence, server))
        for place, sequence in enumerate(sequences)
    )
    rows = session.ask(b" UNION ALL ".join(each) + b" ORDER BY place", _SECONDS_TO_ANSWER)
    # A number, whatever may have taken the sequence's name: the script is run by others.
    statements = b"".join(
        b"SELECT pg_catalog.setval(%b, %d, %b);\n"
        % (literal(sequence.quoted), int(value), b"true" if called == b"t" else b"false")
        for sequence, (_, value, called) in zip(sequences, rows, strict=True)
        if value is not None  # it was dropped
    )
    return b"--\n-- Sequences of extensions that pg_dump leaves out\n--\n\n" + statements + b"\n\n"


def _source(sequence: _Sequence, server: Server) -> bytes:
    """Return what to read a sequence from: itself, or its name, which it may lose meanwhile."""
    if server.major >= _FIRST_WITH_SEQUENCE_DATA:
        return b"pg_catalog.pg_get_sequence_data(%d)" % sequence.oid
    return sequence.quoted


def _referring_first(session: Session, tables: Sequence[Registered]) -> list[Registered]:
    """Return the tables in an order in which their rows may be removed."""
    if not tables:
        return []
    oids = ",".join(str(table.oid) for table in tables)
    by_oid = {table.oid: table for table in tables}
    graph: dict[int, set[int]] = {oid: set() for oid in by_oid}
    for referring, referred in session.ask(_KEYS % (oids, oids), _SECONDS_TO_ANSWER):
        graph[int(referred or b"0")].add(int(referring or b"0"))
    try:
        order = list(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError:
        order = list(by_oid)
    return [by_oid[oid] for oid in order]


def _emptying(tables: Sequence[Registered]) -> bytes:
    """Return the statement that removes what CREATE EXTENSION made, of the rows that are dumped.

    These have the transaction of the extension itself; rows that a user of the target has put there
    since have another, and stay. Nothing is removed, nor any right needed, if there is none.
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
    relation, name = _relation(table), _quoted(table.name)
    extension, known = literal(table.extension), literal(relation)
    return name, name, relation, table.condition, extension, known, relation, relation


def _relation(table: Registered) -> bytes:
    return _quoted(table.schema) + b"." + _quoted(table.name)


def _quoted(name: bytes) -> bytes:
    return b'"' + name.replace(b'"', b'""') + b'"'


def literal(text: bytes) -> bytes:
    r"""Quote text so that it means the same whatever standard_conforming_strings is."""
    quoted = text.replace(b"'", b"''")
    return b"E'" + quoted.replace(b"\\", b"\\\\") + b"'" if b"\\" in text else b"'" + quoted + b"'"


def _text(value: bytes | None, server: Server) -> str:
    return (value or b"").decode(server.codec, "surrogateescape")


def _few(one: str, many: str, names: Sequence[str]) -> str:
    shown = ", ".join(names[:_SHOWN])
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{len(names)} {one if len(names) == 1 else many}: {shown}{more}"


def _rows(estimate: int | None) -> str:
    if estimate is None:
        return "an unknown number of rows"
    return "about 1 row" if estimate == 1 else f"about {estimate:,} rows"
