"""A session beside the dump, to ask the server about itself."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import psycopg

from pgstash.errors import DatabaseLoginError, DatabaseUnreachableError
from pgstash.postgres import source
from pgstash.postgres.source import Server

_SECONDS_TO_CONNECT = 10
_SECONDS_TO_ANSWER = 60

Session = psycopg.Connection[tuple[Any, ...]]


@contextlib.contextmanager
def opened(server: Server, role: str | None = None) -> Iterator[Session]:
    """Open a session with the server that was looked at; text arrives in it as bytes.

    It takes this ``role``, if any. Raises DatabaseUnreachableError where it breaks,
    DatabaseLoginError where a question is refused.
    """
    try:
        with source.connect_again(server, _SECONDS_TO_CONNECT) as session:
            session.execute(f"SET statement_timeout = '{_SECONDS_TO_ANSWER}s'")
            if role is not None:
                session.execute(taking(role, server))
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


def taking(role: str, server: Server) -> bytes:
    """Return the statement by which a session takes a role."""
    return b'SET ROLE "' + role.encode(server.codec).replace(b'"', b'""') + b'"'


def text(value: bytes, server: Server) -> str:
    """Return text of the database's encoding; what cannot be decoded is shown as escapes."""
    return value.decode(server.codec, "backslashreplace")
