"""psql as a sink that commits when it is told to, and at no other time.

``psql --single-transaction`` commits at the end of its input, also where that was cut off
(https://www.postgresql.org/docs/current/app-psql.html): so the BEGIN and the COMMIT are ours, and
what we do not want committed ends with psql's death.
"""

from __future__ import annotations

import math
import re
import secrets
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import psycopg

from pgstash.errors import Interrupted, RestoreError, StatementError, TargetLostError
from pgstash.events import Emit, Notice, ToolSaid
from pgstash.postgres import pooler, refusals
from pgstash.postgres.process import Child
from pgstash.postgres.source import Server
from pgstash.postgres.target import POOLER_HINT, Outcome, connected
from pgstash.postgres.tools import ClientTools

_TOKEN_BYTES = 8
_SECONDS_BETWEEN_LOOKS = 0.1
_SECONDS_TO_END = 30.0
# After a signal: whoever sent it waits, and sends SIGKILL.
_SECONDS_TO_END_AFTER_SIGNAL = 2.0

NEUTRAL = {
    "array_nulls": "on",
    "default_transaction_read_only": "off",
    "idle_in_transaction_session_timeout": "0",
    "idle_session_timeout": "0",
    "lock_timeout": "0",
    "statement_timeout": "0",
    "transaction_timeout": "0",
}
"""What may not cut a restore short, refuse it, or make a NULL in an array the word "NULL", although
somebody planted it for role or database."""

UNFINISHED = NEUTRAL | {"synchronous_commit": "off"}
"""The same where nothing counts before the database gets its name.

No statement has to wait for the disk, or a standby: the rename does, and what was committed before
it is written before it (https://www.postgresql.org/docs/current/wal-async-commit.html).
"""

# What a session is told by: 4711|12345|t|2026-07-01 12:00:00.123456+00
_INTRODUCTION = re.compile(r"(\d+)\|(\d+)\|([tf])\|(.+)")
_SWAPPED = " swapped"
_BAD_CONNECTION = 2  # the exit status of a psql that lost it


@dataclass(frozen=True, slots=True)
class _Backend:
    """The server's process of psql's session, and its transaction where there is one for all."""

    pid: int
    started: str
    transaction: str


