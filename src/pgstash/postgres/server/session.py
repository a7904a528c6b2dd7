"""A session of our own that never waits for ever: each step has an end, and any signal is heard.

libpq is used directly (https://www.postgresql.org/docs/current/libpq-async.html), because a wait
with an end is ours to write then, and because names need not be UTF-8 here.
"""

from __future__ import annotations

import select
import time
from typing import TYPE_CHECKING

import psycopg
from psycopg import pq

from pgstash.errors import DatabaseLoginError, DatabaseUnreachableError
from pgstash.postgres import login

if TYPE_CHECKING:
    from pgstash.postgres.source import Connection

_SECONDS_TO_CONNECT = 60.0

_READABLE = select.POLLIN
_WRITABLE = select.POLLOUT
_DONE = (pq.ExecStatus.TUPLES_OK, pq.ExecStatus.COMMAND_OK)

Row = list[bytes | None]


class NotAnsweredError(psycopg.OperationalError):
    """No answer came in time."""


class Session:
    """One session; use it with ``contextlib.closing``."""

    def __init__(self, connection: Connection, **different: str) -> None:
        """Log in with these parameters, but for what is to be ``different``.

        Raises DatabaseUnreachableError where no server answers in time, DatabaseLoginError
        where one refuses.
        """
        conninfo = connection.conninfo_with_secrets(**different)
        self.pgconn: pq.abc.PGconn = pq.PGconn.connect_start(conninfo)
        try:
            self._connect()
        except psycopg.OperationalError as error:
            self.close()
            reason = " ".join(str(error).split())
            if pq.PGconn.ping(conninfo) == pq.Ping.OK:
                raise DatabaseLoginError(
                    f"the database refused a second session: {reason}", hint=login.hint(conninfo)
                ) from error
            raise DatabaseUnreachableError(f"the database cannot be reached: {reason}") from error
        except BaseException:
            self.close()
            raise

    def ask(self, statements: str | bytes, seconds: float) -> list[Row]:
        """Run statements as one message, and return the rows of the last one.

        Text is sent as UTF-8, bytes as they are.
        Raises psycopg.Error where one fails, where the session is lost, and where the answer
        takes more than ``seconds``. What was interrupted is over: the session is closed.
        """
        try:
            text = statements.encode() if isinstance(statements, str) else statements
            return ask(self.pgconn, text, seconds)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the connection at once; again is no error."""
        self.pgconn.finish()

    def _connect(self) -> None:
        give_up = time.monotonic() + _SECONDS_TO_CONNECT
        # A look at the connection's state before the first poll is wanted: it may have failed.
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
    # Few bytes find room in the socket's buffer at once; with many it waits for the server,
    # which has nothing to do but to read them.
    pgconn.send_query(statements)
    return answer(pgconn, seconds)


def answer(pgconn: pq.abc.PGconn, seconds: float) -> list[Row]:
    """Return the rows of the last one of the statements that were sent.

    Raises psycopg.Error where one failed and where the session is lost, NotAnsweredError where the
    answer takes more than ``seconds``: it may be waited for again.
    """
    give_up = time.monotonic() + seconds
    rows: list[Row] = []
    while (result := _result(pgconn, give_up)) is not None:
        if result.status not in _DONE:
            error = psycopg.OperationalError(_text(result.error_message))
            # The text is in the server's language.
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
