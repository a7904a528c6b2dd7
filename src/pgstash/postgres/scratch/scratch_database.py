"""The name of a database to restore into and to drop, on a server that others use too.

While a scratch database is in use, there is a session whose ``application_name`` is its name.
Without such a session, the drill was killed before it could drop the database.
"""

from __future__ import annotations

import contextlib
import re
import secrets
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import psycopg
from psycopg import conninfo, sql

from pgstash.errors import DatabaseError, Interrupted, ScratchError, TargetLostError
from pgstash.events import Emit, Notice, Warned
from pgstash.postgres.restore import drop_database, roles, target
from pgstash.postgres.server import login, query, startup_options, time_limits
from pgstash.postgres.server.connection import Server

_PREFIX = "pgstash_drill_"
_MARK_BYTES = 4

# The second mark is that of a restore that did not finish.
_NAME = re.compile(rf"({_PREFIX}[0-9a-f]{{8}})(_pgstash_[0-9a-f]{{8}})?")

# Parameters that libpq would otherwise take from the environment, which describes the source.
_OF_THE_SOURCE = ("host", "hostaddr", "port", "user", "password", "dbname", "options")

_STARTED = "SELECT pg_catalog.pg_postmaster_start_time()::pg_catalog.text"
_LEFT = r"SELECT datname FROM pg_catalog.pg_database WHERE datname LIKE 'pgstash\_drill\_%'"
_IN_USE = "SELECT application_name FROM pg_catalog.pg_stat_activity"

# A role that may log in by now, or is a member of another, is in use. From PostgreSQL 16 on the
# creator of a role is a member of it.
_ROLES = """
    SELECT rolname FROM pg_catalog.pg_roles r
    WHERE pg_catalog.shobj_description(oid, 'pg_authid') = %s AND NOT rolcanlogin
          AND NOT EXISTS (SELECT FROM pg_catalog.pg_auth_members m WHERE m.member = r.oid
                          OR m.roleid = r.oid AND m.member <> (
                              SELECT oid FROM pg_catalog.pg_roles WHERE rolname = current_user))
"""


def isolated(url: str) -> str:
    """Return a conninfo that libpq's variables, which describe the source, do not complete."""
    given = conninfo.conninfo_to_dict(url)
    return conninfo.make_conninfo(url, **{key: "" for key in _OF_THE_SOURCE if key not in given})


def look(url: str) -> Server:
    """Log in to the server for scratch databases. Raises ScratchError."""
    try:
        server = login.inspect(url)
        if not startup_options.passed_on(server):
            raise startup_options.refused("a drill needs it")
    except DatabaseError as error:
        raise ScratchError(
            f"VERIFY_DATABASE_URL: {error.message}", hint=error.hint or ScratchError.default_hint
        ) from error
    return server


def keep_off(scratch: Server, of: Server, emit: Emit) -> None:
    """Raise ScratchError if scratch is the source itself; warn if it is on the same server."""
    # To the microsecond, and readable by every role: no two servers have the same.
    if _started(scratch) != _started(of):
        return
    if scratch.database.name == of.database.name:
        raise ScratchError(
            f"VERIFY_DATABASE_URL is the source itself: {of.database.name} on {of.database.host}",
            hint="Name a database on another server. Or leave VERIFY_DATABASE_URL out, and install "
            "the server's package here for a throwaway server.",
        )
    emit(
        Warned(
            "VERIFY_DATABASE_URL is on the source's own server: a drill uses its disk and its CPU, "
            "and does not prove that another server could take over"
        )
    )


def _started(server: Server) -> object:
    try:
        with query.asking(
            server, "when it started", answer_seconds=time_limits.SCRATCH_ANSWER
        ) as ask:
            return ask(_STARTED)
    except DatabaseError as error:
        raise ScratchError(
            f"cannot find out whether VERIFY_DATABASE_URL is the source itself: {error}"
        ) from error


@contextlib.contextmanager
def name(server: Server, emit: Emit) -> Iterator[str]:
    """Yield the name of a database to create and to restore into; drop the database at the end.

    Leftovers of drills that were killed are dropped first. Raises ScratchError.
    """
    chosen = f"{_PREFIX}{secrets.token_hex(_MARK_BYTES)}"
    parameters = {**server.connection.parameters, "application_name": chosen}
    keeper = replace(server, connection=replace(server.connection, parameters=parameters))
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(target.connected(keeper))
            _sweep(server, emit)
            _drop_roles(server, chosen, emit)
        except (psycopg.Error, TargetLostError) as error:
            raise ScratchError(f"VERIFY_DATABASE_URL: {error}") from error
        stack.push(partial(_leave, server, chosen, emit))
        yield chosen


def _leave(
    server: Server, chosen: str, emit: Emit, kind: type[BaseException] | None, *_: object
) -> None:
    """Drop a scratch database, even under its staging name, and the roles of drills."""
    hurried = kind is not None and issubclass(kind, Interrupted)
    seconds = (
        drop_database.SECONDS_TO_CONNECT_AFTER_SIGNAL if hurried else target.SECONDS_TO_CONNECT
    )
    try:
        with target.connected(server, seconds=seconds) as session:
            names = [found for (found,) in session.execute(_LEFT).fetchall()]
        for name in names:
            if (match := _NAME.fullmatch(name)) and match[1] == chosen:
                drop_database.drop(server, name, emit, seconds=seconds)
        _drop_roles(server, chosen, emit)
    except (psycopg.Error, TargetLostError) as error:
        emit(Warned(f"The leftovers of the drill {chosen} could not be dropped: {error}"))


def _drop_roles(server: Server, chosen: str, emit: Emit) -> None:
    """Drop the roles that drills created, unless another drill runs, which may need them."""
    left = []
    # The name of a role that was created from a database of another encoding is not text here.
    with target.connected(server, "SQL_ASCII") as session:
        rows = session.execute(_ROLES, [roles.DRILL_COMMENT]).fetchall()
    found = [name.decode(server.codec, "surrogateescape") for (name,) in rows]
    with target.connected(server) as session:
        used = {name for (name,) in session.execute(_IN_USE).fetchall() if name != chosen}
        if any(_NAME.fullmatch(name) for name in used if name):
            return
        for role in found:
            try:
                session.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(role)))
            except psycopg.errors.UndefinedObject:
                pass  # another drill dropped it
            except (psycopg.Error, UnicodeError) as error:
                shown = role.encode(errors="backslashreplace").decode()
                left.append(f"{shown}: {' '.join(str(error).split())}")
    if left:
        emit(Warned(f"Roles that a drill created could not be dropped: {'; '.join(left)}"))


def _sweep(server: Server, emit: Emit) -> None:
    with target.connected(server) as session:
        in_use = {used for (used,) in session.execute(_IN_USE).fetchall()}
        names = [found for (found,) in session.execute(_LEFT).fetchall()]
    for database in names:
        match = _NAME.fullmatch(database)
        if match and match[1] not in in_use:
            emit(Notice(f"Dropping {database} of a drill that was killed"))
            drop_database.drop(server, database, emit)
