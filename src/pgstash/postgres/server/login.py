"""The source database: how it is reached, what it is, and how child processes reach the same.

A backup uses several processes, and all of them must talk to one server and see it the same
way. So the first login decides: from the live session libpq's resolved parameters are read
(https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-PQCONNINFO), host and address
are pinned to the one that answered, and children get these parameters and no ``PG…`` variable.
"""

from __future__ import annotations

import contextlib
import re
import select
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import psycopg
from psycopg import conninfo, pq

from pgstash.errors import DatabaseError, DatabaseLoginError, DatabaseUnreachableError
from pgstash.identity import Identity
from pgstash.manifest import Database
from pgstash.postgres import login, pooler
from pgstash.postgres.address import SECRETS

_CONNECT_SECONDS = 10
_PING_SECONDS = 2

# Half-open connections are noticed within a minute; what the user sets wins.
_KEEPALIVE = {
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "3",
}

# Answered by the pinned host, or already resolved into other parameters.
_RESOLVED = frozenset({"host", "hostaddr", "port", "service", "servicefile", "load_balance_hosts"})

# Defaults that libpq fills in while it connects (conninfo_add_defaults() in fe-connect.c).
_FILLED_IN = {"sslcertmode": "allow"}

# Settings that alter what pg_dump reads and that it does not set itself (it does set
# DateStyle, IntervalStyle, extra_float_digits, row_security, search_path and the timeouts:
# setup_connection() in pg_dump.c). Planted by ALTER DATABASE, ALTER ROLE or PGOPTIONS,
# they are put back for the session of the dump.
_NEUTRAL = {
    "bytea_output": "hex",
    "quote_all_identifiers": "off",
    "standard_conforming_strings": "on",
    "TimeZone": "UTC",
    "transform_null_equals": "off",
    "xmlbinary": "base64",
}
_SYSTEM = b"SELECT system_identifier::pg_catalog.text FROM pg_catalog.pg_control_system()"
_PLANTED_SOURCES = ("database", "user", "database user", "client", "global")


_Session = psycopg.Connection[tuple[Any, ...]]

# What libpq and OpenSSL say where the two ends do not agree on encryption, or on whom to trust.
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
    "authority's certificate (sslrootcert=/path/to/ca.crt, or sslrootcert=system), and every "
    "mode from sslmode=require on needs a server with ssl = on."
)


@dataclass(frozen=True, slots=True)
class Connection:
    """Resolved parameters of one server: ``parameters`` may be seen by all, ``secrets`` not."""

    parameters: Mapping[str, str]
    secrets: Mapping[str, str] = field(repr=False)

    @property
    def conninfo(self) -> str:
        """The connection string without any secret, fit for an argument list.

        A child has nothing in its environment that would fill in what is empty, and may be too old
        to know it.
        """
        # Not psycopg's make_conninfo(), which refuses values that are not UTF-8.
        return " ".join(
            f"{key}={_quoted(value)}" for key, value in self.parameters.items() if value
        )

    @property
    def only_database(self) -> str:
        """The connection string that names the database alone, whatever its name looks like."""
        return f"dbname={_quoted(self.parameters['dbname'])}"

    def with_database(self, name: str) -> Connection:
        """Return the same, to another database."""
        return replace(self, parameters={**self.parameters, "dbname": name})

    def with_options(self, *words: str) -> Connection:
        """Return the same with more settings of its sessions, as ``-c name=value``; these win."""
        given = self.parameters.get("options", "")
        options = " ".join([given, *words]).strip()
        return replace(self, parameters={**self.parameters, "options": options})

    def conninfo_with_secrets(self, **different: str) -> bytes:
        """Return the connection string with everything, for libpq itself; what differs wins."""
        parameters = {**self.parameters, **self.secrets, **different}
        pairs = " ".join(f"{key}={_quoted(value)}" for key, value in parameters.items())
        return pairs.encode("utf-8", "surrogateescape")


def _quoted(value: str) -> str:
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


@dataclass(frozen=True, slots=True)
class Server:
    """The server and database that answered. ``major`` is 16, ``version`` is 16.15.

    ``codec`` is the name of Python's codec for names in the database's encoding, to be used
    with ``surrogateescape``: it is UTF-8 where Python has none. ``pooled`` is true if a pooler
    answers in the server's place, which keeps one session for each login.
    """

    major: int
    version: str
    database: Database
    codec: str
    connection: Connection
    pooled: bool = False


