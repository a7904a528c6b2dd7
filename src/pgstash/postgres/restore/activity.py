"""Reports what the sessions of a restore are working on, as the server sees it.

Source: https://www.postgresql.org/docs/current/progress-reporting.html
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from pgstash import events
from pgstash.errors import PgstashError
from pgstash.postgres.server import query, time_limits
from pgstash.postgres.server.connection import Server

_SECONDS_BETWEEN_LOOKS = 1.0
_SHOWN = 2

# A table that is not committed has no name yet for other sessions. In the first phase of an index
# the blocks of the table are counted, later the rows of the index.
_QUERY = """
    SELECT s.is_index, c.oid::pg_catalog.regclass::text, s.done, s.total
    FROM (
        SELECT pid, relid, true AS is_index,
               CASE WHEN tuples_total > 0 THEN tuples_done ELSE blocks_done END AS done,
               CASE WHEN tuples_total > 0 THEN tuples_total ELSE blocks_total END AS total
        FROM pg_catalog.pg_stat_progress_create_index
        WHERE datname = pg_catalog.current_database()
        UNION ALL
        SELECT pid, relid, false, tuples_processed, 0
        FROM pg_catalog.pg_stat_progress_copy
        WHERE datname = pg_catalog.current_database()
    ) AS s
    JOIN pg_catalog.pg_stat_activity a ON a.pid = s.pid
    JOIN pg_catalog.pg_roles r ON r.oid = a.usesysid AND r.rolname = session_user
    LEFT JOIN pg_catalog.pg_class c ON c.oid = s.relid
    ORDER BY s.is_index DESC, a.query_start, s.pid
"""


@contextlib.contextmanager
def reported(server: Server, emit: events.Emit) -> Iterator[None]:
    """Report for the length of the block, in a thread, what the login's sessions are working on.

    One more session asks the server; its login should fire no event triggers. If it cannot, nothing
    is reported.
    """
    ended = threading.Event()
    thread = threading.Thread(target=_report, args=(server, emit, ended), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        # The session must not be in the way of what comes next, such as a change of its name.
        thread.join(time_limits.BRIEF_ANSWER)


def _report(server: Server, emit: events.Emit, ended: threading.Event) -> None:
    if ended.wait(_SECONDS_BETWEEN_LOOKS):
        return
    before = ""
    # It is for a display only: a server that does not answer is reported by those who need it.
    with (
        contextlib.suppress(PgstashError, UnicodeError),
        query.opened(
            server,
            "what is being worked on",
            connect_seconds=time_limits.BRIEF_CONNECT,
            answer_seconds=time_limits.BRIEF_ANSWER,
        ) as session,
    ):
        while True:
            what = _described(session.execute(_QUERY).fetchall(), server.codec)
            if what != before:
                emit(events.WorkingOn(what))
                before = what
            if ended.wait(_SECONDS_BETWEEN_LOOKS):
                return


def _described(rows: Sequence[tuple[Any, ...]], codec: str) -> str:
    """Return what is being worked on: ``index of public.orders 45%``; empty if it is unknown."""
    found = []
    for is_index, name, done, total in rows[:_SHOWN]:
        table = name.decode(codec, "replace") if name else "a new table"
        share = f" {min(99, 100 * (done or 0) // total)}%" if total else ""
        found.append(f"index of {table}{share}" if is_index else f"rows of {table}")
    if len(rows) > _SHOWN:
        found.append(f"and {len(rows) - _SHOWN} more")
    return ", ".join(found)
