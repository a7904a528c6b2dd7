"""The database that a restore writes to: what it holds, what it can take, and its outcome."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import Enum

import psycopg

from pgstash.errors import DatabaseError, PoolerError, TargetDatabaseError, TargetLostError
from pgstash.postgres.server import query, startup_options, time_limits
from pgstash.postgres.server.connection import Server

SECONDS_TO_CONNECT: float = time_limits.CONNECT
"""How long a server may take to answer."""

LONGEST_NAME = 63
"""The longest name, in bytes: the server truncates longer ones."""

NO_EVENT_TRIGGERS = "-c event_triggers=off"
"""The option of a login that fires no event triggers: a login trigger might write a row."""

POOLER_HINT = (
    "The connection goes through a pooler. Check its log and its limits, and whether it allows "
    "logins to every database; or connect to the server itself."
)
"""The hint if the target is lost and a pooler is in between."""

# Other values, set for the role or the database, could end a session of a restore, or refuse it.
_NEUTRAL = """
    SET statement_timeout = 0; SET lock_timeout = 0; SET default_transaction_read_only = off;
    SELECT pg_catalog.set_config(name, '0', false) FROM pg_catalog.pg_settings
    WHERE name IN ('idle_session_timeout', 'transaction_timeout')
"""
_FIRST_WITH_LOGIN_TRIGGERS = 17
_NAMED = 5


class Outcome(Enum):
    """What a restore did to the target."""

    COMMITTED = "everything is in the target"
    NOTHING = "nothing was changed in the target"
    UNNAMED = "everything is in a database that still has its temporary name"
    UNKNOWN = "whether anything was changed in the target is not known"


@dataclass(slots=True)
class TargetState:
    """What a restore did to the target so far.

    ``leftover`` is the name of a database that was to be dropped, and could not be. ``replaced`` is
    the OID of the database that the restored one is to replace, and ``kept`` describes it once
    that is done. It is not done if the target ``refused`` owners or privileges. ``mark`` is the
    text that the database is marked with as restored from a backup, if it is.
    """

    outcome: Outcome = Outcome.NOTHING
    leftover: str = ""
    replaced: int | None = None
    refused: bool = False
    kept: str = ""
    mark: str = ""

    @property
    def description(self) -> str:
        """The outcome in words, for people."""
        if self.leftover:
            return f"the database {self.leftover} is left, incomplete"
        return self.outcome.value


# Objects that users can create, except those of extensions and of the system. Row types, array
# types, indexes and the like belong to an object that is counted. A composite type of an extension
# has a row in pg_class that is not a member of the extension, but depends internally on one; so
# does the sequence of an identity column.
_USER_OBJECTS = """
    WITH schemas AS (
        SELECT oid FROM pg_catalog.pg_namespace
        WHERE nspname !~ '^pg_' AND nspname <> 'information_schema'
    ), objects (class, object) AS (
        SELECT 'pg_catalog.pg_namespace'::regclass, oid FROM pg_catalog.pg_namespace
        WHERE oid IN (SELECT oid FROM schemas) AND nspname <> 'public'
        UNION ALL
        SELECT 'pg_catalog.pg_class'::regclass, oid FROM pg_catalog.pg_class
        WHERE relnamespace IN (SELECT oid FROM schemas) AND relkind IN ('r','p','v','m','f','S','c')
        UNION ALL
        SELECT 'pg_catalog.pg_proc'::regclass, oid FROM pg_catalog.pg_proc
        WHERE pronamespace IN (SELECT oid FROM schemas)
        UNION ALL
        SELECT 'pg_catalog.pg_type'::regclass, oid FROM pg_catalog.pg_type
        WHERE typnamespace IN (SELECT oid FROM schemas) AND typtype IN ('d', 'e', 'r', 'b')
              AND typelem = 0
        UNION ALL
        SELECT 'pg_catalog.pg_operator'::regclass, oid FROM pg_catalog.pg_operator
        WHERE oprnamespace IN (SELECT oid FROM schemas)
        UNION ALL
        SELECT 'pg_catalog.pg_collation'::regclass, oid FROM pg_catalog.pg_collation
        WHERE collnamespace IN (SELECT oid FROM schemas)
        UNION ALL
        SELECT 'pg_catalog.pg_ts_config'::regclass, oid FROM pg_catalog.pg_ts_config
        WHERE cfgnamespace IN (SELECT oid FROM schemas)
        UNION ALL
        SELECT 'pg_catalog.pg_foreign_server'::regclass, oid FROM pg_catalog.pg_foreign_server
        UNION ALL
        SELECT 'pg_catalog.pg_event_trigger'::regclass, oid FROM pg_catalog.pg_event_trigger
        UNION ALL
        SELECT 'pg_catalog.pg_publication'::regclass, oid FROM pg_catalog.pg_publication
        UNION ALL
        SELECT 'pg_catalog.pg_largeobject'::regclass, oid FROM pg_catalog.pg_largeobject_metadata
    )
    SELECT pg_catalog.pg_describe_object(class, object, 0), count(*) OVER ()
    FROM objects
    WHERE NOT EXISTS (
        SELECT FROM pg_catalog.pg_depend d
        WHERE d.classid = class AND d.objid = object AND d.deptype = 'e'
    ) AND NOT EXISTS (
        SELECT FROM pg_catalog.pg_depend d JOIN pg_catalog.pg_depend member
            ON member.classid = d.refclassid AND member.objid = d.refobjid
        WHERE d.classid = class AND d.objid = object
              AND d.deptype = 'i' AND member.deptype = 'e'
    )
    LIMIT %s
