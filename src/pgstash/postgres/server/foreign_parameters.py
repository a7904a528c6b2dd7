"""Connection URIs as frameworks write them: what libpq does not know, and what to write instead.

A framework adds parameters of its own to the URI of its database. Those that only concern the
framework are left out; the others are refused with what to write instead. The sources:

- Prisma: prisma/prisma-engines, quaint/src/connector/postgres/url.rs
- Supabase: https://github.com/supabase/supabase/issues/27328
- Rails on Heroku: https://github.com/heroku/heroku-buildpack-ruby/issues/110 and
  ActiveRecord::ConnectionAdapters::PostgreSQLAdapter of https://api.rubyonrails.org
- node-postgres: brianc/node-postgres, packages/pg-connection-string/README.md
- SQLAlchemy and asyncpg: https://magicstack.github.io/asyncpg/current/api/
- Symfony: https://github.com/symfony/symfony-docs/pull/19877
- pgx: jackc/pgx, pgxpool/pool.go and conn.go
- sqlx: https://docs.rs/sqlx/latest/sqlx/postgres/struct.PgConnectOptions.html
- JDBC: https://jdbc.postgresql.org/documentation/use/
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from urllib.parse import unquote

import psycopg
from psycopg import conninfo, pq

SCHEMAS = frozenset({"currentSchema", "schema", "schema_search_path", "search_path"})
"""Parameters that name the schemas of an application. To pgstash they mean nothing either."""

IGNORED = SCHEMAS | {
    # Prisma
    "connection_limit",
    "max_connection_lifetime",
    "max_idle_connection_lifetime",
    "pgbouncer",
    "pool_timeout",
    "socket_timeout",
    "statement_cache_size",
    # Supabase
    "supa",
    # Rails on Heroku
    "advisory_locks",
    "checkout_timeout",
    "encoding",
    "idle_timeout",
    "min_messages",
    "pool",
    "prepared_statements",
    "reaping_frequency",
    "reconnect",
    "statement_limit",
    # node-postgres
    "idle_in_transaction_session_timeout",
    "lock_timeout",
    "query_timeout",
    "statement_timeout",
    "uselibpqcompat",
    # SQLAlchemy and asyncpg
    "command_timeout",
    "prepared_statement_cache_size",
    # Symfony
    "charset",
    "serverVersion",
    # pgx
    "default_query_exec_mode",
    "description_cache_capacity",
    "pool_health_check_period",
    "pool_max_conn_idle_time",
    "pool_max_conn_lifetime",
    "pool_max_conn_lifetime_jitter",
    "pool_max_conns",
    "pool_min_conns",
    "pool_min_idle_conns",
    "pool_ping_timeout",
    "statement_cache_capacity",
    # sqlx
    "statement-cache-capacity",
    # JDBC
    "ApplicationName",
    "loginTimeout",
    "prepareThreshold",
    "reWriteBatchedInserts",
    "socketTimeout",
    "stringtype",
    "tcpKeepAlive",
}
"""Parameters that only concern the framework: pools, caches, time limits of its own."""

_SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
_VERIFY = "sslmode=verify-full, with the certificate of the authority in sslrootcert"
# As other drivers write it → what to write. Without the certificate of an authority, libpq's
# sslmode=require encrypts and verifies nothing, which is what "no-verify" asks for.
_SSL = {
    "0": "sslmode=disable",
    "false": "sslmode=disable",
    "1": "sslmode=require",
    "true": "sslmode=require",
    "no-verify": "sslmode=require",
    "noverify": "sslmode=require",
    "strict": _VERIFY,
    **{mode: f"sslmode={mode}" for mode in _SSL_MODES},
}
_INSTEAD = {
    "application-name": "application_name",
    "database": "dbname",
    "db": "dbname",
    "ssl-mode": "sslmode",
    "ssl-root-cert": "sslrootcert",
    "sslfactory": "sslmode and sslrootcert",
    "sslidentity": "sslcert and sslkey, two PEM files",
    "username": "user",
}

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9.]{0,20})(\+\w{1,30})?://")
_SCHEMES = ("cockroachdb", "ecto", "pg", "pgsql", "postgis", "postgres", "postgresql", "psql")
_REFERENCE = re.compile(r"\$\{\{ ?[\w .-]{1,100}\}\}")
_SHELL_REFERENCE = re.compile(r"\$\{\w+\}|\$\(\w+\)")
# See https://github.com/powersync-ja/powersync-docs/pull/85: as Supabase shows it.
_PLACEHOLDER = "[YOUR-PASSWORD]"
_NAME = re.compile(r"[A-Za-z][\w.-]{0,40}")


def without_ignored(url: str) -> tuple[str, Sequence[str]]:
    """Return a URI without parameters that only concern a framework, and the names of those."""
    start, query = _split(url)
    kept, left_out = [], []
    for pair in query:
        name, _, value = map(unquote, pair.partition("="))
        # An "@" or a "/" may be of a password that is not percent-encoded: then nothing is certain.
        plain = not re.search("[@/]", value) and "=" in pair
        if plain and _is_ignored(name, value) and not _accepted(pair):
            left_out.append(name)
        else:
            kept.append(pair)
    if not left_out:
        return url, ()
    return start + ("?" + "&".join(kept) if kept else ""), list(dict.fromkeys(left_out))


def _is_ignored(name: str, value: str) -> bool:
    """Return whether a parameter concerns its framework alone, with this value."""
    return name in IGNORED or (name, value) in {
        ("sslaccept", "accept_invalid_certs"),  # Prisma: what libpq does without verify-…
        ("sslcompat", "libpq"),  # node-postgres
    }


def scheme_problem(url: str) -> str:
    """Return why a URL that libpq does not take for a URI is none, and what to write."""
    if "${{" in url:
        return _reference_problem(url)
    if _SHELL_REFERENCE.fullmatch(url):
        return _SHELL_PROBLEM
    scheme = _SCHEME.match(url)
    if url.startswith("jdbc:"):
        return (
            "is a JDBC URL. Write postgresql://user@host:5432/database instead, with the password "
            "after the user and a colon"
        )
    if scheme and scheme[1].lower() == "prisma":
        return (
            "is the URL of Prisma's proxy, which is not a PostgreSQL server. Write the URL of the "
            "database itself, which begins with postgres://"
        )
    if scheme and scheme[1].lower() in _SCHEMES:
        return f"begins with {scheme[0]}. Write postgresql:// instead"
    return ""


def problems(url: str) -> list[str]:
    """Return what is wrong with the parameters of a URI, each with what to write instead.

    Values are not shown, except those of TLS modes. A name is not shown if it may be a part of a
    password that is not percent-encoded; then its problem is empty.
    """
    if "${{" in url:
        return [_reference_problem(url)]
    start, query = _split(url)
    found = []
    if _PLACEHOLDER in start:
        found.append(f"contains {_PLACEHOLDER}. Write the password in place of it")
    if _has_shell_reference(start):
        found.append(_SHELL_PROBLEM)
    certain = not any("@" in pair for pair in query)
    for pair in query:
        # libpq ignores blanks around a value.
        name, _, value = (unquote(part.strip(" ")) for part in pair.partition("="))
        if name == "sslmode" and value not in _SSL_MODES and not re.search("[?@]", value):
            shown = f"sslmode={value}" if value.lower() in _SSL else "a value of sslmode"
            instead = ssl_mode_instead(value)
            found.append(f"has {shown}, which libpq does not know. Write {instead}")
        elif "?" in pair and certain:
            found.append("has a second '?'. Separate its parameters with '&'")
        elif not _accepted(pair):
            found.append(_parameter_problem(name, value, certain=certain and "=" in pair))
        # A "&" in a password that is not percent-encoded would begin another parameter.
        certain = certain and "pass" not in name.lower() and "secret" not in name.lower()
    return list(dict.fromkeys(found))


def ssl_mode_instead(mode: str) -> str:
    """Return what to write instead of a TLS mode; empty if libpq knows it."""
    if mode in _SSL_MODES:
        return ""
    return _SSL.get(mode.lower(), f"one of {', '.join(_SSL_MODES)}")


def _parameter_problem(name: str, value: str, *, certain: bool) -> str:
    unknown = "which libpq does not know"
    if name in ("ssl", "sslaccept") and "@" not in value:
        shown = f"{name}={value}" if value.lower() in _SSL else name
        return f"has {shown}, {unknown}. Write {_SSL.get(value.lower(), _VERIFY)}"
    if name in _INSTEAD and "@" not in value:
        return f"has the parameter {name}, {unknown}. Write {_INSTEAD[name]}"
    if not (certain and _NAME.fullmatch(name)):
        return ""
    if name in _KEYWORDS or name in IGNORED:
        return f"has the parameter {name} with a value that is not percent-encoded"
    close = difflib.get_close_matches(name.lower(), _KEYWORDS, n=1, cutoff=0.8)
    remedy = f"Did you mean {close[0]}?" if close else "Remove it, or correct its name"
    return f"has the parameter {name}, {unknown}. {remedy}"


_SHELL_PROBLEM = (
    "contains a reference such as ${NAME}, which neither pgstash nor docker --env-file replaces. "
    "Write the value itself"
)


def _has_shell_reference(start: str) -> bool:
    """Return whether user, host or database contain a reference, or all of the password is one."""
    login = re.match(r"(\w+://[^:@/]*)(?::([^@/]*))?@", start)
    if login is None:
        return bool(_SHELL_REFERENCE.search(start))
    rest = f"{login[1]} {start[login.end() :]}"
    return bool(_SHELL_REFERENCE.search(rest) or _SHELL_REFERENCE.fullmatch(login[2] or ""))


def _reference_problem(url: str) -> str:
    # A part of a value may be a password; a whole reference is only the name of a variable.
    shown = url if _REFERENCE.fullmatch(url) else "${{…}}"
    return (
        f"contains {shown}, a reference that was not replaced. Correct the name of the service or "
        "the variable in it"
    )


def _split(url: str) -> tuple[str, list[str]]:
    """Return what precedes the parameters of a URI, and the parameters, split as by libpq.

    See conninfo_uri_parse_options() in fe-connect.c: what precedes the first "@" is user and
    password, unless there is a "/" before it.
    """
    match = re.match(r"\w+://(?:[^@/]*@)?[^?]*", url)
    if not match or not url[match.end() :]:
        return url, []
    query = url[match.end() + 1 :]
    return match[0], query.split("&") if query else []


def _accepted(pair: str) -> bool:
    """Return whether libpq accepts a parameter with its value."""
    try:
        conninfo.conninfo_to_dict(f"postgresql:///?{pair}")
    except (psycopg.Error, UnicodeError):
        return False
    return bool(pair)


_KEYWORDS = frozenset(option.keyword.decode() for option in pq.Conninfo.get_defaults())
