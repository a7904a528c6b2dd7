"""What a connection string contains, before any server has answered.

https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNSTRING
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from urllib.parse import quote, urlencode

import psycopg
from psycopg import conninfo, pq

from pgstash.format.identity import Identity
from pgstash.postgres.server import foreign_parameters

SECRETS = frozenset(
    {"password", "sslpassword", "oauth_client_secret", "scram_client_key", "scram_server_key"}
)
"""Parameters that must not be in an argument list, which every user of a machine can read."""

VARIABLES = frozenset(
    option.envvar.decode() for option in pq.Conninfo.get_defaults() if option.envvar
) | {"PGSERVICEFILE", "PGSYSCONFDIR"}
"""The environment variables of libpq that provide parameters, or files with parameters."""

# Two logins are the same if these are. The other parameters describe how to connect.
_LOGIN = ("user", "host", "hostaddr", "port", "service")

_PLAIN_HOST = re.compile(r"[\w.-]+", re.ASCII)
_URI = re.compile(r"postgres(?:ql)?://")
_URI_PASSWORD = re.compile(r"://[^:/@?]*:([^@]*)@")
_URI_PARAMETER = re.compile(r"[?&](\w+)=([^&]+)")
_ENCODE = (
    "is not a valid connection URI. Percent-encode everything but letters and digits in user, "
    "password and database name, and check the parameters after the '?'"
)


class UnusableUriError(ValueError):
    """A URI that libpq cannot use; each of the ``reasons`` contains what to write instead."""

    def __init__(self, reasons: Sequence[str]) -> None:
        """Store the reasons; each follows the name of the setting."""
        super().__init__(". ".join(reasons))
        self.reasons = reasons


def parse(url: str) -> dict[str, str]:
    """Split a connection URI into libpq's parameters.

    Raises UnusableUriError if it is clear what to write instead, and ValueError otherwise. Neither
    shows a part of it that may be secret. libpq's own message would, and a password that is not
    percent-encoded ends up in any part of the URI.
    """
    return dict(_parsed(url))


@functools.lru_cache(maxsize=16)  # each check of a setting needs it, thousands of times for a file
def _parsed(url: str) -> dict[str, str]:
    if not _URI.match(url):
        if known := foreign_parameters.scheme_problem(url):
            raise UnusableUriError([known])
        raise ValueError("must begin with postgresql:// or postgres://")
    if any(found := foreign_parameters.problems(url)):
        raise UnusableUriError([reason or _ENCODE for reason in found])
    try:
        parameters = conninfo.conninfo_to_dict(url)
    except (psycopg.Error, UnicodeError):
        raise ValueError(_ENCODE) from None
    split = {key: str(value) for key, value in parameters.items()}
    _refuse_misplaced_password(url, split)
    return split


def _refuse_misplaced_password(url: str, parameters: Mapping[str, str]) -> None:
    """Raise ValueError for a URI that libpq accepts, but not with the meaning that was intended.

    If a password contains "@" or "/" and is not percent-encoded, the rest of it ends up in host,
    port or database name, which libpq's messages quote.
    """
    ports = parameters.get("port", "").split(",")
    hosts = parameters.get("host", "").split(",")
    if not all(port.isdecimal() or not port for port in ports):
        raise ValueError(_ENCODE)
    if any("@" in host[1:] for host in hosts):  # it may begin with one: an abstract socket
        raise ValueError(_ENCODE)
    if "@" in parameters.get("dbname", "") and "%40" not in url:
        raise ValueError(_ENCODE)


def named(url: str) -> tuple[str, str]:
    """Return host and database as configured.

    A service file and libpq's compiled defaults are not taken into account.
    """
    given = conninfo.conninfo_to_dict(url)
    for option in pq.Conninfo.get_defaults():
        if option.val:
            given.setdefault(option.keyword.decode(), option.val.decode(errors="replace"))
    host = given.get("host") or given.get("hostaddr") or "localhost"
    return str(host), str(given.get("dbname") or given.get("user") or "")


def address(url: str) -> str:
    """Return hosts and ports as configured, for people: ``db.example.com:5432``.

    A service that the URL names has them if the URL does not.
    """
    given = conninfo.conninfo_to_dict(url)
    if given.get("service") and not (given.get("host") or given.get("hostaddr")):
        return f"the service {given['service']}"
    usual = {option.keyword: option.val for option in pq.Conninfo.get_defaults()}
    usual_port = (usual.get(b"port") or b"5432").decode()
    hosts = named(url)[0].split(",")
    ports = str(given.get("port") or "").split(",")
    if len(ports) == 1:
        ports *= len(hosts)
    return ",".join(
        f"[{host}]:{port or usual_port}" if ":" in host else f"{host}:{port or usual_port}"
        for host, port in zip(hosts, ports, strict=False)
    )


def login_uri(url: str, database: str, user: str | None = None) -> str:
    """Return a short URI with the login of ``url`` but its secrets, and with this database.

    :func:`completed` adds the rest again, unless another ``user`` is to log in.
    """
    given = conninfo.conninfo_to_dict(url)
    login = {key: str(given[key]) for key in _LOGIN if given.get(key)}
    if user is not None:
        login["user"] = user
    user, at = login.pop("user", ""), ""
    if _PLAIN_HOST.fullmatch(login.get("host", "")):
        at = login.pop("host")
        at += f":{port}" if (port := login.pop("port", "")) else ""
    if user:
        at = f"{quote(user, safe='', errors='surrogateescape')}@{at}"
    path = quote(database, safe="", errors="surrogateescape")
    return f"postgresql://{at}/{path}" + (f"?{urlencode(login, quote_via=quote)}" if login else "")


def with_database(url: str, database: str) -> str:
    """Return a URI that differs from ``url`` in its database alone; it has all secrets of it.

    An empty ``url`` stands for libpq's variables.
    """
    given = conninfo.conninfo_to_dict(url)
    rest = {key: str(value) for key, value in given.items() if key != "dbname" and value}
    return f"postgresql:///{quote(database, safe='')}" + (
        f"?{urlencode(rest, quote_via=quote)}" if rest else ""
    )


def with_some_database(url: str, database: str) -> str:
    """Return ``url``, or a URI that differs in this database if it names none.

    A string that is no valid URI is returned as it is.
    """
    try:
        named = parse(url).get("dbname")
    except ValueError:
        return url
    return url if named else with_database(url, database)


def completed(url: str, configured: str) -> str:
    """Return ``url`` with what it lacks from ``configured``, if both have the same login.

    So a URL without a password, in an argument list, gets the one of a setting, and is sent in the
    same way. Only the database is never taken. A string that is no valid URI changes nothing.
    """
    try:
        given, other = (
            parse(foreign_parameters.without_ignored(each)[0]) for each in (url, configured)
        )
    except ValueError:
        return url
    if _login(given) != _login(other):
        return url
    taken = other.keys() - given.keys() - {"dbname"}
    if "passfile" in given:
        taken -= {"password"}
    more = urlencode({key: other[key] for key in sorted(taken)}, quote_via=quote)
    return f"{url}{'&' if '?' in url else '?'}{more}" if more else url


def _login(parameters: Mapping[str, str]) -> Mapping[str, str]:
    found = {key: parameters[key] for key in _LOGIN if parameters.get(key)}
    return found if "service" in found else {"port": "5432"} | found


def identity(url: str, variables: Mapping[str, str]) -> Identity:
    """Return the identity of a source as far as its URL and libpq's variables contain it.

    A service file and libpq's defaults are not taken into account. Host and port are unknown if
    there are several.
    """
    given = conninfo.conninfo_to_dict(url)

    def first(*names: str) -> str | None:
        keys = (
            ((given, name) for name in names),
            ((variables, f"PG{name.upper()}") for name in names),
        )
        return next((str(of[key]) for pairs in keys for of, key in pairs if of.get(key)), None)

    database = first("dbname", "database")
    if database is None and first("service") is None:
        database = first("user")
    if database is not None and not database.isprintable():
        database = None  # bytes in an encoding that only the server knows
    host, port = first("host", "hostaddr"), first("port")
    if "," in f"{host}{port}":  # any of several hosts
        host = port = None
    return Identity(database, None, host, port)


def secrets(url: str) -> list[str]:
    """Return the secrets in a connection string and in libpq's environment variables."""
    found = [value for key, value in conninfo.conninfo_to_dict(url).items() if key in SECRETS]
    as_written = _URI_PASSWORD.search(url)
    if as_written:
        found.append(as_written[1])
    found += [value for key, value in _URI_PARAMETER.findall(url) if key in SECRETS]
    defaults = pq.Conninfo.get_defaults()
    found += [
        option.val.decode(errors="surrogateescape")
        for option in defaults
        if option.val and _is_secret(option)
    ]
    return [str(secret) for secret in found if secret]


def _is_secret(option: pq.ConninfoOption) -> bool:
    return option.keyword.decode() in SECRETS