"""


@dataclass(frozen=True, slots=True)
class Contents:
    """The number of user-defined objects in a database, and descriptions of a few of them."""

    count: int
    some: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LockTable:
    """The settings of a server that determine how many objects one transaction can lock.

    https://www.postgresql.org/docs/current/runtime-config-locks.html
    """

    per_transaction: int
    slots: int

    @property
    def capacity(self) -> int:
        """The number of objects."""
        return self.per_transaction * self.slots

    def needed(self, objects: int) -> int:
        """Return the max_locks_per_transaction that a number of objects needs."""
        return -(-objects // self.slots)


def seen_from(server: Server, name: str) -> Server:
    """Return a server as seen from the database of this name."""
    return replace(server, connection=server.connection.with_database(name))


def contents(server: Server) -> Contents:
    """Return the user-defined objects in the database. Raises TargetLostError."""
    with connected(server, "SQL_ASCII") as session:  # which works for all, see the login
        rows = session.execute(_USER_OBJECTS, [_NAMED]).fetchall()
    names = tuple(name.decode(server.codec, "replace") for name, _ in rows)
    return Contents(rows[0][1] if rows else 0, names)


def lock_table(server: Server) -> LockTable:
    """Return the size of the server's lock table. Raises TargetLostError."""
    with connected(server) as session:
        row = session.execute(
            "SELECT pg_catalog.current_setting('max_locks_per_transaction')::int,"
            " pg_catalog.current_setting('max_connections')::int"
            " + pg_catalog.current_setting('max_prepared_transactions')::int"
        ).fetchone()
    return LockTable(*row) if row else LockTable(1, 1)


def knows_locale(server: Server, lc_monetary: str) -> bool:
    """Return whether the server has this locale for money amounts. Raises TargetLostError."""
    with connected(server) as session:
        try:
            session.execute("SELECT pg_catalog.set_config('lc_monetary', %s, false)", [lc_monetary])
        except psycopg.DataError:
            return False
    return True


def may_fire_no_event_triggers(server: Server) -> bool:
    """Return whether the login may set :data:`NO_EVENT_TRIGGERS`. Raises TargetLostError."""
    if server.major < _FIRST_WITH_LOGIN_TRIGGERS or not _passes_options_on(server):
        return False
    allowed = "SELECT pg_catalog.has_parameter_privilege(session_user, 'event_triggers', 'SET')"
    with connected(server) as session:
        return session.execute(allowed).fetchone() == (True,)


def without_event_triggers(server: Server) -> Server:
    """Return the server for logins that fire no event triggers, if the login may choose that.

    That is tested with such a login, because any other would fire them. What was returned here
    before is returned again without a test. Raises TargetLostError.
    """
    if server.connection.parameters.get("options", "").endswith(NO_EVENT_TRIGGERS):
        return server
    if server.major < _FIRST_WITH_LOGIN_TRIGGERS or not _passes_options_on(server):
        return server
    quiet = replace(server, connection=server.connection.with_options(NO_EVENT_TRIGGERS))
    try:
        with connected(quiet):
            return quiet
    except TargetLostError:
        return server


def _passes_options_on(server: Server) -> bool:
    try:
        return startup_options.passed_on(server)
    except DatabaseError as error:
        raise TargetLostError(f"the target cannot be reached any more: {said(error)}") from error


def refuse_unusable(server: Server, name: str) -> None:
    """Raise TargetDatabaseError if no database can have this name."""
    stored = _encoded(name, "utf-8")
    if not stored or b"\0" in stored or len(stored) > LONGEST_NAME:
        raise TargetDatabaseError(
            f"{name!r} cannot be the name of a database",
            hint=f"A name has 1 to {LONGEST_NAME} bytes of UTF-8.",
        )
    # A name is stored in the encoding of the database of the session, without conversion.
    if _encoded(name, server.codec) != stored:
        raise TargetDatabaseError(
            f"the name {name!r} cannot be used from the database {server.database.name}, whose "
            f"encoding is {server.database.encoding}",
            hint="Let --to or RESTORE_URL name a database of UTF8 on that server, or use an ASCII "
            "name.",
        )


@contextlib.contextmanager
def connected(
    server: Server, encoding: str = "UTF8", *, seconds: float = SECONDS_TO_CONNECT
) -> Iterator[query.Connection]:
    """Connect to the server and database. ``seconds`` is how long the server may take to answer.

    Raises TargetLostError if that fails, and for every psycopg.Error that leaves the block.
    """
    reached = False
    try:
        with query.connected(
            server, encoding, seconds=seconds, purpose="a restore", settings=_NEUTRAL
        ) as session:
            reached = True
            yield session
    except PoolerError as error:
        raise TargetLostError(error.message, hint=error.hint) from error
    except psycopg.Error as error:
        how = "did not execute a statement" if reached else "cannot be reached any more"
        message = f"the target {how}: {said(error)}"
        raise TargetLostError(message, hint=POOLER_HINT if server.pooled else "") from error


def _encoded(name: str, codec: str) -> bytes:
    """Return the bytes of a name in an encoding; empty if it cannot be encoded."""
    try:
        return name.encode(codec)
    except UnicodeEncodeError:
        return b""


def said(error: Exception) -> str:
    """Return the message of an error on one line."""
    return " ".join(str(error).split())
