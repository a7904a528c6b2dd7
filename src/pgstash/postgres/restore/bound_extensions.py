"""Extensions that can be created only in the database of one name, set by cron.database_name.

A staging database has another name until the restore is complete. So such an extension is created
first, in a transaction that gives the database the required name and takes it back: no other
session sees it. When the script comes to the extension, it exists.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import psycopg
from psycopg import sql

from pgstash.errors import TargetLacksError, TargetLostError
from pgstash.events import Emit, Notice, Warned
from pgstash.format.manifest import Extension
from pgstash.postgres.restore.request import Request
from pgstash.postgres.restore.target import connected, said, without_event_triggers
from pgstash.postgres.server.connection import Server
from pgstash.postgres.server.query import Connection

# Used if the backup does not name the setting: it is older, or its role may not read the setting.
_KNOWN = {"pg_cron": "cron.database_name"}
# Schemas that exist before any script, or that the extension chooses itself.
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
    """Return the settings to start a server with, so that it can have the extensions.

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


def make(made: Server, request: Request, extensions: Sequence[Extension], emit: Emit) -> None:
    """Create the extensions that are bound to the name of a database, in the requested new one.

    ``made`` is the server as seen from that database. A drill accepts any name. Raises
    TargetLacksError if one of them cannot be created, TargetLostError.
    """
    name = request.create or ""
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
            if not wanted or (wanted != name and not request.for_drill):
                raise _lacks(extension, setting, name, wanted, refusal)
            try:
                with session.transaction(), _called(session, wanted):
                    _create(session, extension)
            except psycopg.Error as error:
                raise _lacks(extension, setting, name, wanted, error) from error
        emit(Notice(f"Created the extension {extension.name} as in a database called {wanted}"))
        if extension.schema not in {None, *_SCHEMAS}:
            emit(
                Warned(
                    f"The extension {extension.name} is no longer in the schema "
                    f"{extension.schema}: it has to be created before all schemas"
                )
            )


def warn_of_jobs(server: Server, emit: Emit) -> None:
    """Warn of cron jobs that run from now on in the restored database."""
    try:
        with connected(without_event_triggers(server)) as session:
            if session.execute(_CRON).fetchone() != (True,):
                return
            jobs = session.execute(_JOBS).fetchall()
    except TargetLostError as error:
        emit(Warned(f"Cannot find out whether cron jobs run from now on: {error.message}"))
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
    emit(Warned(f"{what} from now on: {where}{more}. To stop them, run {stop}", to_do=True))


def _setting_of(extension: Extension) -> str | None:
    return extension.database_setting or _KNOWN.get(extension.name)


def _setting_on(session: Connection, extension: Extension) -> str | None:
    """Return the setting that may bind an extension on this server, if there is one."""
    for prefix in (extension.name, extension.name.removeprefix("pg_")):
        name = f"{prefix}.database_name"
        row = session.execute(_SETTING, [name]).fetchone()
        if row and row[0]:
            return name
    return None


def _refusal(session: Connection, extension: Extension) -> psycopg.Error | None:
    """Return why an extension cannot be created under the staging name; None if it can."""
    try:
        with session.transaction(force_rollback=True):
            _create(session, extension)
    except psycopg.Error as error:
        return error
    return None


def _create(session: Connection, extension: Extension) -> None:
    statement = sql.SQL("CREATE EXTENSION {}").format(sql.Identifier(extension.name))
    if extension.schema in _SCHEMAS:
        statement += sql.SQL(" SCHEMA {}").format(sql.Identifier(extension.schema))
    session.execute(statement + sql.SQL(" CASCADE"))


@contextmanager
def _called(session: Connection, name: str) -> Iterator[None]:
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
    message = f"the extension {extension.name} cannot be created in a new database {name}: "
    if isinstance(error, psycopg.errors.InsufficientPrivilege):
        hint = (
            "Only a superuser can create it before the database has its name. Create the database "
            "yourself, and restore into it with --to."
        )
    elif not wanted:
        hint = (
            f"Start the server with shared_preload_libraries = '{extension.name}' and {setting} = "
            f"'{name}'."
        )
    elif isinstance(error, psycopg.errors.UniqueViolation) and wanted == name:
        hint = (
            f"The server allows it only in the database {wanted} ({setting}), which exists. Rename "
            f"that, and restore with --create {wanted}, without --replace."
        )
    elif isinstance(error, psycopg.errors.UniqueViolation) or wanted != name:
        hint = (
            f"The server allows it only in the database {wanted} ({setting}). Restore with "
            f"--create {wanted}, or set {setting} = '{name}' and restart the server. For a drill, "
            "leave VERIFY_DATABASE_URL out."
        )
    else:
        hint = "Check the server's log."
    return TargetLacksError(message + said(error), hint=hint)
