"""Extensions that can be made in the database of one name alone, as cron.database_name says.

A restore works under another name until all is there. So such an extension is made before, in a
transaction that gives the database the name which the extension wants, and takes it back: nobody
else sees it. The script finds the extension there, and goes on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import psycopg
from psycopg import sql

from pgstash.errors import TargetLacksError, TargetLostError
from pgstash.events import Emit, Notice, Warned
from pgstash.manifest import Extension
from pgstash.postgres.inquiry import Session
from pgstash.postgres.source import Server
from pgstash.postgres.target import connected, said, without_event_triggers

# What backups say nothing of, because they are older, or the role may not read the setting.
_KNOWN = {"pg_cron": "cron.database_name"}
# They are there without any script, or wherever the extension says.
_SCHEMAS = ("pg_catalog", "public")

_SETTING = "SELECT pg_catalog.current_setting(%s, true)"
_RENAME = (
    "UPDATE pg_catalog.pg_database SET datname = %s WHERE oid = ("
    "SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())"
)

_CRON = """
    SELECT pg_catalog.current_setting('cron.database_name', true) = pg_catalog.current_database()
    FROM pg_catalog.pg_extension WHERE extname = 'pg_cron'
"""
_JOBS = """
    SELECT database, nodename, pg_catalog.count(*) FROM cron.job WHERE active GROUP BY 1, 2
    ORDER BY 3 DESC, 1, 2
"""
_SHOWN = 5


def server_settings(extensions: Sequence[Extension], name: str) -> Mapping[str, str]:
    """Return what a server of one's own is started with, so that it can have the extensions.

    They are bound to the database ``name``. None of their workers runs: a job of the source must
    not run a second time.
    """
    bound = {each.name: setting for each in extensions if (setting := _setting_of(each))}
    if not bound:
        return {}
    return {
        "shared_preload_libraries": ",".join(sorted(bound)),
        "max_worker_processes": "0",
        "max_logical_replication_workers": "0",
        **dict.fromkeys(bound.values(), name),
    }


def make(
    made: Server, name: str, extensions: Sequence[Extension], emit: Emit, *, for_drill: bool
) -> None:
    """Make the extensions that are bound to a name, in a database that is to be called ``name``.

    ``made`` is the server as it is seen from that database. For a drill any name will do. Raises
    TargetLacksError if one of them cannot be made, TargetLostError.
    """
    for extension in extensions:
        with connected(made) as session:
            session.execute("SET search_path = public")
            if not (setting := _setting_of(extension) or _setting_on(session, extension)):
                continue
            refusal = _refusal(session, extension)
            if refusal is None:
                continue
            row = session.execute(_SETTING, [setting]).fetchone()
            wanted = row[0] if row else None
            if not wanted or (wanted != name and not for_drill):
                raise _lacks(extension, setting, name, wanted, refusal)
            try:
                with session.transaction(), _called(session, wanted):
                    _create(session, extension)
            except psycopg.Error as error:
                raise _lacks(extension, setting, name, wanted, error) from error
        emit(Notice(f"Made the extension {extension.name} as in a database called {wanted}"))
        if extension.schema not in {None, *_SCHEMAS}:
            emit(
                Warned(
                    f"The extension {extension.name} is not in the schema {extension.schema} any "
                    "more: it has to be made before all schemas"
                )
            )


def warn_of_jobs(server: Server, emit: Emit) -> None:
    """Say which cron jobs run from now on in a database that was restored."""
    try:
        with connected(without_event_triggers(server)) as session:
            if session.execute(_CRON).fetchone() != (True,):
                return
            jobs = session.execute(_JOBS).fetchall()
    except TargetLostError as error:
        emit(Warned(f"Whether cron jobs run from now on cannot be told: {error.message}"))
        return
    count = sum(number for _, _, number in jobs)
    if not count:
        return
    where = ", ".join(
        f"{number} in {database} on {node}" for database, node, number in jobs[:_SHOWN]
    )
    more = f" and {len(jobs) - _SHOWN} more places" if len(jobs) > _SHOWN else ""
    what = (
        "1 cron job is active and runs" if count == 1 else f"{count} cron jobs are active and run"
    )
    stop = "UPDATE cron.job SET active = false;"
    emit(Warned(f"{what} from now on: {where}{more}. To stop them, run {stop}"))


def _setting_of(extension: Extension) -> str | None:
    return extension.database_setting or _KNOWN.get(extension.name)


def _setting_on(session: Session, extension: Extension) -> str | None:
    """Return the setting that may bind an extension on this server, if there is one."""
    for prefix in (extension.name, extension.name.removeprefix("pg_")):
        name = f"{prefix}.database_name"
        row = session.execute(_SETTING, [name]).fetchone()
        if row and row[0]:
            return name
    return None


def _refusal(session: Session, extension: Extension) -> psycopg.Error | None:
    """Return why an extension cannot be made under the working name; None if it can be."""
    try:
        with session.transaction(force_rollback=True):
            _create(session, extension)
    except psycopg.Error as error:
        return error
    return None


def _create(session: Session, extension: Extension) -> None:
    statement = sql.SQL("CREATE EXTENSION {}").format(sql.Identifier(extension.name))
    if extension.schema in _SCHEMAS:
        statement += sql.SQL(" SCHEMA {}").format(sql.Identifier(extension.schema))
    session.execute(statement + sql.SQL(" CASCADE"))


@contextmanager
def _called(session: Session, name: str) -> Iterator[None]:
    """Give the database a name for the length of the block, within a transaction.

    ALTER DATABASE cannot rename the database of its own session. No other session sees what this
    one has not committed, and what it commits is the row as it was.
    """
    row = session.execute("SELECT pg_catalog.current_database()").fetchone()
    before = row[0] if row else ""
    session.execute(_RENAME, [name])
    yield
    session.execute(_RENAME, [before])


def _lacks(
    extension: Extension, setting: str, name: str, wanted: str | None, error: psycopg.Error
) -> TargetLacksError:
    message = f"the extension {extension.name} cannot be made in a new database {name}: "
    if isinstance(error, psycopg.errors.InsufficientPrivilege):
        hint = (
            "Only a superuser can make it before the database has its name. Create the database "
            "yourself, and restore into it by --to."
        )
    elif not wanted:
        hint = (
            f"Start the server with shared_preload_libraries = '{extension.name}' and {setting} = "
            f"'{name}'."
        )
    elif isinstance(error, psycopg.errors.UniqueViolation) or wanted != name:
        hint = (
            f"The server allows it in the database {wanted} alone ({setting}). Restore with "
            f"--create {wanted}, or set {setting} = '{name}' and restart the server; for a drill, "
            "leave VERIFY_DATABASE_URL out."
        )
    else:
        hint = "See the server's log."
    return TargetLacksError(message + said(error), hint=hint)
