"""Drops a database that pgstash created, whatever sessions and subscriptions it has by now."""

from __future__ import annotations

import contextlib
import time
from typing import Any

import psycopg
from psycopg import sql

from pgstash.errors import Interrupted, TargetLostError
from pgstash.events import Emit, Warned
from pgstash.postgres.restore.target import SECONDS_TO_CONNECT, connected, seen_from
from pgstash.postgres.server.connection import Server

SECONDS_TO_CONNECT_AFTER_SIGNAL = 2.0
"""How long a server may take to answer after a signal: the sender soon follows with SIGKILL."""

_SECONDS_FOR_OTHERS_TO_LEAVE = 20.0
_SECONDS_BETWEEN_TRIES = 0.2

_SUBSCRIPTIONS = (
    "SELECT subname FROM pg_catalog.pg_subscription"
    " JOIN pg_catalog.pg_database d ON d.oid = subdbid WHERE datname = %s"
)
_SESSIONS = (
    "SELECT pid FROM pg_catalog.pg_stat_activity"
    " WHERE datname = %s"
    # A role that may end the sessions of others is not always shown their type.
    " AND coalesce(backend_type, 'client backend') = 'client backend'"
)
_UNSUBSCRIBE = (
    sql.SQL("ALTER SUBSCRIPTION {} DISABLE"),
    sql.SQL("ALTER SUBSCRIPTION {} SET (slot_name = NONE)"),
    sql.SQL("DROP SUBSCRIPTION {}"),
)


def drop(server: Server, name: str, emit: Emit, *, seconds: float = SECONDS_TO_CONNECT) -> bool:
    """Drop a database of ours, and end all sessions in it; if that fails, warn and return False.

    ``seconds`` is how long the server may take to answer. Unless that is for haste, an unreachable
    server is tried again: it does not answer for a moment after one of its processes was killed.
    Raises Interrupted.
    """
    patience = _SECONDS_FOR_OTHERS_TO_LEAVE if seconds >= SECONDS_TO_CONNECT else 0.0
    try:
        _drop(server, name, seconds, time.monotonic() + patience)
    except (psycopg.Error, TargetLostError, Interrupted) as error:
        emit(Warned(f"The database {name} could not be dropped: drop it yourself. {error}"))
        if isinstance(error, Interrupted):
            raise
        return False
    return True


def _drop(server: Server, name: str, seconds: float, give_up: float) -> None:
    statement = sql.SQL("DROP DATABASE IF EXISTS {}").format(sql.Identifier(name))
    while True:
        try:
            _unsubscribe(server, name, seconds)
            when_unused(server, name, statement, seconds)
        except (psycopg.OperationalError, TargetLostError):
            if time.monotonic() > give_up:
                raise
            time.sleep(_SECONDS_BETWEEN_TRIES)
        else:
            return


def _unsubscribe(server: Server, name: str, seconds: float) -> None:
    """Drop the subscriptions of a database of ours, which cannot be dropped while it has any.

    The publisher is not contacted: its slot of that name belongs to the source.
    """
    with connected(server, seconds=seconds) as session:
        subscriptions = session.execute(_SUBSCRIPTIONS, [name]).fetchall()
    if not subscriptions:
        return
    with connected(seen_from(server, name)) as session:
        for (subscription,) in subscriptions:
            for statement in _UNSUBSCRIBE:
                session.execute(statement.format(sql.Identifier(subscription)))


def when_unused(
    server: Server, name: str, statement: sql.Composed, seconds: float = SECONDS_TO_CONNECT
) -> None:
    """Execute a statement that needs a database without sessions; end the sessions in it.

    A session whose client was killed may go on with its statement for hours. Others, such as
    monitoring that connects to every database, have no business in it yet.
    """
    give_up = time.monotonic() + _SECONDS_FOR_OTHERS_TO_LEAVE
    with connected(server, seconds=seconds) as session:
        while True:
            _end_sessions(session, name)
            try:
                session.execute(statement)
            except psycopg.errors.ObjectInUse:
                if time.monotonic() > give_up:
                    raise
                time.sleep(_SECONDS_BETWEEN_TRIES)
            else:
                return


def _end_sessions(session: psycopg.Connection[tuple[Any, ...]], database: str) -> None:
    """End those sessions in a database that the login, or the role that it sets, may end."""
    for role in ("SET ROLE NONE", "RESET ROLE"):
        session.execute(role)
        for (pid,) in session.execute(_SESSIONS, [database]).fetchall():
            with contextlib.suppress(psycopg.errors.InsufficientPrivilege):
                session.execute("SELECT pg_catalog.pg_terminate_backend(%s)", [pid])
