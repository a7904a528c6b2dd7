"""A session by libpq alone: every wait has a limit, and a signal interrupts it.

psycopg's own sessions have no limit for a wait, and connect to no database whose name is not UTF-8.
https://www.postgresql.org/docs/current/libpq-async.html
"""

from __future__ import annotations

import select
import time
from types import TracebackType
from typing import Self

import psycopg
from psycopg import pq

from pgstash.errors import DatabaseUnreachableError
from pgstash.postgres.server import login_refusal, time_limits
from pgstash.postgres.server.connection import Connection

_READABLE = select.POLLIN
_WRITABLE = select.POLLOUT
_DONE = (pq.ExecStatus.TUPLES_OK, pq.ExecStatus.COMMAND_OK)

Row = list[bytes | None]


class NotAnsweredError(psycopg.OperationalError):
    """The server did not answer in time."""


class Session:
    """One session; a context manager that closes it.

    Text arrives as it is stored: no server converts anything to SQL_ASCII.
    """

    def __init__(self, connection: Connection, **different: str) -> None:
        """Log in with the parameters of a connection; those in ``different`` replace them.

        Raises DatabaseUnreachableError if no server answers in time, DatabaseLoginError if one
        refuses the login.
        """
        conninfo = connection.conninfo_with_secrets(client_encoding="SQL_ASCII", **different)
        self.pgconn: pq.abc.PGconn = pq.PGconn.connect_start(conninfo)
        try:
            self._connect()
        except psycopg.OperationalError as error:
            self.close()
            reason = " ".join(str(error).split())
            if pq.PGconn.ping(conninfo) == pq.Ping.OK:
                message = f"the database refused a second session: {reason}"
                raise login_refusal.error(conninfo, message) from error
            raise DatabaseUnreachableError(f"the database cannot be reached: {reason}") from error
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        """Close the connection."""
        self.close()

    def ask(self, statements: str | bytes, seconds: float = time_limits.ANSWER) -> list[Row]:
        """Run statements as one message, and return the rows of the last one.

        Text is sent as UTF-8, bytes as they are. Raises psycopg.Error if a statement fails, if the
        session is lost, and if the answer takes more than ``seconds``. After any exception the
        session is closed.
        """
        try:
            text = statements.encode() if isinstance(statements, str) else statements
            return ask(self.pgconn, text, seconds)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the connection at once; closing it again is allowed."""
        self.pgconn.finish()

    def _connect(self) -> None:
        give_up = time.monotonic() + time_limits.SESSION
        # The first poll is only allowed if the connection has not already failed.
        while self.pgconn.status != pq.ConnStatus.BAD:
            state = self.pgconn.connect_poll()
            if state == pq.PollingStatus.OK:
                return
            if state == pq.PollingStatus.FAILED:
                break
            reading = state == pq.PollingStatus.READING
            _wait(self.pgconn, _READABLE if reading else _WRITABLE, give_up)
        raise psycopg.OperationalError(_text(self.pgconn.error_message))


def ask(pgconn: pq.abc.PGconn, statements: bytes, seconds: float) -> list[Row]:
    """Run statements as one message, and return the rows of the last one.

    Raises as :func:`answer` does.
    """
    # A few bytes fit into the socket's buffer. More of them wait for the server, which has nothing
    # else to do than to read them.
    pgconn.send_query(statements)
    return answer(pgconn, seconds)


def answer(pgconn: pq.abc.PGconn, seconds: float) -> list[Row]:
    """Return the rows of the last one of the statements that were sent.

    Raises psycopg.Error if one failed or the session is lost, NotAnsweredError if the answer takes
    more than ``seconds``. After NotAnsweredError this may be called again.
    """
    give_up = time.monotonic() + seconds
    rows: list[Row] = []
    while (result := _result(pgconn, give_up)) is not None:
        if result.status not in _DONE:
            error = psycopg.OperationalError(_text(result.error_message))
            # Its text may be in any language.
            state = result.error_field(pq.DiagnosticField.SQLSTATE)
            error.sqlstate = state.decode() if state else None
            raise error
        columns = range(result.nfields)
        rows = [[result.get_value(n, c) for c in columns] for n in range(result.ntuples)]
    return rows


def _result(pgconn: pq.abc.PGconn, give_up: float) -> pq.abc.PGresult | None:
    while pgconn.is_busy():
        _wait(pgconn, _READABLE, give_up)
        pgconn.consume_input()
    return pgconn.get_result()


def _wait(pgconn: pq.abc.PGconn, event: int, give_up: float) -> None:
    poll = select.poll()
    poll.register(pgconn.socket, event)
    if not poll.poll(max(0.0, give_up - time.monotonic()) * 1000):
        raise NotAnsweredError("the server does not answer")


def _text(message: bytes) -> str:
    return message.decode(errors="replace").strip()
