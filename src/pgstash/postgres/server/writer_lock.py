"""The writer lock: two backups of one database to one place never run at the same time.

It is an advisory lock of the source's server
(https://www.postgresql.org/docs/current/explicit-locking.html#ADVISORY-LOCKS), taken in a
transaction that is held open: a pooler that lends a server's session for one transaction at a
time cannot take it away, and it ends with the session, however that ends. The server knows it by
the database and a key; the key is the first 64 bits of a SHA-256 of the destination.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Iterable, Iterator

import psycopg

from pgstash.errors import DatabaseLoginError, WriterBusyError, WriterLostError
from pgstash.events import Emit, Notice
from pgstash.postgres.session import Row, Session
from pgstash.postgres.source import Server

_DOMAIN = b"pgstash writer 1\0"

_SECONDS_TO_ANSWER = 60.0
_SECONDS_TO_RELEASE = 1.0
_SECONDS_BETWEEN_CHECKS = 30.0

# A server takes a moment to notice that a process was killed.
_SECONDS_FOR_THE_DEAD = 2.0
_SECONDS_BETWEEN_TRIES = 0.2

# What the client sends and nobody acknowledges counts as lost as soon as an idle line does; the
# older pg_dumps do not know this parameter, so it is of this session alone.
_TCP_USER_TIMEOUT = {"tcp_user_timeout": "60000"}  # milliseconds

# The last three are the server's: it lets go of a client that vanished without a word, as a
# machine without power does, within a minute instead of two hours.
_SETTINGS = {
    "search_path": "''",
    "statement_timeout": "0",
    "lock_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "tcp_keepalives_idle": "30",
    "tcp_keepalives_interval": "10",
    "tcp_keepalives_count": "3",
}

# How pg_locks shows a key of 64 bits; of several databases it shows those of all.
_THE_LOCK = """
    l.locktype = 'advisory' AND l.objsubid = 1 AND l.granted
    AND l.classid = {high} AND l.objid = {low} AND l.database =
        (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())
