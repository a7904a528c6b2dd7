"""A server that answered a login, and how to connect to the same one again.

A backup uses several processes. All of them must reach one server and see it in the same way. So
they all get the parameters of the first login, and no ``PG…`` variable.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace

from psycopg import pq

from pgstash.format.manifest import Database
from pgstash.postgres.server.conninfo import SECRETS

Password = Callable[[], str]
"""Returns the password for one login."""

# The pinned host replaces these, or libpq has resolved them into other parameters.
_RESOLVED = frozenset({"host", "hostaddr", "port", "service", "servicefile", "load_balance_hosts"})

# Defaults that libpq fills in while it connects (conninfo_add_defaults() in fe-connect.c).
_FILLED_IN = {"sslcertmode": "allow"}


@dataclass(frozen=True, slots=True)
class Connection:
    """The resolved parameters of a connection. Only ``parameters`` may be shown.

    ``secrets`` are those of the first login. If there is a ``password`` function, each later login
    gets a new password from it.
    """

    parameters: Mapping[str, str]
    secrets: Mapping[str, str] = field(repr=False)
    password: Password | None = field(default=None, repr=False, compare=False)

    def secrets_of_login(self) -> dict[str, str]:
        """Return the secrets for one login. Raises what the ``password`` function raises."""
        return {**self.secrets, **({"password": self.password()} if self.password else {})}

    @property
    def conninfo(self) -> str:
        """The connection string without secrets, for an argument list.

        Empty parameters are left out: a child has no variable that would fill them in, and may be
        too old to know them.
        """
        # Not psycopg's make_conninfo(), which refuses values that are not UTF-8.
        return " ".join(
            f"{key}={_quoted(value)}" for key, value in self.parameters.items() if value
        )

    @property
    def only_database(self) -> str:
        """A connection string with nothing but the database, whose name may contain anything."""
        return f"dbname={_quoted(self.parameters['dbname'])}"

    def with_database(self, name: str) -> Connection:
        """Return the parameters of another database of the same server."""
        return replace(self, parameters={**self.parameters, "dbname": name})

    def with_options(self, *words: str) -> Connection:
        """Return the parameters with more ``-c name=value`` settings; later ones win."""
        given = self.parameters.get("options", "")
        options = " ".join([given, *words]).strip()
        return replace(self, parameters={**self.parameters, "options": options})

    def conninfo_with_secrets(self, **different: str) -> bytes:
        """Return the complete connection string, for libpq; ``different`` overrides parameters."""
        parameters = {**self.parameters, **self.secrets_of_login(), **different}
        pairs = " ".join(f"{key}={_quoted(value)}" for key, value in parameters.items())
        return pairs.encode("utf-8", "surrogateescape")


@dataclass(frozen=True, slots=True)
class Server:
    """A server and database that answered. ``major`` is 16 if ``version`` is 16.15.

    ``codec`` is the name of Python's codec for names in the database's encoding, to be used
    with ``surrogateescape``; UTF-8 if Python has no codec for the encoding. ``pooled`` is true if
    a pooler answers in place of the server, and keeps one session for each login.
    """

    major: int
    version: str
    database: Database
    codec: str
    connection: Connection
    pooled: bool = False


def resolved(
    pgconn: pq.abc.PGconn, given: Collection[str], settings: Mapping[str, str]
) -> Connection:
    """Return the parameters of a live session, pinned to the host and address that answered.

    libpq reports them (https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-PQCONNINFO).
    ``given`` are the names of the parameters that the user gave; ``settings`` are added.
    """
    parameters: dict[str, str] = {}
    secrets: dict[str, str] = {}
    for option in pgconn.info:
        key = option.keyword.decode()
        if not option.val and key in given and key not in SECRETS:
            parameters[key] = ""  # or the environment would fill it in at the next login
        if not option.val or key in _RESOLVED:
            continue
        # A default is left out: an older pg_dump does not know every parameter.
        if key not in given and text_of(option.val) == _default(option):
            continue
        (secrets if key in SECRETS else parameters)[key] = text_of(option.val)
    # These belong to this session, not to that of the dump.
    parameters.pop("client_encoding", None)
    parameters.pop("fallback_application_name", None)
    parameters["application_name"] = parameters.get("application_name") or "pgstash"
    # Also if they are libpq's default, because a child may be built with another default. They are
    # the bytes that libpq logged in with: psycopg decodes them in the encoding of the session.
    parameters |= {
        "host": text_of(pgconn.host) or text_of(pgconn.hostaddr),
        "port": text_of(pgconn.port),
        "dbname": text_of(pgconn.db),
    }
    if pgconn.hostaddr and not pgconn.host.startswith((b"/", b"@")):
        parameters["hostaddr"] = text_of(pgconn.hostaddr)
    overrides = " ".join(f"-c {name}={value}" for name, value in sorted(settings.items()))
    if overrides:
        # The last one wins. The user's own come first: some hosts route by them.
        parameters["options"] = f"{parameters.get('options', '')} {overrides}".strip()
    return Connection(parameters, secrets)


def text_of(value: bytes) -> str:
    """Return a value of libpq's as text that becomes the same bytes in a child's arguments."""
    return value.decode("utf-8", "surrogateescape")


def _default(option: pq.ConninfoOption) -> str | None:
    """Return what libpq itself fills in for a parameter, at compile time or while it connects."""
    return option.compiled.decode() if option.compiled else _FILLED_IN.get(option.keyword.decode())


def _quoted(value: str) -> str:
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