class Psql:
    """A psql that runs a script fed to it, in one transaction or with each statement by itself.

    A context manager. Leaving it before :meth:`finish` has returned ends psql, and its session on
    the server; ``outcome`` says then what became of the transaction. ``refusal`` is what the server
    refused, if it did.
    """

    def __init__(  # noqa: PLR0913 - each is one knob of one process
        self,
        server: Server,
        tools: ClientTools,
        *,
        one_transaction: bool,
        lc_monetary: str | None,
        environment: Mapping[str, str],
        emit: Emit,
    ) -> None:
        """Prepare; nothing runs before the block is entered."""
        self._server = server
        self._tools = tools
        self._one_transaction = one_transaction
        self._lc_monetary = lc_monetary
        self._environment = environment
        self._emit = emit
        self._stderr = refusals.Stderr(
            lambda line: emit(ToolSaid("psql", line)), tuple(server.connection.secrets.values())
        )
        self._committing = self._finished = False
        self._backend: _Backend | None = None
        self._mark = secrets.token_hex(_TOKEN_BYTES)
        self.outcome = Outcome.NOTHING
        self.refusal: refusals.Refusal | None = None

    def __enter__(self) -> Self:
        """Start psql, log in and begin. Raises RestoreError."""
        command = [
            str(self._tools.psql),
            *("--no-psqlrc", "--quiet", "--no-align", "--tuples-only", "--no-password"),
            *("--set=ON_ERROR_STOP=1", "--set=ECHO=errors", "--set=VERBOSITY=verbose"),
            "--file=-",
        ]
        self._child = Child(
            command,
            self._server.connection,
            self._environment,
            say=self._stderr.hear,
            fed=True,
            failure=TargetLostError,
            says_all=True,
        )
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
        """End psql, and see to it that the session of its transaction ends."""
        self._child.__exit__()
        self._stderr.finish()
        if self._finished:
            return
        if not self._one_transaction:
            # What is in the database counts for nothing: dropping it ends its sessions.
            self.outcome = Outcome.UNKNOWN
        elif self._backend:
            hurried = isinstance(error, Interrupted)
            seconds = _SECONDS_TO_END_AFTER_SIGNAL if hurried else _SECONDS_TO_END
            self.outcome = self._ended(self._backend, seconds)

    def end(self) -> None:
        """End psql, whoever is feeding it; the block has to be left all the same."""
        self._child.end()

    def feed(self, data: bytes) -> None:
        """Hand a piece of the script to psql, which takes as long as the server does.

        What psql prints meanwhile, such as the results of the script's SELECTs, is discarded.
        Raises RestoreError where the server refused a statement or psql is gone.
        """
        if not self._child.feed_and_discard(data):
            raise self._failure(self._child.wait())

    def finish(self) -> None:
        """Commit, and return when that is done. Raises RestoreError."""
        token = secrets.token_hex(_TOKEN_BYTES)
        # Out of reach of whatever the script may have left open, this would come back as no row.
        commit = "COMMIT;\n" if self._one_transaction else ""
        self._committing = True
        # Asked twice, as pooler.Kept does.
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
                "psql came to the end of the script, and something in it was still open",
                hint="The script is not one that pg_dump wrote.",
            )
        if answer.endswith(_SWAPPED.encode()):
            self._committing = False
            raise _swapped()
        self._finished = True
        self.outcome = Outcome.COMMITTED

    @property
    def _is_kept(self) -> str:
        """The condition that psql's session is the server's session that it was.

        A script may reset settings, and no pooler swaps in the middle of a transaction.
        """
        pid = self._backend.pid if self._backend else 0
        same = f"pg_catalog.pg_backend_pid() OPERATOR(pg_catalog.=) {pid}"
        return same if self._one_transaction else f"{same} AND {pooler.has_mark(self._mark)}"

    def _preamble(self) -> bytes:
        transaction = "pg_catalog.txid_current()" if self._one_transaction else "0"
        return (
            "\\o /dev/null\n"
            f"{pooler.mark(self._mark)};\n"
            f"{settings(NEUTRAL if self._one_transaction else UNFINISHED, self._lc_monetary)}\n"
            f"{'BEGIN;' if self._one_transaction else ''}\n"
            # A role that the login sets (ALTER ROLE … SET role) need not see the login's session.
            "SET ROLE NONE;\n"
            "\\o\n"
            f"SELECT pid, {transaction}, {pooler.has_mark(self._mark)}, backend_start"
            " FROM pg_catalog.pg_stat_activity"
            " WHERE pid = pg_catalog.pg_backend_pid();\n"
            "\\o /dev/null\n"
            "RESET ROLE;\n"
            # pg_dump's script sets its own at once; one of another tool may need what is usual.
            "RESET search_path;\n"
        ).encode()

    def _introduced(self, line: bytes) -> _Backend:
        if not line:
            raise self._failure(self._child.wait())
        said = line.decode(errors="replace")
        match = _INTRODUCTION.fullmatch(said)
        if match is None:  # it waits for more of the script
            raise TargetLostError(f"psql does not say which session is its own, but {said!r}")
        if match[3] == "f":
            raise _swapped()
        return _Backend(int(match[1]), match[4], match[2])

    def _failure(self, status: int) -> RestoreError:
        if found := self._stderr.found(lost=status == _BAD_CONNECTION):
            line, self.refusal = found
            message = f"psql stopped at line {line} of the script: {self.refusal.headline}"
            return refusals.refused(self.refusal, message + self._stderr.before)
        said = self._stderr.of_psql or "\n".join(self._child.last_lines) or "and said nothing"
        if "invalid command \\restrict" in said:
            return StatementError(
                f"psql {self._tools.version} is too old for the script: {said}",
                hint="Update the client tools of PostgreSQL: releases since August 2025 know it.",
            )
        how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
        hint = ""
        if status == -signal.SIGKILL:
            hint = (
                "Was this machine or container short of memory? Then its kernel's log names psql."
            )
        elif self._server.pooled:
            hint = POOLER_HINT
        return TargetLostError(f"psql {how}: {said}", hint=hint)

    def _ended(self, backend: _Backend, seconds: float) -> Outcome:
        """End the session, which may not notice for hours that psql is gone, and ask the server.

        Only while it is in the transaction: by then a pooler may have given it to somebody else.
        """
        give_up = time.monotonic() + seconds
        try:
            with connected(self._server, seconds=min(seconds, 10.0)) as session:
                # As who logged in: a role that is set may neither see the session nor end it.
                session.execute("SET ROLE NONE")
                who = [backend.pid, backend.started, backend.transaction]
                find = (
                    " FROM pg_catalog.pg_stat_activity WHERE pid = %s AND backend_start ="
                    " %s::pg_catalog.timestamptz AND backend_xid::text::pg_catalog.int8 ="
                    " %s::pg_catalog.int8 & 4294967295"
                )
                session.execute(f"SELECT pg_catalog.pg_terminate_backend(pid){find}", who)
                while session.execute(f"SELECT{find}", who).fetchone() is not None:
                    if time.monotonic() > give_up:
                        return Outcome.UNKNOWN
                    time.sleep(_SECONDS_BETWEEN_LOOKS)
                answer = session.execute(
                    "SELECT pg_catalog.txid_status(%s::pg_catalog.int8)", [backend.transaction]
                ).fetchone()
        except (psycopg.Error, RestoreError) as error:
            self._emit(Notice(f"The target does not say what became of the session: {error}"))
            # A server that is down rolls back what was not committed, when it comes up.
            return Outcome.UNKNOWN if self._committing else Outcome.NOTHING
        if answer == ("aborted",):
            return Outcome.NOTHING
        if answer == ("committed",):
            return Outcome.COMMITTED if self._committing else Outcome.UNKNOWN
        return Outcome.UNKNOWN


def _swapped() -> TargetLostError:
    error = pooler.swapped("psql")
    return TargetLostError(error.message, hint=error.hint)


def settings(neutral: Mapping[str, str], lc_monetary: str | None) -> str:
    """Return the statements that set what is neutral, and the locale that amounts are read in.

    They leave an empty search_path: nothing that a user of the database defined stands in for a
    built-in.
    """
    wanted = {**neutral, **({"lc_monetary": lc_monetary} if lc_monetary else {})}
    names = ", ".join(_literal(name) for name in wanted)
    values = ", ".join(_literal(value) for value in wanted.values())
    return (
        "SET search_path = '';"  # noqa: S608 - quoted
        "SELECT pg_catalog.set_config(s.name, wanted.value, false)"
        f" FROM ROWS FROM (pg_catalog.unnest(ARRAY[{names}]),"
        f" pg_catalog.unnest(ARRAY[{values}])) AS wanted (name, value)"
        " JOIN pg_catalog.pg_settings s ON s.name = wanted.name;"
    )


def _literal(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"
