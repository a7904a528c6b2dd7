"""psql as a sink that commits only on request.

``psql --single-transaction`` commits at the end of its input, even if that was cut off
(https://www.postgresql.org/docs/current/app-psql.html). So pgstash sends BEGIN and COMMIT itself,
and kills psql to end a transaction that must not be committed.
"""

from __future__ import annotations

import math
import re
import secrets
import signal
from collections.abc import Callable
from types import TracebackType
from typing import Self

from pgstash.errors import Interrupted, RestoreError, StatementError, TargetLostError
from pgstash.events import ToolSaid
from pgstash.postgres.restore import refusals, session_settings, transaction_end
from pgstash.postgres.restore.psql_stderr import Stderr
from pgstash.postgres.restore.target import POOLER_HINT, Outcome
from pgstash.postgres.restore.transaction_end import Backend
from pgstash.postgres.server import pooler
from pgstash.postgres.server.connection import Server
from pgstash.postgres.tools.process import Child, Command
from pgstash.postgres.tools.tool_run import ToolRun

_TOKEN_BYTES = 8

# What identifies a session: 4711|12345|t|2026-07-01 12:00:00.123456+00
_INTRODUCTION = re.compile(r"(\d+)\|(\d+)\|([tf])\|(.+)")
_SWAPPED = " swapped"
_BAD_CONNECTION = 2  # the exit status of a psql that lost it


