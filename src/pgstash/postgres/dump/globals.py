"""The roles and extensions that a dump needs where it is restored, and does not bring along.

Without owners and privileges a dump names roles still: in policies, user mappings and settings of
functions. And data may: a column of type regrole holds a name as text. So all roles of the server
are stored beside the archive, and those that are needed for certain are in its manifest.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, LiteralString

import psycopg
from psycopg import sql

from pgstash.errors import DatabaseError, DatabaseUnreachableError, DumpError, TargetLacksError
from pgstash.events import Emit, RoleCreated, ToolSaid, Warned
from pgstash.manifest import Extension, Manifest
from pgstash.postgres.process import Child
from pgstash.postgres.session import Session
from pgstash.postgres.source import Connection, Server
from pgstash.postgres.target import connected
from pgstash.postgres.tools import ClientTools

_SECONDS_OF_SILENCE = 60.0
_SECONDS_TO_ANSWER = 60.0
_LARGEST = 64 * 1024 * 1024  # bytes; a role takes about a hundred

# Catalogs and views that every role may read. What PUBLIC stands for is no role.
_NEEDED_ROLES = """
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

# Where nobody else can have planted what runs at a login. One of SQL_ASCII takes every name.
_OTHER_DATABASES = """
    SELECT d.datname
    FROM pg_catalog.pg_database d JOIN pg_catalog.pg_roles r ON r.oid = d.datdba AND r.rolsuper
    WHERE d.datallowconn AND d.datconnlimit <> -2 AND d.datname <> pg_catalog.current_database()
          AND d.datname IN ('postgres', 'template1')
          AND pg_catalog.has_database_privilege(d.oid, 'CONNECT')
    ORDER BY pg_catalog.pg_encoding_to_char(d.encoding) <> 'SQL_ASCII', d.datname
"""

# As pg_dumpall writes it, one to a line. Comments and what is quoted elsewhere are read over: a
# name may hold a line that looks like this.
_CREATE_ROLE = re.compile(
    r"""^--.*$|^CREATE ROLE (?:"((?:[^"]|"")+)"|([^";\s]+));$|"(?:[^"]|"")*"|'(?:[^']|'')*'""",
    re.MULTILINE,
)
_FOREIGN = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Needed:
    """Names of roles, and extensions, that a restore cannot do without."""

    roles: Sequence[str]
    extensions: Sequence[Extension]


def needed(server: Server) -> Needed:
    """Ask the source. Raises DatabaseError."""
    # Names in SQL_ASCII arrive as they are stored, and the database's own may be anything too.
    session = Session(server.connection, client_encoding="SQL_ASCII")
    with contextlib.closing(session):
        try:
            session.ask("SET search_path = ''", _SECONDS_TO_ANSWER)
            roles = session.ask(_NEEDED_ROLES, _SECONDS_TO_ANSWER)
            extensions = session.ask(_EXTENSIONS, _SECONDS_TO_ANSWER)
        except psycopg.Error as error:
            raise DatabaseUnreachableError(
                f"the database does not say which roles it names: {' '.join(str(error).split())}"
            ) from error

    def text(value: bytes | None) -> str:
        return (value or b"").decode(server.codec, "surrogateescape")

    return Needed(
        [text(name) for [name] in roles],
        [
            Extension(text(name), text(version), text(schema), text(setting) or None)
            for [name, version, schema, setting] in extensions
        ],
    )


def dump_globals(
    server: Server, tools: ClientTools, environment: Mapping[str, str], emit: Emit
) -> bytes:
    """Return the roles of the server as SQL, without passwords and comments.

    Over another database if the encoding of this one lacks a role's name. Raises DumpError where
    pg_dumpall fails, as it does for a role that may not read pg_authid's public part, where it
    stalls, and where it is too much to hold.
    """
    try:
        return _dumped(server, tools, environment, server.connection, emit)
    except DumpError as error:
        first = error
    foreign, others = _foreign_names(server)
    if not foreign:
        raise first
    for database in others:
        with contextlib.suppress(DumpError):
            connection = server.connection.with_database(database)
            return _dumped(server, tools, environment, connection, emit)
    lacking = f"the encoding of the database, {server.database.encoding}, lacks names of roles"
    more = ", …" if len(foreign) > _MOST_NAMED else ""
    raise DumpError(
        f"{first.message}\n{lacking}: {', '.join(foreign[:_MOST_NAMED])}{more}",
        hint="Rename these roles, or let the login connect to the database postgres.",
    ) from first


def _dumped(
    server: Server,
    tools: ClientTools,
    environment: Mapping[str, str],
    connection: Connection,
    emit: Emit,
) -> bytes:
    command = [
        str(tools.pg_dumpall),
        "--globals-only",
        "--no-role-passwords",
        "--no-comments",
        "--no-tablespaces",
        "--no-password",
        # It ignores the database of --dbname, and takes a name with a "=" for more than one.
        f"--database={connection.only_database}",
    ]
    said: list[str] = []
    with Child(command, server.connection, environment, say=said.append) as child:
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
        emit(ToolSaid("pg_dumpall", line))
    return b"".join(chunks)


def _foreign_names(server: Server) -> tuple[list[str], list[str]]:
    """Return the roles whose names the database's encoding lacks, and databases that may have it.

    Both are empty if nobody says.
    """
    try:
        session = Session(server.connection, client_encoding="SQL_ASCII")
        with contextlib.closing(session):
            session.ask("SET search_path = ''", _SECONDS_TO_ANSWER)
            names = session.ask("SELECT rolname FROM pg_catalog.pg_roles", _SECONDS_TO_ANSWER)
            others = session.ask(_OTHER_DATABASES, _SECONDS_TO_ANSWER)
    except (DatabaseError, psycopg.Error):
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


