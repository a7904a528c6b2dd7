"""The one way to ask a server that pgstash has logged in to before.

Every session here has an empty ``search_path``: with that, nothing that a user of the database has
defined can shadow a built-in. It has time limits of pgstash: those that are set for the role or the
database do not apply. Names arrive as they are stored. If a pooler swaps the session while it is in
use, that is an error. There are two kinds of sessions:

- :func:`opened` and :func:`connected` use psycopg, which fills in parameters and converts values,
  but connects to no database whose name is not UTF-8.
- :func:`asking` uses libpq alone, for any database; it returns text as bytes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import psycopg

from pgstash.errors import (
    DatabaseError,
    DatabaseLoginError,
    DatabaseUnreachableError,
    RoleRefusedError,
)
from pgstash.postgres.server import pooler, time_limits
from pgstash.postgres.server.connection import Server
from pgstash.postgres.server.quoting import identifier
from pgstash.postgres.server.session import NotAnsweredError, Row, Session

Connection = psycopg.Connection[tuple[Any, ...]]
"""A session of psycopg's."""

Ask = Callable[[str | bytes], list[Row]]
"""Runs statements as one message, and returns the rows of the last one. Raises psycopg.Error."""

EMPTY_SEARCH_PATH = "SET search_path = ''"
UNDISTURBED = f"SET statement_timeout = 0; SET lock_timeout = 0; {EMPTY_SEARCH_PATH}"
"""The first statements of a session: no time limit that is set for a role or a database ends it."""

_QUERY = "a query to the database"
_MAY_NOT = "42501"
_CANCELED = "57014"
_FIRST_WITH_TRANSACTION_TIMEOUT = 17


@contextlib.contextmanager
def connected(
    server: Server,
    encoding: str = "SQL_ASCII",
    *,
    seconds: float = time_limits.CONNECT,
    purpose: str = _QUERY,
    settings: str = "",
) -> Iterator[Connection]:
    """Log in by psycopg to the server and database that answered before; yield the session.

    With the encoding SQL_ASCII text arrives as bytes, as it is stored. The login takes at most
    ``seconds``. ``settings`` are more statements for the session; ``purpose`` names it in messages.
    Raises psycopg.Error, PoolerError if a pooler swapped the session, and UnicodeError if the name
    of the database is not UTF-8.
    """
    parameters = {
        **server.connection.parameters,
        **server.connection.secrets_of_login(),
        "client_encoding": encoding,
        "connect_timeout": f"{seconds:.0f}",
    }
    # mypy compares these strings with the types of all other arguments, such as context.
    with psycopg.connect("", autocommit=True, **parameters) as session:  # type: ignore[arg-type]
        kept = pooler.Kept(session.pgconn, purpose)
        session.execute(f"{UNDISTURBED}; {settings}".encode())
        yield session
        kept.check()


@contextlib.contextmanager
def opened(
    server: Server,
    wanted: str,
    role: str | None = None,
    *,
    connect_seconds: int = time_limits.CONNECT,
    answer_seconds: int = time_limits.ANSWER,
) -> Iterator[Connection]:
    """Log in by psycopg, and set this ``role``, if any; text arrives as bytes.

    ``wanted`` names in messages what is asked for. Raises what :func:`failure` returns,
    RoleRefusedError, PoolerError, and UnicodeError if the name of the database is not UTF-8.
    """
    limit = f"SET statement_timeout = '{answer_seconds}s'"
    try:
        with connected(server, seconds=connect_seconds, settings=limit) as session:
            if role is not None:
                take(role, server, session.execute)
            yield session
    except psycopg.Error as error:
        raise failure(error, wanted, answer_seconds) from error


