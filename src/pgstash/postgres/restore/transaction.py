"""One transaction in a database that is in use, by libpq itself.

psql cannot ask the server something and go on with the answer, nor carry on after a statement that
was refused. Here both happen within one transaction.
"""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType
from typing import Self

from pgstash.errors import Interrupted, StatementError, TargetLostError
from pgstash.events import Emit
from pgstash.postgres.restore import session_settings, transaction_end
from pgstash.postgres.restore.copy_loader import Loader
from pgstash.postgres.restore.target import Outcome
from pgstash.postgres.restore.transaction_end import Backend
from pgstash.postgres.server.connection import Server
from pgstash.postgres.server.session import Row

_SAVEPOINT = b"pgstash_attempt"
# A role that the login sets (ALTER ROLE … SET role) need not see the login's session.
_WHO = b"""
    SELECT pid, backend_start, pg_catalog.txid_current() FROM pg_catalog.pg_stat_activity
    WHERE pid = pg_catalog.pg_backend_pid()
"""


class Transaction:
    """A transaction; a context manager that rolls it back unless :meth:`commit` has returned.

    ``outcome`` is what became of it, once the block is left.
    """

    def __init__(
        self, server: Server, header: bytes, *, lc_monetary: str | None, emit: Emit
    ) -> None:
        """Prepare; nothing runs before the block is entered. ``header`` sets the session up."""
        self._server = server
        self._header = header
        self._lc_monetary = lc_monetary
        self._emit = emit
        self._backend: Backend | None = None
        self._committing = False
        self.outcome = Outcome.NOTHING

    def __enter__(self) -> Self:
        """Log in, and begin. Raises RestoreError."""
        self._session = Loader(
            self._server,
            self._header,
            lc_monetary=self._lc_monetary,
            emit=self._emit,
            settings=session_settings.NEUTRAL,
        )
        try:
            self.run(b"BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE")
            self.run(b"SET ROLE NONE")
            self._backend = _backend(self.run(_WHO))
            self.run(b"RESET ROLE")
        except BaseException as error:
            self.__exit__(type(error), error, error.__traceback__)
            raise
        return self

    def __exit__(
        self, _kind: object, error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        """Close the session; make sure that a transaction that was not committed ends."""
        self._session.close()
        if self._backend and self.outcome is not Outcome.COMMITTED:
            self.outcome = transaction_end.outcome(
                self._server,
                self._backend,
                self._emit,
                committing=self._committing,
                hurried=isinstance(error, Interrupted),
            )

    def run(self, statements: bytes) -> list[Row]:
        """Run statements as one message; return the rows of the last one. Raises RestoreError."""
        return self._session.run(statements)

    def load(self, statement: bytes, block: Iterable[bytes]) -> None:
        """Run a COPY statement with the block that follows it. Raises RestoreError."""
        self._session.load(statement, block)

    def attempt(self, statements: bytes) -> str:
        """Run statements that may be refused; return why, empty if they were not.

        The transaction goes on without those that were refused. Raises TargetLostError.
        """
        self.run(b"SAVEPOINT " + _SAVEPOINT)
        refused = ""
        try:
            self.run(statements)
        except StatementError as error:
            refused = error.message
            self.run(b"ROLLBACK TO SAVEPOINT " + _SAVEPOINT)
        self.run(b"RELEASE SAVEPOINT " + _SAVEPOINT)
        return refused

    def commit(self) -> None:
        """Commit, and return when the server has committed. Raises RestoreError."""
        self._session.refuse_swapped()
        self._committing = True
        self.run(b"COMMIT")
        self.outcome = Outcome.COMMITTED


def _backend(rows: list[Row]) -> Backend:
    if not rows:
        raise TargetLostError("the target does not show the session of the restore")
    pid, started, transaction = (value or b"" for value in rows[0])
    return Backend(int(pid), started.decode(), transaction.decode())
