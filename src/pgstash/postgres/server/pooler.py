"""Detects a connection pooler in between, and whether it keeps one session for each login.

pg_dump, psql and pgstash change settings of their session, and rely on them until it ends. A pooler
that gives a login another session of the server for each transaction, or each statement, loses
these settings, and leaves them to the applications that get the session next. So pgstash detects it
before it sets anything, by statements that change nothing: which server process answers?
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable

import psycopg
from psycopg import pq

from pgstash.errors import (
    DatabaseError,
    DatabaseUnreachableError,
    PoolerError,
    PoolTooSmallError,
)
from pgstash.events import Emit, Warned
from pgstash.postgres.server import time_limits
from pgstash.postgres.server.connection import Connection, Server
from pgstash.postgres.server.session import NotAnsweredError, Row, Session, answer, ask

_PID = "SELECT pg_catalog.pg_backend_pid()"
# The isolation level is given, because with another default the query may have to wait.
_BEGIN = f"BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY; {_PID}"
_COMMIT = "COMMIT"

# Which login begins first and which ends first, round by round: a pooler may hand out the session
# that was used last, the one that was idle longest, or any.
_ROUNDS = (("ab", "ab"), ("ba", "ab"), ("ab", "ba"), ("ba", "ba")) * 2

_TOKEN_BYTES = 8
_MARK = "pgstash.session"


def between(pgconn: pq.abc.PGconn) -> bool:
    """Return whether something other than the server answered a login.

    At the login a server names the process that serves the session (BackendKeyData in
    https://www.postgresql.org/docs/current/protocol-message-formats.html). A pooler names a number
    of its own, because it handles cancel requests itself. A proxy that only forwards bytes changes
    nothing, and is not a pooler. Raises DatabaseUnreachableError.
    """
    return pgconn.backend_pid != _Login(pgconn).pid()


def refuse_swapping(
    pgconn: pq.abc.PGconn, connection: Connection, seconds: float = time_limits.POOLED_SESSION
) -> None:
    """Raise PoolerError if a pooler swaps sessions; ``connection`` leads to the same pooler.

    Nothing is set in any session. Raises PoolTooSmallError if a second login gets no session within
    ``seconds``, another DatabaseError if the pooler refuses a second login or the connection is
    lost.
    """
    first = _Login(pgconn)
    try:
        first.begin(seconds)
    except NotAnsweredError as error:
        raise _too_small(1, seconds) from error
    except DatabaseUnreachableError as error:
        _refuse_statement_pooling(connection, seconds)
        raise error from error.__cause__
    first.end()
    with Session(connection) as session:
        second = _Login(session.pgconn)
        try:
            second.begin(seconds)
        except NotAnsweredError as error:
            raise _why_not_answered(first, seconds) from error
        second.end()
        _compare(first, second)
        for begins, ends in _ROUNDS:
            one, other = (first, second) if begins == "ab" else (second, first)
            try:
                _begin_both(one, other, seconds)
            except NotAnsweredError as error:
                raise _too_small(2, seconds) from error
            for login in (first, second) if ends == "ab" else (second, first):
                login.end()
            _compare(first, second)


def refuse_swapping_again(server: Server, emit: Emit) -> None:
    """Raise PoolerError if a pooler now swaps sessions; warn if pgstash cannot find out.

    Call it at the end of an operation: the pooler did not swap at its beginning. Every session of
    pgstash itself is checked until its end, but not those of client tools.
    """
    if not server.pooled:
        return
    try:
        with Session(server.connection) as session:
            refuse_swapping(session.pgconn, server.connection)
    except PoolerError:
        raise
    except DatabaseError as error:
        emit(Warned(f"Could not check whether the pooler still pools by session: {error}"))


def swapped(what: str) -> PoolerError:
    """Return the error for a login that has got another session of the server."""
    return PoolerError(f"a pooler in between swapped the server's session under {what}")


class Kept:
    """A login that must keep its session of the server, with its settings, to the end."""

    def __init__(self, pgconn: pq.abc.PGconn, what: str) -> None:
        """Set a random mark; ``what`` the session is for is used in messages.

        Raises psycopg.Error.
        """
        self._pgconn = pgconn
        self._what = what
        self._token = secrets.token_hex(_TOKEN_BYTES)
        [[self._pid, _]] = self._asked(f"{mark(self._token)};")

    def check(self) -> None:
        """Raise PoolerError if it is another session, or has lost its settings.

        A lost connection is no error here: its user notices.
        """
        # Twice, in a transaction each: one may get the same session by chance.
        for _ in range(2):
            try:
                [[pid, marked]] = self._asked("")
            except psycopg.Error:
                return
            if pid != self._pid or marked != b"t":
                raise swapped(self._what)

    def _asked(self, before: str) -> list[Row]:
        query = f"{before} {_PID}, {has_mark(self._token)}"
        return ask(self._pgconn, query.encode(), time_limits.ANSWER)


def mark(token: str) -> str:
    """Return the statement that sets a mark, by which a session is recognised."""
    return f"SET {_MARK} = '{token}'"


def has_mark(token: str) -> str:
    """Return the condition, true or false, that a session has the mark of :func:`mark`."""
    found = f"pg_catalog.current_setting('{_MARK}', true)"
    return f"coalesce({found} OPERATOR(pg_catalog.=) '{token}', false)"


class _Login:
    """One login, and the server processes that have answered it."""

    def __init__(self, pgconn: pq.abc.PGconn) -> None:
        self._pgconn = pgconn
        self.pids: set[int] = set()

    def pid(self) -> int:
        """Return the ID of the process that answers now. Raises DatabaseUnreachableError."""
        try:
            return self._answered(ask, _PID.encode(), time_limits.ANSWER)
        except NotAnsweredError as error:
            raise DatabaseUnreachableError(
                f"the database does not answer within {time_limits.ANSWER} s"
            ) from error

    def begin(self, seconds: float) -> None:
        """Begin a transaction, and note the process. Raises NotAnsweredError."""
        self.pids.add(self._answered(ask, _BEGIN.encode(), seconds))

    def begin_at_last(self, seconds: float) -> None:
        """Wait again for the transaction to begin. Raises NotAnsweredError."""
        self.pids.add(self._answered(answer, seconds))

    def end(self) -> None:
        """End the transaction. Raises DatabaseUnreachableError."""
        with contextlib.suppress(NotAnsweredError):  # only the next query waits for it
            self._answered(ask, _COMMIT.encode(), time_limits.ANSWER)

    def _answered(self, way: Callable[..., list[Row]], *given: bytes | float) -> int:
        try:
            rows = way(self._pgconn, *given)
        except NotAnsweredError:
            raise
        except psycopg.Error as error:
            raise DatabaseUnreachableError(
                f"the session was ended: {' '.join(str(error).split())}"
            ) from error
        return int(rows[0][0] or b"0") if rows else 0


def _begin_both(first: _Login, second: _Login, seconds: float) -> None:
    """Begin a transaction in one login, then in another one that has had a session before."""
    first.begin(seconds)
    try:
        second.begin(seconds)
    except NotAnsweredError:
        first.end()
        second.begin_at_last(seconds)
        second.end()
        raise PoolerError(
            "a pooler in between swaps sessions: one login got a session only after the "
            "transaction of another login had ended"
        ) from None


def _compare(first: _Login, second: _Login) -> None:
    """Raise PoolerError if several processes answered one login, or one process both logins."""
    if len(first.pids) > 1 or len(second.pids) > 1 or first.pids & second.pids:
        raise PoolerError(
            "a pooler in between swaps sessions: it gives each transaction another session of the "
            "server"
        )


def _refuse_statement_pooling(connection: Connection, seconds: float) -> None:
    """Raise PoolerError if a pooler ends a new login, too, when a transaction begins."""
    with Session(connection) as session:
        login = _Login(session.pgconn)
        login.pid()
        try:
            with contextlib.suppress(NotAnsweredError):
                login.begin(seconds)
        except DatabaseUnreachableError as error:
            raise PoolerError(
                "a pooler in between allows no transaction of several statements, as if it gave "
                f"each statement another session of the server: {error}"
            ) from error


def _why_not_answered(first: _Login, seconds: float) -> DatabaseError:
    """Return the error for a second login that gets no session while the first one is idle."""
    try:
        first.begin(seconds)
    except NotAnsweredError:
        return _too_small(1, seconds)
    first.end()
    return _too_small(2, seconds)


def _too_small(number: int, seconds: float) -> PoolTooSmallError:
    which = {1: "the first login", 2: "a second login"}[number]
    return PoolTooSmallError(
        f"the pooler in between gave {which} no session of the server within {seconds:.0f} s"
    )
