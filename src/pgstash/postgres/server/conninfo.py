"""What a connection string says of the server, before anybody has answered.

https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNSTRING
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import psycopg
from psycopg import conninfo, pq

from pgstash.identity import Identity

SECRETS = frozenset(
    {"password", "sslpassword", "oauth_client_secret", "scram_client_key", "scram_server_key"}
)
"""Parameters that must not stand in an argument list, which every user of a machine can read."""

_URI = re.compile(r"postgres(?:ql)?://")
_URI_PASSWORD = re.compile(r"://[^:/@?]*:([^@]*)@")
_URI_PARAMETER = re.compile(r"[?&](\w+)=([^&]+)")
_ENCODE = (
    "is not a URI that libpq understands: percent-encode what is not a letter or digit "
    "in user, password and database name, and check the parameters after the '?'"
)


def parse(url: str) -> dict[str, str]:
    """Split a connection URI into libpq's parameters.

    Raises ValueError with a reason that quotes nothing of it: libpq's own would, and a
    password that is not percent-encoded ends up in any part of the URI.
    """
    if not _URI.match(url):
        raise ValueError("must begin with postgresql:// or postgres://")
    try:
        parameters = conninfo.conninfo_to_dict(url)
    except (psycopg.Error, UnicodeError):
        raise ValueError(_ENCODE) from None
    split = {key: str(value) for key, value in parameters.items()}
    _refuse_misplaced_password(url, split)
    return split


def _refuse_misplaced_password(url: str, parameters: Mapping[str, str]) -> None:
    """Refuse a URI that libpq understands, though not as it was meant.

    An "@" or "/" in a password that is not percent-encoded moves the rest of it into host,
    port or database name, which libpq's errors quote.
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
    """Return host and database as they are configured, before anybody answered.

    What libpq would find out later (a service file, its compiled defaults) may be missing.
    """
    given = conninfo.conninfo_to_dict(url)
    for option in pq.Conninfo.get_defaults():
        if option.val:
            given.setdefault(option.keyword.decode(), option.val.decode(errors="replace"))
    host = given.get("host") or given.get("hostaddr") or "localhost"
    return str(host), str(given.get("dbname") or given.get("user") or "")


def identity(url: str, variables: Mapping[str, str]) -> Identity:
    """Return what is configured of a source, by its URL and libpq's variables; nobody is asked.

    What a service file would tell, or libpq's defaults, is not known; of several hosts any may be
    meant.
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
    alone = "," not in f"{host}{port}"
    return Identity(database, None, host if alone else None, port if alone else None)


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
