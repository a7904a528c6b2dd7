"""What a server and its database are, asked in the first session."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import psycopg

from pgstash.errors import DatabaseLoginError
from pgstash.format.manifest import Database
from pgstash.postgres.server import startup_options
from pgstash.postgres.server.connection import Server, resolved, text_of
from pgstash.postgres.server.query import UNDISTURBED

Session = psycopg.Connection[tuple[Any, ...]]

SYSTEM = b"SELECT system_identifier::pg_catalog.text FROM pg_catalog.pg_control_system()"
"""Asks for the system identifier of the server, which not every role may read.

https://www.postgresql.org/docs/current/functions-info.html#FUNCTIONS-INFO-CONTROLDATA
"""

# Settings that change what pg_dump reads, and that it does not set itself. (It sets DateStyle,
# IntervalStyle, extra_float_digits, row_security, search_path and the timeouts: setup_connection()
# in pg_dump.c.) If ALTER DATABASE, ALTER ROLE or PGOPTIONS set them, the session of the dump sets
# them back.
_NEUTRAL = {
    "bytea_output": "hex",
    "quote_all_identifiers": "off",
    "standard_conforming_strings": "on",
    "TimeZone": "UTC",
    "transform_null_equals": "off",
    "xmlbinary": "base64",
}
_PLANTED_SOURCES = ("database", "user", "database user", "client", "global")


def describe(session: Session, given: Collection[str], *, pooled: bool) -> Server:
    """Return what the server and the database of a session are.

    ``given`` are the names of the parameters that the user gave. Raises psycopg.Error,
    DatabaseLoginError, PoolerError.
    """
    # A timeout that is set for the role must not end this session, and nothing that a user of the
    # database has defined may shadow a built-in.
    session.execute(UNDISTURBED)
    major = session.info.server_version // 10_000
    provider, locale_name, rules = _locale_columns(major)
    row = session.execute(
        f"""
        SELECT datname, datcollate, datctype, {provider}, {locale_name}, {rules},
               pg_catalog.current_setting('lc_monetary'), pg_catalog.pg_database_size(oid),
               pg_catalog.current_setting('server_encoding'),
               pg_catalog.current_setting('server_version'),
               ARRAY(SELECT pg_catalog.unnest(setconfig)
                     FROM pg_catalog.pg_db_role_setting
                     WHERE setdatabase = d.oid AND setrole = 0)
        FROM pg_catalog.pg_database d
        WHERE datname = pg_catalog.current_database()
        """  # noqa: S608 - the three expressions are this module's own
    ).fetchone()
    if row is None:
        raise DatabaseLoginError("the database is not in pg_database: it was dropped just now")
    name, collate, ctype, kind, locale, icu_rules, monetary, size, encoding, *rest = row
    version, settings = rest
    planted = _planted(session)
    connection = resolved(session.pgconn, given, planted)
    if pooled and planted:
        startup_options.refuse_lost(connection, planted)
    system = _system(session)
    codec = codec_of(session, encoding.decode())  # the last query of the session
    database = Database(
        name=shared_name(name, codec),
        host=connection.parameters["host"],
        port=int(connection.parameters["port"]),
        encoding=encoding.decode(),
        collate=shared_name(collate, codec),
        ctype=shared_name(ctype, codec),
        locale_provider=shared_name(kind, codec),
        locale=shared_name(locale, codec) if locale else None,
        lc_monetary=shared_name(monetary, codec),
        settings=[shared_name(setting, codec) for setting in settings],
        bytes=size,
        icu_rules=shared_name(icu_rules, codec) if icu_rules else None,
        system=system,
    )
    return Server(
        major=major,
        version=shared_name(version, codec).split()[0],
        database=database,
        codec=codec,
        connection=connection,
        pooled=pooled,
    )


def codec_of(session: Session, encoding: str) -> str:
    """Return psycopg's codec for an encoding, or UTF-8 if psycopg has none.

    If it has none, nothing can be read from the session afterwards.
    """
    if encoding == "SQL_ASCII":
        return "utf-8"
    try:
        session.execute("SELECT pg_catalog.set_config('client_encoding', %s, false)", [encoding])
        codec = session.info.encoding
    except psycopg.NotSupportedError:
        return "utf-8"
    return codec


def shared_name(value: bytes, codec: str) -> str:
    """Return a name that all databases share as text: UTF-8, else in the encoding of this one.

    PostgreSQL stores such a name as the bytes that it received, in the encoding of the session that
    sent it.
    """
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return value.decode(codec, "surrogateescape")


def _system(session: Session) -> str | None:
    """Return the system identifier of the server; None if the role may not read it."""
    try:
        row = session.execute(SYSTEM.decode()).fetchone()
    except psycopg.Error as error:
        if error.sqlstate is None:  # the session is lost, the server did not answer
            raise
        return None
    return row[0].decode() if row and row[0] else None


def _locale_columns(major: int) -> tuple[str, str, str]:
    """Name the columns of pg_database with the locale's provider, its name and its ICU rules."""
    if major >= 17:  # noqa: PLR2004 - a version of PostgreSQL
        return "datlocprovider::text", "datlocale", "daticurules"
    if major >= 16:  # noqa: PLR2004 - a version of PostgreSQL
        return "datlocprovider::text", "daticulocale", "daticurules"
    if major >= 15:  # noqa: PLR2004 - a version of PostgreSQL
        return "datlocprovider::text", "daticulocale", "NULL::text"
    return "'c'::text", "NULL::text", "NULL::text"


def _planted(session: Session) -> dict[str, str]:
    """Return the settings that are not neutral in this session, with their neutral value."""
    rows = session.execute(
        "SELECT name, setting FROM pg_catalog.pg_settings"
        " WHERE name = ANY(%s) AND source = ANY(%s)",
        [list(_NEUTRAL), list(_PLANTED_SOURCES)],
    ).fetchall()
    planted = {text_of(name): text_of(setting) for name, setting in rows}
    return {name: _NEUTRAL[name] for name, value in planted.items() if value != _NEUTRAL[name]}
