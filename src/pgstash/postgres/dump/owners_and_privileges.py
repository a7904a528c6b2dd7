"""What gives the objects of a database their owners and privileges, as one script for psql.

An archive holds neither, so that every server accepts it. The script is applied after it. pg_dump
writes it: from a table of contents whose entries define nothing, pg_restore makes the statements
ALTER … OWNER, GRANT and REVOKE alone. The statements for the database itself are made here, because
pg_dump names the database in them; here its name is ``:"DBNAME"``, which psql replaces by the name
of the database that it is connected to.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pgstash.postgres.dump.pg_dump import CLOSING
from pgstash.postgres.dump.schema_dump import ENTRY, CompositionError, plain
from pgstash.postgres.server import description, marks, query
from pgstash.postgres.server.connection import Server
from pgstash.postgres.server.quoting import identifier
from pgstash.postgres.tools import toc
from pgstash.postgres.tools.toc import Contents, Entry
from pgstash.postgres.tools.tool_run import ToolRun

# What is granted is the definition of the first two. The others set up the session: pg_restore
# reads them before anything else.
_KEPT = frozenset([b"ACL", b"DEFAULT ACL", b"ENCODING", b"SEARCHPATH", b"STDSTRINGS"])
# pg_dump 17 and newer: the definition is a list of large objects, one number to a line, that
# pg_restore creates. Their privileges are entries of their own, and refer to it.
_LARGE_OBJECTS = b"BLOB METADATA"
# Entries without an owner (_getObjectDescription() in pg_backup_archiver.c): there are many of
# them, and pg_restore would write a comment for each.
_WITHOUT_OWNER = frozenset(
    [
        _LARGE_OBJECTS,
        b"CHECK CONSTRAINT",
        b"COMMENT",
        b"CONSTRAINT",
        b"DEFAULT",
        b"ENCODING",
        b"EXTENSION",
        b"FK CONSTRAINT",
        b"INDEX",
        b"INDEX ATTACH",
        b"POLICY",
        b"PUBLICATION TABLE",
        b"ROW SECURITY",
        b"RULE",
        b"SEARCHPATH",
        b"SECURITY LABEL",
        b"SEQUENCE OWNED BY",
        b"SEQUENCE SET",
        b"STDSTRINGS",
        b"TABLE ATTACH",
        b"TABLE DATA",
        b"TRIGGER",
    ]
)
_FIRST_WITH_ACCESS_METHODS_LEFT_OUT = 15

# psql replaces this; in quoted text it replaces nothing.
_THIS = 'DATABASE :"DBNAME"'
# Settings whose value is a list of names, which are stored quoted (GUC_LIST_QUOTE in guc_tables.c):
# written as one literal, the list would become one name; written as it is stored, it could be
# anything. These can be set in a session.
_LISTS = "'local_preload_libraries', 'search_path', 'session_preload_libraries', 'temp_tablespaces'"
# The mark of a restored database: another one, restored from this backup, has its own.
_MARK = f"application_name={marks.BEGINNING}"
# The statements for the database, in order. The privileges are granted from nothing, by those who
# granted them.
_DATABASE = (
    r"""
    WITH d AS (
        SELECT d.*, r.rolname AS owner
        FROM pg_catalog.pg_database d JOIN pg_catalog.pg_roles r ON r.oid = d.datdba
        WHERE d.datname = pg_catalog.current_database()
    ), settings AS (
        SELECT s.setrole, setting.place,
               pg_catalog.split_part(setting.text, '=', 1) AS name,
               pg_catalog.substr(setting.text, pg_catalog.strpos(setting.text, '=') + 1) AS value,
               CASE WHEN s.setrole = 0 THEN '{this}'
                    ELSE pg_catalog.format('ROLE %I IN {this}', r.rolname) END AS whose
        FROM d JOIN pg_catalog.pg_db_role_setting s ON s.setdatabase = d.oid
        LEFT JOIN pg_catalog.pg_roles r ON r.oid = s.setrole
        CROSS JOIN pg_catalog.unnest(s.setconfig) WITH ORDINALITY AS setting(text, place)
        WHERE NOT pg_catalog.starts_with(setting.text, '{mark}')
    )
    SELECT statement FROM (
        SELECT 1, 0::pg_catalog.int8, 0::pg_catalog.int8,
               pg_catalog.format('ALTER {this} OWNER TO %I;', owner)
        FROM d
        UNION ALL
        SELECT 2, 0, 0, pg_catalog.format(
            'REVOKE ALL ON {this} FROM PUBLIC; REVOKE ALL ON {this} FROM %I;', owner)
        FROM d
        UNION ALL
        SELECT 3, 0, acl.place, pg_catalog.format(
            CASE WHEN acl.grantor = d.datdba THEN '%1$s'
                 ELSE 'SET SESSION AUTHORIZATION %2$I; %1$s RESET SESSION AUTHORIZATION;' END,
            pg_catalog.format(
                'GRANT %s ON {this} TO %s%s;', acl.privilege,
                CASE WHEN acl.grantee = 0 THEN 'PUBLIC'
                     ELSE pg_catalog.quote_ident(grantee.rolname) END,
                CASE WHEN acl.grantable THEN ' WITH GRANT OPTION' END),
            grantor.rolname)
        FROM d
        CROSS JOIN pg_catalog.aclexplode(
            COALESCE(d.datacl, pg_catalog.acldefault('d', d.datdba)))
            WITH ORDINALITY AS acl(grantor, grantee, privilege, grantable, place)
        JOIN pg_catalog.pg_roles grantor ON grantor.oid = acl.grantor
        LEFT JOIN pg_catalog.pg_roles grantee ON grantee.oid = acl.grantee
        WHERE acl.grantee = 0 OR grantee.oid IS NOT NULL
        UNION ALL
        SELECT 4, 0, 0, pg_catalog.format(
            'COMMENT ON {this} IS %L;', pg_catalog.shobj_description(oid, 'pg_database'))
        FROM d
        UNION ALL
        SELECT 5, 0, 0, pg_catalog.format(
            'SECURITY LABEL FOR %I ON {this} IS %L;', provider, label)
        FROM d JOIN pg_catalog.pg_shseclabel
            ON objoid = d.oid AND classoid = 'pg_catalog.pg_database'::pg_catalog.regclass
        UNION ALL
        SELECT 6, setrole::pg_catalog.int8, place, pg_catalog.format(
            CASE WHEN name IN ({lists})
                 THEN 'BEGIN; SELECT pg_catalog.set_config(%1$L, %2$L, false); '
                      'ALTER %3$s SET %4$s FROM CURRENT; COMMIT; RESET %4$s; '
                      'SET search_path = '''';'
                 ELSE 'ALTER %3$s SET %4$s TO %2$L;' END,
            name, value, whose, quoted)
        FROM settings CROSS JOIN LATERAL (
            SELECT pg_catalog.string_agg(pg_catalog.quote_ident(part), '.' ORDER BY number)
            FROM pg_catalog.unnest(pg_catalog.string_to_array(name, '.'))
                 WITH ORDINALITY AS parts(part, number)) AS names(quoted)
        UNION ALL
        SELECT 7, 0, 0, pg_catalog.format('ALTER {this} CONNECTION LIMIT %s;', datconnlimit)
        FROM d
    ) AS statements(kind, role, place, statement)
    ORDER BY kind, role, place
""".replace("{this}", _THIS)
    .replace("{lists}", _LISTS)
    .replace("{mark}", _MARK)
)

# Who owns an object, or has a privilege on one. The first superuser is in no such list.
_ROLES = """
    WITH d AS (
        SELECT oid, datdba FROM pg_catalog.pg_database
        WHERE datname = pg_catalog.current_database())
    SELECT rolname FROM pg_catalog.pg_roles WHERE oid IN (
        SELECT s.refobjid FROM d JOIN pg_catalog.pg_shdepend s
            ON s.dbid = d.oid OR (s.objid = d.oid AND s.dbid = 0
                AND s.classid = 'pg_catalog.pg_database'::pg_catalog.regclass)
        WHERE s.refclassid = 'pg_catalog.pg_authid'::pg_catalog.regclass
              AND s.deptype IN ('o', 'a')
        UNION SELECT datdba FROM d
        UNION SELECT s.setrole FROM d JOIN pg_catalog.pg_db_role_setting s
            ON s.setdatabase = d.oid AND EXISTS (
                SELECT FROM pg_catalog.unnest(s.setconfig) AS setting
                WHERE NOT pg_catalog.starts_with(setting, '{mark}')))
""".replace("{mark}", _MARK)

# Before version 15, pg_dump writes the privileges on this schema, but not its owner. On any server
# it belongs to whom initdb gave it to: the first superuser, or the owner of the database.
_OWNER_OF_PUBLIC = """
    SELECT pg_catalog.format('ALTER SCHEMA public OWNER TO %I;', r.rolname)
    FROM pg_catalog.pg_namespace n JOIN pg_catalog.pg_roles r ON r.oid = n.nspowner
    WHERE n.nspname = 'public' AND r.oid <> 10 AND r.rolname <> 'pg_database_owner'
"""


@dataclass(frozen=True, slots=True)
class Script:
    """The ``text`` for psql in the encoding of the database, and the names of roles in it."""

    text: bytes
    roles: Sequence[str]


@dataclass(frozen=True, slots=True)
class Objects:
    """The script of the objects in three parts, and the roles that own them.

    The ``opening`` sets up the session. ``lacks_owner_of_public`` is whether the schema public is
    in the dump, without its owner.
    """

    opening: bytes
    text: bytes
    closing: bytes
    owners: frozenset[bytes]
    lacks_owner_of_public: bool


def of_objects(tool_run: ToolRun, contents: Contents) -> Objects:
    """Return the part of the script that concerns the objects of a dump.

    ``contents`` is the table of contents of a dump with privileges. Raises CompositionError.
    """
    text = _of_objects(tool_run, contents)
    end = CLOSING.search(text)
    if end is None:
        raise CompositionError("pg_restore's script does not end as expected")
    first = ENTRY.search(text)
    start = first.start() if first else end.start()
    whole = b"".join([*_of_large_objects(contents), text[start : end.start()]])
    owners = frozenset(entry.owner for entry in contents.entries if _has_owner(entry))
    of_public = {
        entry.description
        for entry in contents.entries
        if (entry.description, entry.tag) in {(b"SCHEMA", b"public"), (b"ACL", b"SCHEMA public")}
    }
    return Objects(text[:start], whole, text[end.start() :], owners, of_public == {b"ACL"})


def complete(server: Server, objects: Objects) -> Script:
    """Return the whole script. Raises DatabaseError if the server does not answer."""
    with query.asking(server, "the owner, privileges and settings of the database") as ask:
        of_database = [(statement or b"") + b"\n" for (statement,) in ask(_DATABASE)]
        roles = objects.owners.union(role or b"" for (role,) in ask(_ROLES))
        # Privileges on the schema are granted by its owner, so they come after it.
        of_public = ask(_OWNER_OF_PUBLIC) if objects.lacks_owner_of_public else ()
        before = [(statement or b"") + b"\n" for (statement,) in of_public]
    title = b"\n--\n-- The database itself\n--\n\n"
    named = sorted(role for role in roles if not role.startswith(b"pg_"))
    return Script(
        b"".join([objects.opening, *before, objects.text, title, *of_database, objects.closing]),
        [description.shared_name(role, server.codec) for role in named],
    )


def _of_objects(tool_run: ToolRun, contents: Contents) -> bytes:
    head = toc.without_definitions(contents, {*_KEPT, _LARGE_OBJECTS})
    listed = "".join(f"{entry.number};\n" for entry in contents.entries if _is_listed(entry))
    with _piped(listed.encode()) as descriptor:
        options = [
            "--section=pre-data",
            "--section=post-data",
            "--no-tablespaces",
            f"--use-list=/dev/fd/{descriptor}",
        ]
        if tool_run.client.major >= _FIRST_WITH_ACCESS_METHODS_LEFT_OUT:
            options.append("--no-table-access-method")
        return plain(head, tool_run, options, inherited=[descriptor], with_privileges=True)


@contextlib.contextmanager
def _piped(data: bytes) -> Iterator[int]:
    """Provide a pipe to read the data from: a backup writes no file, not even one in memory."""
    reading, writing = os.pipe()

    def write() -> None:
        with contextlib.suppress(BrokenPipeError), os.fdopen(writing, "wb") as pipe:
            pipe.write(data)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        yield reading
    finally:
        os.close(reading)
        writer.join()


def _of_large_objects(contents: Contents) -> Iterator[bytes]:
    for entry in contents.entries:
        if entry.description == _LARGE_OBJECTS:
            owner = identifier(entry.owner)
            for number in toc.definition(contents, entry).split():
                yield b"ALTER LARGE OBJECT %s OWNER TO %s;\n" % (number, owner)


def _is_listed(entry: Entry) -> bool:
    return entry.description not in _WITHOUT_OWNER


def _has_owner(entry: Entry) -> bool:
    return bool(entry.owner) and (_is_listed(entry) or entry.description == _LARGE_OBJECTS)