@contextlib.contextmanager
def asking(
    server: Server,
    wanted: str,
    role: str | None = None,
    *,
    settings: str = "",
    answer_seconds: float = time_limits.ANSWER,
) -> Iterator[Ask]:
    """Log in by libpq alone, set this ``role``, if any, and yield the function that asks.

    ``settings`` are more statements for the session; ``wanted`` names in messages what is asked
    for. Raises DatabaseUnreachableError if a query fails or is not answered in time,
    DatabaseLoginError if the login is refused, RoleRefusedError, PoolerError.
    """
    with Session(server.connection) as session:

        def ask(statements: str | bytes) -> list[Row]:
            return session.ask(statements, answer_seconds)

        try:
            kept = pooler.Kept(session.pgconn, _QUERY)
            ask(f"{UNDISTURBED}; {settings}")
            if role is not None:
                take(role, server, ask)
            yield ask
            kept.check()
        except psycopg.Error as error:
            raise failure(error, wanted, answer_seconds) from error


def failure(
    error: psycopg.Error, wanted: str, answer_seconds: float = time_limits.ANSWER
) -> DatabaseError:
    """Return the error for a failed query; ``wanted`` is what it asked for, in words.

    DatabaseLoginError if the server refused the query, as psycopg reports it.
    DatabaseUnreachableError, which is retryable, for a lost session, a time limit, and every error
    of a session by libpq alone.
    """
    reason = " ".join(str(error).split())
    if error.sqlstate == _CANCELED or isinstance(error, NotAnsweredError):
        return DatabaseUnreachableError(
            f"the database did not report {wanted} within {answer_seconds:.0f} s"
        )
    if error.sqlstate is None and isinstance(error, psycopg.OperationalError):
        return DatabaseUnreachableError(f"the connection was lost: {reason}")
    kind = (
        DatabaseUnreachableError
        if isinstance(error, psycopg.OperationalError)
        else DatabaseLoginError
    )
    return kind(f"the database did not report {wanted}: {reason}", hint="Check the server's log.")


def begin(server_major: int, isolation: str, more: Mapping[str, str] | None = None) -> str:
    """Return the statements that begin a read-only transaction, which may last for hours.

    No timeout that is set for the role or the database ends it, and its ``search_path`` is empty.
    ``more`` are other settings. They all last for the transaction only.
    """
    settings = {
        "search_path": "''",
        "statement_timeout": "0",
        "lock_timeout": "0",
        "idle_in_transaction_session_timeout": "0",
        **(more or {}),
    }
    if server_major >= _FIRST_WITH_TRANSACTION_TIMEOUT:
        settings["transaction_timeout"] = "0"
    made = [f"SET LOCAL {name} = {value}" for name, value in settings.items()]
    return "; ".join([f"BEGIN ISOLATION LEVEL {isolation} READ ONLY", *made])


def take(role: str, server: Server, execute: Callable[[bytes], object]) -> None:
    """Set the role of the session that ``execute`` runs statements in. Raises RoleRefusedError."""
    try:
        execute(taking(role, server))
    except psycopg.Error as error:
        if error.sqlstate is None:  # the session is lost
            raise
        reason = " ".join(str(error).split())
        hint = ""
        if error.sqlstate == _MAY_NOT:
            user = server.connection.parameters.get("user", "the login")
            grant = f"GRANT {identifier(role)} TO {identifier(user)};"
            hint = f"{grant} or remove --role from PG_DUMP_EXTRA_ARGS."
        raise RoleRefusedError(f"the role {role} cannot be taken: {reason}", hint=hint) from error


def taking(role: str, server: Server) -> bytes:
    """Return the statement that sets a role.

    Raises RoleRefusedError if no role can have this name.
    """
    try:
        name = role.encode(server.codec, "surrogateescape")
    except UnicodeEncodeError as error:
        raise RoleRefusedError(
            f"the role {role} cannot be taken: the encoding of the database, "
            f"{server.database.encoding}, lacks a character of its name"
        ) from error
    return b"SET ROLE " + identifier(name)


def text(value: bytes | None, server: Server) -> str:
    """Return text of the database's encoding; what cannot be decoded is shown as escapes."""
    return (value or b"").decode(server.codec, "backslashreplace")


def name(value: bytes | None, server: Server) -> str:
    """Return a name as text that becomes the same bytes again, in the database's encoding."""
    return (value or b"").decode(server.codec, "surrogateescape")
