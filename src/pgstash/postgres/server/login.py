"""The first login to a server, which decides what all processes of a backup connect to.

The live session reports libpq's resolved parameters. Host and address are pinned to those that
answered, so that every later session reaches the same server.
"""

from __future__ import annotations

import contextlib
import re
from dataclasses import replace
from datetime import UTC, datetime

import psycopg
from psycopg import conninfo, pq

from pgstash.errors import DatabaseError, DatabaseLoginError, DatabaseUnreachableError
from pgstash.format.identity import Identity
from pgstash.postgres.server import (
    description,
    login_refusal,
    pooler,
    startup_options,
    time_limits,
)
from pgstash.postgres.server.connection import Password, Server, resolved, text_of
from pgstash.postgres.server.description import Session
from pgstash.postgres.server.session import NotAnsweredError, ask

# A half-open connection is noticed within a minute. What the user sets takes precedence.
_KEEPALIVE = {
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "3",
}

# Words of libpq and OpenSSL for a failed agreement on encryption, or on whom to trust.
_TLS_REASON = re.compile(
    r"certificate|support SSL|SSL was required|SSL support|private key|SSL error: (?!.*closed)|"
    r"tlsv1|does not match host name",
    re.IGNORECASE,
)
_NONE_GIVEN_HINT = (
    "No password was given: put it into DATABASE_URL for the source, into RESTORE_URL for a target "
    "(PGPASSWORD is the source's), or into a password file (~/.pgpass)."
)
_TLS_HINT = (
    "Check the TLS parameters of DATABASE_URL: sslmode=verify-full and verify-ca need the "
    "CA certificate (sslrootcert=/path/to/ca.crt, or sslrootcert=system), and every "
    "mode from sslmode=require on needs a server with ssl = on."
)


def inspect(url: str, password: Password | None = None) -> Server:
    """Log in, and return what the server and the database are.

    ``url`` is a URI or any other connection string of libpq. libpq's environment variables, service
    and password files complete it. Without a password in it, each login gets one from the function
    ``password``, if there is one. Nothing is set in the session before it is certain that a
    pooler, if there is one, keeps the session for this login.

    Raises DatabaseUnreachableError if no server answers, DatabaseLoginError if one refuses,
    PoolerError and PoolTooSmallError.
    """
    # closing(), because the session's own block would send a ROLLBACK in a session that is lost.
    url, password = _with_password(url, password)
    with contextlib.closing(_login(url)) as session:
        try:
            given = conninfo.conninfo_to_dict(url).keys()
            pooled = pooler.between(session.pgconn)
            if pooled:
                found = replace(resolved(session.pgconn, given, {}), password=password)
                pooler.refuse_swapping(session.pgconn, found)
            server = description.describe(session, given, pooled=pooled)
            return replace(server, connection=replace(server.connection, password=password))
        except psycopg.Error as error:
            if session.broken:
                raise DatabaseUnreachableError(f"the connection was lost: {error}") from error
            raise DatabaseLoginError(
                f"logged in, but a query failed: {error}",
                hint="Check the server's log.",
            ) from error


def _with_password(url: str, password: Password | None) -> tuple[str, Password | None]:
    if password is None or conninfo.conninfo_to_dict(url).get("password"):
        return url, None
    return conninfo.make_conninfo(url, password=password()), password


def identify(url: str, seconds: int, password: Password | None = None) -> Identity:
    """Log in, and return the identity of the source; ``password`` is as for :func:`inspect`.

    Each step takes at most ``seconds``, but the login at least 2. It asks the server, because a
    pooler may accept a login while no server is behind it. Raises what :func:`inspect` raises.
    """
    with _prompt(url, seconds, password) as session:
        name = _answer(session, seconds, b"SELECT pg_catalog.current_database()")
        try:
            system = _answer(session, seconds, description.SYSTEM).decode()
        except _RefusedError:
            system = ""
        pgconn = session.pgconn
        host, port = text_of(pgconn.host) or text_of(pgconn.hostaddr), text_of(pgconn.port)
        try:
            database = name.decode("utf-8")
        except UnicodeDecodeError:
            encoding = session.info.parameter_status("server_encoding") or ""
            codec = description.codec_of(session, encoding)  # the last query of the session
            database = description.shared_name(name, codec)
        return Identity(database, system or None, host, port)


