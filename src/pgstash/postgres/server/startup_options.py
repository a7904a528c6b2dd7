"""Whether a pooler passes on ``options``, the startup parameter that carries settings."""

from __future__ import annotations

import secrets
from collections.abc import Mapping

import psycopg

from pgstash.errors import DatabaseLoginError, DatabaseUnreachableError, PoolerError
from pgstash.postgres.server.connection import Connection, Server
from pgstash.postgres.server.session import Row, Session

_TOKEN_BYTES = 8
_OPTION = "pgstash.passed_on"
_HINT = (
    "Connect to the server itself. With ignore_startup_parameters = options PgBouncer would accept "
    "the login, but lose the settings."
)


def passed_on(server: Server) -> bool:
    """Return whether settings in ``options`` reach the server. Raises DatabaseError."""
    if not server.pooled:
        return True
    token = secrets.token_hex(_TOKEN_BYTES)
    connection = server.connection.with_options(f"-c {_OPTION}={token}")
    query = f"SELECT pg_catalog.current_setting('{_OPTION}', true)"
    try:
        [[found]] = _asked(connection, query)
    except PoolerError:
        return False
    return found == token.encode()


def refuse_lost(connection: Connection, wanted: Mapping[str, str]) -> None:
    """Raise PoolerError if a pooler does not pass on the settings ``wanted`` of the connection.

    They are in its ``options``: client tools take settings in no other way.
    """
    names = ", ".join(wanted)
    query = (
        "SELECT name, setting FROM pg_catalog.pg_settings"  # noqa: S608 - names of ours
        f" WHERE name = ANY ('{{{names}}}')"
    )
    try:
        found = dict(map(_pair, _asked(connection, query)))
    except PoolerError as error:
        raise PoolerError(error.message, hint=_hint_for(wanted)) from error
    lost = [name for name, value in wanted.items() if found.get(name.encode()) != value.encode()]
    if lost:
        raise PoolerError(
            "the pooler in between ignores the startup parameter options, in which pgstash sets "
            f"{', '.join(lost)}",
            hint=_hint_for(wanted),
        )


def refused(reason: str) -> PoolerError:
    """Return the error for a pooler that accepts a login, but not with ``options``."""
    return PoolerError(
        f"the pooler in between does not pass on the startup parameter options: {reason}",
        hint=_HINT,
    )


def _asked(connection: Connection, query: str) -> list[Row]:
    """Ask in a session with ``options``; raise PoolerError if the login succeeds only without."""
    try:
        with Session(connection) as session:
            return session.ask(query)
    except DatabaseLoginError as error:
        Session(connection, options="").close()
        raise refused(error.message) from error
    except psycopg.Error as error:
        raise DatabaseUnreachableError(f"the connection was lost: {error}") from error


def _pair(row: Row) -> tuple[bytes | None, bytes | None]:
    name, value = row
    return name, value


def _hint_for(wanted: Mapping[str, str]) -> str:
    statements = "; ".join(
        f"ALTER ROLE … IN DATABASE … SET {name} = '{value}'" for name, value in wanted.items()
    )
    return (
        "Connect to the server itself. Or set what a dump needs for the role that pgstash logs in "
        f"with, and make the pooler log in again (PgBouncer: RECONNECT): {statements}."
    )
