"""The statement that creates a database like another, and whether a server will accept it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace

import psycopg
from psycopg import sql

from pgstash.errors import TargetDatabaseError
from pgstash.format.manifest import Database
from pgstash.postgres.restore.request import Request
from pgstash.postgres.restore.target import connected, said
from pgstash.postgres.server.connection import Server

_FIRST_ICU_DATABASE = 15
# Other providers of locales than libc, and the first PostgreSQL with each.
_FIRST_WITH = {"i": ("ICU", _FIRST_ICU_DATABASE), "b": ("builtin", 17)}

_NAMED = "SELECT FROM pg_catalog.pg_database WHERE datname = %s"
_MAY_CREATE = """
    SELECT rolsuper OR rolcreatedb, pg_catalog.quote_ident(rolname)
    FROM pg_catalog.pg_roles WHERE rolname OPERATOR(pg_catalog.=) current_user
"""
# A database cannot be created on trial. A collation can, in a transaction that is rolled back.
_COLLATIONS = {
    "c": "CREATE COLLATION pg_temp.pgstash (LC_COLLATE = {collate}, LC_CTYPE = {ctype})",
    "i": "CREATE COLLATION pg_temp.pgstash (PROVIDER = icu, LOCALE = {locale})",
}


def refuse(server: Server, request: Request, name: str, like: Database | None) -> None:
    """Raise TargetDatabaseError if the server will not create a database ``like`` another one.

    If the request does not accept any locale, it is tried. That needs a database with the same
    encoding, and a role that may create temporary objects. Raises TargetLostError.
    """
    what = f"cannot create the database {name}"
    with connected(server) as session:
        if not request.replace and session.execute(_NAMED, [name]).fetchone() is not None:
            raise TargetDatabaseError(
                f"the database {name} already exists",
                hint="Use another name with --create, restore into that database with --to, or put "
                "the restored database in its place with --replace.",
            )
        [(may, role)] = session.execute(_MAY_CREATE).fetchall()
        if not may:
            raise TargetDatabaseError(
                f"{what}: the role {role} may not create databases",
                hint=f"ALTER ROLE {role} CREATEDB; or restore into an existing, empty database.",
            )
        if like is None or request.any_locale:
            return
        statement(name, like, server.major)
        collation = _COLLATIONS.get(like.locale_provider)
        if collation is None or like.encoding != server.database.encoding:
            return
        if _locale(like) == _locale(server.database):
            return
        trial = sql.SQL(collation).format(
            collate=sql.Literal(like.collate),
            ctype=sql.Literal(like.ctype),
            locale=sql.Literal(like.locale or ""),
        )
        with (
            refusals(what),
            contextlib.suppress(psycopg.errors.InsufficientPrivilege),
            session.transaction(force_rollback=True),
        ):
            session.execute(trial)


def _locale(database: Database) -> tuple[str | None, ...]:
    return database.locale_provider, database.collate, database.ctype, database.locale


def statement(name: str, like: Database | None, major: int) -> sql.Composed:
    """Return CREATE DATABASE with the encoding and the locale of the database it is ``like``.

    Raises TargetDatabaseError if this major has no locales of that kind.
    """
    create = sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(sql.Identifier(name))
    if like is None:
        return create
    options = {"ENCODING": like.encoding, "LC_COLLATE": like.collate, "LC_CTYPE": like.ctype}
    if like.locale_provider in _FIRST_WITH:
        kind, first = _FIRST_WITH[like.locale_provider]
        if major < first:
            raise TargetDatabaseError(
                f"the source has the {kind} locale {like.locale}, and databases of PostgreSQL "
                f"{major} cannot have such a locale",
                hint="Create the database yourself, and restore into it without --create.",
            )
        options |= {"LOCALE_PROVIDER": kind.lower(), f"{kind.upper()}_LOCALE": like.locale or ""}
        if like.icu_rules:  # an older server refuses them with an error of its own
            options["ICU_RULES"] = like.icu_rules
    elif major >= _FIRST_ICU_DATABASE:
        options["LOCALE_PROVIDER"] = "libc"
    return create + sql.SQL("").join(
        sql.SQL(f" {option} {{}}").format(sql.Literal(value)) for option, value in options.items()
    )


def without_locale(like: Database) -> Database:
    """Return the database with the locale "C", which every server has."""
    return replace(like, collate="C", ctype="C", locale_provider="c", locale=None, icu_rules=None)


@contextlib.contextmanager
def refusals(what: str) -> Iterator[None]:
    """Translate what the server refuses in the block; ``what`` begins the message."""
    try:
        yield
    except psycopg.errors.InsufficientPrivilege as error:
        raise TargetDatabaseError(
            f"{what}: {said(error)}", hint="The role needs CREATEDB: ALTER ROLE … CREATEDB."
        ) from error
    except psycopg.Error as error:
        raise TargetDatabaseError(
            f"{what}: {said(error)}",
            hint="If this server does not have the locale, create the database yourself with a "
            "locale that it has, and restore into it without --create.",
        ) from error