def look(url: str) -> Server:
    """Log in to the source and look at it.

    ``url`` is a URI or any other connection string of libpq's; what it leaves out comes
    from libpq's environment variables, service and password files. Nothing is set in a session
    before it is known that a pooler, if there is one, keeps it for this login. Raises
    DatabaseUnreachableError where no server answers, DatabaseLoginError where one refuses,
    PoolerError and PoolTooSmallError.
    """
    # closing() and not the session's own block, which would send a ROLLBACK where it was lost.
    with contextlib.closing(_login(url)) as session:
        try:
            given = conninfo.conninfo_to_dict(url).keys()
            pooled = pooler.between(session.pgconn)
            if pooled:
                pooler.refuse_swapping(session.pgconn, _resolve(session, {}, given))
            return _look(session, given, pooled=pooled)
        except psycopg.Error as error:
            if session.broken:
                raise DatabaseUnreachableError(f"the connection was lost: {error}") from error
            raise DatabaseLoginError(
                f"the database let us in, and does not answer as expected: {error}",
                hint="Look into the server's log.",
            ) from error


@contextlib.contextmanager
def connect_again(server: Server, seconds: int) -> Iterator[_Session]:
    """Log in to the server that answered, within so many seconds; names are bytes as stored.

    Raises psycopg.Error, and PoolerError at the end of the block if a pooler swapped the session.
    """
    parameters = {
        **server.connection.parameters,
        **server.connection.secrets,
        "client_encoding": "SQL_ASCII",  # which works for all, see the login
        "connect_timeout": str(seconds),
    }
    with psycopg.connect("", autocommit=True, **parameters) as session:  # type: ignore[arg-type]
        kept = pooler.Kept(session.pgconn, "a question to the database")
        session.execute("SET search_path = ''")
        yield session
        kept.check()


def identify(url: str, seconds: int) -> Identity:
    """Log in and ask for the identity of the source.

    Each step takes no more than ``seconds`` (2 at least for the login). Raises as :func:`look`
    does. A query, because a pooler may let in whom no server serves.
    """
    with _prompt(url, seconds) as session:
        name = _answer(session, seconds, b"SELECT pg_catalog.current_database()")
        try:
            system = _answer(session, seconds, _SYSTEM).decode()
        except _RefusedError:
            system = ""
        pgconn = session.pgconn
        host, port = _libpq(pgconn.host) or _libpq(pgconn.hostaddr), _libpq(pgconn.port)
        try:
            database = name.decode("utf-8")
        except UnicodeDecodeError:
            encoding = session.info.parameter_status("server_encoding") or ""
            database = _text(name, _codec(session, encoding))  # the last question to the session
        return Identity(database, system or None, host, port)


def clock(url: str, seconds: int) -> datetime:
    """Return what the server's clock says, in UTC. Raises as :func:`identify` does."""
    # A whole number is written in one way, whatever is planted.
    query = b"SELECT pg_catalog.date_part('epoch', pg_catalog.clock_timestamp())::pg_catalog.int8"
    with _prompt(url, seconds) as session:
        return datetime.fromtimestamp(int(_answer(session, seconds, query)), UTC)


class _RefusedError(DatabaseUnreachableError):
    """The server answers a query with an error."""


def _prompt(url: str, seconds: int) -> contextlib.closing[_Session]:
    # closing() and not the session's own block, which would commit: another wait without an end.
    return contextlib.closing(_login(url, connect_timeout=str(seconds)))


def _answer(session: _Session, seconds: int, query: bytes) -> bytes:
    """Return the one value that a query asks for, empty if it is null."""
    pgconn = session.pgconn
    try:
        pgconn.send_query(query)
        answer = _result(pgconn, seconds)
        if answer is None or answer.status != pq.ExecStatus.TUPLES_OK:
            said = answer.error_message.decode(errors="replace") if answer else ""
            raise _RefusedError(f"the database does not answer a query: {said.strip()}")
        while _result(pgconn, seconds) is not None:
            pass
    except psycopg.Error as error:
        raise DatabaseUnreachableError(f"the connection was lost: {error}") from error
    return answer.get_value(0, 0) or b""


