"""Puts a restored database in the place of an existing one, which is kept under another name.

Both are renamed in one transaction: at any time, one of them has the name. The first ALTER DATABASE
… RENAME of a database locks it, so that new logins wait, and then waits up to 5 s until it is
unused (CountOtherDBBackends() in procarray.c). Meanwhile another session ends all sessions there:
none of them can come back. A login that waited is refused once, with "does not exist", and its
next try reaches the restored database. Nothing has to be undone if pgstash or the server is killed.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from datetime import datetime

import psycopg
from psycopg import sql

from pgstash.errors import TargetDatabaseError, TargetLostError
from pgstash.postgres.restore.replaceable import find, kept_name, kept_names
from pgstash.postgres.restore.target import TargetState, connected, said
from pgstash.postgres.server.connection import Server
from pgstash.postgres.server.query import Connection

_SECONDS_FOR_OTHERS_TO_LEAVE = 20.0
_SECONDS_BETWEEN_TRIES = 0.2
_SECONDS_BETWEEN_CHECKS = 0.02
_SECONDS_TO_STOP = 2.0

_SIZE = "SELECT pg_catalog.pg_size_pretty(pg_catalog.pg_database_size(%s::oid))"
_OID = "SELECT oid FROM pg_catalog.pg_database WHERE datname = %s"
# As soon as the database is locked, and not before.
_SESSIONS = """
    SELECT a.pid FROM pg_catalog.pg_stat_activity a
    WHERE a.datid = %(database)s AND EXISTS (
        SELECT FROM pg_catalog.pg_locks l
        WHERE l.pid = %(renaming)s AND l.granted AND l.mode = 'AccessExclusiveLock'
            AND l.locktype = 'object' AND l.objid = %(database)s
            AND l.classid = 'pg_catalog.pg_database'::pg_catalog.regclass)
