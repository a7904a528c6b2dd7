"""Which privileges the role lacks to read what pg_dump reads, and which GRANTs add them.

pg_dump locks and copies tables and partitioned tables, and reads the state of sequences and every
large object. Of views, materialized views and foreign tables it reads only the definition, which
every role may read. It leaves out what belongs to an extension, except tables that the extension
registers for dumping (https://www.postgresql.org/docs/current/extend-extensions.html).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pgstash.errors import DumpError
from pgstash.postgres.server import query
from pgstash.postgres.server.connection import Server
from pgstash.postgres.server.quoting import literal
from pgstash.postgres.tools import patterns
from pgstash.postgres.tools import pg_dump_options as dump_options

SHOWN = 5
"""How many names, or statements, a message shows; it counts the rest."""

# Catalogs that every role may read. row_security_active() is also right for the owner of a table,
# and for roles that no policy applies to.
_RELATIONS = """
    SELECT c.relkind::text,
           pg_catalog.quote_ident(n.nspname),
           pg_catalog.format('%I.%I', n.nspname, c.relname),
           pg_catalog.has_schema_privilege(n.oid, 'USAGE'),
           CASE c.relkind WHEN 'S' THEN pg_catalog.has_sequence_privilege(c.oid, 'SELECT')
                          ELSE pg_catalog.has_table_privilege(c.oid, 'SELECT') END,
           pg_catalog.row_security_active(c.oid),
           owner.deptype::text, owner.nspname, owner.relname, n.nspname, c.relname
    FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    LEFT JOIN LATERAL (
        SELECT d.deptype, tn.nspname, t.relname
        FROM pg_catalog.pg_depend d JOIN pg_catalog.pg_class t ON t.oid = d.refobjid
        JOIN pg_catalog.pg_namespace tn ON tn.oid = t.relnamespace
        WHERE c.relkind = 'S' AND d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass
              AND d.objid = c.oid AND d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass
              AND d.deptype IN ('a', 'i')
    ) owner ON true
    WHERE c.relkind IN ('r', 'p', 'S')
      AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
      AND (c.oid IN (SELECT pg_catalog.unnest(extconfig) FROM pg_catalog.pg_extension)
           OR NOT EXISTS (SELECT FROM pg_catalog.pg_depend d
                          WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass
                            AND d.objid = c.oid AND d.deptype = 'e'))
    ORDER BY n.nspname, c.relname
"""
_ROLE = """
    SELECT pg_catalog.quote_ident(rolname), rolsuper, rolinherit,
           pg_catalog.current_setting('lo_compat_privileges')::pg_catalog.bool,
           (SELECT pg_catalog.count(*) FROM pg_catalog.pg_largeobject_metadata),
           (SELECT pg_catalog.count(*) FROM pg_catalog.pg_subscription s
            JOIN pg_catalog.pg_database d ON d.oid = s.subdbid
            WHERE d.datname = pg_catalog.current_database())
    FROM pg_catalog.pg_roles WHERE rolname = current_user
"""
_LARGE_OBJECTS = """
    SELECT m.oid, pg_catalog.count(*) OVER ()
    FROM pg_catalog.pg_largeobject_metadata m WHERE NOT {readable} ORDER BY m.oid LIMIT {shown}
"""
_READABLE = "pg_catalog.has_largeobject_privilege(m.oid, 'SELECT')"
# The same by hand, for servers older than 18.
_READABLE_BEFORE_18 = """EXISTS (
    SELECT FROM pg_catalog.aclexplode(
        COALESCE(m.lomacl, pg_catalog.acldefault('L', m.lomowner))) a
    WHERE a.privilege_type = 'SELECT'
      AND (a.grantee = 0 OR pg_catalog.pg_has_role(a.grantee, 'USAGE')))
"""
# What the view shows the options of, turned round; pg_dump reads them there
# (https://www.postgresql.org/docs/current/view-pg-user-mappings.html).
_CLOSED_MAPPINGS = """
    SELECT pg_catalog.concat(
        CASE m.umuser WHEN 0 THEN 'PUBLIC' ELSE pg_catalog.quote_ident(m.usename) END,
        ' on ', pg_catalog.quote_ident(m.srvname))
    FROM pg_catalog.pg_user_mappings m
    JOIN pg_catalog.pg_foreign_server s ON s.oid = m.srvid
    JOIN pg_catalog.pg_roles r ON r.rolname = current_user
    WHERE NOT (r.rolsuper
        OR (m.umuser = 0 AND pg_catalog.pg_has_role(s.srvowner, 'USAGE'))
        OR (m.umuser = r.oid AND (pg_catalog.pg_has_role(s.srvowner, 'USAGE')
                                  OR pg_catalog.has_server_privilege(s.oid, 'USAGE'))))
    ORDER BY 1
