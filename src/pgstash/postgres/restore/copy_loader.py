"""Rows for a server, sent by libpq itself: psql reads them line by line, at twice the cost.

https://www.postgresql.org/docs/current/libpq-copy.html
"""

from __future__ import annotations

import contextlib
import select
from collections.abc import Iterable, Iterator
from typing import Any

import psycopg
from psycopg import pq

from pgstash.child import Lines
from pgstash.errors import PoolerError, RestoreError, TargetLostError
from pgstash.events import Emit, ToolSaid
from pgstash.postgres import ordering, pooler
from pgstash.postgres.refusals import Refusal, refused
from pgstash.postgres.restore import UNFINISHED, settings
from pgstash.postgres.source import Server
from pgstash.postgres.target import connected

_SECONDS_BETWEEN_LOOKS = 0.2
# What a message consists of, as libpq puts it together and in its order.
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
    """Open so many sessions; ``header`` is what sets one up, without commands of psql.

    Leaving the block closes them. At what they were on the server they may still be: who drops the
    database ends them. Raises RestoreError.
    """
    with contextlib.ExitStack() as stack:
        loaders = []
        for _ in range(count):
            loader = Loader(server, header, lc_monetary=lc_monetary, emit=emit)
            stack.callback(loader.close)
            loaders.append(loader)
        yield loaders


def order_of_rows(server: Server) -> str | None:
    """Say why rows may not be loaded in any order, if they may not; the tables are there by now.

    Raises RestoreError.
    """
    return next(map(ordering.reason, _asked(server, ordering.OF_ROWS)), None)


def order_of_views(server: Server) -> str | None:
    """Say why materialized views may not be filled in any order, if they may not.

    Raises RestoreError.
    """
    return next(map(ordering.reason, _asked(server, ordering.OF_VIEWS)), None)


def tables_of_extensions(server: Server) -> set[tuple[str, str]]:
    """Return schema and name of the tables whose rows keep their order among each other.

    Raises RestoreError.
    """
    rows = _asked(server, ordering.OF_EXTENSIONS)
    names = ([name.decode(server.codec, "surrogateescape") for name in row] for row in rows)
    return {(schema, name) for schema, name in names}


def _asked(server: Server, question: bytes) -> list[tuple[Any, ...]]:
    try:
        with connected(server, "SQL_ASCII") as session:  # names are bytes
            return session.execute(question).fetchall()
    except psycopg.Error as error:
        raise _lost(error) from error


class Loader:
    """A session that loads COPY blocks, each as a transaction of its own.

    One thread uses it; :meth:`end` may be called by another.
    """

    def __init__(
        self, server: Server, header: bytes, *, lc_monetary: str | None, emit: Emit
    ) -> None:
        """Log in, and set the session up. Raises RestoreError."""
        self._ending = False
        self._said = Lines(
            lambda line: emit(ToolSaid("server", line)),
            tuple(server.connection.secrets.values()),
        )
        self._stack = contextlib.ExitStack()
        session = self._stack.enter_context(connected(server))
        self._conn = session.pgconn
        try:
            self._conn.notice_handler = self._heard
            self._conn.nonblocking = 1
            self._kept = self._marked()
            self.run(settings(UNFINISHED, lc_monetary).encode())
            self.run(header)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the session on our side."""
        self._conn.finish()
        self._stack.close()
        self._said.finish()

    def refuse_swapped(self) -> None:
        """Raise TargetLostError if a pooler swapped the session while rows were loaded."""
        try:
            self._kept.check()
        except PoolerError as error:
            raise TargetLostError(error.message, hint=error.hint) from error

    def end(self) -> None:
        """Make whoever loads stop soon; the session has to be closed all the same."""
        self._ending = True

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

    def _marked(self) -> pooler.Kept:
        try:
            return pooler.Kept(self._conn, "the rows of a restore")
        except psycopg.Error as error:
            raise _lost(error) from error

    def run(self, statements: bytes) -> None:
        """Run statements that return no rows. Raises RestoreError."""
        self._send(statements)
        self._drain(statements)

    def _send(self, statements: bytes) -> None:
        try:
            self._conn.send_query(statements)
        except psycopg.Error as error:
            raise _lost(error) from error
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
            taken = self._conn.put_copy_end() if piece is None else self._conn.put_copy_data(piece)
        except psycopg.Error as error:
            raise _lost(error) from error
        if taken != 1:  # without an error: there is no memory for it
            raise TargetLostError("libpq has no room for the rows that are to be sent")
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

    def _heard(self, result: pq.abc.PGresult) -> None:
        self._said.feed(result.error_message)


def _field(result: pq.abc.PGresult, field: pq.DiagnosticField) -> str:
    return (result.error_field(field) or b"").decode(errors="replace")


def _lost(error: psycopg.Error) -> RestoreError:
    return TargetLostError(f"the target was lost: {' '.join(str(error).split())}")
