"""The tables of a queue: created, and brought up to date by procrastinate's own migrations.

procrastinate does not record which of its migrations a database has, so this module does, in a
comment on the schema.
"""

from __future__ import annotations

from pathlib import Path
from typing import LiteralString

from procrastinate.schema import SchemaManager

from pgstash.errors import ConfigurationError
from pgstash.fleet.connector import MIGRATE, OWNER, SCHEMA, Link

_KNOWN = "pgstash: "
_LOCK = 0x7067_7374_6173_0001
"""Of an advisory lock: one process migrates at a time."""


def migrate(link: Link) -> list[str]:
    """Create the tables, or apply what is new; return what was applied, in order.

    All of it happens, or nothing. Raises DatabaseError, and ConfigurationError for a schema that
    pgstash did not make, or a newer one made, and for a
    database whose encoding is not UTF8.
    """
    with link.translated(whole=True):
        link.rows("SELECT pg_advisory_xact_lock(%(lock)s)", lock=_LOCK)
        _require_unicode(link)
        found = _version(link)
        if found is None:
            if link.rows("SELECT 1 FROM pg_namespace WHERE nspname = %(name)s", name=SCHEMA):
                there = f"the database has a schema {SCHEMA} that pgstash did not make"
                raise ConfigurationError([f"QUEUE_URL: {there}. Use another database."])
            link.run(f"CREATE SCHEMA {SCHEMA}")
            link.run(SchemaManager.get_schema())
            applied = ["schema"]
        else:
            applied = [each for each in _migrations() if each > found]
            for each in applied:
                link.run(_script(each))
        if applied:
            # No name of a migration has a quote.
            version = _migrations()[-1]
            link.run(f"COMMENT ON SCHEMA {SCHEMA} IS '{_KNOWN}{version}'")
    return applied


def require(link: Link) -> None:
    """Raise ConfigurationError unless the schema is the one of this version."""
    with link.translated():
        found = _version(link)
    newest = _migrations()[-1]
    if found is None:
        raise ConfigurationError([f"QUEUE_URL: the database has no queue yet. {MIGRATE}"])
    with link.translated():
        [row] = link.rows("SELECT has_schema_privilege(%(name)s, 'USAGE') AS may", name=SCHEMA)
    if not row["may"]:
        raise ConfigurationError([f"QUEUE_URL: the role may not use the schema {SCHEMA}. {OWNER}"])
    if found < newest:
        raise ConfigurationError([f"QUEUE_URL: the queue is of an earlier version. {MIGRATE}"])


def _require_unicode(link: Link) -> None:
    """Raise ConfigurationError if the database cannot hold any name of a job."""
    [row] = link.rows("SELECT current_setting('server_encoding') = 'UTF8' AS is_unicode")
    if not row["is_unicode"]:
        what = "QUEUE_URL: the encoding of the database is not UTF8, so it cannot hold each name"
        raise ConfigurationError([f"{what}. Use another database."])


def _version(link: Link) -> str | None:
    """Return the newest migration that the schema has; None if there is no schema of pgstash."""
    query = (
        "SELECT pg_catalog.obj_description(oid, 'pg_namespace') AS comment FROM pg_namespace "
        "WHERE nspname = %(name)s"
    )
    for row in link.rows(query, name=SCHEMA):
        comment = row["comment"] or ""
        if comment.startswith(_KNOWN):
            return str(comment.removeprefix(_KNOWN))
    return None


def folder_of_migrations() -> Path:
    """Return the folder with the migrations of procrastinate; their names give their order."""
    return Path(SchemaManager.get_migrations_path())


def _migrations() -> list[str]:
    return sorted(each.name for each in folder_of_migrations().glob("*.sql"))


def _script(name: str) -> LiteralString:
    # Statements of procrastinate itself.
    path = Path(SchemaManager.get_migrations_path()) / name
    return path.read_text(encoding="utf-8")