def _result(pgconn: pq.abc.PGconn, seconds: int) -> pq.abc.PGresult | None:
    while pgconn.is_busy():
        ready, _, _ = select.select([pgconn.socket], [], [], seconds)
        if not ready:
            raise DatabaseUnreachableError(f"the database does not answer within {seconds} s")
        pgconn.consume_input()
    return pgconn.get_result()


def _login(url: str, **wanted: str) -> _Session:
    """Connect, with the parameters ``wanted`` whatever the URL says of them."""
    given = conninfo.conninfo_to_dict(url)
    defaults = {option.keyword.decode(): option.val for option in pq.Conninfo.get_defaults()}
    extra = {
        key: value
        for key, value in _KEEPALIVE.items()
        if key not in given and defaults.get(key) is None
    }
    if "connect_timeout" not in given and defaults.get("connect_timeout") is None:
        extra["connect_timeout"] = str(_CONNECT_SECONDS)
    try:
        return psycopg.connect(
            conninfo.make_conninfo(
                url,
                # No conversion: every server can do that, and names arrive as they are stored.
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
    """Tell a server that does not answer from one that refuses, by asking as pg_isready does."""
    reason = " ".join(_said(error).split())
    hint = _TLS_HINT if _TLS_REASON.search(reason) else ""
    if not isinstance(error, psycopg.errors.ConnectionTimeout):
        probe = conninfo.make_conninfo(url, connect_timeout=_PING_SECONDS)
        if pq.PGconn.ping(probe.encode()) == pq.Ping.OK:
            if error.pgconn and error.pgconn.needs_password:
                hint = _NONE_GIVEN_HINT
            elif _refuses_options(url):
                return pooler.refused_options(reason)
            hint = hint or login.hint(probe.encode())
            return DatabaseLoginError(f"the database refused the login: {reason}", hint=hint)
    return DatabaseUnreachableError(f"the database cannot be reached: {reason}", hint=hint)


def _refuses_options(url: str) -> bool:
    """Tell whether a pooler lets in who gives no ``options``, after it refused who does."""
    defaults = {option.keyword: option.val for option in pq.Conninfo.get_defaults()}
    if not conninfo.conninfo_to_dict(url).get("options", defaults.get(b"options")):
        return False
    without = conninfo.make_conninfo(url, options="", connect_timeout=_CONNECT_SECONDS)
    try:
        with contextlib.closing(psycopg.connect(without, autocommit=True)) as session:
            return pooler.between(session.pgconn)
    except (psycopg.Error, DatabaseError):
        return False


def _said(error: psycopg.Error) -> str:
    """Return libpq's message, also where psycopg took it for ASCII as the session is."""
    if error.pgconn and "\N{REPLACEMENT CHARACTER}" in str(error):
        return error.pgconn.error_message.decode(errors="replace")
    return str(error)


def _look(session: _Session, given: Collection[str], *, pooled: bool) -> Server:
    # A timeout that somebody planted for the role must not end this session, nor may anything
    # that a user of the database defined stand in for a built-in.
    session.execute("SET statement_timeout = 0; SET lock_timeout = 0; SET search_path = ''")
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
    connection = _resolve(session, planted, given)
    if pooled and planted:
        pooler.refuse_lost_options(connection, planted)
    system = _system(session)
    codec = _codec(session, encoding.decode())  # the last question to the session
    database = Database(
        name=_text(name, codec),
        host=connection.parameters["host"],
        port=int(connection.parameters["port"]),
        encoding=encoding.decode(),
        collate=_text(collate, codec),
        ctype=_text(ctype, codec),
        locale_provider=_text(kind, codec),
        locale=_text(locale, codec) if locale else None,
        lc_monetary=_text(monetary, codec),
        settings=[_text(setting, codec) for setting in settings],
        bytes=size,
        icu_rules=_text(icu_rules, codec) if icu_rules else None,
        system=system,
    )
    return Server(
        major=major,
        version=_text(version, codec).split()[0],
        database=database,
        codec=codec,
        connection=connection,
        pooled=pooled,
    )


def _system(session: _Session) -> str | None:
    """Return the system identifier of the server; None where it may not be read.

    https://www.postgresql.org/docs/current/functions-info.html#FUNCTIONS-INFO-CONTROLDATA
    """
    try:
        row = session.execute(_SYSTEM.decode()).fetchone()
    except psycopg.Error as error:
        if error.sqlstate is None:  # not the server's answer: the session is lost
            raise
        return None
    return row[0].decode() if row and row[0] else None


def _codec(session: _Session, encoding: str) -> str:
    """Return psycopg's choice of a codec for an encoding, or UTF-8 where it has none.

    Nothing can be read from the session afterwards where psycopg has none.
    """
    if encoding == "SQL_ASCII":
        return "utf-8"
    try:
        session.execute("SELECT pg_catalog.set_config('client_encoding', %s, false)", [encoding])
        codec = session.info.encoding
    except psycopg.NotSupportedError:
        return "utf-8"
    return codec


def _locale_columns(major: int) -> tuple[str, str, str]:
    """Name the columns of pg_database that hold the locale's provider, its name and ICU's rules."""
    if major >= 17:  # noqa: PLR2004 - a version of PostgreSQL
        return "datlocprovider::text", "datlocale", "daticurules"
    if major >= 16:  # noqa: PLR2004 - a version of PostgreSQL
        return "datlocprovider::text", "daticulocale", "daticurules"
    if major >= 15:  # noqa: PLR2004 - a version of PostgreSQL
        return "datlocprovider::text", "daticulocale", "NULL::text"
    return "'c'::text", "NULL::text", "NULL::text"


def _planted(session: _Session) -> dict[str, str]:
    """Return the settings that somebody planted for this session, with their neutral value."""
    rows = session.execute(
        "SELECT name, setting FROM pg_catalog.pg_settings"
        " WHERE name = ANY(%s) AND source = ANY(%s)",
        [list(_NEUTRAL), list(_PLANTED_SOURCES)],
    ).fetchall()
    planted = {_libpq(name): _libpq(setting) for name, setting in rows}
    return {name: _NEUTRAL[name] for name, value in planted.items() if value != _NEUTRAL[name]}


def _resolve(session: _Session, settings: Mapping[str, str], given: Collection[str]) -> Connection:
    pgconn = session.pgconn
    parameters: dict[str, str] = {}
    secrets: dict[str, str] = {}
    for option in pgconn.info:
        key = option.keyword.decode()
        if not option.val and key in given and key not in SECRETS:
            parameters[key] = ""  # or the environment would fill it in when we log in again
        if not option.val or key in _RESOLVED:
            continue
        # What nobody set stays unset: an older pg_dump does not know every parameter.
        if key not in given and _libpq(option.val) == _default(option):
            continue
        (secrets if key in SECRETS else parameters)[key] = _libpq(option.val)
    # These are of our own session, not of the dump's.
    parameters.pop("client_encoding", None)
    parameters.pop("fallback_application_name", None)
    parameters["application_name"] = parameters.get("application_name") or "pgstash"
    # Even where it is libpq's default: a child may be built with another one. And the very bytes
    # that libpq logged in with: psycopg decodes them as what the session speaks.
    parameters |= {
        "host": _libpq(pgconn.host) or _libpq(pgconn.hostaddr),
        "port": _libpq(pgconn.port),
        "dbname": _libpq(pgconn.db),
    }
    if pgconn.hostaddr and not pgconn.host.startswith((b"/", b"@")):
        parameters["hostaddr"] = _libpq(pgconn.hostaddr)
    overrides = " ".join(f"-c {name}={value}" for name, value in sorted(settings.items()))
    if overrides:
        # After the user's own, which may route (some hosts do by options=…): the last one wins.
        parameters["options"] = f"{parameters.get('options', '')} {overrides}".strip()
    return Connection(parameters, secrets)


def _default(option: pq.ConninfoOption) -> str | None:
    """Return what libpq itself fills in for a parameter, at compile time or at connect."""
    return option.compiled.decode() if option.compiled else _FILLED_IN.get(option.keyword.decode())


def _libpq(value: bytes) -> str:
    """Return what libpq holds as text that becomes the same bytes again in a child's arguments."""
    return value.decode("utf-8", "surrogateescape")


def _text(value: bytes, codec: str) -> str:
    """Return a name that all databases share as text: UTF-8, else in this one's encoding.

    PostgreSQL stores such a name as the bytes that came when it was given, in whatever
    encoding the session of that moment had.
    """
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return value.decode(codec, "surrogateescape")
