"""A session beside the dump, to ask the server about itself."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import psycopg

from pgstash.errors import DatabaseLoginError, DatabaseUnreachableError, RoleRefusedError
from pgstash.postgres import source
from pgstash.postgres.source import Server

_SECONDS_TO_CONNECT = 10
_SECONDS_TO_ANSWER = 60
_MAY_NOT = "42501"

Session = psycopg.Connection[tuple[Any, ...]]


@contextlib.contextmanager
def opened(server: Server, role: str | None = None) -> Iterator[Session]:
    """Open a session with the server that was looked at; text arrives in it as bytes.

    It takes this ``role``, if any. Raises DatabaseUnreachableError where it breaks,
    DatabaseLoginError where a question is refused, RoleRefusedError.
    """
    try:
        with source.connect_again(server, _SECONDS_TO_CONNECT) as session:
            session.execute(f"SET statement_timeout = '{_SECONDS_TO_ANSWER}s'")
            if role is not None:
                take(role, server, session.execute)
            yield session
    except psycopg.errors.QueryCanceled as error:
        raise DatabaseUnreachableError(
            f"the database does not answer within {_SECONDS_TO_ANSWER} s"
        ) from error
    except psycopg.OperationalError as error:
        raise DatabaseUnreachableError(f"the connection was lost: {error}") from error
    except psycopg.Error as error:
        raise DatabaseLoginError(
            f"the database does not answer as expected: {error}",
            hint="Look into the server's log.",
        ) from error


def take(role: str, server: Server, execute: Callable[[bytes], object]) -> None:
    """Let a session that ``execute`` speaks to take a role. Raises RoleRefusedError."""
    try:
        execute(taking(role, server))
    except psycopg.Error as error:
        if error.sqlstate is None:  # the session is lost
            raise
        reason = " ".join(str(error).split())
        hint = ""
        if error.sqlstate == _MAY_NOT:
            user = server.connection.parameters.get("user", "the login")
            hint = f'GRANT "{role}" TO "{user}"; or leave --role out of PG_DUMP_EXTRA_ARGS.'
        raise RoleRefusedError(f"the role {role} cannot be taken: {reason}", hint=hint) from error


def taking(role: str, server: Server) -> bytes:
    """Return the statement by which a session takes a role.

    Raises RoleRefusedError where no role can have this name.
    """
    try:
        name = role.encode(server.codec, "surrogateescape")
    except UnicodeEncodeError as error:
        raise RoleRefusedError(
            f"the role {role} cannot be taken: the encoding of the database, "
            f"{server.database.encoding}, lacks a character of its name"
        ) from error
    return b'SET ROLE "' + name.replace(b'"', b'""') + b'"'


def text(value: bytes, server: Server) -> str:
    """Return text of the database's encoding; what cannot be decoded is shown as escapes."""
    return value.decode(server.codec, "backslashreplace")
