"""The logins of the stored roles: read from their script, and given to roles of the target."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import psycopg
from psycopg import sql

from pgstash.counting import counted
from pgstash.events import Emit, Warned
from pgstash.postgres.server import query
from pgstash.postgres.server.quoting import identifier

# As pg_dumpall writes it, one to a line. Comments and other quoted text are skipped: a name may
# contain a line that looks like this.
_ALTER_ROLE = re.compile(
    r"""^--.*$|^ALTER ROLE (?:"(?P<quoted>(?:[^"]|"")+)"|(?P<bare>[^";\s]+)) WITH"""
    r"""(?P<attributes>(?: [A-Z]+)+?)(?: CONNECTION LIMIT (?P<limit>\d+))?"""
    r"""(?: PASSWORD '(?P<password>[^'\n]*)')?(?: VALID UNTIL '(?P<until>[^'\n]*)')?;$"""
    r"""|"(?:[^"]|"")*"|'(?:[^']|'')*'""",
    re.MULTILINE,
)

# https://www.postgresql.org/docs/current/catalog-pg-authid.html: the server would take any other
# text for a password in clear, and log and hash it.
_HASH = re.compile(
    r"SCRAM-SHA-256\$\d{1,10}:[A-Za-z0-9+/=]+\$[A-Za-z0-9+/=]+:[A-Za-z0-9+/=]+|md5[0-9a-f]{32}"
)
# Dates in another DateStyle might be read as other dates.
_ISO = re.compile(r"-?infinity|\d{4,6}-\d\d-\d\d \d\d:\d\d:\d\d(\.\d+)?[+-]\d\d(:\d\d){0,2}")

_RIGHTS = ("SUPERUSER", "CREATEROLE", "CREATEDB", "REPLICATION", "BYPASSRLS")

# Only superusers may set them, and roles that were granted it.
_NO_LOG = {
    "log_statement": "none",
    "log_min_duration_statement": "-1",
    "log_min_duration_sample": "-1",
    "log_transaction_sample_rate": "0",
    "log_min_error_statement": "panic",
    "pg_stat_statements.track_utility": "off",
}


@dataclass(frozen=True, slots=True)
class Login:
    """Whether a role of the source ``can_login``, and the hash of its password, if it is known.

    ``limit`` is its number of sessions, and ``until`` when the password expires. ``rights`` are
    what it may do on the whole server, such as CREATEDB; no restore gives them.
    """

    can_login: bool = False
    password: str | None = field(default=None, repr=False)
    limit: int | None = None
    until: str | None = None
    rights: tuple[str, ...] = field(default=(), compare=False)


UNKNOWN = Login()
"""The login of a role that nothing is known of."""


def read(script: bytes, *, passwords: bool) -> dict[str, Login]:
    """Return the logins of the roles in a script of pg_dumpall; without ``passwords``, no hashes.

    A hash is left out if it is none, or if it is not certain when it expires.
    """
    found: dict[str, Login] = {}
    for match in _ALTER_ROLE.finditer(script.decode("utf-8", "surrogateescape")):
        quoted, bare, until = match["quoted"], match["bare"], match["until"]
        name = quoted.replace('""', '"') if quoted else bare
        if not name:
            continue
        password = (
            match["password"] if passwords and _HASH.fullmatch(match["password"] or "") else None
        )
        if until is not None and not _ISO.fullmatch(until):
            password = None
        attributes = match["attributes"].split()
        login = Login(
            can_login="LOGIN" in attributes,
            password=password,
            limit=None if match["limit"] is None else int(match["limit"]),
            until=until,
            rights=tuple(each for each in attributes if each in _RIGHTS),
        )
        found.setdefault(name, login)  # the first is the one that creates the role
    return found


def keep_out_of_log(session: query.Connection) -> None:
    """Keep statements of this session out of the server's log, if the login may do so."""
    for name, value in _NO_LOG.items():
        # The documents name what the login may not set.
        with contextlib.suppress(psycopg.errors.InsufficientPrivilege), session.transaction():
            session.execute("SELECT pg_catalog.set_config(%s, %s, false)", [name, value])


def give(session: query.Connection, name: str, login: Login, emit: Emit) -> bool:
    """Give a new role its login and password, and return whether it has them.

    If the server refuses, that is a warning. Raises psycopg.Error if the session is lost.
    """
    if login.password is None:
        return False
    statement = sql.SQL("ALTER ROLE {} {} PASSWORD {}").format(
        sql.Identifier(name),
        sql.SQL("LOGIN" if login.can_login else "NOLOGIN"),
        sql.Literal(login.password),
    )
    if login.limit is not None:
        statement += sql.SQL(" CONNECTION LIMIT {}").format(sql.Literal(login.limit))
    if login.until is not None:
        statement += sql.SQL(" VALID UNTIL {}").format(sql.Literal(login.until))
    try:
        with session.transaction():
            session.execute(statement)
    except psycopg.Error as error:
        if error.sqlstate is None:
            raise
        # The whole text might quote the statement.
        reason = error.diag.message_primary or error.sqlstate
        emit(Warned(f"The role {name} was created, but not given its password: {reason}"))
        return False
    return True


def warn_of_closed(names: Sequence[str], emit: Emit) -> None:
    """Warn of roles that could log in on the source, and cannot on the target."""
    if not names:
        return
    named = sorted(names)
    first = identifier(named[0])
    emit(
        Warned(
            f"{counted(len(names), 'created role')} cannot log in with a password until they get "
            f"one: {', '.join(named)}\nIn psql, for each of them: "
            f"ALTER ROLE {first} LOGIN; and then \\password {first}",
            to_do=True,
        )
    )
