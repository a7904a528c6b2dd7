"""Tables that extensions register for dumping, and the sequences that fill their columns.

https://www.postgresql.org/docs/current/extend-extensions.html#EXTEND-EXTENSIONS-CONFIG-TABLES
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from pgstash.errors import DatabaseUnreachableError
from pgstash.postgres.server import query, time_limits
from pgstash.postgres.server.connection import Server
from pgstash.postgres.server.quoting import qualified
from pgstash.postgres.tools import patterns
from pgstash.postgres.tools import pg_dump_options as dump_options

_WANTED = "what belongs to its extensions"

# The condition follows FROM in pg_dump's query: it is empty, or WHERE …, rarely anything else.
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
# Sequences that a column of one of these tables owns, or uses in its default.
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

# As pg_dump does: nobody who replaces a sequence by a view can make this session run its code.
_NO_VIEWS = """
    SELECT pg_catalog.set_config(name, 'view, foreign-table', false)
    FROM pg_catalog.pg_settings WHERE name = 'restrict_nonsystem_relation_kind'
"""


@dataclass(frozen=True, slots=True)
class Registered:
    """A table of an extension whose rows pg_dump dumps; everything in the database's encoding.

    ``condition`` is SQL that follows FROM, if only some rows are dumped.
    """

    oid: int
    schema: bytes
    name: bytes
    extension: bytes
    condition: bytes


@dataclass(frozen=True, slots=True)
class FillingSequence:
    """A sequence that is in no dump; ``readable`` if the role may read it."""

    oid: int
    schema: bytes
    name: bytes
    readable: bool

    @property
    def quoted(self) -> bytes:
        """The name of the sequence in its schema, as SQL wants it."""
        return qualified(self.schema, self.name)


@contextlib.contextmanager
def asking(server: Server, options: Sequence[str]) -> Iterator[query.Ask]:
    """Yield what asks the server, in the role of these options. Raises DatabaseError."""
    settings = f"SET lock_timeout = '{time_limits.LOCK}s'; {_NO_VIEWS}"
    role = dump_options.role(options)
    try:
        with query.asking(server, _WANTED, role, settings=settings) as ask:
            yield ask
    except ValueError as error:  # an answer of an unexpected form
        raise DatabaseUnreachableError(
            f"the database did not report {_WANTED}: {' '.join(str(error).split())}"
        ) from error


def registered(
    ask: query.Ask, server: Server, options: Sequence[str], dumped: Collection[int] | None
) -> list[Registered]:
    """Return the registered tables whose rows a dump holds.

    ``dumped`` are the oids of the tables whose rows it holds; None if only its options decide.
    """
    rows = ask(_REGISTERED)
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
        if defined(*(names := (query.name(table.schema, server), query.name(table.name, server))))
        and read(*names)
    ]


def sequences(ask: query.Ask, tables: Sequence[Registered]) -> list[FillingSequence]:
    """Return the sequences that fill columns of these tables."""
    if not tables:
        return []
    oids = ",".join(str(table.oid) for table in tables)
    rows = ask(_SEQUENCES % (oids, oids))
    return [
        FillingSequence(int(oid or b"0"), schema or b"", name or b"", readable == b"t")
        for oid, schema, name, readable in rows
    ]
