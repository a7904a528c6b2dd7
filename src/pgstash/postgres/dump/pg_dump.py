"""pg_dump as a stream: if it fails, reading raises an error and never just ends."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from pgstash.errors import DumpError, LockTimeoutError
from pgstash.events import ToolSaid
from pgstash.postgres.dump.failure_cause import Tool
from pgstash.postgres.server import lock_waits, pooler
from pgstash.postgres.server.connection import Connection, Server
from pgstash.postgres.tools.installed import ClientTools
from pgstash.postgres.tools.process import Child, Command
from pgstash.postgres.tools.tool_run import Limits, ToolRun

# The end of a plain dump, in all versions: RestoreArchive() in pg_backup_archiver.c. Releases since
# August 2025 add \unrestrict.
CLOSING = re.compile(
    rb"\n--\n-- PostgreSQL database dump complete\n--\n\n(?:\\unrestrict \w+\n\n?)?\Z"
)
CLOSING_BYTES = 1024

_SEARCH_PATH = re.compile(
    rb"^SELECT pg_catalog\.set_config\('search_path', '([^\n]*)', false\);$", re.MULTILINE
)
_HEADER_BYTES = 16 * 1024

# pg_dump's own timeout comes first, because its message names the whole statement.
_SECONDS_FOR_LOCK_TABLE = 1


_UNKNOWN_CAUSE = "Check the server's log for that time, and run the backup again."


class Dump(Iterator[bytes]):
    """The plain SQL of a running pg_dump, as chunks of bytes."""

    def __init__(self, child: Child, chunks: Iterator[bytes]) -> None:
        """Read the chunks that the child writes."""
        self._child = child
        self._chunks = chunks

    def __next__(self) -> bytes:
        return next(self._chunks)

    def end(self) -> None:
        """End pg_dump, from any thread; a reader of the dump gets an error."""
        self._child.end()


@contextmanager
def dump(
    server: Server,
    tool_run: ToolRun,
    options: Sequence[str],
    limits: Limits,
    *,
    locked: Callable[[str], None] = lambda _mark: None,
) -> Iterator[Dump]:
    """Run pg_dump on the server and yield its plain SQL.

    The iteration ends only after pg_dump has exited with 0 and its last bytes are those of a
    complete dump. Everything else raises DumpError, with the last lines of its stderr, or
    LockTimeoutError if an object that pg_dump wants to lock stays locked for longer than the limit.

    ``options`` are the user's own, each one word. ``locked`` is called with the mark at the end of
    the session's application_name, when all locks on tables are held and nothing has been read; if
    it raises, the dump ends. Leaving the block ends the dump.
    """
    first = limits.before_first_byte
    words = arguments(
        server, tool_run.client, ["--format=plain", "--no-owner", "--no-acl", *options], first
    )
    command = Command(words, tool_run.environment)
    refused = False

    def report(line: str) -> None:
        if not refused:  # later lines only report that it was stopped
            tool_run.emit(ToolSaid("pg_dump", line))

    def begun() -> None:
        nonlocal refused
        try:
            locked(mark)
        except BaseException:
            refused = True
            raise

    mark, connection, ask = watched(server)
    with Child(command, connection, report) as child:
        chunks = itertools.chain(
            itertools.islice(patient(child, limits.idle, first, ask, begun), 1),
            patient(child, limits.idle, limits.lock, ask),
        )
        found = in_one_session(chunks, server, connection)
        yield Dump(child, _complete(found, child, Tool("pg_dump", server, options)))


def watched(server: Server) -> tuple[str, Connection, Callable[[float], None]]:
    """Return a mark, the connection for a pg_dump, and a check of its waits for locks.

    The check raises LockTimeoutError if pg_dump has waited for more than the given number of
    seconds. --lock-wait-timeout only covers the LOCK TABLE at the beginning, but pg_dump also takes
    locks later: on views, materialized views and sequences.
    """
    mark, connection = lock_waits.marked(server.connection)

    def ask(lock_seconds: float) -> None:
        wait = lock_waits.waiting(server, mark, lock_seconds + _SECONDS_FOR_LOCK_TABLE)
        if wait:
            raise LockTimeoutError(
                f"pg_dump waited more than {lock_seconds:.0f} s for a lock on {wait.wanted}, "
                f"which {wait.blocker} blocks"
            )

    return mark, connection, ask


def patient(
    child: Child,
    idle_seconds: float,
    lock_seconds: float,
    ask: Callable[[float], None],
    begun: Callable[[], None] = lambda: None,
) -> Iterator[bytes]:
    """Yield the output of a watched pg_dump; raise LockTimeoutError if it waits for a lock.

    ``ask`` is the check of :func:`watched`. ``begun`` is called before the first byte is read.
    """
    return child.read(
        idle_seconds, silent_seconds=lock_seconds, silent=lambda: ask(lock_seconds), begun=begun
    )


def in_one_session(
    chunks: Iterable[bytes], server: Server, connection: Connection
) -> Iterator[bytes]:
    """Pass on the output of pg_dump; raise PoolerError if a pooler swapped its session.

    ``connection`` is that of :func:`watched`. When pg_dump writes its first byte, it is in a
    transaction, in which no pooler swaps the session. Its earlier settings must be in force there.
    """
    header = b""
    for number, chunk in enumerate(chunks):
        if number == 0 and server.pooled and lock_waits.sessions(server, connection) > 1:
            raise pooler.swapped("pg_dump")
        if len(header) < _HEADER_BYTES:
            header += chunk[:_HEADER_BYTES]
            refuse_search_path(header)
        yield chunk


def refuse_search_path(script: bytes) -> None:
    """Raise PoolerError if a dump begins with a search_path that pg_dump did not set.

    pg_dump sets an empty one, and later writes the one in force (dumpSearchPath() in pg_dump.c).
    """
    match = _SEARCH_PATH.search(script, 0, _HEADER_BYTES)
    if match and match[1]:
        raise pooler.swapped("pg_dump, which lost its settings")


def arguments(
    server: Server, tools: ClientTools, options: Iterable[str], lock_seconds: float
) -> list[str]:
    """Return the command line of a pg_dump without the connection.

    Raises DumpError if the database's encoding lacks a character of an option.
    """
    return [
        str(tools.pg_dump),
        "--clean",
        "--if-exists",
        "--no-password",
        # The database's own encoding. That is pg_dump's default, too, unless ALTER ROLE … SET
        # client_encoding has changed it.
        f"--encoding={server.database.encoding}",
        f"--lock-wait-timeout={lock_seconds * 1000:.0f}",
        *(_encoded(option, server) for option in options),
    ]


def _encoded(option: str, server: Server) -> str:
    """Return an option in the database's encoding, in which pg_dump reads patterns."""
    try:
        return option.encode(server.codec, "surrogateescape").decode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise DumpError(
            f"pg_dump cannot use {option}: the encoding of the database, "
            f"{server.database.encoding}, lacks a character of it",
            hint="No object there can have such a name. Remove it from the setting.",
        ) from None


def _complete(chunks: Iterable[bytes], child: Child, tool: Tool) -> Iterator[bytes]:
    tail = b""
    for chunk in chunks:
        tail = (
            (tail + chunk)[-CLOSING_BYTES:]
            if len(chunk) < CLOSING_BYTES
            else (chunk[-CLOSING_BYTES:])
        )
        yield chunk
    status = child.wait()
    if status != 0:
        raise tool.failure(status, child.last_lines)
    if not CLOSING.search(tail):
        raise DumpError(
            "pg_dump ended without an error, but its dump is not complete", hint=_UNKNOWN_CAUSE
        )


def without_closing(chunks: Iterable[bytes]) -> Iterator[bytes]:
    r"""Yield a dump without its last line and without its ``\unrestrict``."""
    held = b""
    for chunk in chunks:
        held += chunk
        if len(held) > 2 * CLOSING_BYTES:
            yield held[:-CLOSING_BYTES]
            held = held[-CLOSING_BYTES:]
    match = CLOSING.search(held)
    yield held[: match.start()] if match else held
