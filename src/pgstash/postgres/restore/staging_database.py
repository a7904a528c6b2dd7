"""A staging database: created for a restore under a temporary name, then renamed, or dropped.

So a database of the final name is complete, or does not exist.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator
from typing import Any

import psycopg
from psycopg import Connection, sql

from pgstash.errors import Interrupted, TargetDatabaseError, TargetLostError
from pgstash.events import Emit, Warned
from pgstash.format.manifest import Database
from pgstash.postgres.restore import database_settings, new_database, replacement
from pgstash.postgres.restore.drop_database import (
    SECONDS_TO_CONNECT_AFTER_SIGNAL,
    drop,
    when_unused,
)
from pgstash.postgres.restore.request import Request
from pgstash.postgres.restore.target import (
    LONGEST_NAME,
    SECONDS_TO_CONNECT,
    Outcome,
    TargetState,
    connected,
    said,
    seen_from,
)
from pgstash.postgres.server import marks
from pgstash.postgres.server.connection import Server
from pgstash.runtime import Runtime

_MARK_BYTES = 4

INCOMPLETE = "an incomplete restore by pgstash"
"""The comment of a staging database until it is complete."""

_COMMENT = "COMMENT ON DATABASE {} IS {}"
# Otherwise the comment is already that of the source.
_IS_MARKED = (
    "SELECT pg_catalog.shobj_description(oid, 'pg_database') = %s FROM pg_catalog.pg_database"
    " WHERE datname = %s"
)
_EARLIER = (
    "SELECT datname, pg_catalog.shobj_description(oid, 'pg_database') = %(incomplete)s"
    " FROM pg_catalog.pg_database"
    # The names of other databases are compared as bytes: they may be of another encoding.
    " WHERE CASE WHEN pg_catalog.starts_with(datname::text, %(begin)s::text)"
    " THEN pg_catalog.substr(datname::text, pg_catalog.length(%(begin)s::text) + 1)"
    " ~ '^[0-9a-f]{8}$' END ORDER BY datname"
)


@contextlib.contextmanager
def created(
    server: Server,
    request: Request,
    like: Database | None,
    state: TargetState,
    runtime: Runtime,
) -> Iterator[Server]:
    """Create the requested database under a staging name; rename it when the block has ended.

    Yields the server as seen from the new database. That has the encoding, the locale and the
    settings of the database it is ``like``; settings that change how sessions run are made after
    the block. Only its owner and superusers may connect to it, and until the block has ended, a
    comment marks it as incomplete. With ``any_locale`` a locale that the server does not have
    becomes "C", with a warning.

    If an exception leaves the block, the database is dropped. If it cannot be renamed afterwards,
    it is kept, and the error contains its name. If ``state`` has a database that is to be
    ``replaced``, both are renamed in one transaction. ``state`` receives the outcome, and the name
    of a database that could not be dropped. Raises TargetDatabaseError, TargetLostError.
    """
    name, emit = request.create, runtime.emit
    if name is None:
        raise AssertionError("no new database was asked for")
    staging = _staging_name(name)
    made = seen_from(server, staging)
    try:
        with (
            connected(server) as session,
            new_database.refusals(f"cannot create the database {name}"),
        ):
            _warn_of_earlier(session, name, emit)
            try:
                _run_to_its_end(
                    session, new_database.statement(staging, like, server.major), runtime
                )
            except (
                psycopg.DataError,
                psycopg.ProgrammingError,
                psycopg.NotSupportedError,
            ) as error:
                if like is None or not request.any_locale:
                    raise
                emit(Warned(f'The locale is "C" instead of the original one: {said(error)}'))
                _run_to_its_end(
                    session,
                    new_database.statement(
                        staging, new_database.without_locale(like), server.major
                    ),
                    runtime,
                )
            session.execute(_comment(staging, INCOMPLETE))
            # A dump without GRANTs has no REVOKEs either, so PUBLIC may call every function in it.
            session.execute(
                sql.SQL("REVOKE CONNECT ON DATABASE {} FROM PUBLIC").format(sql.Identifier(staging))
            )
            # The owner is the role that the login sets, which need not be the login itself.
            if session.execute("SELECT session_user <> current_user").fetchone() == (True,):
                session.execute(
                    sql.SQL("GRANT CONNECT ON DATABASE {} TO SESSION_USER").format(
                        sql.Identifier(staging)
                    )
                )
        database_settings.before_load(server, made, like, emit)
        yield made
        database_settings.after_load(server, made, like, emit)
    except Interrupted:
        _drop(server, staging, state, emit, SECONDS_TO_CONNECT_AFTER_SIGNAL)
        raise
    except BaseException:
        _drop(server, staging, state, emit)
        raise
    try:
        state.outcome = Outcome.UNKNOWN
        with runtime.interruption.defer_signals():
            _rename(server, staging, name, state, runtime)
    except Interrupted:
        if _renamed(server, staging, name, SECONDS_TO_CONNECT_AFTER_SIGNAL):
            state.outcome = Outcome.COMMITTED
            return
        _drop(server, staging, state, emit, SECONDS_TO_CONNECT_AFTER_SIGNAL)
        state.outcome = Outcome.NOTHING
        raise


def _run_to_its_end(
    session: Connection[tuple[Any, ...]], create: sql.Composed, runtime: Runtime
) -> None:
    """Create a database although a signal comes meanwhile.

    The server would finish a statement that was cut off, after its database was to be dropped.
    Raises Interrupted if a signal came.
    """
    with runtime.interruption.defer_signals():
        session.execute(create)
    runtime.interruption.raise_if_interrupted()


def _drop(
    server: Server,
    staging: str,
    state: TargetState,
    emit: Emit,
    seconds: float = SECONDS_TO_CONNECT,
) -> None:
    state.leftover = staging
    if drop(server, staging, emit, seconds=seconds):
        state.leftover = ""


def _rename(server: Server, staging: str, name: str, state: TargetState, runtime: Runtime) -> None:
    """Rename a staging database; if the answer is lost, find out whether it was renamed."""
    rename = sql.SQL("ALTER DATABASE {} RENAME TO {}").format(
        sql.Identifier(staging), sql.Identifier(name)
    )
    swap = None
    if state.replaced is not None:
        swap = replacement.Swap(name, staging, state.replaced, runtime.now())
    try:
        with connected(server) as session:
            if session.execute(_IS_MARKED, [INCOMPLETE, staging]).fetchone() == (True,):
                session.execute(_comment(staging, None))
            if state.mark:
                mark = marks.refused(state.mark) if state.refused else state.mark
                session.execute(marks.statement(staging, mark))
        if swap:
            replacement.run(server, swap, state)
        else:
            when_unused(server, staging, rename)
    except (psycopg.Error, TargetLostError, TargetDatabaseError) as error:
        if not _renamed(server, staging, name, SECONDS_TO_CONNECT):
            state.outcome = Outcome.UNNAMED
            if swap:
                raise replacement.failed(swap, error) from error
            raise TargetDatabaseError(
                f"the restored database cannot be renamed to {name}: {said(error)}",
                hint=f"The database is complete, and is called {staging}. When no session is "
                f"connected to it, rename it by {rename.as_string()}",
            ) from error
    state.outcome = Outcome.COMMITTED


def _renamed(server: Server, staging: str, name: str, seconds: float) -> bool:
    """Return whether a database was renamed. Raises TargetDatabaseError if the server is gone."""
    query = "SELECT datname FROM pg_catalog.pg_database WHERE datname IN (%s, %s)"
    try:
        with connected(server, seconds=seconds) as session:
            there = {found for (found,) in session.execute(query, [staging, name]).fetchall()}
    except (psycopg.Error, TargetLostError) as error:
        raise TargetDatabaseError(
            f"cannot find out whether the restored database was renamed to {name}: {said(error)}",
            hint=f"Check whether there is a database {name}, or {staging}: either is complete.",
        ) from error
    return name in there and staging not in there


def _staging_name(name: str) -> str:
    return beginning(name) + secrets.token_hex(_MARK_BYTES)


def beginning(name: str) -> str:
    """Return what the names of the staging databases for a database begin with."""
    mark = "_pgstash_"
    room = LONGEST_NAME - len(mark) - 2 * _MARK_BYTES
    return name.encode()[:room].decode(errors="ignore") + mark


def _warn_of_earlier(session: Connection[tuple[Any, ...]], name: str, emit: Emit) -> None:
    """Warn of staging databases that other restores to this name left, or are restoring into."""
    asked = {"begin": beginning(name), "incomplete": INCOMPLETE}
    for found, incomplete in session.execute(_EARLIER, asked).fetchall():
        what = (
            "is incomplete: a restore into it is running, or was killed"
            if incomplete
            else "is not marked as incomplete: a restore may have kept it because it is complete"
        )
        drop_it = sql.SQL("DROP DATABASE {}").format(sql.Identifier(found)).as_string()
        emit(Warned(f"The database {found} {what}. If no restore is running, drop it by {drop_it}"))


def _comment(name: str, text: str | None) -> sql.Composed:
    return sql.SQL(_COMMENT).format(sql.Identifier(name), sql.Literal(text))