"""
_GUARDED = """
    SELECT n.nspname, c.relname
    FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind = 'r' AND c.relrowsecurity AND pg_catalog.row_security_active(c.oid)
"""
_HAS_LARGE_OBJECT_PRIVILEGE = 18
_HAS_READ_ALL_DATA = 14
_GRANTS_WITH_INHERIT = 16


@dataclass(frozen=True, slots=True)
class Privileges:
    """Which privileges the role lacks; every name is quoted as in SQL.

    ``closed_schemas`` are those of relations to be read. ``unreadable_objects`` are the first few
    of ``unreadable_object_count`` large objects. ``subscriptions`` counts those of the database,
    which only the dump of a superuser contains.
    """

    major: int
    role: str
    superuser: bool
    inherits: bool
    tables: int
    sequences: int
    large_objects: int
    closed_schemas: Sequence[str]
    unreadable_tables: Sequence[str]
    unreadable_sequences: Sequence[str]
    guarded_tables: Sequence[str]
    unreadable_objects: Sequence[int]
    unreadable_object_count: int
    subscriptions: int

    def grants(self, kind: str, names: Sequence[str], schemas: Sequence[str] = ()) -> list[str]:
        """Return the statements that let the role read tables or sequences.

        ``kind`` is ``TABLE`` or ``SEQUENCE``. The first statements cover everything, now and later;
        the others grant the missing privileges one by one. Servers older than 14 have only those.
        """
        exact = [f"GRANT USAGE ON SCHEMA {schema} TO {self.role};" for schema in schemas]
        exact += [f"GRANT SELECT ON {kind} {name} TO {self.role};" for name in names]
        if self.major < _HAS_READ_ALL_DATA:
            return exact
        return [*self._read_all_data(), "or, one by one:", *_few(exact)]

    def _read_all_data(self) -> list[str]:
        grant = f"GRANT pg_read_all_data TO {self.role}"
        if self.inherits:
            return [f"{grant};"]
        if self.major >= _GRANTS_WITH_INHERIT:
            return [f"{grant} WITH INHERIT TRUE;"]
        return [f"{grant};", f"ALTER ROLE {self.role} INHERIT;"]

    @property
    def object_grants(self) -> list[str]:
        """The statements that let the role read the present large objects."""
        if self.unreadable_object_count <= len(self.unreadable_objects):
            return [
                f"GRANT SELECT ON LARGE OBJECT {oid} TO {self.role};"
                for oid in self.unreadable_objects
            ]
        # One statement for any number of them. No name contains this tag by chance.
        to = literal(f" TO {self.role}")
        grant = f"EXECUTE 'GRANT SELECT ON LARGE OBJECT ' || o || {to};"
        each = f"FOR o IN SELECT oid FROM pg_largeobject_metadata LOOP {grant} END LOOP;"  # noqa: S608
        return [f"DO $pgstash$ DECLARE o oid; BEGIN {each} END $pgstash$;"]


def check(server: Server, options: Sequence[str] = ()) -> Privileges:
    """Ask the server which privileges the role lacks for a dump with these options.

    Raises DatabaseError.
    """
    with query.opened(server, "what the role may read", dump_options.role(options)) as asked:
        role = asked.execute(_ROLE).fetchone()
        if role is None:
            raise AssertionError("current_user is always in pg_roles")
        relations = list(_dumped(server, asked.execute(_RELATIONS).fetchall(), options))
        readable = _READABLE if server.major >= _HAS_LARGE_OBJECT_PRIVILEGE else _READABLE_BEFORE_18
        statement = _LARGE_OBJECTS.format(readable=readable, shown=SHOWN)
        # There may be millions, and a superuser may read all of them.
        none_to_ask_for = role[1] or role[3] or not patterns.with_large_objects(options)
        objects = [] if none_to_ask_for else asked.execute(statement).fetchall()
    return _privileges(server, role, relations, objects)


def closed_mappings(server: Server, options: Sequence[str]) -> list[str]:
    """Return the user mappings that pg_dump dumps without their options, as ``user on server``.

    Only some roles may read their options, which may contain passwords. Raises DatabaseError,
    RoleRefusedError for the role of these options.
    """
    wanted = "which user mappings may be read"
    with query.asking(server, wanted, dump_options.role(options)) as ask:
        found = [] if patterns.selects(options) else ask(_CLOSED_MAPPINGS)
    return [query.text(mapping, server) for [mapping] in found]


def refuse_hidden_rows(
    server: Server, options: Sequence[str], dumped: Collection[tuple[str, str]]
) -> None:
    """Raise DumpError if policies apply to the role in tables whose rows were ``dumped``.

    pg_dump refuses such tables by a setting of its session (row_security). This asks in another
    session, and does not depend on that setting. Tables are given by schema and name. Raises
    another DatabaseError if the query fails.
    """
    wanted = "which tables are under row security"
    with query.asking(server, wanted, dump_options.role(options)) as ask:
        found = ask(_GUARDED)
    names = [tuple(query.name(cell, server) for cell in row) for row in found]
    hidden = [f"{schema}.{name}" for schema, name in names if (schema, name) in dumped]
    if hidden:
        raise DumpError(
            f"row security may have hidden rows of tables that pg_dump did not refuse: "
            f"{some(hidden)}",
            hint="Its session lost its settings. Connect to the server itself, or back up with a "
            "role that has BYPASSRLS.",
        )


def closed_mappings_warning(closed: Sequence[str]) -> tuple[str, str]:
    """Return a warning of what :func:`closed_mappings` returned, and what to do about it."""
    mappings = "1 user mapping" if len(closed) == 1 else f"{len(closed)} user mappings"
    found = f"the options of {mappings}, including passwords: {some(closed)}"
    remedy = "Keep their CREATE USER MAPPING statements elsewhere, or back up as a superuser."
    return f"pg_dump leaves out {found}", remedy


def _dumped(
    server: Server, relations: Sequence[tuple[Any, ...]], options: Sequence[str]
) -> Iterator[tuple[Any, ...]]:
    """Yield the relations that pg_dump dumps; row security counts only if it reads their rows."""
    dumped, read = patterns.dumped(options), patterns.read(options)
    for row in relations:
        how, *names = row[6:]
        owner, own = (
            [query.text(name, server) for name in pair if name is not None]
            for pair in (names[:2], names[2:])
        )
        # An identity sequence is dumped if its table is. Other sequences may also match alone.
        with_table = bool(owner) and dumped(*owner)
        if with_table if how == b"i" else dumped(*own) or with_table:
            yield (*row[:5], row[5] and read(*own))


def _privileges(
    server: Server,
    role: tuple[Any, ...],
    relations: Sequence[tuple[Any, ...]],
    objects: Sequence[tuple[Any, ...]],
) -> Privileges:
    name, superuser, inherits, _, large_objects, subscriptions = role

    def names(kinds: bytes, unwanted: int, *, when: bool) -> list[str]:
        return [
            query.text(row[2], server)
            for row in relations
            if row[0] in kinds and row[unwanted] is when
        ]

    closed = {query.text(row[1], server): None for row in relations if not row[3]}
    return Privileges(
        major=server.major,
        role=query.text(name, server),
        superuser=superuser,
        inherits=inherits,
        tables=sum(row[0] in b"rp" for row in relations),
        sequences=sum(row[0] == b"S" for row in relations),
        large_objects=large_objects,
        closed_schemas=list(closed),
        unreadable_tables=names(b"rp", 4, when=False),
        unreadable_sequences=names(b"S", 4, when=False),
        guarded_tables=names(b"rp", 5, when=True),
        unreadable_objects=[oid for oid, _ in objects],
        unreadable_object_count=objects[0][1] if objects else 0,
        subscriptions=subscriptions,
    )


def some(names: Sequence[str], count: int | None = None) -> str:
    """Return the first few names, and the number of the others, of all or of ``count``."""
    more = (len(names) if count is None else count) - min(len(names), SHOWN)
    shown = ", ".join(names[:SHOWN])
    return f"{shown} and {more} more" if more > 0 else shown


def _few(statements: Sequence[str]) -> list[str]:
    more = len(statements) - SHOWN
    return [*statements[:SHOWN], *([f"and {more} more"] if more > 0 else [])]
