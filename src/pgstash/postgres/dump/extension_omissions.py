"""Rows and sequences of extensions that no dump holds, reported before a backup.

pg_dump leaves out the rows of tables that an extension does not register.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pgstash.errors import DatabaseUnreachableError
from pgstash.format.manifest import LeftOut
from pgstash.postgres.dump.registered_tables import asking, registered, sequences
from pgstash.postgres.server import query
from pgstash.postgres.server.connection import Server
from pgstash.postgres.server.session import Row
from pgstash.postgres.tools import patterns

_NOT_AVAILABLE = "55P03"
_SHOWN = 5

_NOT_DUMPED = (
    "A restored database has only the rows that CREATE EXTENSION creates. If you added a table "
    "yourself, run ALTER EXTENSION … DROP TABLE …, and it is backed up. Keep other rows elsewhere."
)
_ROLE = "SELECT pg_catalog.quote_ident(current_user)"

# Both estimates may be missing. Then only the size shows that there are rows.
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
class Omissions:
    """Rows of tables, and values of sequences, of extensions that are in no dump.

    ``closed`` are the sequences that the ``role`` may not read, quoted as in SQL.
    """

    left_out: Sequence[LeftOut]
    closed: Sequence[str]
    role: str


def find(server: Server, options: Sequence[str]) -> Omissions:
    """Return what a dump with these options leaves out without an error. Raises DatabaseError."""
    rows = _not_registered(server, options)
    with asking(server, options) as ask:
        filling = sequences(ask, registered(ask, server, options, None))
        [[role]] = ask(_ROLE)
    dumped, read = patterns.dumped(options), patterns.read(options)
    left_out = []
    for schema, name, extension, estimate in rows:
        table = LeftOut(
            schema=query.name(schema, server),
            name=query.name(name, server),
            extension=query.name(extension, server),
            rows=int(estimate or b"0") or None,
        )
        if dumped(table.schema, table.name) and read(table.schema, table.name):
            left_out.append(table)
    closed = [query.text(each.quoted, server) for each in filling if not each.readable]
    return Omissions(left_out, closed, query.name(role, server))


def warnings(omissions: Omissions) -> list[tuple[str, str]]:
    """Return for each kind of omission what is missing in a backup, and what to do about it."""
    found = []
    if omissions.left_out:
        found.append((f"pg_dump leaves out {rows_of(omissions.left_out)}", _NOT_DUMPED))
    if closed := omissions.closed:
        lost = _few("sequence of an extension", "sequences of extensions", closed)
        problem = f"{omissions.role} may not read {lost}: after a restore they start again"
        grants = (
            f"GRANT SELECT ON SEQUENCE {each} TO {omissions.role};" for each in closed[:_SHOWN]
        )
        found.append((problem, "\n".join(grants)))
    return found


def rows_of(tables: Sequence[LeftOut]) -> str:
    """Describe the rows that are in no dump."""
    names = [
        f"{each.schema}.{each.name} ({_rows(each.rows)}, extension {each.extension})"
        for each in tables
    ]
    lost = _few("table that belongs to an extension", "tables that belong to extensions", names)
    return f"the rows of {lost}"


def _not_registered(server: Server, options: Sequence[str]) -> list[Row]:
    """Return the tables with rows that no dump holds.

    Their sizes take locks; if one is not available, the estimates of the statistics have to do.
    """
    try:
        with asking(server, options) as ask:
            return ask(_NOT_REGISTERED % _HAS_PAGES)
    except DatabaseUnreachableError as error:
        if getattr(error.__cause__, "sqlstate", None) != _NOT_AVAILABLE:
            raise
    with asking(server, options) as ask:
        return ask(_NOT_REGISTERED % _MAY_HAVE_ROWS)


def _few(one: str, many: str, names: Sequence[str]) -> str:
    shown = ", ".join(names[:_SHOWN])
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{len(names)} {one if len(names) == 1 else many}: {shown}{more}"


def _rows(estimate: int | None) -> str:
    if estimate is None:
        return "an unknown number of rows"
    return "about 1 row" if estimate == 1 else f"about {estimate:,} rows"
