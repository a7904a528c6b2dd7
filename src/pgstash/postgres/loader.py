"""Rows for a server, sent by libpq itself: psql reads them line by line, at twice the cost.

https://www.postgresql.org/docs/current/libpq-copy.html
"""

from __future__ import annotations

import contextlib
import select
import time
from collections.abc import Iterable
from types import TracebackType
from typing import Self

import psycopg
from psycopg import pq

from pgstash.child import Lines
from pgstash.errors import Interrupted, RestoreError, TargetLostError
from pgstash.events import Emit, Notice, ToolSaid
from pgstash.postgres.restore import (
    SECONDS_TO_END,
    SECONDS_TO_END_AFTER_SIGNAL,
    UNFINISHED,
    Backend,
    end_session,
    refused,
    settings,
)
from pgstash.postgres.source import Server
from pgstash.postgres.target import connected

_SECONDS_BETWEEN_LOOKS = 0.2
_DONE = (pq.ExecStatus.COMMAND_OK, pq.ExecStatus.TUPLES_OK)


class Loader:
    """A session that loads COPY blocks, each as a transaction of its own; a context manager.

    One thread uses it; :meth:`end` may be called by another.
    """

    def __init__(
        self, server: Server, header: bytes, *, lc_monetary: str | None, emit: Emit
    ) -> None:
        """Prepare; ``header`` is what sets a session up, without commands of psql."""
        self._server = server
        self._header = header
        self._settings = settings(UNFINISHED, lc_monetary).encode()
        self._emit = emit
        self._stack = contextlib.ExitStack()
        self._ending = self._finished = False
        self._backend: Backend | None = None
        self._said = Lines(
            lambda line: emit(ToolSaid("server", line)),
            tuple(server.connection.secrets.values()),
        )

    def __enter__(self) -> Self:
        """Log in, and set the session up. Raises RestoreError."""
        session = self._stack.enter_context(connected(self._server))
        self._conn = session.pgconn
        try:
            [(pid, started)] = session.execute(
                "SELECT pid, backend_start::text FROM pg_catalog.pg_stat_activity"
                " WHERE pid = pg_catalog.pg_backend_pid()"
            ).fetchall()
            self._backend = Backend(pid, started, "0")
            self._conn.notice_handler = self._heard
            self._conn.nonblocking = 1
            self._run(self._settings)
            self._run(self._header)
        except BaseException as error:
            self.__exit__(type(error), error, error.__traceback__)
            raise
        return self

    def __exit__(
        self, _kind: object, error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        """Close the session, and see to it that it ends on the server."""
        self._conn.finish()
        self._stack.close()
        self._said.finish()
        if self._finished or not self._backend:
            return
        hurried = isinstance(error, Interrupted)
        seconds = SECONDS_TO_END_AFTER_SIGNAL if hurried else SECONDS_TO_END
        give_up = time.monotonic() + seconds
        try:
            with connected(self._server, seconds=min(seconds, 10.0)) as session:
                end_session(session, self._backend, give_up)
        except (psycopg.Error, RestoreError) as failed:
            self._emit(Notice(f"The target does not say what became of a session: {failed}"))

    def end(self) -> None:
        """Make whoever loads stop soon; the block has to be left all the same."""
        self._ending = True

    def finish(self) -> None:
        """Say that all was loaded: then the session need not be looked for."""
        self._finished = True

    def load(self, statement: bytes, block: Iterable[bytes]) -> None:
        r"""Run a COPY statement with what follows it in a script, up to ``\.`` and further.

        What stands behind that line the server reads and throws away: in a dump, comments.
        Raises RestoreError.
        """
        self._send(statement)
        result = self._result()
        if result is None or result.status != pq.ExecStatus.COPY_IN:
            raise self._refused(result, statement)
        for piece in block:
            self._put(piece)
        self._put(None)
        self._drain(statement)

    def _run(self, statements: bytes) -> None:
        self._send(statements)
        self._drain(statements)

    def _send(self, statements: bytes) -> None:
        try:
            self._conn.send_query(statements)
        except psycopg.Error as error:
            raise self._lost(error) from error
        self._flush()

    def _drain(self, statements: bytes) -> None:
        failed = None
        while (result := self._result()) is not None:
            if result.status not in _DONE:
                failed = failed or result
        if failed:
            raise self._refused(failed, statements)

    def _put(self, piece: bytes | None) -> None:
        # With every piece: who called end() closes the session when nobody is in it any more.
        self._go_on()
        try:
            if piece is None:
                self._conn.put_copy_end()
            else:
                self._conn.put_copy_data(piece)
        except psycopg.Error as error:
            raise self._lost(error) from error
        self._flush()

    def _flush(self) -> None:
        try:
            while self._conn.flush():
                if self._wait(select.POLLIN | select.POLLOUT) & select.POLLIN:
                    self._conn.consume_input()
        except psycopg.Error as error:
            raise self._lost(error) from error

    def _result(self) -> pq.abc.PGresult | None:
        try:
            while self._conn.is_busy():
                self._wait(select.POLLIN)
                self._conn.consume_input()
            return self._conn.get_result()
        except psycopg.Error as error:
            raise self._lost(error) from error

    def _wait(self, events: int) -> int:
        poll = select.poll()
        poll.register(self._conn.socket, events)
        while not (ready := poll.poll(_SECONDS_BETWEEN_LOOKS * 1000)):
            self._go_on()
        return ready[0][1]

    def _go_on(self) -> None:
        if self._ending:
            raise TargetLostError("the session was ended")

    def _lost(self, error: psycopg.Error) -> RestoreError:
        return TargetLostError(f"the target was lost: {' '.join(str(error).split())}")

    def _refused(self, result: pq.abc.PGresult | None, statement: bytes) -> RestoreError:
        if result is None:
            return TargetLostError("the target did not answer a COPY")
        state = (result.error_field(pq.DiagnosticField.SQLSTATE) or b"").decode()
        text = result.error_message.decode(errors="replace").strip()
        said = statement.decode(errors="replace").strip()
        return refused(state, text, f"the target refused rows: {text}\nSTATEMENT: {said}")

    def _heard(self, result: pq.abc.PGresult) -> None:
        self._said.feed(result.error_message)