"""
_ON_STANDBY = "pg_catalog.pg_is_in_recovery()"
_IS_HELD = "SELECT FROM pg_catalog.pg_locks l WHERE l.pid = pg_catalog.pg_backend_pid() AND "
# Of the sessions of other roles everybody sees the process id and the name.
_HOLDER = """
    SELECT l.pid, a.application_name, pg_catalog.host(a.client_addr),
           pg_catalog.to_char(a.xact_start AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"')
    FROM pg_catalog.pg_locks l LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid
    WHERE
"""


@contextlib.contextmanager
def hold(server: Server, destination: str, emit: Emit) -> Iterator[Writer]:
    """Hold the lock for backups of this database to this destination.

    ``destination`` is the URL of the prefix. Raises WriterBusyError where somebody has it and
    does not vanish in a moment, with what the server tells of them. Raises another
    DatabaseError where the server does not let a session in or does not answer.
    """
    parameters = server.connection.parameters
    different = {} if "tcp_user_timeout" in parameters else dict(_TCP_USER_TIMEOUT)
    different["application_name"] = f"{parameters['application_name']} writer lock"
    different["client_encoding"] = "SQL_ASCII"  # which works for all, see the login
    with contextlib.closing(Session(server.connection, **different)) as session:
        writer = Writer(session, destination)
        standby = writer.take(server.major)
        emit(Notice(f"The writer lock of {destination} is ours (key {key_of(destination)})"))
        if standby:
            emit(
                Notice(
                    "The server is a standby: the writer lock keeps out other backups from this "
                    "standby, and none from its primary or another standby"
                )
            )
        try:
            yield writer
        finally:
            writer.release()


class Writer:
    """Who holds the lock, and can prove it."""

    def __init__(self, session: Session, destination: str) -> None:
        """Keep the session, which must be of the source's database; nothing is locked yet."""
        self._session = session
        self._destination = destination
        self._key = key_of(destination)
        high, low = divmod(self._key % 2**64, 2**32)
        self._the_lock = _THE_LOCK.format(high=high, low=low)

    def take(self, major: int) -> bool:
        """Begin the transaction and take the lock; tell whether the server is a standby."""
        settings = dict(_SETTINGS)
        if major >= 17:  # noqa: PLR2004 - a version of PostgreSQL
            settings["transaction_timeout"] = "0"
        # In this isolation no snapshot outlives its statement: vacuum is not held back.
        begin = "BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY"
        prepare = [f"SET LOCAL {name} = {value}" for name, value in settings.items()]
        take = f"SELECT pg_catalog.pg_try_advisory_xact_lock({self._key}), {_ON_STANDBY}"
        give_up = time.monotonic() + _SECONDS_FOR_THE_DEAD
        try:
            self._session.ask("; ".join([begin, *prepare]), _SECONDS_TO_ANSWER)
            [[taken, standby]] = self._session.ask(take, _SECONDS_TO_ANSWER)
            while taken != b"t" and time.monotonic() < give_up:
                time.sleep(_SECONDS_BETWEEN_TRIES)
                [[taken, standby]] = self._session.ask(take, _SECONDS_TO_ANSWER)
            holder = "" if taken == b"t" else self._holder()
        except psycopg.Error as error:
            raise DatabaseLoginError(
                f"the writer lock could not be asked for: {error}",
                hint="Look into the server's log, and into that of a pooler in between.",
            ) from error
        if taken != b"t":
            raise WriterBusyError(
                f"the writer lock of this database and {self._destination} is taken{holder}"
            )
        return standby == b"t"

    def check(self) -> None:
        """Raise WriterLostError unless the lock is still ours; ask the server for that.

        Also where the server does not answer within a minute.
        """
        try:
            held = self._session.ask(_IS_HELD + self._the_lock, _SECONDS_TO_ANSWER)
        except psycopg.Error as error:
            raise WriterLostError(
                f"the session that holds the writer lock was lost: {error}"
            ) from error
        if not held:
            raise WriterLostError("the writer lock was lost, although its session is alive")

    def ask(self, question: bytes) -> list[Row]:
        """Ask the server something else, in the transaction that holds the lock.

        Each question sees what was committed before it, and its search_path is empty. Raises
        WriterLostError where it is not answered: the lock is lost then.
        """
        try:
            return self._session.ask(question, _SECONDS_TO_ANSWER)
        except psycopg.Error as error:
            raise WriterLostError(
                f"the session that holds the writer lock was lost: {error}"
            ) from error

    def watch(
        self, chunks: Iterable[bytes], seconds: float = _SECONDS_BETWEEN_CHECKS
    ) -> Iterator[bytes]:
        """Pass chunks on, and check now and then, each time that so many seconds have passed."""
        last = time.monotonic()
        for chunk in chunks:
            yield chunk
            if time.monotonic() - last >= seconds:
                self.check()
                last = time.monotonic()

    def release(self) -> None:
        """Give the lock back, so that it is free when this returns; again is no error.

        Where the server is lost it is not waited for: the lock goes with the session.
        """
        with contextlib.suppress(psycopg.Error):
            self._session.ask("ROLLBACK", _SECONDS_TO_RELEASE)
        self._session.close()

    def _holder(self) -> str:
        """Say what the server tells of who has the lock, if they still have it."""
        rows = self._session.ask(_HOLDER + self._the_lock, _SECONDS_TO_ANSWER)
        if not rows:
            return ""
        pid, name, address, since = ((value or b"").decode(errors="replace") for value in rows[0])
        known = [name, address and f"from {address}", since and f"since {since}"]
        details = ", ".join(each for each in known if each)
        return f" by process {pid} of the server" + (f" ({details})" if details else "")


def key_of(destination: str) -> int:
    """Return the lock's key, a signed number of 64 bits as PostgreSQL wants it."""
    digest = hashlib.sha256(_DOMAIN + destination.encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)
