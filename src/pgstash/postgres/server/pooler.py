"""Finds a connection pooler in between, and whether it keeps one session for each login.

pg_dump, psql and pgstash make settings for their session, and rely on them until it ends. A pooler
that gives a login another session of the server for each transaction, or each statement, loses
these settings, and leaves them to the applications that get the session next. So it is found out
before anything is set, by statements that change nothing: which process of the server answers.
"""

from __future__ import annotations

import contextlib
import secrets
from typing import TYPE_CHECKING

import psycopg
from psycopg import pq

from pgstash.errors import (
    DatabaseError,
    DatabaseLoginError,
    DatabaseUnreachableError,
    PoolerError,
    PoolTooSmallError,
)
from pgstash.events import Emit, Warned
from pgstash.postgres.session import NotAnsweredError, Row, Session, answer, ask

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pgstash.postgres.source import Connection, Server

_PID = "SELECT pg_catalog.pg_backend_pid()"
# Not as a planted default says, by which a question may have to wait.
_BEGIN = f"BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY; {_PID}"
_COMMIT = "COMMIT"

_SECONDS_TO_ANSWER = 60.0
_SECONDS_FOR_A_SESSION = 20.0

# Who begins first and who ends first, in turn: the pooler hands out the session that was used last,
# or the one that rested longest, or any.
_ROUNDS = (("ab", "ab"), ("ba", "ab"), ("ab", "ba"), ("ba", "ba")) * 2

_TOKEN_BYTES = 8
_MARK = "pgstash.session"

_OPTION = "pgstash.passed_on"
_OPTIONS_HINT = (
    "Connect to the server itself. With ignore_startup_parameters = options PgBouncer would let "
    "the login in, and lose the settings."
)


def between(pgconn: pq.abc.PGconn) -> bool:
    """Tell whether something else than the server answered a login.

    At the login a server names the process that serves the session (BackendKeyData in
    https://www.postgresql.org/docs/current/protocol-message-formats.html), and a pooler names
    something of its own, since it handles cancel requests itself. What only forwards bytes changes
    nothing, and is no pooler. Raises DatabaseUnreachableError.
    """
    return pgconn.backend_pid != _Login(pgconn).pid()


