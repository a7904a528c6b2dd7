"""Asks the server whether a session of pgstash waits for a lock, and who holds the lock."""

from __future__ import annotations

import contextlib
import secrets
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import psycopg

from pgstash.errors import DatabaseError
from pgstash.events import Emit, Warned
from pgstash.postgres.server import query, time_limits
from pgstash.postgres.server.connection import Connection, Server
from pgstash.postgres.server.session import Session

_MARK_BYTES = 4
_LONGEST_APPLICATION_NAME = 63  # bytes: the server cuts off what is longer

_SECONDS_OF_SILENCE = 30.0
_SECONDS_UNTIL_NEXT_WARNING = 600.0

# Views that every role may read. It sees everything of its own sessions, and the process ID and the
# name of those of other roles. The text of a query is not read: it may contain secrets. A blocker
# that holds the lock comes before one that only waits in front of us.
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
    """A wait for a lock, in words: ``wanted`` is the locked object, ``blocker`` holds the lock."""

    wanted: str
    blocker: str


def marked(connection: Connection) -> tuple[str, Connection]:
    """Return a random mark, and a connection whose sessions have it in their name."""
    mark = secrets.token_hex(_MARK_BYTES)
    name = connection.parameters["application_name"].encode("utf-8", "surrogateescape")
    short = name[: _LONGEST_APPLICATION_NAME - len(mark) - 1].decode(errors="ignore")
    parameters = {**connection.parameters, "application_name": f"{short} {mark}"}
    return mark, replace(connection, parameters=parameters)


@contextlib.contextmanager
def warn_of_lock_waits(server: Server, progress: Callable[[], int], emit: Emit) -> Iterator[Server]:
    """Yield a Server whose sessions are watched: warn whenever one waits long for a lock.

    A thread asks the server whenever ``progress``, a count of what the session does, stops growing.
    """
    mark, connection = marked(server.connection)
    ended = threading.Event()
    asking = threading.Thread(
        target=_watch, args=(server, mark, progress, emit, ended), daemon=True
    )
    asking.start()
    try:
        yield replace(server, connection=connection)
    finally:
        ended.set()  # without waiting for the thread, which may wait for the server


def _watch(
    server: Server, mark: str, progress: Callable[[], int], emit: Emit, ended: threading.Event
) -> None:
    before, pause = progress(), _SECONDS_OF_SILENCE
    while not ended.wait(pause):
        reached, pause = progress(), _SECONDS_OF_SILENCE
        is_stuck, before = reached == before, reached
        wait = waiting(server, mark, _SECONDS_OF_SILENCE / 2) if is_stuck else None
        if wait and not ended.is_set():
            emit(
                Warned(
                    f"The restore waits for a lock on {wait.wanted}, which {wait.blocker} blocks"
                )
            )
            pause = _SECONDS_UNTIL_NEXT_WARNING


def sessions(server: Server, connection: Connection) -> int:
    """Return how many sessions of the server have the mark; 0 if the server does not answer.

    It is one, or none if it has ended. A pooler that swaps sessions leaves more than one: each has
    the name of the last client that it was lent to.
    """
    name = connection.parameters["application_name"][-2 * _MARK_BYTES :]
    try:
        with Session(server.connection) as session:
            # A single statement, which runs in one session.
            [[count]] = session.ask(_MARKED.format(mark=name), time_limits.BRIEF_ANSWER)
    except (psycopg.Error, DatabaseError):
        return 0
    return int(count or b"0")


def waiting(server: Server, mark: str, seconds: float) -> Wait | None:
    """Return the lock that the session has waited for, for at least ``seconds``.

    ``mark`` is in the session's application_name, to which a pooler may add something. None if it
    waits for no lock, or if the server does not answer the query, which is made in another session.
    """
    try:
        row = _ask(server, mark, seconds)
    except (DatabaseError, UnicodeError):
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
    # Older servers do not record when a wait began. The statement began little earlier.
    since = "l.waitstart" if server.major >= 14 else "a.query_start"  # noqa: PLR2004 - a version
    with query.opened(
        server,
        "which sessions wait for a lock",
        connect_seconds=time_limits.BRIEF_CONNECT,
        answer_seconds=time_limits.BRIEF_ANSWER,
    ) as session:
        return session.execute(
            _QUERY.format(since=since), {"mark": mark, "seconds": seconds}
        ).fetchone()