"""
_IS_THERE = "SELECT FROM pg_catalog.pg_stat_activity WHERE pid = %s"
_RENAME = "ALTER DATABASE {} RENAME TO {}"
_END = "SELECT pg_catalog.pg_terminate_backend(%s)"
_ENDING = sql.SQL(
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname IN ({}, {});"
)


@dataclass(frozen=True, slots=True)
class Swap:
    """A restored database that is called ``staging`` takes the ``name`` of one with an OID."""

    name: str
    staging: str
    old: int
    at: datetime


def run(server: Server, swap: Swap, state: TargetState) -> None:
    """Rename both databases in one transaction, and end all sessions in them.

    ``state`` receives a description of the old one: its name and size, and statements to go back
    and to drop it. Raises TargetDatabaseError if the target ``refused`` owners or privileges, or if
    the old database cannot be replaced by now; psycopg.Error, TargetLostError. Nothing has changed
    then, unless the connection was lost.
    """
    if state.refused:
        raise TargetDatabaseError(
            "not all owners and privileges could be given to it",
            hint="A superuser can apply them: docs/how-to/restore-without-pgstash.md, step 5.",
        )
    give_up = time.monotonic() + _SECONDS_FOR_OTHERS_TO_LEAVE
    with connected(server) as ending, connected(server) as renaming:
        [process] = renaming.execute("SELECT pg_catalog.pg_backend_pid()").fetchone() or [0]
        try:
            while True:
                _refuse_another(ending, swap)
                kept = kept_name(ending, swap.name, swap.at)
                state.kept = _description(ending, swap, kept)
                try:
                    _rename_both(renaming, ending, swap, kept, process)
                except (psycopg.errors.ObjectInUse, psycopg.errors.LockNotAvailable):
                    renaming.execute("ROLLBACK")
                    if time.monotonic() > give_up:
                        raise
                    time.sleep(_SECONDS_BETWEEN_TRIES)
                else:
                    return
        except BaseException:
            _stop(renaming, ending, process)
            raise


def _refuse_another(session: Connection, swap: Swap) -> None:
    if find(session, swap.name) != swap.old:
        raise TargetDatabaseError(
            f"the database {swap.name} is not the one that was there before the restore"
        )


def failed(swap: Swap, error: Exception) -> TargetDatabaseError:
    """Return the error for a database that could not replace the old one, and is kept."""
    hint = error.hint if isinstance(error, TargetDatabaseError) else ""
    statements = "\n".join(_swapping(swap.name, next(kept_names(swap.name, swap.at)), swap.staging))
    return TargetDatabaseError(
        f"the restored database cannot replace {swap.name}, which is as it was: {said(error)}",
        hint=f"{hint}\nThe restored database is complete, and is called {swap.staging}. To put it "
        f"in place, connect psql to another database and run:\n{statements}".strip(),
    )


def _rename_both(
    renaming: Connection, ending: Connection, swap: Swap, kept: str, process: int
) -> None:
    row = ending.execute(_OID, [swap.staging]).fetchone()
    if row is None:
        raise TargetDatabaseError(f"the restored database {swap.staging} is gone")
    renaming.execute("BEGIN; SET LOCAL lock_timeout = '5s'")
    # It is locked first, so that nobody is disturbed in the old one if it cannot be renamed.
    locked = f"{swap.staging[:-1]}_"
    for database, before, after in (
        (row[0], swap.staging, locked),
        (swap.old, swap.name, kept),
        (row[0], locked, swap.name),
    ):
        sessions = {"database": database, "renaming": process}
        rename = sql.SQL(_RENAME).format(sql.Identifier(before), sql.Identifier(after))
        _execute_and_end_sessions(renaming, rename, ending, sessions)
    renaming.execute("COMMIT")


def _execute_and_end_sessions(
    renaming: Connection, rename: sql.Composed, ending: Connection, sessions: dict[str, int]
) -> None:
    """Execute a statement in one session; meanwhile, end other sessions from another one."""
    pgconn = renaming.pgconn
    pgconn.send_query(rename.as_bytes(renaming))
    while pgconn.flush() or _is_busy(renaming):
        _end_sessions(ending, sessions)
        time.sleep(_SECONDS_BETWEEN_CHECKS)
    refusal = None
    while result := pgconn.get_result():
        if result.status == psycopg.pq.ExecStatus.FATAL_ERROR:
            refusal = psycopg.errors.error_from_result(result)
    if refusal:
        raise refusal


def _is_busy(session: Connection) -> bool:
    session.pgconn.consume_input()
    return bool(session.pgconn.is_busy())


def _end_sessions(session: Connection, sessions: dict[str, int]) -> None:
    """End those sessions that the login, or the role that it sets, may end."""
    for role in ("SET ROLE NONE", "RESET ROLE"):
        session.execute(role)
        for (pid,) in session.execute(_SESSIONS, sessions).fetchall():
            # If one remains, the database cannot be renamed, and that error is reported.
            with contextlib.suppress(psycopg.errors.InsufficientPrivilege):
                session.execute(_END, [pid])


def _stop(renaming: Connection, ending: Connection, process: int) -> None:
    """End the session of the transaction, which would keep the database locked for some seconds."""
    renaming.close()
    # If the server is gone, so is the transaction.
    with contextlib.suppress(psycopg.Error, TargetLostError):
        ending.execute(_END, [process])
        give_up = time.monotonic() + _SECONDS_TO_STOP
        while ending.execute(_IS_THERE, [process]).fetchone() and time.monotonic() < give_up:
            time.sleep(_SECONDS_BETWEEN_CHECKS)


def _description(session: Connection, swap: Swap, kept: str) -> str:
    size = ""
    with contextlib.suppress(psycopg.errors.InsufficientPrivilege):
        row = session.execute(_SIZE, [swap.old]).fetchone()
        size = f" ({row[0]})" if row else ""
    return "\n".join(
        (
            f"The database that it replaced is kept as {kept}{size}.",
            "To go back, connect psql to another database and run:",
            *_swapping(swap.name, _after(kept), kept),
            f"To drop it: DROP DATABASE {_quoted(kept)};",
        )
    )


def _after(kept: str) -> str:
    """Return the name for a restored database that the kept one replaces again."""
    beginning, _, end = kept.rpartition("_before_")
    return f"{beginning}_after_{end}"


def _swapping(name: str, kept: str, other: str) -> tuple[str, ...]:
    """Return the statements that give ``name`` to the other database, for psql."""
    return (
        _alter(name, "ALLOW_CONNECTIONS false"),
        _ENDING.format(sql.Literal(name), sql.Literal(other)).as_string(),
        "BEGIN;",
        _alter(name, f"RENAME TO {_quoted(kept)}"),
        _alter(other, f"RENAME TO {_quoted(name)}"),
        "COMMIT;",
        _alter(kept, "ALLOW_CONNECTIONS true"),
    )


def _alter(name: str, how: str) -> str:
    return f"ALTER DATABASE {_quoted(name)} {how};"


def _quoted(name: str) -> str:
    return sql.Identifier(name).as_string()
