"""Restores the settings that the source database has from ALTER DATABASE … SET."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import psycopg
from psycopg import sql

from pgstash.errors import TargetLostError
from pgstash.events import Emit, Warned
from pgstash.format.manifest import Database
from pgstash.postgres.restore.target import (
    NO_EVENT_TRIGGERS,
    connected,
    may_fire_no_event_triggers,
    said,
)
from pgstash.postgres.server.connection import Server

# Parameters whose value is a list of names, which ALTER DATABASE stores quoted (GUC_LIST_QUOTE in
# guc_tables.c): written as one literal, the list would become one name.
_LISTS = {
    "local_preload_libraries",
    "search_path",
    "session_preload_libraries",
    "shared_preload_libraries",
    "temp_tablespaces",
    "unix_socket_directories",
}

# Settings that change how a session runs, or whether it can: the sessions of the restore must not
# have them. All others are set before, because definitions may read them (current_setting()).
_OF_SESSIONS = re.compile(
    r"role|.*_preload_libraries|.*_timeout|(default_)?transaction_.*|event_triggers"
    r"|session_replication_role|exit_on_error|post_auth_delay",
    re.IGNORECASE,
)


def before_load(server: Server, made: Server, like: Database | None, emit: Emit) -> None:
    """Give the new database those settings of the source that its definitions may read.

    ``made`` is the server as seen from the new database. A setting that is refused is a warning.
    Raises TargetLostError.
    """
    _configure(server, made, _chosen(like, of_sessions=False), emit)


def after_load(server: Server, made: Server, like: Database | None, emit: Emit) -> None:
    """Give it the settings that change how sessions run, except libraries that break every login.

    Raises TargetLostError.
    """
    found = _configure(server, made, _chosen(like, of_sessions=True), emit)
    libraries = [name for name in found if name.endswith("_preload_libraries")]
    if not libraries:
        return
    if may_fire_no_event_triggers(server):
        made = replace(made, connection=made.connection.with_options(NO_EVENT_TRIGGERS))
    try:
        with connected(made):
            return
    except TargetLostError as error:
        emit(Warned(f"The setting {', '.join(libraries)} is left out: {error.message}"))
    with connected(server) as session:
        for name in libraries:
            session.execute(_altered(made, "RESET", name))


def _chosen(like: Database | None, *, of_sessions: bool) -> list[str]:
    return [
        setting
        for setting in (like.settings if like else ())
        if bool(_OF_SESSIONS.fullmatch(setting.partition("=")[0])) == of_sessions
    ]


def _configure(server: Server, made: Server, settings: Sequence[str], emit: Emit) -> list[str]:
    """Make settings, and return the names of those that were accepted."""
    found: list[str] = []
    with connected(server) as session:
        for setting in settings:
            name, _, value = setting.partition("=")
            alter = _altered(made, "SET", name)
            try:
                if name.lower() in _LISTS:
                    session.execute("SELECT pg_catalog.set_config(%s, %s, false)", [name, value])
                    session.execute(alter + sql.SQL(" FROM CURRENT"))
                else:
                    session.execute(alter + sql.SQL(" TO {}").format(sql.Literal(value)))
            except psycopg.Error as error:
                emit(Warned(f"The setting {name} is left out: {said(error)}"))
            else:
                found.append(name)
    return found


def _altered(made: Server, how: Literal["SET", "RESET"], name: str) -> sql.Composed:
    return sql.SQL(f"ALTER DATABASE {{}} {how} {{}}").format(
        sql.Identifier(made.connection.parameters["dbname"]), sql.Identifier(*name.split("."))
    )
