"""Loads rows by libpq itself: psql reads them line by line, at twice the cost.

https://www.postgresql.org/docs/current/libpq-copy.html
"""

from __future__ import annotations

import contextlib
import select
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import psycopg
from psycopg import pq

from pgstash.errors import PoolerError, RestoreError, TargetLostError
from pgstash.events import Emit, ToolSaid
from pgstash.postgres.restore import session_settings
from pgstash.postgres.restore.refusals import Refusal, refused
from pgstash.postgres.restore.target import connected
from pgstash.postgres.server import pooler, row_order
from pgstash.postgres.server.connection import Server
from pgstash.postgres.server.session import Row
from pgstash.processes.child import Lines

_SECONDS_BETWEEN_LOOKS = 0.2
# The parts of a message, in the order and with the labels of libpq.
_LABELS = {
    pq.DiagnosticField.MESSAGE_PRIMARY: "",
    pq.DiagnosticField.MESSAGE_DETAIL: "DETAIL:  ",
    pq.DiagnosticField.MESSAGE_HINT: "HINT:  ",
    pq.DiagnosticField.INTERNAL_QUERY: "QUERY:  ",
    pq.DiagnosticField.CONTEXT: "CONTEXT:  ",
}
_DONE = (pq.ExecStatus.COMMAND_OK, pq.ExecStatus.TUPLES_OK)


@contextlib.contextmanager
def opened(
    server: Server, header: bytes, count: int, *, lc_monetary: str | None, emit: Emit
) -> Iterator[list[Loader]]:
    """Open ``count`` sessions; ``header`` are the statements that set one up.

    Leaving the block closes the sessions. Statements may still be running on the server after this;
    dropping the database terminates them. Raises RestoreError.
    """
    with contextlib.ExitStack() as stack:
        loaders = []
        for _ in range(count):
            loader = Loader(server, header, lc_monetary=lc_monetary, emit=emit)
            stack.callback(loader.close)
            loaders.append(loader)
        yield loaders


def order_of_rows(server: Server) -> str | None:
    """Return why rows must be loaded in the order of the script, if they must.

    The tables must exist by now. Raises RestoreError.
    """
    return next(map(row_order.reason, _asked(server, row_order.OF_ROWS)), None)


def order_of_views(server: Server) -> str | None:
    """Return why materialized views must be filled in the order of the script, if they must.

    Raises RestoreError.
    """
    return next(map(row_order.reason, _asked(server, row_order.OF_VIEWS)), None)


def tables_of_extensions(server: Server) -> set[tuple[str, str]]:
    """Return schema and name of the tables of extensions whose rows must be loaded first, in order.

    Raises RestoreError.
    """
    rows = _asked(server, row_order.OF_EXTENSIONS)
    names = ([name.decode(server.codec, "surrogateescape") for name in row] for row in rows)
    return {(schema, name) for schema, name in names}


def _asked(server: Server, question: bytes) -> list[tuple[Any, ...]]:
    try:
        with connected(server, "SQL_ASCII") as session:  # names are bytes
            return session.execute(question).fetchall()
    except psycopg.Error as error:
        raise _lost(error) from error


