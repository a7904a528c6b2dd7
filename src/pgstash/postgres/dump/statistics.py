"""The statistics for the planner, as a script for psql that a restore can apply.

An archive does not contain them: servers before PostgreSQL 18 lack the functions that set them
(https://www.postgresql.org/docs/current/functions-admin.html#FUNCTIONS-ADMIN-STATSMOD).
"""

from __future__ import annotations

from collections.abc import Sequence

from pgstash.errors import DumpError
from pgstash.events import ToolSaid
from pgstash.postgres.dump.failure_cause import Tool
from pgstash.postgres.dump.pg_dump import in_one_session, patient, watched
from pgstash.postgres.server.connection import Server
from pgstash.postgres.tools import pg_dump_options
from pgstash.postgres.tools.installed import ClientTools
from pgstash.postgres.tools.process import Child, Command
from pgstash.postgres.tools.tool_run import ToolRun

FIRST = 18
"""The first pg_dump that writes them, and the first server that accepts them."""

# ANALYZE of a smaller database takes seconds: that is not worth a second pg_dump in each backup.
_SMALLEST = 1024**3  # bytes

_LARGEST = 32 * 1024 * 1024  # bytes; they are held in memory, and a column takes 1 to 10 kB
_LOCK_SECONDS = 5.0  # they are not worth waiting for
_IDLE_SECONDS = 60.0
_ABOUT_STATISTICS = frozenset({"--statistics", "--no-statistics"})


def wanted(server: Server, client: ClientTools, options: Sequence[str]) -> bool:
    """Return whether this pg_dump can write them, and the database and the options are such.

    They contain values of columns, so none are dumped if the dump leaves anything out.
    """
    return (
        client.major >= FIRST
        and server.database.bytes >= _SMALLEST
        and not pg_dump_options.leaving_out(options)
        and not _ABOUT_STATISTICS.intersection(options)
    )


def dump(server: Server, tool_run: ToolRun, options: Sequence[str]) -> bytes:
    """Return the statistics that the role of the dump may read. Raises what a dump raises."""
    role = pg_dump_options.role(options)
    words = [
        str(tool_run.client.pg_dump),
        "--statistics-only",
        "--no-password",
        f"--encoding={server.database.encoding}",
        f"--lock-wait-timeout={_LOCK_SECONDS * 1000:.0f}",
        *([f"--role={role}"] if role else []),
    ]

    def report(line: str) -> None:
        tool_run.emit(ToolSaid("pg_dump", line))

    _, connection, ask = watched(server)
    with Child(Command(words, tool_run.environment), connection, report) as child:
        chunks, total = [], 0
        output = patient(child, _IDLE_SECONDS, _LOCK_SECONDS, ask)
        for chunk in in_one_session(output, server, connection):
            chunks.append(chunk)
            total += len(chunk)
            if total > _LARGEST:
                raise DumpError(f"they have more than {_LARGEST // 1024**2} MiB")
        status = child.wait()
        if status != 0:
            raise Tool("pg_dump", server, options).failure(status, child.last_lines)
    return b"".join(chunks)
