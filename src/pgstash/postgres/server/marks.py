"""The mark of a restored database: `pgstash recover` finds by it what it need not restore again.

It is a setting of the restoring role in that database alone, and names the backup and its source.
Every role may set ``application_name`` for itself, and most clients set their own. The mark appears
together with the database, or is committed with its rows. A comment would be seen by others, and is
the source's.
"""

from __future__ import annotations

from dataclasses import dataclass

from psycopg import sql

from pgstash.format.manifest import Manifest

BEGINNING = "pgstash restored "
"""What the value of a mark begins with; the name of the backup follows."""

_REFUSED = "refused"

_SETTING = f"application_name={BEGINNING}"

OF_DATABASES = """
    SELECT d.datname, (
        SELECT pg_catalog.substr(setting, pg_catalog.length('{mark}') + 1)
        FROM pg_catalog.pg_db_role_setting s, pg_catalog.unnest(s.setconfig) AS setting
        WHERE s.setdatabase = d.oid AND s.setrole <> 0
              AND pg_catalog.starts_with(setting, '{mark}')
        LIMIT 1)
    FROM pg_catalog.pg_database d
""".replace("{mark}", _SETTING)
"""Selects the name of each database, and the text of its mark."""


@dataclass(frozen=True, slots=True)
class Mark:
    """The backup that a database is restored from, and the digest of its source, if it is known.

    Backups of two servers can have the same name. ``refused`` is whether the target lacks owners or
    privileges, because it refused them, or the backup has none.
    """

    backup: str
    source: str = ""
    refused: bool = False


def read(text: str) -> Mark:
    """Read what a mark consists of after its beginning."""
    backup, *more = text.split(" ")
    source = next((each for each in more if each != _REFUSED), "")
    return Mark(backup, source, refused=_REFUSED in more)


def text_of(backup: str, manifest: Manifest | None, *, wanted: bool = True) -> str:
    """Return the text of the mark of a backup; empty if none is ``wanted``."""
    if not wanted:
        return ""
    return f"{backup} {manifest.database.identity.digest}" if manifest else backup


def refused(text: str) -> str:
    """Return the text of the mark of a database that lacks owners or privileges."""
    return f"{text} {_REFUSED}"


def statement(database: str, text: str) -> sql.Composed:
    """Return the statement that gives a database the mark with this text."""
    return sql.SQL("ALTER ROLE CURRENT_USER IN DATABASE {} SET application_name TO {};").format(
        sql.Identifier(database), sql.Literal(BEGINNING + text)
    )


def of_psql(text: str) -> bytes:
    """Return the same for the database of a session of psql."""
    value = sql.Literal(BEGINNING + text).as_string()
    given = f'\nALTER ROLE CURRENT_USER IN DATABASE :"DBNAME" SET application_name TO {value};\n'
    return given.encode()
