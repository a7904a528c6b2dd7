"""The writer lock: two backups of one database to one destination never run at the same time.

It is an advisory lock of the source's server
(https://www.postgresql.org/docs/current/explicit-locking.html#ADVISORY-LOCKS), taken in a
transaction that is held open. So a pooler that lends sessions for one transaction cannot take it
away, and it ends with the session in any case. The server identifies it by the database and a key:
the first 64 bits of the SHA-256 of the destination.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Iterable, Iterator

import psycopg

from pgstash.errors import DatabaseLoginError, WriterBusyError, WriterLostError
from pgstash.events import Emit, Notice
from pgstash.postgres.server import query, time_limits
from pgstash.postgres.server.connection import Server
from pgstash.postgres.server.session import Row, Session

_DOMAIN = b"pgstash writer 1\0"

_SECONDS_BETWEEN_CHECKS = 30.0

# A server needs a moment to notice that a client was killed.
_SECONDS_FOR_THE_DEAD = 2.0
_SECONDS_BETWEEN_TRIES = 0.2

# Unacknowledged data makes a connection lost as soon as an idle one is. Older pg_dumps do not know
# this parameter, so only this session gets it.
_TCP_USER_TIMEOUT = {"tcp_user_timeout": "60000"}  # milliseconds

# If a client vanishes without closing the connection, as in a power failure, the server notices
# within a minute instead of two hours.
_KEEPALIVES = {
    "tcp_keepalives_idle": "30",
    "tcp_keepalives_interval": "10",
    "tcp_keepalives_count": "3",
}

# How pg_locks shows a key of 64 bits. It shows the locks of all databases.
_THE_LOCK = """
    l.locktype = 'advisory' AND l.objsubid = 1 AND l.granted
    AND l.classid = {high} AND l.objid = {low} AND l.database =
        (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())
"""
_ON_STANDBY = "pg_catalog.pg_is_in_recovery()"
_IS_HELD = "SELECT FROM pg_catalog.pg_locks l WHERE l.pid = pg_catalog.pg_backend_pid() AND "
# Every role sees the process ID and the name of the sessions of other roles.
_HOLDER = """
    SELECT l.pid, a.application_name, pg_catalog.host(a.client_addr),
           pg_catalog.to_char(a.xact_start AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"')
    FROM pg_catalog.pg_locks l LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid
    WHERE
"""


@contextlib.contextmanager
def hold(server: Server, destination: str, emit: Emit) -> Iterator[Writer]:
    """Hold the lock for backups of this database to this destination.

    ``destination`` is the URL of the prefix. Raises WriterBusyError, with what the server reports
    of the holder, if another session holds the lock for more than a moment. Raises another
    DatabaseError if the server refuses a session or does not answer.
    """
    parameters = server.connection.parameters
    different = {} if "tcp_user_timeout" in parameters else dict(_TCP_USER_TIMEOUT)
    different["application_name"] = f"{parameters['application_name']} writer lock"
    with Session(server.connection, **different) as session:
        writer = Writer(session, destination)
        standby = writer.take(server.major)
        emit(Notice(f"Took the writer lock of {destination} (key {key_of(destination)})"))
        if standby:
            emit(
                Notice(
                    "The server is a standby: the writer lock excludes other backups from this "
                    "standby, but not those from its primary or from another standby"
                )
            )
        try:
            yield writer
        finally:
            writer.release()


class Writer:
    """The holder of the lock, which can check that it still has it."""

    def __init__(self, session: Session, destination: str) -> None:
        """Keep the session, which must be one with the source's database; lock nothing yet."""
        self._session = session
        self._destination = destination
        self._key = key_of(destination)
        high, low = divmod(self._key % 2**64, 2**32)
        self._the_lock = _THE_LOCK.format(high=high, low=low)

    def take(self, major: int) -> bool:
        """Begin the transaction and take the lock; return whether the server is a standby."""
        # At this isolation level no snapshot outlives its statement: vacuum is not held back.
        begin = query.begin(major, "READ COMMITTED", _KEEPALIVES)
        take = f"SELECT pg_catalog.pg_try_advisory_xact_lock({self._key}), {_ON_STANDBY}"
        give_up = time.monotonic() + _SECONDS_FOR_THE_DEAD
        try:
            self._session.ask(begin, time_limits.ANSWER)
            [[taken, standby]] = self._session.ask(take, time_limits.ANSWER)
            while taken != b"t" and time.monotonic() < give_up:
                time.sleep(_SECONDS_BETWEEN_TRIES)
                [[taken, standby]] = self._session.ask(take, time_limits.ANSWER)
            holder = "" if taken == b"t" else self._holder()
        except psycopg.Error as error:
            raise DatabaseLoginError(
                f"the writer lock could not be requested: {error}",
                hint="Check the server's log, and that of a pooler in between.",
            ) from error
        if taken != b"t":
            raise WriterBusyError(
                f"the writer lock of this database and {self._destination} is taken{holder}"
            )
        return standby == b"t"

    def check(self) -> None:
        """Ask the server, and raise WriterLostError unless this session still has the lock.

        Also if the server does not answer within a minute.
        """
        try:
            held = self._session.ask(_IS_HELD + self._the_lock, time_limits.ANSWER)
        except psycopg.Error as error:
            raise WriterLostError(
                f"the session that holds the writer lock was lost: {error}"
            ) from error
        if not held:
            raise WriterLostError("the writer lock was lost, although its session is alive")

    def ask(self, statement: bytes) -> list[Row]:
        """Ask the server something else, in the transaction that holds the lock.

        Each query sees what was committed before it, and the search_path is empty. Raises
        WriterLostError if the query fails, because then the lock is lost.
        """
        try:
            return self._session.ask(statement, time_limits.ANSWER)
        except psycopg.Error as error:
            raise WriterLostError(
                f"the session that holds the writer lock was lost: {error}"
            ) from error

    def watch(
        self, chunks: Iterable[bytes], seconds: float = _SECONDS_BETWEEN_CHECKS
    ) -> Iterator[bytes]:
        """Pass chunks on, and check the lock whenever this number of seconds has passed."""
        last = time.monotonic()
        for chunk in chunks:
            yield chunk
            if time.monotonic() - last >= seconds:
                self.check()
                last = time.monotonic()

    def release(self) -> None:
        """Release the lock, so that it is free when this returns; calling it again is allowed.

        It does not wait for a server that is lost: the lock ends with the session.
        """
        with contextlib.suppress(psycopg.Error):
            self._session.ask("ROLLBACK", time_limits.RELEASE)
        self._session.close()

    def _holder(self) -> str:
        """Describe the session that has the lock, as far as the server reports it."""
        rows = self._session.ask(_HOLDER + self._the_lock, time_limits.ANSWER)
        if not rows:
            return ""
        pid, name, address, since = ((value or b"").decode(errors="replace") for value in rows[0])
        known = [name, address and f"from {address}", since and f"since {since}"]
        details = ", ".join(each for each in known if each)
        return f" by process {pid} of the server" + (f" ({details})" if details else "")


def key_of(destination: str) -> int:
    """Return the lock's key: a signed 64-bit integer, as PostgreSQL expects."""
    digest = hashlib.sha256(_DOMAIN + destination.encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)
