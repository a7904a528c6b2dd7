"""A database under a working name: made for a restore, then given its name, or dropped.

Whoever looks for a database by name finds it whole, or not at all.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import psycopg
from psycopg import Connection, sql

from pgstash.errors import Interrupted, TargetDatabaseError, TargetLostError
from pgstash.events import Emit, Warned
from pgstash.manifest import Database
from pgstash.postgres import configuring
from pgstash.postgres.source import Server
from pgstash.postgres.target import LONGEST_NAME, SECONDS_TO_CONNECT, Outcome, connected, said

SECONDS_TO_CONNECT_AFTER_SIGNAL = 2.0
"""How long a server may take to answer by then: whoever sent it waits, and sends SIGKILL."""

_SECONDS_FOR_OTHERS_TO_LEAVE = 20.0
_SECONDS_BETWEEN_TRIES = 0.2
_MARK_BYTES = 4

_INCOMPLETE = "an incomplete restore by pgstash"
_COMMENT = "COMMENT ON DATABASE {} IS {}"
_EARLIER = (
    "SELECT datname, pg_catalog.shobj_description(oid, 'pg_database') = %(incomplete)s"
    " FROM pg_catalog.pg_database"
    # Of others the bytes alone are compared: a name need not be of this database's encoding.
    " WHERE CASE WHEN pg_catalog.starts_with(datname::text, %(begin)s::text)"
    " THEN pg_catalog.substr(datname::text, pg_catalog.length(%(begin)s::text) + 1)"
    " ~ '^[0-9a-f]{8}$' END ORDER BY datname"
)

_FIRST_ICU_DATABASE = 15
# Whose locales a database may have beside libc's, and since which PostgreSQL.
_FIRST_WITH = {"i": ("ICU", _FIRST_ICU_DATABASE), "b": ("builtin", 17)}

_SUBSCRIPTIONS = (
    "SELECT subname FROM pg_catalog.pg_subscription"
    " JOIN pg_catalog.pg_database d ON d.oid = subdbid WHERE datname = %s"
)
_SESSIONS = (
    "SELECT pid FROM pg_catalog.pg_stat_activity"
    " WHERE datname = %s"
    # Who may end the sessions of others need not be shown what they are.
    " AND coalesce(backend_type, 'client backend') = 'client backend'"
)
_UNSUBSCRIBE = (
    sql.SQL("ALTER SUBSCRIPTION {} DISABLE"),
    sql.SQL("ALTER SUBSCRIPTION {} SET (slot_name = NONE)"),
    sql.SQL("DROP SUBSCRIPTION {}"),
)


@contextlib.contextmanager
def created(  # noqa: PLR0913 - each is one property of the new database
    server: Server,
    name: str,
    like: Database | None,
    uninterrupted: Callable[[], AbstractContextManager[None]],
    emit: Emit,
    *,
    any_locale: bool = False,
    became: Callable[[Outcome], None] = lambda _outcome: None,
    left: Callable[[str], None] = lambda _name: None,
) -> Iterator[Server]:
    """Make a database under a working name for the length of the block, then give it its name.

    Yields the server as it is seen from the new database, which has encoding, locale and settings
    of the old one, but those of how sessions run only after the block; nobody but its owner and
    superusers may connect to it. Until the block has come to its end, a comment says that it is
    incomplete. If the block is left by an exception, the database is dropped; if afterwards its
    name cannot be had, it is kept, and the error says what it is called. ``became`` is told what
    became of it where that is not nothing, ``left`` what it is called where it could not be
    dropped. With ``any_locale`` one that the server lacks becomes "C", with a warning. Raises
    TargetDatabaseError.
    """
    working = _working_name(name)
    made = seen_from(server, working)
    try:
        with connected(server) as session, _refusals(f"the database {name} cannot be made"):
            _warn_of_earlier(session, name, emit)
            try:
                session.execute(_create(working, like, server.major))
            except (
                psycopg.DataError,
                psycopg.ProgrammingError,
                psycopg.NotSupportedError,
            ) as error:
                if like is None or not any_locale:
                    raise
                emit(Warned(f'The locale is "C" here, and not the old one: {said(error)}'))
                session.execute(_create(working, _without_locale(like), server.major))
            session.execute(_comment(working, _INCOMPLETE))
            # A dump without GRANTs has no REVOKEs either: whoever gets in may call every function.
            session.execute(
                sql.SQL("REVOKE CONNECT ON DATABASE {} FROM PUBLIC").format(sql.Identifier(working))
            )
            # The owner is the role that was set, and who logs in need not be it.
            if session.execute("SELECT session_user <> current_user").fetchone() == (True,):
                session.execute(
                    sql.SQL("GRANT CONNECT ON DATABASE {} TO SESSION_USER").format(
                        sql.Identifier(working)
                    )
                )
        configuring.before_load(server, made, like, emit)
        yield made
        configuring.after_load(server, made, like, emit)
    except Interrupted:
        drop(server, working, emit, seconds=SECONDS_TO_CONNECT_AFTER_SIGNAL, left=left)
        raise
    except BaseException:
        drop(server, working, emit, left=left)
        raise
    try:
        became(Outcome.UNKNOWN)
        with uninterrupted():
            _rename(server, working, name, became)
    except Interrupted:
        if _renamed(server, working, name, SECONDS_TO_CONNECT_AFTER_SIGNAL):
            became(Outcome.COMMITTED)
            return
        drop(server, working, emit, seconds=SECONDS_TO_CONNECT_AFTER_SIGNAL, left=left)
        became(Outcome.NOTHING)
        raise


def _rename(server: Server, working: str, name: str, became: Callable[[Outcome], None]) -> None:
    """Give a database its name, and find out what became of it where the answer is lost."""
    rename = sql.SQL("ALTER DATABASE {} RENAME TO {}").format(
        sql.Identifier(working), sql.Identifier(name)
    )
    try:
        with connected(server) as session:
            session.execute(_comment(working, None))
        _when_unused(server, working, rename)
    except (psycopg.Error, TargetLostError) as error:
        if not _renamed(server, working, name, SECONDS_TO_CONNECT):
            became(Outcome.UNNAMED)
            raise TargetDatabaseError(
                f"the restored database cannot be renamed to {name}: {said(error)}",
                hint=f"It is whole, and called {working} until somebody gives it the name or drops "
                f"it: when nobody is connected to it, by {rename.as_string()}",
            ) from error
    became(Outcome.COMMITTED)


def _renamed(server: Server, working: str, name: str, seconds: float) -> bool:
    """Tell whether a database has its name by now. Raises TargetDatabaseError if nobody says."""
    query = "SELECT datname FROM pg_catalog.pg_database WHERE datname IN (%s, %s)"
    try:
        with connected(server, seconds=seconds) as session:
            there = {found for (found,) in session.execute(query, [working, name]).fetchall()}
    except (psycopg.Error, TargetLostError) as error:
        raise TargetDatabaseError(
            f"whether the restored database is called {name} by now cannot be told: {said(error)}",
            hint=f"Look whether there is {name}, or {working}: either is whole.",
        ) from error
    return name in there and working not in there


def seen_from(server: Server, name: str) -> Server:
    """Return a server as it is seen from the database of this name."""
    return replace(server, connection=server.connection.with_database(name))


def _working_name(name: str) -> str:
    return _beginning(name) + secrets.token_hex(_MARK_BYTES)


def _beginning(name: str) -> str:
    mark = "_pgstash_"
    room = LONGEST_NAME - len(mark) - 2 * _MARK_BYTES
    return name.encode()[:room].decode(errors="ignore") + mark


def _warn_of_earlier(session: Connection[tuple[Any, ...]], name: str, emit: Emit) -> None:
    """Warn of what other restores to this name left, or are at: nobody else speaks of it again."""
    asked = {"begin": _beginning(name), "incomplete": _INCOMPLETE}
    for found, incomplete in session.execute(_EARLIER, asked).fetchall():
        what = (
            "is incomplete: a restore is at it, or was killed"
            if incomplete
            else "is not marked as incomplete: a restore may have kept it, whole"
        )
        drop_it = sql.SQL("DROP DATABASE {}").format(sql.Identifier(found)).as_string()
        emit(Warned(f"The database {found} {what}. When no restore runs, drop it by {drop_it}"))


def _comment(name: str, text: str | None) -> sql.Composed:
    return sql.SQL(_COMMENT).format(sql.Identifier(name), sql.Literal(text))


def _create(name: str, like: Database | None, major: int) -> sql.Composed:
    create = sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(sql.Identifier(name))
    if like is None:
        return create
    options = {"ENCODING": like.encoding, "LC_COLLATE": like.collate, "LC_CTYPE": like.ctype}
    if like.locale_provider in _FIRST_WITH:
        kind, first = _FIRST_WITH[like.locale_provider]
        if major < first:
            raise TargetDatabaseError(
                f"the database had the {kind} locale {like.locale}, and PostgreSQL {major} has no "
                "such locale for databases",
                hint="Make the database yourself, and restore into it without --create.",
            )
        options |= {"LOCALE_PROVIDER": kind.lower(), f"{kind.upper()}_LOCALE": like.locale or ""}
        if like.icu_rules:  # an older server says that it does not know them
            options["ICU_RULES"] = like.icu_rules
    elif major >= _FIRST_ICU_DATABASE:
        options["LOCALE_PROVIDER"] = "libc"
    return create + sql.SQL("").join(
        sql.SQL(f" {option} {{}}").format(sql.Literal(value)) for option, value in options.items()
    )


def _without_locale(like: Database) -> Database:
    return replace(like, collate="C", ctype="C", locale_provider="c", locale=None, icu_rules=None)


def drop(
    server: Server,
    name: str,
    emit: Emit,
    *,
    seconds: float = SECONDS_TO_CONNECT,
    left: Callable[[str], None] = lambda _name: None,
) -> None:
    """Drop a database of ours, and all sessions in it; where that fails, warn and tell ``left``.

    ``seconds`` is how long the server may take to answer; where that is not for haste, a server
    that is gone is waited for: so it is for a moment when one of its processes was killed.
    Raises Interrupted.
    """
    patience = _SECONDS_FOR_OTHERS_TO_LEAVE if seconds >= SECONDS_TO_CONNECT else 0.0
    try:
        _drop(server, name, seconds, time.monotonic() + patience)
    except (psycopg.Error, TargetLostError, Interrupted) as error:
        emit(Warned(f"The database {name} could not be dropped: drop it yourself. {error}"))
        left(name)
        if isinstance(error, Interrupted):
            raise


def _drop(server: Server, name: str, seconds: float, give_up: float) -> None:
    statement = sql.SQL("DROP DATABASE IF EXISTS {}").format(sql.Identifier(name))
    while True:
        try:
            _unsubscribe(server, name, seconds)
            _when_unused(server, name, statement, seconds)
        except (psycopg.OperationalError, TargetLostError):
            if time.monotonic() > give_up:
                raise
            time.sleep(_SECONDS_BETWEEN_TRIES)
        else:
            return


def _unsubscribe(server: Server, name: str, seconds: float) -> None:
    """Drop the subscriptions of a database of ours, with which nobody can drop it.

    Nothing is said to the publisher, where the slot of that name is the source's.
    """
    with connected(server, seconds=seconds) as session:
        subscriptions = session.execute(_SUBSCRIPTIONS, [name]).fetchall()
    if not subscriptions:
        return
    with connected(seen_from(server, name)) as session:
        for (subscription,) in subscriptions:
            for statement in _UNSUBSCRIBE:
                session.execute(statement.format(sql.Identifier(subscription)))


def _when_unused(
    server: Server, name: str, statement: sql.Composed, seconds: float = SECONDS_TO_CONNECT
) -> None:
    """Execute what nobody may be connected to a database of ours for; end who is.

    One whose client was killed may be at a statement for hours, and not notice. Others, who look
    at each database that there is, have no business in it yet.
    """
    give_up = time.monotonic() + _SECONDS_FOR_OTHERS_TO_LEAVE
    with connected(server, seconds=seconds) as session:
        while True:
            _end_sessions(session, name)
            try:
                session.execute(statement)
            except psycopg.errors.ObjectInUse:
                if time.monotonic() > give_up:
                    raise
                time.sleep(_SECONDS_BETWEEN_TRIES)
            else:
                return


def _end_sessions(session: psycopg.Connection[tuple[Any, ...]], database: str) -> None:
    """End the sessions with a database that the login may end, or the role that it sets."""
    for role in ("SET ROLE NONE", "RESET ROLE"):
        session.execute(role)
        for (pid,) in session.execute(_SESSIONS, [database]).fetchall():
            with contextlib.suppress(psycopg.errors.InsufficientPrivilege):
                session.execute("SELECT pg_catalog.pg_terminate_backend(%s)", [pid])


@contextlib.contextmanager
def _refusals(what: str) -> Iterator[None]:
    try:
        yield
    except psycopg.errors.InsufficientPrivilege as error:
        raise TargetDatabaseError(
            f"{what}: {said(error)}", hint="The role needs CREATEDB: ALTER ROLE … CREATEDB."
        ) from error
    except psycopg.Error as error:
        raise TargetDatabaseError(
            f"{what}: {said(error)}",
            hint="Where it is the locale that this server lacks: make the database yourself, with "
            "one that it has, and restore into it without --create.",
        ) from error