def named_in(script: bytes) -> list[str]:
    """Return the names of the roles that a script of :func:`dump_globals` makes.

    But those of another encoding, which no target of UTF-8 could tell from others.
    """
    text = script.decode("utf-8", "surrogateescape")
    names = (
        quoted.replace('""', '"') if quoted else bare for quoted, bare in _CREATE_ROLE.findall(text)
    )
    return [name for name in names if name and not _FOREIGN.search(name)]


_MOST_NAMED = 10

DRILL_COMMENT = "made by pgstash for a drill"
"""What tells the roles that a drill made from those that were there."""


def refuse_lacking(  # noqa: PLR0913 - what of a restore matters here
    server: Server,
    manifest: Manifest,
    create: Iterable[str] | None,
    emit: Emit,
    *,
    for_drill: bool,
    dry_run: bool,
) -> None:
    """Raise TargetLacksError, with all roles and extensions that the target lacks.

    The roles of ``create`` are made instead, without login and without any right, but in a dry
    run; one that the manifest does not name may be refused. Those that are made ``for_drill`` say
    so, and are not a drill's any more where a restore needs them. Of a partial backup what is
    lacking is a warning.
    """
    extensions = _names(server, "SELECT name FROM pg_catalog.pg_available_extensions")
    there = _names(server, "SELECT rolname FROM pg_catalog.pg_roles")
    lacking = [each for each in manifest.extensions if each.name not in extensions]
    missing = [name for name in manifest.roles if name not in there]
    wanted = list(dict.fromkeys([*missing, *create])) if create is not None else []
    if lacking or (missing and create is None):
        error = _lacks(server, [] if create is not None else missing, lacking)
        if not manifest.options:
            raise error
        # What needs them may be what the user left out.
        emit(Warned(f"{error.message}; of a partial backup, it may do without"))
    if dry_run:
        return
    with connected(server) as session:
        if not for_drill:
            _adopt(session, there & {*manifest.roles, *wanted})
        _make(session, [name for name in wanted if name not in there], missing, emit, for_drill)


def _names(server: Server, question: LiteralString) -> set[str]:
    """Return the names that a question is answered with, some of which may be of any encoding."""
    with connected(server, "SQL_ASCII") as session:  # names are bytes
        rows = session.execute(question).fetchall()
    return {name.decode(server.codec, "surrogateescape") for (name,) in rows}


def _make(
    session: psycopg.Connection[tuple[Any, ...]],
    names: Iterable[str],
    needed: Collection[str],
    emit: Emit,
    for_drill: bool,  # noqa: FBT001 - private, one call
) -> None:
    """Make roles; of those that are not ``needed`` a refusal is a warning."""
    left_out: list[tuple[str, str]] = []
    for name in names:
        if name.startswith("pg_"):
            continue
        statement = sql.SQL("CREATE ROLE {} NOLOGIN").format(sql.Identifier(name))
        if for_drill:  # sent as one, and so one transaction
            statement += sql.SQL("; COMMENT ON ROLE {} IS {}").format(
                sql.Identifier(name), sql.Literal(DRILL_COMMENT)
            )
        try:
            session.execute(statement)
        except (psycopg.Error, UnicodeError) as error:
            reason = " ".join(str(error).split())
            if name in needed:
                raise TargetLacksError(
                    f"the role {name} cannot be made: {reason}",
                    hint="Making roles needs CREATEROLE: ALTER ROLE … CREATEROLE.",
                ) from error
            left_out.append((name, reason))
        else:
            emit(RoleCreated(name))
    if left_out:
        some = ", ".join(name for name, _ in left_out[:_MOST_NAMED])
        more = ", …" if len(left_out) > _MOST_NAMED else ""
        emit(
            Warned(
                f"{len(left_out)} roles of the source cannot be made, which rows may name and the "
                f"definitions do not: {some}{more} ({left_out[0][1]})"
            )
        )


def _adopt(session: psycopg.Connection[tuple[Any, ...]], names: Collection[str]) -> None:
    """Let the next drill leave alone what a drill made and a restore needs from now on."""
    query = (
        "SELECT rolname FROM pg_catalog.pg_roles WHERE rolname = ANY(%s)"
        " AND pg_catalog.shobj_description(oid, 'pg_authid') = %s"
    )
    asked = [name for name in names if not _FOREIGN.search(name)]
    for (name,) in session.execute(query, [asked, DRILL_COMMENT]).fetchall():
        with contextlib.suppress(psycopg.errors.InsufficientPrivilege):
            session.execute(sql.SQL("COMMENT ON ROLE {} IS NULL").format(sql.Identifier(name)))


def _lacks(
    server: Server, roles: Sequence[str], extensions: Sequence[Extension]
) -> TargetLacksError:
    problems, remedies = [], []
    if roles:
        quoted = ", ".join('"' + name.replace('"', '""') + '"' for name in roles)
        problems.append(f"lacks {len(roles)} roles that the backup names: {quoted}")
        remedies.append(
            "With --create-roles they are made, without login. Or make them yourself: "
            + " ".join(f'CREATE ROLE "{name.replace(chr(34), chr(34) * 2)}";' for name in roles)
        )
    if extensions:
        names = ", ".join(f"{each.name} ({each.version})" for each in extensions)
        problems.append(f"cannot have {len(extensions)} extensions of the backup: {names}")
        remedies.append(
            "Install the packages of the extensions on the target's server (Debian and Ubuntu: "
            f"postgresql-contrib, or postgresql-{server.major}-NAME)."
        )
    return TargetLacksError(
        f"the server {server.database.host} " + ", and ".join(problems), hint="\n".join(remedies)
    )
