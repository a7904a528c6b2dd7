"""Asks the server whether a session of ours waits for a lock, for which, and who holds it."""

from __future__ import annotations

import contextlib
import secrets
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import psycopg

from pgstash.errors import DatabaseError, PoolerError
from pgstash.events import Emit, Warned
from pgstash.postgres.session import Session
from pgstash.postgres.source import Connection, Server, connect_again

_MARK_BYTES = 4
_LONGEST_APPLICATION_NAME = 63  # bytes: the server cuts off what is longer

_SECONDS_OF_SILENCE = 30.0
_SECONDS_UNTIL_TOLD_AGAIN = 600.0

_SECONDS_TO_CONNECT = 5
_SECONDS_TO_ANSWER = 5

# Views that every role may read: of its own sessions it sees all, of those of other roles the
# process id and the name. The text of a query stays where it is: there may be secrets in it.
# The order prefers a blocker that holds the lock to one that waits in front of us too.
_QUERY = """
    SELECT blocker.pid, l.locktype, l.relation::pg_catalog.regclass::text,
           b.application_name, b.state
    FROM pg_catalog.pg_stat_activity a
    JOIN pg_catalog.pg_locks l ON l.pid = a.pid AND NOT l.granted
    CROSS JOIN LATERAL pg_catalog.unnest(pg_catalog.pg_blocking_pids(a.pid)) AS blocker (pid)
    LEFT JOIN pg_catalog.pg_stat_activity b ON b.pid = blocker.pid
    WHERE a.wait_event_type = 'Lock'
      AND pg_catalog.strpos(a.application_name, %(mark)s) > 0
      AND pg_catalog.clock_timestamp() - {since} >= %(seconds)s * interval '1 second'
    ORDER BY b.wait_event_type IS NOT DISTINCT FROM 'Lock', blocker.pid
    LIMIT 1
"""


_MARKED = """
    SELECT pg_catalog.count(*) FROM pg_catalog.pg_stat_activity
    WHERE pg_catalog.strpos(application_name, '{mark}') OPERATOR(pg_catalog.>) 0
      AND coalesce(backend_type, 'client backend') OPERATOR(pg_catalog.=) 'client backend'
"""


@dataclass(frozen=True, slots=True)
class Wait:
    """A wait for a lock, in words: ``wanted`` is what is locked, ``blocker`` who locks it."""

    wanted: str
    blocker: str


def marked(connection: Connection) -> tuple[str, Connection]:
    """Return a mark, and how to connect so that the session can be told from others by it."""
    mark = secrets.token_hex(_MARK_BYTES)
    name = connection.parameters["application_name"].encode("utf-8", "surrogateescape")
    short = name[: _LONGEST_APPLICATION_NAME - len(mark) - 1].decode(errors="ignore")
    parameters = {**connection.parameters, "application_name": f"{short} {mark}"}
    return mark, replace(connection, parameters=parameters)


@contextlib.contextmanager
def waits_told(server: Server, progress: Callable[[], int], emit: Emit) -> Iterator[Server]:
    """Warn of each long wait for a lock in a session of the server that this yields.

    The server is asked when ``progress``, which counts what the session does, stands still.
    """
    mark, connection = marked(server.connection)
    ended = threading.Event()
    asking = threading.Thread(target=_tell, args=(server, mark, progress, emit, ended), daemon=True)
    asking.start()
    try:
        yield replace(server, connection=connection)
    finally:
        ended.set()  # and not waited for: it may wait for the server


def _tell(
    server: Server, mark: str, progress: Callable[[], int], emit: Emit, ended: threading.Event
) -> None:
    before, pause = progress(), _SECONDS_OF_SILENCE
    while not ended.wait(pause):
        reached, pause = progress(), _SECONDS_OF_SILENCE
        stands_still, before = reached == before, reached
        wait = waiting(server, mark, _SECONDS_OF_SILENCE / 2) if stands_still else None
        if wait and not ended.is_set():
            emit(
                Warned(
                    f"The restore waits for a lock on {wait.wanted}, which {wait.blocker} blocks"
                )
            )
            pause = _SECONDS_UNTIL_TOLD_AGAIN


def sessions(server: Server, connection: Connection) -> int:
    """Return how many sessions of the server are the marked one's; 0 where nobody says.

    It is one, or none any more. More than one is what a pooler leaves that swaps sessions: each has
    the name of the client that it was given to last.
    """
    name = connection.parameters["application_name"][-2 * _MARK_BYTES :]
    try:
        with contextlib.closing(Session(server.connection, client_encoding="SQL_ASCII")) as session:
            # One statement alone, which gets one session of them.
            [[count]] = session.ask(_MARKED.format(mark=name), _SECONDS_TO_ANSWER)
    except (psycopg.Error, DatabaseError):
        return 0
    return int(count or b"0")


def waiting(server: Server, mark: str, seconds: float) -> Wait | None:
    """Tell what the session has waited for, by now for ``seconds`` at least.

    ``mark`` is in the session's application_name; a pooler may add to that. None where it waits for
    no lock, and where the server does not say: the question is asked over a connection of its own.
    """
    try:
        row = _ask(server, mark, seconds)
    except (psycopg.Error, PoolerError, UnicodeError):
        return None
    if row is None:
        return None
    pid, *names = row
    kind, relation, application, state = (
        (name or b"").decode(server.codec, "replace") for name in names
    )
    wanted = relation or f"something else ({kind})"
    if not pid:
        return Wait(wanted, "a prepared transaction")
    known = ", ".join(name for name in (application, state) if name)
    return Wait(wanted, f"process {pid}" + (f" ({known})" if known else ""))


def _ask(server: Server, mark: str, seconds: float) -> tuple[Any, ...] | None:
    # Older servers do not keep when a wait began: a statement that waits began not much before.
    since = "l.waitstart" if server.major >= 14 else "a.query_start"  # noqa: PLR2004 - a version
    with connect_again(server, _SECONDS_TO_CONNECT) as session:
        session.execute(f"SET statement_timeout = '{_SECONDS_TO_ANSWER}s'")
        return session.execute(
            _QUERY.format(since=since), {"mark": mark, "seconds": seconds}
        ).fetchone()
