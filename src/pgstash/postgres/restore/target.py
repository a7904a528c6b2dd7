"""The database that a restore writes to: what it holds, what it can hold, what became of it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

import psycopg

from pgstash.errors import DatabaseError, PoolerError, TargetDatabaseError, TargetLostError
from pgstash.postgres import pooler
from pgstash.postgres.source import Server

SECONDS_TO_CONNECT = 10.0
"""How long a server may take to answer."""

LONGEST_NAME = 63
"""Bytes of a name: the server cuts off what is longer."""

NO_EVENT_TRIGGERS = "-c event_triggers=off"
"""The option of a login that fires none, if it may: those of logins might write a row at each."""

POOLER_HINT = (
    "A pooler is in between: check its log and its limits, and whether it lets in to every "
    "database; or connect to the server itself."
)
"""The hint of a target that is lost, if a pooler answers in its place."""

_FIRST_WITH_LOGIN_TRIGGERS = 17
_NAMED = 5


class Outcome(Enum):
    """What became of the target."""

    COMMITTED = "everything is in the target"
    NOTHING = "nothing was changed in the target"
    UNNAMED = "everything is in a database that has not got its name"
    UNKNOWN = "whether anything was changed in the target is not known"


# Whatever a user can make, but for what belongs to an extension or to the system. Row types, array
# types, indexes and the like come with what is counted.
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
    )
    LIMIT %s
"""


@dataclass(frozen=True, slots=True)
class Contents:
    """How many objects of users a database holds, and a few of them in words."""

    count: int
    some: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LockTable:
    """How many objects one transaction can lock: settings of the server that make it up.

    https://www.postgresql.org/docs/current/runtime-config-locks.html
    """

    per_transaction: int
    slots: int

    @property
    def capacity(self) -> int:
        """The number of objects."""
        return self.per_transaction * self.slots

    def needed(self, objects: int) -> int:
        """Return what max_locks_per_transaction would have to be for so many objects."""
        return -(-objects // self.slots)


def contents(server: Server) -> Contents:
    """Look for what users have made in the database. Raises TargetLostError."""
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
    """Tell whether the server has a locale that money can be read in. Raises TargetLostError."""
    with connected(server) as session:
        try:
            session.execute("SELECT pg_catalog.set_config('lc_monetary', %s, false)", [lc_monetary])
        except psycopg.DataError:
            return False
    return True


def may_fire_no_event_triggers(server: Server) -> bool:
    """Tell whether :data:`NO_EVENT_TRIGGERS` is a login's to say. Raises TargetLostError."""
    if server.major < _FIRST_WITH_LOGIN_TRIGGERS or not _passes_options_on(server):
        return False
    query = "SELECT pg_catalog.has_parameter_privilege(session_user, 'event_triggers', 'SET')"
    with connected(server) as session:
        return session.execute(query).fetchone() == (True,)


def without_event_triggers(server: Server) -> Server:
    """Return the server as it is seen by logins that fire none, if that is theirs to say.

    Which is found out by such a login: any other one would fire them. Raises TargetLostError.
    """
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
        return pooler.passes_options_on(server)
    except DatabaseError as error:
        raise TargetLostError(f"the target cannot be reached any more: {said(error)}") from error


def refuse_taken(server: Server, name: str) -> None:
    """Raise TargetDatabaseError if there is a database of this name, or cannot be one."""
    stored = _encoded(name, "utf-8")
    if not stored or b"\0" in stored or len(stored) > LONGEST_NAME:
        raise TargetDatabaseError(
            f"{name!r} cannot be the name of a database",
            hint=f"A name has from 1 to {LONGEST_NAME} bytes, of UTF-8.",
        )
    # A name is stored in the encoding of the database that it is given from, and no login converts.
    if _encoded(name, server.codec) != stored:
        raise TargetDatabaseError(
            f"{name!r} cannot be given as a name from the database {server.database.name}, whose "
            f"encoding is {server.database.encoding}",
            hint="Let RESTORE_URL name a database of UTF8 on that server, or give a name of ASCII.",
        )
    with connected(server) as session:
        query = "SELECT FROM pg_catalog.pg_database WHERE datname = %s"
        if session.execute(query, [name]).fetchone() is not None:
            raise TargetDatabaseError(
                f"there is a database {name} already",
                hint="Give another name to --create, or restore into it by --to.",
            )


@contextlib.contextmanager
def connected(
    server: Server, encoding: str = "UTF8", *, seconds: float = SECONDS_TO_CONNECT
) -> Iterator[psycopg.Connection[tuple[Any, ...]]]:
    """Connect to the very server and database; raise TargetLostError where that fails.

    And where something is asked that it refuses, if the block lets that error out. ``seconds`` is
    how long the server may take to answer.
    """
    parameters = {
        **server.connection.parameters,
        **server.connection.secrets,
        "client_encoding": encoding,
        "connect_timeout": f"{seconds:.0f}",
    }
    try:
        session = psycopg.connect("", autocommit=True, **parameters)  # type: ignore[arg-type]
    except psycopg.Error as error:
        message = f"the target cannot be reached any more: {said(error)}"
        raise TargetLostError(message, hint=POOLER_HINT if server.pooled else "") from error
    try:
        with session:
            kept = pooler.Kept(session.pgconn, "a restore")
            session.execute(
                "SET search_path = ''; SET statement_timeout = 0; SET lock_timeout = 0;"
                "SET default_transaction_read_only = off;"
                "SELECT pg_catalog.set_config(name, '0', false) FROM pg_catalog.pg_settings"
                " WHERE name IN ('idle_session_timeout', 'transaction_timeout')"
            )
            yield session
            kept.check()
    except PoolerError as error:
        raise TargetLostError(error.message, hint=error.hint) from error
    except psycopg.Error as error:
        message = f"the target does not do what it is asked: {said(error)}"
        raise TargetLostError(message, hint=POOLER_HINT if server.pooled else "") from error


def _encoded(name: str, codec: str) -> bytes:
    """Return a name's bytes in an encoding; none where it has others."""
    try:
        return name.encode(codec)
    except UnicodeEncodeError:
        return b""


def said(error: Exception) -> str:
    """Return what an error says, in one line."""
    return " ".join(str(error).split())
