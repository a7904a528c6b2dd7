"""The mark of a restored database: `pgstash recover` finds by it what it need not restore again.

It is a setting of the restoring role in that database alone, and names the backup. Every role may
set ``application_name`` for itself, and most clients set their own. The mark appears together with
the database, or is committed with its rows. A comment would be seen by others, and is the source's.
"""

from __future__ import annotations

from psycopg import sql

BEGINNING = "pgstash restored "
"""What the value of a mark begins with; the name of the backup follows."""

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
"""Selects the name of each database, and the backup that its mark names."""


def statement(database: str, backup: str) -> sql.Composed:
    """Return the statement that marks a database as restored from a backup."""
    return sql.SQL("ALTER ROLE CURRENT_USER IN DATABASE {} SET application_name TO {};").format(
        sql.Identifier(database), sql.Literal(BEGINNING + backup)
    )


def of_psql(backup: str) -> bytes:
    """Return the same for the database of a session of psql."""
    name = sql.Literal(BEGINNING + backup).as_string()
    text = f'\nALTER ROLE CURRENT_USER IN DATABASE :"DBNAME" SET application_name TO {name};\n'
    return text.encode()