class Psql:
    """Runs a script that is fed to psql, in one transaction or one for each statement.

    A context manager. Leaving it before :meth:`finish` has returned ends psql and its session on
    the server; ``outcome`` is then that of the transaction. ``refusal`` is the statement that the
    server refused, if it did.
    """

    def __init__(
        self,
        server: Server,
        tool_run: ToolRun,
        *,
        one_transaction: bool,
        lc_monetary: str | None,
        taken: Callable[[str], bool] = lambda _line: False,
    ) -> None:
        """Prepare; nothing runs before the block is entered.

        Lines of stderr that ``taken`` is true for are not messages of the script.
        """
        self._taken = taken
        self._server = server
        self._tool_run = tool_run
        self._one_transaction = one_transaction
        self._lc_monetary = lc_monetary
        self._stderr = Stderr(
            lambda line: tool_run.emit(ToolSaid("psql", line)),
            tuple(server.connection.secrets.values()),
        )
        self._committing = self._finished = False
        self._backend: Backend | None = None
        self._mark = secrets.token_hex(_TOKEN_BYTES)
        self.outcome = Outcome.NOTHING
        self.refusal: refusals.Refusal | None = None

    def __enter__(self) -> Self:
        """Start psql, log in and begin the transaction, if any. Raises RestoreError."""
        words = [
            str(self._tool_run.client.psql),
            *("--no-psqlrc", "--quiet", "--no-align", "--tuples-only", "--no-password"),
            *("--set=ON_ERROR_STOP=1", "--set=ECHO=errors", "--set=VERBOSITY=verbose"),
            "--file=-",
        ]
        command = Command(
            words, self._tool_run.environment, fed=True, failure=TargetLostError, all_lines=True
        )
        self._child = Child(command, self._server.connection, self._read)
        try:
            self._child.queue(self._preamble())
            self._backend = self._introduced(self._child.read_line())
        except BaseException as error:
            self.__exit__(type(error), error, error.__traceback__)
            raise
        return self

    def __exit__(
        self, _kind: object, error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        """End psql, and make sure that the session of its transaction ends."""
        self._child.__exit__()
        self._stderr.finish()
        if self._finished:
            return
        if not self._one_transaction:
            # The staging database will be dropped, which ends its sessions.
            self.outcome = Outcome.UNKNOWN
        elif self._backend:
            self.outcome = transaction_end.outcome(
                self._server,
                self._backend,
                self._tool_run.emit,
                committing=self._committing,
                hurried=isinstance(error, Interrupted),
            )

    def _read(self, line: str) -> None:
        if not self._taken(line):
            self._stderr.read(line)

    def end(self) -> None:
        """End psql, even while another thread feeds it; the block still has to be left."""
        self._child.end()

    def feed(self, data: bytes) -> None:
        """Hand a piece of the script to psql, which takes as long as the server takes.

        psql's output meanwhile, such as the results of the script's SELECTs, is discarded. Raises
        RestoreError if the server refused a statement or psql has ended.
        """
        if not self._child.feed_and_discard(data):
            raise self._failure(self._child.wait())

    def finish(self) -> None:
        """Commit, and return when the server has committed. Raises RestoreError."""
        token = secrets.token_hex(_TOKEN_BYTES)
        # If the script left something open, such as a quote or a COPY, no row with the token comes.
        commit = "COMMIT;\n" if self._one_transaction else ""
        self._committing = True
        # Checked twice, like in pooler.Kept.
        self.feed(
            f"\nSELECT {self._is_kept} AS pgstash_kept \\gset\n"
            f"SELECT {self._is_kept} AND :'pgstash_kept' AS pgstash_kept \\gset\n"
            f"\\if :pgstash_kept\n{commit}\\o\nSELECT '{token}';\n"
            f"\\else\n\\o\nSELECT '{token}{_SWAPPED}';\n\\endif\n".encode()
        )
        self._child.close_stdin()
        answer = self._child.read_line()
        while answer and not answer.startswith(token.encode()):  # the script may have printed
            answer = self._child.read_line()
        status = self._child.wait(math.inf)
        if status != 0:
            raise self._failure(status)
        if not answer:
            raise StatementError(
                "psql reached the end of the script while something in it was still open",
                hint="The script was not written by pg_dump.",
            )
        if answer.endswith(_SWAPPED.encode()):
            self._committing = False
            raise _swapped()
        self._finished = True
        self.outcome = Outcome.COMMITTED

    @property
    def _is_kept(self) -> str:
        """The condition that psql still has the same session of the server.

        Within one transaction the process is enough: a script may reset the mark, and no pooler
        swaps sessions in the middle of a transaction.
        """
        pid = self._backend.pid if self._backend else 0
        same = f"pg_catalog.pg_backend_pid() OPERATOR(pg_catalog.=) {pid}"
        return same if self._one_transaction else f"{same} AND {pooler.has_mark(self._mark)}"

    @property
    def _settings(self) -> str:
        values = session_settings.NEUTRAL if self._one_transaction else session_settings.STAGING
        return session_settings.statements(values, self._lc_monetary)

    def _preamble(self) -> bytes:
        transaction = "pg_catalog.txid_current()" if self._one_transaction else "0"
        return (
            "\\o /dev/null\n"
            f"{pooler.mark(self._mark)};\n"
            f"{self._settings}\n"
            f"{'BEGIN;' if self._one_transaction else ''}\n"
            # A role that the login sets (ALTER ROLE … SET role) need not see the login's session.
            "SET ROLE NONE;\n"
            "\\o\n"
            f"SELECT pid, {transaction}, {pooler.has_mark(self._mark)}, backend_start"
            " FROM pg_catalog.pg_stat_activity"
            " WHERE pid = pg_catalog.pg_backend_pid();\n"
            "\\o /dev/null\n"
            "RESET ROLE;\n"
            # pg_dump's script sets its own at once; that of another tool may need the usual one.
            "RESET search_path;\n"
        ).encode()

    def _introduced(self, line: bytes) -> Backend:
        if not line:
            raise self._failure(self._child.wait())
        said = line.decode(errors="replace")
        match = _INTRODUCTION.fullmatch(said)
        if match is None:  # psql waits for more of the script
            raise TargetLostError(f"psql did not identify its session, but printed {said!r}")
        if match[3] == "f":
            raise _swapped()
        return Backend(int(match[1]), match[4], match[2])

    def _failure(self, status: int) -> RestoreError:
        if found := self._stderr.found(lost=status == _BAD_CONNECTION):
            line, self.refusal = found
            message = f"psql stopped at line {line} of the script: {self.refusal.headline}"
            return refusals.refused(self.refusal, message + self._stderr.before)
        said = self._stderr.of_psql or "\n".join(self._child.last_lines) or "and printed nothing"
        if "invalid command \\restrict" in said:
            return StatementError(
                f"psql {self._tool_run.client.version} is too old for the script: {said}",
                hint="Update the client tools of PostgreSQL to a release since August 2025.",
            )
        how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
        hint = ""
        if status == -signal.SIGKILL:
            hint = "Is this machine or container out of memory? Then its kernel's log names psql."
        elif self._server.pooled:
            hint = POOLER_HINT
        return TargetLostError(f"psql {how}: {said}", hint=hint)


def _swapped() -> TargetLostError:
    error = pooler.swapped("psql")
    return TargetLostError(error.message, hint=error.hint)
