"""What a server holds before a recovery: databases, their marks, and running restores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pgstash.postgres.restore import target
from pgstash.postgres.restore.staging_database import INCOMPLETE, beginning
from pgstash.postgres.server import marks
from pgstash.postgres.server.connection import Server
from pgstash.postgres.server.marks import Mark

_RUNNING = """
    SELECT d.datname FROM pg_catalog.pg_database d
    WHERE pg_catalog.shobj_description(d.oid, 'pg_database') = %s
          AND EXISTS (SELECT FROM pg_catalog.pg_stat_activity a WHERE a.datid = d.oid)
"""
_FREE_SESSIONS = """
    SELECT LEAST(
        pg_catalog.current_setting('max_connections')::int
        - pg_catalog.current_setting('superuser_reserved_connections')::int
        - (SELECT count(*) FROM pg_catalog.pg_stat_activity
           WHERE datid IS NOT NULL AND pid <> pg_catalog.pg_backend_pid()),
        (SELECT NULLIF(rolconnlimit, -1) FROM pg_catalog.pg_roles WHERE rolname = session_user)
    )::int
"""


@dataclass(frozen=True, slots=True)
class Present:
    """The databases of a server by name, each with its mark, if any.

    ``system`` identifies it, if the login may read that.
    ``running`` are staging databases that a restore is connected to, and ``free_sessions`` is how
    many more sessions the server accepts from this login.
    """

    databases: Mapping[str, Mark | None]
    running: list[str]
    free_sessions: int
    system: str | None = None

    def running_for(self, database: str) -> str | None:
        """Return the staging database that a restore of this database is connected to."""
        start = beginning(database)
        return next((each for each in self.running if each.startswith(start)), None)


def on(server: Server) -> Present:
    """Ask the server. Raises TargetLostError."""
    with target.connected(server, "SQL_ASCII") as session:  # names are bytes
        databases = session.execute(marks.OF_DATABASES.encode()).fetchall()
        running = session.execute(_RUNNING, [INCOMPLETE]).fetchall()
        free = session.execute(_FREE_SESSIONS).fetchone() or (0,)
    return Present(
        {_text(name): marks.read(_text(mark)) if mark else None for name, mark in databases},
        [_text(name) for (name,) in running],
        free[0],
        server.database.system,
    )


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")
