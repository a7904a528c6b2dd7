"""pg_dump as a stream whose bad end is an error, never an end of file."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from pgstash.errors import DumpError, LockTimeoutError
from pgstash.events import Emit, ToolSaid
from pgstash.postgres import locks, pooler
from pgstash.postgres.causes import Tool
from pgstash.postgres.process import Child
from pgstash.postgres.source import Connection, Server
from pgstash.postgres.tools import ClientTools

# How a plain dump ends, in all versions: RestoreArchive() in pg_backup_archiver.c. Releases
# since August 2025 close their \restrict after it.
CLOSING = re.compile(
    rb"\n--\n-- PostgreSQL database dump complete\n--\n\n(?:\\unrestrict \w+\n\n?)?\Z"
)
CLOSING_BYTES = 1024

_SEARCH_PATH = re.compile(
    rb"^SELECT pg_catalog\.set_config\('search_path', '([^\n]*)', false\);$", re.MULTILINE
)
_HEADER_BYTES = 16 * 1024

# pg_dump's own timeout names the whole statement: it goes first.
_SECONDS_FOR_LOCK_TABLE = 1


_UNKNOWN_CAUSE = "Look into the server's log for that time, and run the backup again."


@contextmanager
def dump(  # noqa: PLR0913 - each is one knob of one process
    server: Server,
    tools: ClientTools,
    *,
    options: Sequence[str],
    lock_seconds: float,
    idle_seconds: float,
    environment: Mapping[str, str],
    emit: Emit,
    first_lock_seconds: float | None = None,
    started: Callable[[Child], object] = lambda _child: None,
    locked: Callable[[str], None] = lambda _mark: None,
) -> Iterator[Iterator[bytes]]:
    """Run pg_dump on the server and yield its plain SQL as chunks of bytes.

    The iteration ends only after pg_dump exited with 0 and its last bytes are those of a
    complete dump; everything else raises DumpError, with the last lines that pg_dump wrote.
    LockTimeoutError is raised where a table stayed locked for ``lock_seconds``, or anything
    else that pg_dump wants to lock; ``first_lock_seconds`` is another limit for tables, and for
    all that it locks before its first byte. ``options`` are the user's own, each one word.
    ``started`` is told the child. ``locked`` is called before the first byte is read, when all
    locks on tables are held, with the mark at the end of the session's application_name; what it
    raises ends the dump. Leaving the block ends it.
    """
    first = lock_seconds if first_lock_seconds is None else first_lock_seconds
    command = arguments(server, tools, ["--format=plain", *options], first)

    refused = False

    def say(line: str) -> None:
        if not refused:  # afterwards it says that it was stopped
            emit(ToolSaid("pg_dump", line))

    def begun() -> None:
        nonlocal refused
        try:
            locked(mark)
        except BaseException:
            refused = True
            raise

    mark, connection, ask = watched(server)
    with Child(command, connection, environment, say=say) as child:
        started(child)
        chunks = itertools.chain(
            itertools.islice(patient(child, idle_seconds, first, ask, begun), 1),
            patient(child, idle_seconds, lock_seconds, ask),
        )
        found = in_one_session(chunks, server, connection)
        yield _complete(found, child, Tool("pg_dump", server, options))


def watched(server: Server) -> tuple[str, Connection, Callable[[float], None]]:
    """Return a mark, how a pg_dump is to connect, and what raises LockTimeoutError if it waits.

    The last is told for how many seconds that may be. --lock-wait-timeout covers the LOCK TABLE at
    the beginning alone, and pg_dump takes locks later too: on views, materialized views and
    sequences.
    """
    mark, connection = locks.marked(server.connection)

    def ask(lock_seconds: float) -> None:
        wait = locks.waiting(server, mark, lock_seconds + _SECONDS_FOR_LOCK_TABLE)
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
    """Yield what a watched pg_dump writes; raise LockTimeoutError where it waits for a lock.

    ``begun`` is called before the first byte is read.
    """
    return child.read(
        idle_seconds, silent_seconds=lock_seconds, silent=lambda: ask(lock_seconds), begun=begun
    )


def in_one_session(
    chunks: Iterable[bytes], server: Server, connection: Connection
) -> Iterator[bytes]:
    """Pass on what pg_dump writes; raise PoolerError where a pooler swapped its session.

    ``connection`` is what :func:`watched` returned. By its first byte pg_dump is in a transaction,
    in which nothing swaps any more: what it set before has to be in force there.
    """
    header = b""
    for number, chunk in enumerate(chunks):
        if number == 0 and server.pooled and locks.sessions(server, connection) > 1:
            raise pooler.swapped("pg_dump")
        if len(header) < _HEADER_BYTES:
            header += chunk[:_HEADER_BYTES]
            refuse_search_path(header)
        yield chunk


def refuse_search_path(script: bytes) -> None:
    """Raise PoolerError where a dump begins with a search_path that pg_dump did not set.

    It writes the one that is in force in its transaction (dumpSearchPath() in pg_dump.c), and set
    an empty one before.
    """
    match = _SEARCH_PATH.search(script, 0, _HEADER_BYTES)
    if match and match[1]:
        raise pooler.swapped("pg_dump, which lost its settings")


def arguments(
    server: Server, tools: ClientTools, options: Iterable[str], lock_seconds: float
) -> list[str]:
    """Return the command line of a pg_dump, all but the connection.

    Raises DumpError where the database's encoding lacks a character of an option.
    """
    return [
        str(tools.pg_dump),
        "--no-owner",
        "--no-acl",
        "--clean",
        "--if-exists",
        "--no-password",
        # The database's own encoding, which is pg_dump's default too, unless somebody planted
        # another one with ALTER ROLE … SET client_encoding.
        f"--encoding={server.database.encoding}",
        f"--lock-wait-timeout={lock_seconds * 1000:.0f}",
        *(_encoded(option, server) for option in options),
    ]


def _encoded(option: str, server: Server) -> str:
    """Return an option that arrives at pg_dump in the database's encoding, as it reads patterns."""
    try:
        return option.encode(server.codec, "surrogateescape").decode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise DumpError(
            f"pg_dump cannot be told {option}: the encoding of the database, "
            f"{server.database.encoding}, lacks a character of it",
            hint="Nothing there can have such a name: take it out of the setting.",
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
    r"""Yield a dump without its last line, and without what closes its ``\restrict``."""
    held = b""
    for chunk in chunks:
        held += chunk
        if len(held) > 2 * CLOSING_BYTES:
            yield held[:-CLOSING_BYTES]
            held = held[-CLOSING_BYTES:]
    match = CLOSING.search(held)
    yield held[: match.start()] if match else held