def refuse_swapping(
    pgconn: pq.abc.PGconn, connection: Connection, seconds: float = _SECONDS_FOR_A_SESSION
) -> None:
    """Raise PoolerError if a pooler swaps sessions; ``connection`` leads to the same pooler.

    Nothing is set in any session. Raises PoolTooSmallError if a second login gets no session within
    ``seconds``, another DatabaseError if the pooler refuses a second login or is lost.
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
    with contextlib.closing(Session(connection, client_encoding="SQL_ASCII")) as session:
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
    """Raise PoolerError if a pooler swaps sessions by now; warn if that cannot be found out.

    For the end of an operation that began when it did not: every session of ours has been the same
    from its beginning to its end, those of client tools we do not see.
    """
    if not server.pooled:
        return
    try:
        with contextlib.closing(Session(server.connection, client_encoding="SQL_ASCII")) as session:
            refuse_swapping(session.pgconn, server.connection)
    except PoolerError:
        raise
    except DatabaseError as error:
        emit(Warned(f"Could not check whether the pooler still pools by session: {error}"))


def refuse_lost_options(connection: Connection, wanted: Mapping[str, str]) -> None:
    """Raise PoolerError if a pooler does not pass on the settings ``wanted`` of the connection.

    They are in its ``options``: client tools can be given them in no other way.
    """
    names = ", ".join(wanted)
    query = (
        "SELECT name, setting FROM pg_catalog.pg_settings"  # noqa: S608 - names of ours
        f" WHERE name = ANY ('{{{names}}}')"
    )
    try:
        found = dict(map(_pair, _asked_with_options(connection, query)))
    except PoolerError as error:
        raise PoolerError(error.message, hint=_hint_of_planted(wanted)) from error
    lost = [name for name, value in wanted.items() if found.get(name.encode()) != value.encode()]
    if lost:
        raise PoolerError(
            "the pooler in between ignores the startup parameter options, by which pgstash sets "
            f"{', '.join(lost)}",
            hint=_hint_of_planted(wanted),
        )


def passes_options_on(server: Server) -> bool:
    """Tell whether settings in ``options`` reach the server. Raises DatabaseError."""
    if not server.pooled:
        return True
    token = secrets.token_hex(_TOKEN_BYTES)
    connection = server.connection.with_options(f"-c {_OPTION}={token}")
    query = f"SELECT pg_catalog.current_setting('{_OPTION}', true)"
    try:
        [[found]] = _asked_with_options(connection, query)
    except PoolerError:
        return False
    return found == token.encode()


def refused_options(reason: str) -> PoolerError:
    """Return the error for a pooler that lets a login in, but not with ``options``."""
    return PoolerError(
        f"the pooler in between does not pass on the startup parameter options: {reason}",
        hint=_OPTIONS_HINT,
    )


def swapped(what: str) -> PoolerError:
    """Return the error for a session of the server that is another one by now."""
    return PoolerError(f"a pooler in between swapped the server's session under {what}")


class Kept:
    """A session that has to be the same session of the server to its end, with its settings."""

    def __init__(self, pgconn: pq.abc.PGconn, what: str) -> None:
        """Make a setting of our own that nobody else has; ``what`` the session is for, in words.

        Raises psycopg.Error.
        """
        self._pgconn = pgconn
        self._what = what
        self._token = secrets.token_hex(_TOKEN_BYTES)
        [[self._pid, _]] = self._asked(f"{mark(self._token)};")

    def check(self) -> None:
        """Raise PoolerError if it is another session, or has lost its settings.

        A session that is lost altogether is none that was swapped: whoever uses it notices.
        """
        # Twice, each a transaction of its own: one may come to the same session by chance.
        for _ in range(2):
            try:
                [[pid, marked]] = self._asked("")
            except psycopg.Error:
                return
            if pid != self._pid or marked != b"t":
                raise swapped(self._what)

    def _asked(self, before: str) -> list[Row]:
        query = f"{before} {_PID}, {has_mark(self._token)}"
        return ask(self._pgconn, query.encode(), _SECONDS_TO_ANSWER)


def mark(token: str) -> str:
    """Return the statement that makes a setting of our own, by which a session is recognised."""
    return f"SET {_MARK} = '{token}'"


def has_mark(token: str) -> str:
    """Return the condition that a session has what :func:`mark` has set, true or false."""
    found = f"pg_catalog.current_setting('{_MARK}', true)"
    return f"coalesce({found} OPERATOR(pg_catalog.=) '{token}', false)"


class _Login:
    """One login, and the processes of the server that have answered it."""

    def __init__(self, pgconn: pq.abc.PGconn) -> None:
        self._pgconn = pgconn
        self.pids: set[int] = set()

    def pid(self) -> int:
        """Return the process that answers now. Raises DatabaseUnreachableError."""
        try:
            return self._answered(ask, _PID.encode(), _SECONDS_TO_ANSWER)
        except NotAnsweredError as error:
            raise DatabaseUnreachableError(
                f"the database does not answer within {_SECONDS_TO_ANSWER:.0f} s"
            ) from error

    def begin(self, seconds: float) -> None:
        """Begin a transaction, and note the process. Raises NotAnsweredError."""
        self.pids.add(self._answered(ask, _BEGIN.encode(), seconds))

    def begin_at_last(self, seconds: float) -> None:
        """Wait again for the beginning of a transaction. Raises NotAnsweredError."""
        self.pids.add(self._answered(answer, seconds))

    def end(self) -> None:
        """End the transaction. Raises DatabaseUnreachableError."""
        with contextlib.suppress(NotAnsweredError):  # nothing waits for it but the next question
            self._answered(ask, _COMMIT.encode(), _SECONDS_TO_ANSWER)

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
    """Begin a transaction in one login, then in another one, that had a session before."""
    first.begin(seconds)
    try:
        second.begin(seconds)
    except NotAnsweredError:
        first.end()
        second.begin_at_last(seconds)
        second.end()
        raise PoolerError(
            "a pooler in between swaps sessions: a login got one only after the transaction of "
            "another login had ended"
        ) from None


def _compare(first: _Login, second: _Login) -> None:
    """Raise if a login was answered by several processes, or two logins by the same one."""
    if len(first.pids) > 1 or len(second.pids) > 1 or first.pids & second.pids:
        raise PoolerError(
            "a pooler in between swaps sessions: it gives each transaction another session of the "
            "server"
        )


def _refuse_statement_pooling(connection: Connection, seconds: float) -> None:
    """Raise if a pooler ends this login, too, when a transaction begins."""
    with contextlib.closing(Session(connection, client_encoding="SQL_ASCII")) as session:
        login = _Login(session.pgconn)
        login.pid()
        try:
            with contextlib.suppress(NotAnsweredError):
                login.begin(seconds)
        except DatabaseUnreachableError as error:
            raise PoolerError(
                "a pooler in between allows no transaction of several statements, as if it gives "
                f"each statement another session of the server: {error}"
            ) from error


def _why_not_answered(first: _Login, seconds: float) -> DatabaseError:
    """Return the error for a second login that gets no session, while the first one rests."""
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


def _pair(row: Row) -> tuple[bytes | None, bytes | None]:
    name, value = row
    return name, value


def _hint_of_planted(wanted: Mapping[str, str]) -> str:
    statements = "; ".join(
        f"ALTER ROLE … IN DATABASE … SET {name} = '{value}'" for name, value in wanted.items()
    )
    return (
        "Connect to the server itself; or set for the role that pgstash logs in with what a dump "
        f"needs, and let the pooler log in anew (PgBouncer: RECONNECT): {statements}."
    )


def _asked_with_options(connection: Connection, query: str) -> list[Row]:
    """Ask a session with ``options``; raise PoolerError if only one without them is let in."""
    try:
        with contextlib.closing(Session(connection, client_encoding="SQL_ASCII")) as session:
            return session.ask(query, _SECONDS_TO_ANSWER)
    except DatabaseLoginError as error:
        Session(connection, client_encoding="SQL_ASCII", options="").close()
        raise refused_options(error.message) from error
    except psycopg.Error as error:
        raise DatabaseUnreachableError(f"the connection was lost: {error}") from error
