"""A session of our own that never waits for ever: each step has an end, and any signal is heard.

libpq is used directly (https://www.postgresql.org/docs/current/libpq-async.html), because a wait
with an end is ours to write then, and because names need not be UTF-8 here.
"""

from __future__ import annotations

import select
import time

import psycopg
from psycopg import pq

from pgstash.errors import DatabaseLoginError, DatabaseUnreachableError
from pgstash.postgres.source import Connection

_SECONDS_TO_CONNECT = 60.0

_READABLE = select.POLLIN
_WRITABLE = select.POLLOUT
_DONE = (pq.ExecStatus.TUPLES_OK, pq.ExecStatus.COMMAND_OK)

Row = list[bytes | None]


class Session:
    """One session; use it with ``contextlib.closing``."""

    def __init__(self, connection: Connection, **different: str) -> None:
        """Log in with these parameters, but for what is to be ``different``.

        Raises DatabaseUnreachableError where no server answers in time, DatabaseLoginError
        where one refuses.
        """
        conninfo = connection.conninfo_with_secrets(**different)
        self._pgconn = pq.PGconn.connect_start(conninfo)
        try:
            self._connect()
        except psycopg.OperationalError as error:
            self.close()
            reason = " ".join(str(error).split())
            if pq.PGconn.ping(conninfo) == pq.Ping.OK:
                raise DatabaseLoginError(
                    f"the database refused a second session: {reason}",
                    hint="A backup has up to DUMP_JOBS + 4 sessions at a time: look at the limits "
                    "of the role (CONNECTION LIMIT), the database and the server.",
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
            return self._ask(text, time.monotonic() + seconds)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the connection at once; again is no error."""
        self._pgconn.finish()

    def _connect(self) -> None:
        give_up = time.monotonic() + _SECONDS_TO_CONNECT
        # A look at the connection's state before the first poll is wanted: it may have failed.
        while self._pgconn.status != pq.ConnStatus.BAD:
            state = self._pgconn.connect_poll()
            if state == pq.PollingStatus.OK:
                return
            if state == pq.PollingStatus.FAILED:
                break
            reading = state == pq.PollingStatus.READING
            self._wait(_READABLE if reading else _WRITABLE, give_up)
        raise psycopg.OperationalError(_text(self._pgconn.error_message))

    def _ask(self, statements: bytes, give_up: float) -> list[Row]:
        # Few bytes find room in the socket's buffer at once; with many it waits for the server,
        # which has nothing to do but to read them.
        self._pgconn.send_query(statements)
        rows: list[Row] = []
        while (result := self._result(give_up)) is not None:
            if result.status not in _DONE:
                error = psycopg.OperationalError(_text(result.error_message))
                # The text is in the server's language.
                state = result.error_field(pq.DiagnosticField.SQLSTATE)
                error.sqlstate = state.decode() if state else None
                raise error
            columns = range(result.nfields)
            rows = [[result.get_value(n, c) for c in columns] for n in range(result.ntuples)]
        return rows

    def _result(self, give_up: float) -> pq.abc.PGresult | None:
        while self._pgconn.is_busy():
            self._wait(_READABLE, give_up)
            self._pgconn.consume_input()
        return self._pgconn.get_result()

    def _wait(self, event: int, give_up: float) -> None:
        poll = select.poll()
        poll.register(self._pgconn.socket, event)
        if not poll.poll(max(0.0, give_up - time.monotonic()) * 1000):
            raise psycopg.OperationalError("the server does not answer")


def _text(message: bytes) -> str:
    return message.decode(errors="replace").strip()
