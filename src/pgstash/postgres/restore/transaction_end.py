"""Ends the session of a transaction that was not committed, and finds out what became of it."""

from __future__ import annotations

import time
from dataclasses import dataclass

import psycopg

from pgstash.errors import RestoreError
from pgstash.events import Emit, Notice
from pgstash.postgres.restore.target import Outcome, connected
from pgstash.postgres.server.connection import Server

_SECONDS_BETWEEN_LOOKS = 0.1
_SECONDS_TO_END = 30.0
# After a signal its sender soon follows with SIGKILL.
_SECONDS_TO_END_AFTER_SIGNAL = 2.0


@dataclass(frozen=True, slots=True)
class Backend:
    """The server's process for a session, and its transaction if there is a single one."""

    pid: int
    started: str
    transaction: str


def outcome(
    server: Server, backend: Backend, emit: Emit, *, committing: bool, hurried: bool
) -> Outcome:
    """End the session, which may not notice for hours that its client is gone; return the outcome.

    It is ended only while it is in the transaction: otherwise a pooler may have given it to
    another client. ``committing`` is whether COMMIT was sent. It takes less time if ``hurried``.
    """
    seconds = _SECONDS_TO_END_AFTER_SIGNAL if hurried else _SECONDS_TO_END
    give_up = time.monotonic() + seconds
    try:
        with connected(server, seconds=min(seconds, 10.0)) as session:
            # As the login itself: a role that it sets may neither see nor end the session.
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
        emit(Notice(f"The outcome of the transaction is unknown: {error}"))
        # When a server that is down starts again, it rolls back what was not committed.
        return Outcome.UNKNOWN if committing else Outcome.NOTHING
    if answer == ("aborted",):
        return Outcome.NOTHING
    if answer == ("committed",):
        return Outcome.COMMITTED if committing else Outcome.UNKNOWN
    return Outcome.UNKNOWN
