"""The time of the server and its position in the WAL just before the snapshot of a dump."""

from __future__ import annotations

from dataclasses import dataclass

from pgstash.errors import DatabaseError
from pgstash.events import Emit, Notice
from pgstash.postgres.server import query
from pgstash.postgres.server.connection import Server

# The position is of no use to pgstash itself, so nothing depends on the right to ask for it. Aurora
# has neither function.
_TIME = """
    SELECT pg_catalog.to_char(pg_catalog.clock_timestamp() AT TIME ZONE 'UTC',
                              'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"'),
           pg_catalog.pg_is_in_recovery()
"""
_WRITTEN = "SELECT pg_catalog.pg_current_wal_lsn()"
_REPLAYED = "SELECT pg_catalog.pg_last_wal_replay_lsn()"


@dataclass(frozen=True, slots=True)
class Moment:
    """A moment of a server: the time by its clock, in UTC, and the position in its WAL.

    On a standby the position is that of the last replayed record. It is None if the server does not
    disclose it.
    """

    time: str
    wal: str | None


def of(server: Server, emit: Emit) -> Moment | None:
    """Return the present moment of a server; None if it does not answer."""
    found: Moment | None = None
    try:
        with query.asking(server, "its position in the WAL") as ask:
            [[time, standby]] = ask(_TIME)
            found = Moment((time or b"").decode(), None)
            [[wal]] = ask(_REPLAYED if standby == b"t" else _WRITTEN)
            if wal:
                found = Moment(found.time, wal.decode())
    except DatabaseError as error:
        emit(Notice(f"The position in the WAL is not stored: {error.message}"))
    return found
