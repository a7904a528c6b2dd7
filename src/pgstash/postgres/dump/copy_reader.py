"""Reads rows of big tables by psql, chunk by chunk, under the snapshot of another session."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from typing import Self

from pgstash.errors import DatabaseError, DumpError
from pgstash.events import ToolSaid
from pgstash.postgres.dump.failure_cause import DisturbedError, Tool
from pgstash.postgres.dump.snapshot import Chunk, Table, refused
from pgstash.postgres.server import pooler, query
from pgstash.postgres.server.connection import Server
from pgstash.postgres.tools.process import Child, Command
from pgstash.postgres.tools.tool_run import ToolRun

_TOKEN_BYTES = 16

# psql keeps the server's count of copied rows only if the rows are written to another file than the
# results (ROW_COUNT: https://www.postgresql.org/docs/current/app-psql.html). Here that is the same
# pipe, opened again.
_WITH_COUNT = b" \\g /dev/stdout\n"
_LONGEST_NUMBER = 20  # digits of a 64-bit number

# What pg_dump sets for itself (setup_connection() in pg_dump.c), and what makes the planner scan a
# range of pages as such, whatever the statistics of the table.
_SETTINGS = {
    "DateStyle": "ISO",
    "IntervalStyle": "postgres",
    "constraint_exclusion": "off",
    "enable_seqscan": "off",
    "extra_float_digits": "3",
    "idle_in_transaction_session_timeout": "0",
    "idle_session_timeout": "0",
    "jit": "off",
    "lock_timeout": "0",
    "max_parallel_workers_per_gather": "0",
    "restrict_nonsystem_relation_kind": "view, foreign-table",
    "row_security": "off",
    "statement_timeout": "0",
    "synchronize_seqscans": "off",
    "transaction_timeout": "0",
}

_VALUES = ", ".join(f"('{name}', '{value}')" for name, value in _SETTINGS.items())

# The server process, and the settings that are not in force. DateStyle has more than was set.
_IN_FORCE = f"""
    SELECT pg_catalog.pg_backend_pid(), pg_catalog.string_agg(s.name, ', ')
    FROM (VALUES {_VALUES}, ('search_path', '""')) AS wanted (name, value)
    JOIN pg_catalog.pg_settings s ON pg_catalog.lower(s.name) = pg_catalog.lower(wanted.name)
                                     AND NOT pg_catalog.starts_with(s.setting, wanted.value);
""".encode()  # noqa: S608 - of constants


class Reader:
    """A psql that sees the snapshot and reads one chunk after another; a context manager."""

    def __init__(
        self,
        server: Server,
        tool_run: ToolRun,
        *,
        snapshot: str,
        role: str | None,
        idle_seconds: float,
    ) -> None:
        """Start psql; it runs nothing yet. Raises DumpError."""
        self._idle_seconds = idle_seconds
        self._emit = tool_run.emit
        self._begun = False
        self._backend = b""
        self._copied: int | None = None
        self._codec = server.codec
        self._tool = Tool("psql", server)
        words = [
            str(tool_run.client.psql),
            *("--no-psqlrc", "--quiet", "--no-align", "--tuples-only", "--no-password"),
            *("--set=ON_ERROR_STOP=1", "--set=VERBOSITY=verbose", "--file=-"),
        ]
        command = Command(words, tool_run.environment, fed=True)
        self.child = Child(command, server.connection, self._report)
        self._preamble = (
            "\\o /dev/null\n"
            # First, because a user of the database may have defined operators.
            f"{query.EMPTY_SEARCH_PATH};\n"
            f"SET client_encoding = '{server.database.encoding}';\n"
            "SELECT pg_catalog.set_config(s.name, wanted.value, false)"
            f" FROM (VALUES {_VALUES}) AS wanted (name, value)"
            " JOIN pg_catalog.pg_settings s ON pg_catalog.lower(s.name)"
            " = pg_catalog.lower(wanted.name);\n"
            "\\o\n"
        ).encode()
        if role is not None:
            self._preamble += query.taking(role, server) + b";\n"
        self._preamble += (
            "BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY;\n"
            f"SET TRANSACTION SNAPSHOT '{snapshot}';\n"
        ).encode()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.child.__exit__()

    def begin(self, tables: Sequence[Table]) -> None:
        """Import the snapshot, and lock these tables without waiting.

        Raises LockRefusedError if one is locked, DisturbedError if one no longer exists, DumpError.
        """
        names = b", ".join(b"ONLY " + table.pattern for table in tables)
        lock = b"LOCK TABLE " + names + b" IN ACCESS SHARE MODE NOWAIT;\n"
        try:
            for _ in self._run(self._preamble + lock):
                pass
        except DisturbedError:
            raise
        except DatabaseError as error:
            raise refused(error.message) from error
        self._backend = self._in_force()
        self._begun = True

    def _report(self, line: str) -> None:
        # Earlier messages are reasons to try again, which need not be reported.
        if self._begun:
            self._emit(ToolSaid("psql", line))

    def read(self, chunk: Chunk) -> Iterator[bytes]:
        """Yield the rows of a chunk, as COPY writes them, in pieces of any size.

        Call :meth:`confirm` afterwards to check that they are complete. Raises DumpError, which
        names the table.
        """
        self._copied = None
        try:
            held = b""
            for piece in self._run(chunk.read + _WITH_COUNT, b":ROW_COUNT, "):
                # The number comes last, and may be split anywhere.
                if len(piece) > _LONGEST_NUMBER and held:
                    yield held
                    held = piece
                else:
                    held += piece
        except DatabaseError as error:
            raise type(error)(
                f"the rows of {self._named(chunk)} cannot be read: {error.message}", hint=error.hint
            ) from error
        start = held.rfind(b"\n") + 1
        if start:
            yield held[:start]
        self._copied = int(held[start:])

    def confirm(self, chunk: Chunk, rows: int) -> None:
        """Raise DumpError unless the server sent as many rows of the chunk read last."""
        if self._copied != rows:
            raise DumpError(
                f"the server sent {self._copied} rows of {self._named(chunk)}, but {rows} were "
                "counted",
                hint="Run the backup again, and report this.",
            )

    def refuse_swapped(self) -> None:
        """Raise PoolerError if psql is in another session of the server, or lost its settings."""
        if self._in_force() != self._backend:
            raise pooler.swapped("psql")

    def _in_force(self) -> bytes:
        """Return the ID of the server process that answers. Raises PoolerError."""
        pid, _, lost = b"".join(self._run(_IN_FORCE)).strip().partition(b"|")
        if lost:
            raise pooler.swapped(f"psql, which lost the settings {lost.decode()}")
        return pid

    def _named(self, chunk: Chunk) -> str:
        return chunk.table.name.decode(self._codec, "replace")

    def _run(self, statements: bytes, columns: bytes = b"") -> Iterator[bytes]:
        """Yield psql's output, followed by the values of these columns of one more query."""
        token = secrets.token_hex(_TOKEN_BYTES).encode()
        self.child.queue(statements + b"SELECT " + columns + b"'" + token + b"';\n")
        mark = (b"|" if columns else b"") + token + b"\n"
        try:
            yield from self.child.read_until(mark, self._idle_seconds)
        except EOFError:
            raise self._tool.failure(self.child.wait(), self.child.last_lines) from None
