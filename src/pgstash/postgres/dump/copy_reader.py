"""A psql that reads rows of big tables, chunk by chunk, under the snapshot of another session."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping, Sequence
from typing import Self

from pgstash.errors import DatabaseError, DumpError
from pgstash.events import Emit, ToolSaid
from pgstash.postgres import inquiry, pooler
from pgstash.postgres.causes import DisturbedError, Tool
from pgstash.postgres.copying import Chunk, Table, refused
from pgstash.postgres.process import Child
from pgstash.postgres.source import Server
from pgstash.postgres.tools import ClientTools

_TOKEN_BYTES = 16

# psql keeps the server's count of what it copied where the rows go to another file than the
# results do (ROW_COUNT: https://www.postgresql.org/docs/current/app-psql.html): here to the same
# pipe, opened once more.
_WITH_COUNT = b" \\g /dev/stdout\n"
_LONGEST_NUMBER = 20  # digits of what is counted in 64 bits

# What pg_dump sets for itself (setup_connection() in pg_dump.c), and what makes a range of pages
# a scan of that range whatever the planner knows of the table.
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

# The server's process, and the settings that are not in force. DateStyle has more than was wanted.
_IN_FORCE = f"""
    SELECT pg_catalog.pg_backend_pid(), pg_catalog.string_agg(s.name, ', ')
    FROM (VALUES {_VALUES}, ('search_path', '""')) AS wanted (name, value)
    JOIN pg_catalog.pg_settings s ON pg_catalog.lower(s.name) = pg_catalog.lower(wanted.name)
                                     AND NOT pg_catalog.starts_with(s.setting, wanted.value);
""".encode()  # noqa: S608 - of constants


class Reader:
    """A psql that sees the snapshot and reads one chunk after the other; a context manager."""

    def __init__(  # noqa: PLR0913 - each is one knob of one process
        self,
        server: Server,
        tools: ClientTools,
        *,
        snapshot: str,
        role: str | None,
        idle_seconds: float,
        environment: Mapping[str, str],
        emit: Emit,
    ) -> None:
        """Start psql; nothing is asked yet. Raises DumpError."""
        self._idle_seconds = idle_seconds
        self._emit = emit
        self._begun = False
        self._backend = b""
        self._copied: int | None = None
        self._codec = server.codec
        self._tool = Tool("psql", server)
        command = [
            str(tools.psql),
            *("--no-psqlrc", "--quiet", "--no-align", "--tuples-only", "--no-password"),
            *("--set=ON_ERROR_STOP=1", "--set=VERBOSITY=verbose", "--file=-"),
        ]
        self.child = Child(
            command,
            server.connection,
            environment,
            say=self._say,
            fed=True,
        )
        self._preamble = (
            "\\o /dev/null\n"
            # Before anything that a user of the database may have defined an operator for.
            "SET search_path = '';\n"
            f"SET client_encoding = '{server.database.encoding}';\n"
            "SELECT pg_catalog.set_config(s.name, wanted.value, false)"
            f" FROM (VALUES {_VALUES}) AS wanted (name, value)"
            " JOIN pg_catalog.pg_settings s ON pg_catalog.lower(s.name)"
            " = pg_catalog.lower(wanted.name);\n"
            "\\o\n"
        ).encode()
        if role is not None:
            self._preamble += inquiry.taking(role, server) + b";\n"
        self._preamble += (
            "BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY;\n"
            f"SET TRANSACTION SNAPSHOT '{snapshot}';\n"
        ).encode()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.child.__exit__()

    def begin(self, tables: Sequence[Table]) -> None:
        """See the snapshot, and lock these tables at once.

        Raises LockRefusedError where one is locked, DisturbedError where one is gone, DumpError.
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

    def _say(self, line: str) -> None:
        # Before, what is said is a reason to try again, and then nobody needs to know.
        if self._begun:
            self._emit(ToolSaid("psql", line))

    def read(self, chunk: Chunk) -> Iterator[bytes]:
        """Yield the rows of a chunk, as COPY writes them, in pieces of any size.

        :meth:`confirm` tells afterwards whether they are all. Raises DumpError, which names the
        table.
        """
        self._copied = None
        try:
            held = b""
            for piece in self._run(chunk.read + _WITH_COUNT, b":ROW_COUNT, "):
                # The number comes last, and may be cut anywhere.
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
                f"the server sent {self._copied} rows of {self._named(chunk)}, of which {rows} "
                "were counted",
                hint="Run the backup again, and report this.",
            )

    def refuse_swapped(self) -> None:
        """Raise PoolerError if it is in another session of the server, or without its settings."""
        if self._in_force() != self._backend:
            raise pooler.swapped("psql")

    def _in_force(self) -> bytes:
        """Return which process of the server answers. Raises PoolerError."""
        pid, _, lost = b"".join(self._run(_IN_FORCE)).strip().partition(b"|")
        if lost:
            raise pooler.swapped(f"psql, which lost the settings {lost.decode()}")
        return pid

    def _named(self, chunk: Chunk) -> str:
        return chunk.table.name.decode(self._codec, "replace")

    def _run(self, statements: bytes, columns: bytes = b"") -> Iterator[bytes]:
        """Yield what psql answers, with what these columns of one more query are at its end."""
        token = secrets.token_hex(_TOKEN_BYTES).encode()
        self.child.queue(statements + b"SELECT " + columns + b"'" + token + b"';\n")
        mark = (b"|" if columns else b"") + token + b"\n"
        try:
            yield from self.child.read_until(mark, self._idle_seconds)
        except EOFError:
            raise self._tool.failure(self.child.wait(), self.child.last_lines) from None
