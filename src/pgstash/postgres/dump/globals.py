"""The roles and extensions of a source that a dump refers to, but does not contain.

A dump without owners and privileges still names roles: in policies, user mappings and settings of
functions. Data may name them too: a column of type regrole holds the name as text. So all roles of
the server are stored in a companion of the archive, and its manifest lists those that are required
for certain.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from pgstash.errors import DatabaseError, DumpError
from pgstash.events import ToolSaid
from pgstash.format.manifest import Extension
from pgstash.postgres.server import query
from pgstash.postgres.server.connection import Connection, Server
from pgstash.postgres.tools.process import Child, Command
from pgstash.postgres.tools.tool_run import ToolRun

_SECONDS_OF_SILENCE = 60.0
_LARGEST = 64 * 1024 * 1024  # bytes; a role takes about a hundred
_MOST_NAMED = 10

# Catalogs and views that every role may read. PUBLIC is not a role.
_REQUIRED_ROLES = """
    SELECT rolname FROM pg_catalog.pg_roles
    WHERE rolname !~ '^pg_' AND (
        oid IN (SELECT pg_catalog.unnest(polroles) FROM pg_catalog.pg_policy)
        OR oid IN (SELECT umuser FROM pg_catalog.pg_user_mappings)
        OR EXISTS (SELECT FROM pg_catalog.pg_proc
                   WHERE 'role=' || rolname = ANY (proconfig)))
    ORDER BY rolname
"""
_EXTENSIONS = """
    SELECT extname, extversion, n.nspname,
           CASE WHEN pg_catalog.pg_has_role('pg_read_all_settings', 'USAGE') THEN (
               SELECT name FROM pg_catalog.unnest(ARRAY[
                   extname || '.database_name',
                   pg_catalog.regexp_replace(extname, '^pg_', '') || '.database_name']) AS name
               WHERE pg_catalog.current_setting(name, true) = pg_catalog.current_database()
               LIMIT 1) END
    FROM pg_catalog.pg_extension JOIN pg_catalog.pg_namespace n ON n.oid = extnamespace
    WHERE extname <> 'plpgsql'
    ORDER BY extname
"""

# Databases of a superuser: nobody else can have planted code there that runs at a login. One of
# SQL_ASCII comes first, because it accepts every name.
_OTHER_DATABASES = """
    SELECT d.datname
    FROM pg_catalog.pg_database d JOIN pg_catalog.pg_roles r ON r.oid = d.datdba AND r.rolsuper
    WHERE d.datallowconn AND d.datconnlimit <> -2 AND d.datname <> pg_catalog.current_database()
          AND d.datname IN ('postgres', 'template1')
          AND pg_catalog.has_database_privilege(d.oid, 'CONNECT')
    ORDER BY pg_catalog.pg_encoding_to_char(d.encoding) <> 'SQL_ASCII', d.datname
"""

# As pg_dumpall writes it, one to a line. Comments and other quoted text are skipped: a name may
# contain a line that looks like this.
_CREATE_ROLE = re.compile(
    r"""^--.*$|^CREATE ROLE (?:"((?:[^"]|"")+)"|([^";\s]+));$|"(?:[^"]|"")*"|'(?:[^']|'')*'""",
    re.MULTILINE,
)
# pg_dumpall reads these columns. Each database has privileges of its own on the catalog, and
# pg_read_all_data includes it.
_MAY_READ_PASSWORDS = """
    SELECT pg_catalog.quote_ident(current_user), pg_catalog.bool_and(
        pg_catalog.has_column_privilege(attrelid, attnum, 'SELECT'))
    FROM pg_catalog.pg_attribute
    WHERE attrelid = 'pg_catalog.pg_authid'::pg_catalog.regclass AND attnum > 0
"""
NOT_UTF8 = re.compile("[\ud800-\udfff]")
"""Finds what is not UTF-8 in a name that was decoded with ``surrogateescape``."""


@dataclass(frozen=True, slots=True)
class Required:
    """The names of roles, and the extensions, that a restore cannot do without."""

    roles: Sequence[str]
    extensions: Sequence[Extension]


def required(server: Server) -> Required:
    """Ask the source what its dump requires. Raises DatabaseError."""
    with query.asking(server, "which roles and extensions it needs") as ask:
        roles = ask(_REQUIRED_ROLES)
        extensions = [[query.name(cell, server) for cell in row] for row in ask(_EXTENSIONS)]
    return Required(
        [query.name(role, server) for [role] in roles],
        [
            Extension(name, version, schema, setting or None)
            for name, version, schema, setting in extensions
        ],
    )


