"""Why a server refused a login, by SQLSTATE, because its message may be in any language.

Before there is a session, libpq gives only the message. Its trace of the protocol has the SQLSTATE
as well (https://www.postgresql.org/docs/current/libpq-control.html#LIBPQ-PQTRACE), from libpq 18 on
also during a login.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import time

import psycopg
from psycopg import pq

from pgstash.errors import DatabaseLoginError
from pgstash.postgres.server import time_limits

# B	118	ErrorResponse	 S "FATAL" V "FATAL" C "55000" M "database …"; a pooler may leave out V.
_ERROR = re.compile(rb'^B\t\d+\tErrorResponse\t S "[^"]*"(?: V "[^"]*")? C "(\w{5})"', re.MULTILINE)

TOO_MANY = "53300"
"""The SQLSTATE of a login if the server, the database or the role has no session left."""

ACCEPTED = "00000"
"""The SQLSTATE of success: the server accepts the login that it has just refused."""

_SESSIONS = (
    "A backup uses up to DUMP_JOBS + 4 sessions at a time, a restore RESTORE_JOBS + 3. Raise the "
    "limit of the role or the database (CONNECTION LIMIT), or the server's max_connections."
)
HINTS = {
    "3D000": "There is no database of that name on the server. Check the name in the URL.",
    "42501": "The role lacks a privilege: GRANT CONNECT ON DATABASE … TO the role.",
    TOO_MANY: _SESSIONS,
    ACCEPTED: (
        "The server accepted the same login a moment later, so it may have had no session left. "
        + _SESSIONS
    ),
    "55000": (
        "The database accepts no connections. Either that is a setting (ALTER DATABASE … "
        "ALLOW_CONNECTIONS true changes it), or the database is invalid because DROP DATABASE was "
        "interrupted (datconnlimit is -2 in pg_database). An invalid one can only be dropped."
    ),
}
"""What to do about a refusal, by its SQLSTATE."""

PASSING = (ACCEPTED, TOO_MANY, "57P01", "57P02", "57P03")
"""SQLSTATEs of refusals that end on their own: sessions end, and a server that starts, or was shut
down, is soon there (https://www.postgresql.org/docs/current/errcodes-appendix.html)."""


def error(conninfo: bytes, message: str) -> DatabaseLoginError:
    """Return the error for a login that the server has just refused."""
    state = refusal(conninfo)
    return DatabaseLoginError(message, hint=HINTS.get(state, ""), retryable=state in PASSING)


def hint(conninfo: bytes) -> str:
    """Return what to do about a login that the server has just refused; empty if unknown."""
    return HINTS.get(refusal(conninfo), "")


def refusal(conninfo: bytes) -> str:
    """Log in once more, and return the SQLSTATE of the answer: ``ACCEPTED``, or of a refusal.

    Empty if no server answers, or if an older libpq does not show it.
    """
    # In memory only, because the trace may contain the password.
    descriptor = os.memfd_create("trace")
    try:
        if _accepted(conninfo, descriptor):
            return ACCEPTED
        trace = os.pread(descriptor, os.fstat(descriptor).st_size, 0)
    except psycopg.Error:
        return ""
    finally:
        os.close(descriptor)
    found = _ERROR.findall(trace)
    return found[-1].decode() if found else ""


def _accepted(conninfo: bytes, descriptor: int) -> bool:
    """Return whether a login succeeds in time; its protocol is traced to a file."""
    give_up = time.monotonic() + time_limits.REFUSAL
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
        return pgconn.status == pq.ConnStatus.OK
    finally:
        pgconn.finish()