def clock(url: str, seconds: int, password: Password | None = None) -> datetime:
    """Return the time of the server's clock, in UTC. Arguments and errors: :func:`identify`."""
    # No setting changes how an integer is written.
    query = b"SELECT pg_catalog.date_part('epoch', pg_catalog.clock_timestamp())::pg_catalog.int8"
    with _prompt(url, seconds, password) as session:
        return datetime.fromtimestamp(int(_answer(session, seconds, query)), UTC)


class _RefusedError(DatabaseUnreachableError):
    """The server answers a query with an error."""


def _prompt(url: str, seconds: int, password: Password | None) -> contextlib.closing[Session]:
    url, _ = _with_password(url, password)
    # closing(), because the session's own block would commit: another wait without a limit.
    return contextlib.closing(_login(url, connect_timeout=str(seconds)))


def _answer(session: Session, seconds: int, query: bytes) -> bytes:
    """Return the one value that a query selects; empty if it is null."""
    try:
        rows = ask(session.pgconn, query, seconds)
    except NotAnsweredError as error:
        raise DatabaseUnreachableError(
            f"the database does not answer within {seconds} s"
        ) from error
    except psycopg.Error as error:
        if error.sqlstate is None:
            raise DatabaseUnreachableError(f"the connection was lost: {error}") from error
        raise _RefusedError(f"the database does not answer a query: {error}") from error
    return (rows[0][0] if rows else None) or b""


def _login(url: str, **wanted: str) -> Session:
    """Connect; ``wanted`` parameters override those of the URL."""
    given = conninfo.conninfo_to_dict(url)
    defaults = {option.keyword.decode(): option.val for option in pq.Conninfo.get_defaults()}
    extra = {
        key: value
        for key, value in _KEEPALIVE.items()
        if key not in given and defaults.get(key) is None
    }
    if "connect_timeout" not in given and defaults.get("connect_timeout") is None:
        extra["connect_timeout"] = str(time_limits.CONNECT)
    try:
        return psycopg.connect(
            conninfo.make_conninfo(
                url,
                # No conversion: every server supports it, and names arrive as they are stored.
                client_encoding="SQL_ASCII",
                fallback_application_name="pgstash",
                **(extra | wanted),
            ),
            autocommit=True,
        )
    except psycopg.OperationalError as error:
        raise _refused(url, error) from error
    except psycopg.Error as error:
        raise DatabaseLoginError(f"the connection failed: {error}") from error


def _refused(url: str, error: psycopg.OperationalError) -> DatabaseError:
    """Return the error for a failed login; a ping shows whether a server answers at all."""
    reason = " ".join(_message(error).split())
    hint = _TLS_HINT if _TLS_REASON.search(reason) else ""
    if not isinstance(error, psycopg.errors.ConnectionTimeout):
        probe = conninfo.make_conninfo(url, connect_timeout=time_limits.PING)
        if pq.PGconn.ping(probe.encode()) == pq.Ping.OK:
            if error.pgconn and error.pgconn.needs_password:
                hint = _NONE_GIVEN_HINT
            elif _refuses_options(url):
                return startup_options.refused(reason)
            message = f"the database refused the login: {reason}"
            if hint:
                return DatabaseLoginError(message, hint=hint)
            return login_refusal.error(probe.encode(), message)
    return DatabaseUnreachableError(f"the database cannot be reached: {reason}", hint=hint)


def _refuses_options(url: str) -> bool:
    """Return whether a pooler, which refused a login, accepts it without ``options``."""
    defaults = {option.keyword: option.val for option in pq.Conninfo.get_defaults()}
    if not conninfo.conninfo_to_dict(url).get("options", defaults.get(b"options")):
        return False
    without = conninfo.make_conninfo(url, options="", connect_timeout=time_limits.CONNECT)
    try:
        with contextlib.closing(psycopg.connect(without, autocommit=True)) as session:
            return pooler.between(session.pgconn)
    except (psycopg.Error, DatabaseError):
        return False


def _message(error: psycopg.Error) -> str:
    """Return libpq's message, also if psycopg decoded it as ASCII like the session's text."""
    if error.pgconn and "\N{REPLACEMENT CHARACTER}" in str(error):
        return error.pgconn.error_message.decode(errors="replace")
    return str(error)