def passwords_problem(server: Server) -> tuple[str, str] | None:
    """Return why the passwords of roles cannot be dumped, and the remedy; None if they can.

    Raises DatabaseError.
    """
    with query.opened(server, "whether the passwords of roles may be read") as asked:
        row = asked.execute(_MAY_READ_PASSWORDS).fetchone()
    if row is None:
        raise AssertionError("an aggregate has always one row")
    role, may = query.text(row[0], server), row[1]
    if may:
        return None
    remedy = (
        f"As a superuser, run in the database {server.database.name}: "
        f"GRANT SELECT ON pg_catalog.pg_authid TO {role}; or back up as a superuser, or turn "
        "GLOBALS_PASSWORDS off."
    )
    return f"the role {role} may not read pg_authid, so passwords of roles are not stored", remedy


def dump_globals(server: Server, tool_run: ToolRun, *, passwords: bool = False) -> bytes:
    """Return the roles of the server as SQL, without comments; with ``passwords``, as hashes.

    pg_dumpall connects to another database if the encoding of this one does not have the name of a
    role. Raises DumpError if pg_dumpall fails, stalls or writes too much to hold; it fails for a
    login that may not read the public part of pg_authid.
    """
    try:
        return _dumped(server, tool_run, server.connection, passwords=passwords)
    except DumpError as error:
        first = error
    foreign, others = _foreign_names(server)
    if not foreign:
        raise first
    for database in others:
        with contextlib.suppress(DumpError):
            connection = server.connection.with_database(database)
            return _dumped(server, tool_run, connection, passwords=passwords)
    lacking = f"the encoding of the database, {server.database.encoding}, lacks names of roles"
    more = ", …" if len(foreign) > _MOST_NAMED else ""
    raise DumpError(
        f"{first.message}\n{lacking}: {', '.join(foreign[:_MOST_NAMED])}{more}",
        hint="Rename these roles, or let the login connect to the database postgres.",
    ) from first


def _dumped(server: Server, tool_run: ToolRun, connection: Connection, *, passwords: bool) -> bytes:
    words = [
        str(tool_run.client.pg_dumpall),
        "--globals-only",
        *([] if passwords else ["--no-role-passwords"]),
        "--no-comments",
        "--no-tablespaces",
        "--no-password",
        # pg_dumpall ignores the database of --dbname, and reads a name with a "=" as conninfo.
        f"--database={connection.only_database}",
    ]
    said: list[str] = []
    with Child(Command(words, tool_run.environment), server.connection, said.append) as child:
        chunks, total = [], 0
        for chunk in child.read(
            _SECONDS_OF_SILENCE, silent_seconds=_SECONDS_OF_SILENCE, silent=lambda: None
        ):
            chunks.append(chunk)
            total += len(chunk)
            if total > _LARGEST:
                raise DumpError(f"pg_dumpall wrote more than {_LARGEST} bytes of roles")
        status = child.wait()
        if status != 0:
            why = "\n".join(child.last_lines)
            raise DumpError(f"pg_dumpall failed with exit status {status}: {why}")
    for line in said:
        tool_run.emit(ToolSaid("pg_dumpall", line))
    return b"".join(chunks)


def _foreign_names(server: Server) -> tuple[list[str], list[str]]:
    """Return the roles whose names the database's encoding does not have, and other databases.

    The other databases are those whose encoding may have them. Both lists are empty if the server
    does not answer.
    """
    try:
        with query.asking(server, "its roles") as ask:
            names = ask("SELECT rolname FROM pg_catalog.pg_roles")
            others = ask(_OTHER_DATABASES)
    except DatabaseError:
        return [], []
    foreign = [name for [name] in names if name and not _fits(name, server)]
    return (
        [name.decode("utf-8", "backslashreplace") for name in foreign],
        [name.decode("utf-8", "surrogateescape") for [name] in others if name],
    )


def _fits(name: bytes, server: Server) -> bool:
    try:
        name.decode(server.codec)
    except UnicodeDecodeError:
        return False
    return True


def roles_in(script: bytes) -> list[str]:
    """Return the names of the roles that a script of :func:`dump_globals` creates.

    Names that are not UTF-8 are left out: a target of UTF-8 could not distinguish them.
    """
    text = script.decode("utf-8", "surrogateescape")
    names = (
        quoted.replace('""', '"') if quoted else bare for quoted, bare in _CREATE_ROLE.findall(text)
    )
    return [name for name in names if name and not NOT_UTF8.search(name)]