class Loader:
    """A session that loads COPY blocks, each in a transaction of its own unless one was begun.

    One thread uses it; another thread may call :meth:`end`.
    """

    def __init__(
        self,
        server: Server,
        header: bytes,
        *,
        lc_monetary: str | None,
        emit: Emit,
        settings: Mapping[str, str] = session_settings.STAGING,
    ) -> None:
        """Log in, and set the session up: ``settings`` first, then ``header``.

        Raises RestoreError.
        """
        self._ending = False
        self._messages = Lines(
            lambda line: emit(ToolSaid("server", line)),
            tuple(server.connection.secrets.values()),
        )
        self._stack = contextlib.ExitStack()
        session = self._stack.enter_context(connected(server))
        self._conn = session.pgconn
        try:
            self._conn.notice_handler = self._pass_on
            self._conn.nonblocking = 1
            self._kept = self._marked()
            self.run(session_settings.statements(settings, lc_monetary).encode())
            self.run(header)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close our end of the session."""
        self._conn.finish()
        self._stack.close()
        self._messages.finish()

    def refuse_swapped(self) -> None:
        """Raise TargetLostError if a pooler swapped the session while rows were loaded."""
        try:
            self._kept.check()
        except PoolerError as error:
            raise TargetLostError(error.message, hint=error.hint) from error

    def end(self) -> None:
        """Make the thread that loads stop soon; the session still has to be closed."""
        self._ending = True

    def load(self, statement: bytes, block: Iterable[bytes]) -> None:
        r"""Run a COPY statement with the block that follows it, up to ``\.`` or further.

        The server ignores what comes after that line: in a dump, comments. Raises RestoreError.
        """
        self._send(statement)
        result = self._result()
        if result is None or result.status != pq.ExecStatus.COPY_IN:
            raise self._refused(result, statement)
        for piece in block:
            self._put(piece)
        self._put(None)
        self._drain(statement)

    def _marked(self) -> pooler.Kept:
        try:
            return pooler.Kept(self._conn, "the rows of a restore")
        except psycopg.Error as error:
            raise _lost(error) from error

    def run(self, statements: bytes) -> list[Row]:
        """Run statements as one message; return the rows of the last one. Raises RestoreError."""
        self._send(statements)
        return self._drain(statements)

    def _send(self, statements: bytes) -> None:
        try:
            self._conn.send_query(statements)
        except psycopg.Error as error:
            raise _lost(error) from error
        self._flush()

    def _drain(self, statements: bytes) -> list[Row]:
        failed = None
        rows: list[Row] = []
        while (result := self._result()) is not None:
            if result.status not in _DONE:
                failed = failed or result
            columns = range(result.nfields)
            rows = [[result.get_value(n, c) for c in columns] for n in range(result.ntuples)]
        if failed:
            raise self._refused(failed, statements)
        return rows

    def _put(self, piece: bytes | None) -> None:
        # Checked with every piece: after end() the session is closed as soon as no thread uses it.
        self._go_on()
        try:
            taken = self._conn.put_copy_end() if piece is None else self._conn.put_copy_data(piece)
        except psycopg.Error as error:
            raise _lost(error) from error
        if taken != 1:  # without an error: out of memory
            raise TargetLostError("libpq has no memory for the rows to send")
        self._flush()

    def _flush(self) -> None:
        try:
            while self._conn.flush():
                if self._wait(select.POLLIN | select.POLLOUT) & select.POLLIN:
                    self._conn.consume_input()
        except psycopg.Error as error:
            raise _lost(error) from error

    def _result(self) -> pq.abc.PGresult | None:
        try:
            while self._conn.is_busy():
                self._wait(select.POLLIN)
                self._conn.consume_input()
            return self._conn.get_result()
        except psycopg.Error as error:
            raise _lost(error) from error

    def _wait(self, events: int) -> int:
        poll = select.poll()
        poll.register(self._conn.socket, events)
        while not (ready := poll.poll(_SECONDS_BETWEEN_LOOKS * 1000)):
            self._go_on()
        return ready[0][1]

    def _go_on(self) -> None:
        if self._ending:
            raise TargetLostError("the session was ended")

    def _refused(self, result: pq.abc.PGresult | None, statement: bytes) -> RestoreError:
        if result is None:
            return TargetLostError("the target did not answer a statement")
        refusal = Refusal(
            _field(result, pq.DiagnosticField.SQLSTATE),
            "\n".join(
                f"{label}{text}"
                for field, label in _LABELS.items()
                if (text := _field(result, field))
            ),
            statement.decode(errors="replace").strip(),
        )
        return refused(refusal, f"the target refused a statement: {refusal.headline}")

    def _pass_on(self, result: pq.abc.PGresult) -> None:
        self._messages.feed(result.error_message)


def _field(result: pq.abc.PGresult, field: pq.DiagnosticField) -> str:
    return (result.error_field(field) or b"").decode(errors="replace")


def _lost(error: psycopg.Error) -> RestoreError:
    return TargetLostError(f"the connection to the target was lost: {' '.join(str(error).split())}")
