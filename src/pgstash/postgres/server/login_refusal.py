"""Why a server refused a login, by SQLSTATE: its message is in the language of the server.

Before there is a session libpq gives the message alone. Its trace of the protocol has the SQLSTATE
too (https://www.postgresql.org/docs/current/libpq-control.html#LIBPQ-PQTRACE), from libpq 18 on
that of a login as well.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import time

import psycopg
from psycopg import pq

_SECONDS = 10.0

# B	118	ErrorResponse	 S "FATAL" V "FATAL" C "55000" M "database …"; a pooler may leave out V.
_ERROR = re.compile(rb'^B\t\d+\tErrorResponse\t S "[^"]*"(?: V "[^"]*")? C "(\w{5})"', re.MULTILINE)

TOO_MANY = "53300"
"""The SQLSTATE of a login for which the server, the database or the role has no session left."""

_SESSIONS = (
    "A backup has up to DUMP_JOBS + 4 sessions at a time, a restore RESTORE_JOBS + 3: raise the "
    "limit of the role or the database (CONNECTION LIMIT), or the server's max_connections."
)
HINTS = {
    "3D000": "There is no database of that name on the server: check the name in the URL.",
    "42501": "The role lacks a right: GRANT CONNECT ON DATABASE … TO the role.",
    TOO_MANY: _SESSIONS,
    "55000": (
        "The database takes no connections: either that is set (ALTER DATABASE … ALLOW_CONNECTIONS "
        "true undoes it), or the database is invalid, because DROP DATABASE was interrupted "
        "(datconnlimit is -2 in pg_database). An invalid one can only be dropped."
    ),
}
"""What to do about a refusal, by its SQLSTATE."""


def hint(conninfo: bytes) -> str:
    """Return what to do about a login that the server just refused; empty if nobody can tell."""
    return HINTS.get(refusal(conninfo), "")


def refusal(conninfo: bytes) -> str:
    """Log in once more, and return the SQLSTATE of the refusal; empty if there is none.

    Also where an older libpq does not show it.
    """
    # It may hold the password, for a moment, in memory alone.
    descriptor = os.memfd_create("trace")
    try:
        _try(conninfo, descriptor)
        trace = os.pread(descriptor, os.fstat(descriptor).st_size, 0)
    except psycopg.Error:
        return ""
    finally:
        os.close(descriptor)
    found = _ERROR.findall(trace)
    return found[-1].decode() if found else ""


def _try(conninfo: bytes, descriptor: int) -> None:
    give_up = time.monotonic() + _SECONDS
    pgconn = pq.PGconn.connect_start(conninfo)
    try:
        pgconn.trace(descriptor)
        with contextlib.suppress(psycopg.NotSupportedError):
            pgconn.set_trace_flags(pq.Trace.SUPPRESS_TIMESTAMPS)
        while pgconn.status != pq.ConnStatus.BAD:
            state = pgconn.connect_poll()
            if state in (pq.PollingStatus.OK, pq.PollingStatus.FAILED):
                break
            poll = select.poll()
            reading = state == pq.PollingStatus.READING
            poll.register(pgconn.socket, select.POLLIN if reading else select.POLLOUT)
            if not poll.poll(max(0.0, give_up - time.monotonic()) * 1000):
                break
        pgconn.untrace()
    finally:
        pgconn.finish()
