"""Tables that must be in a backup: looked up in the catalog before, compared with the dump after.

What is dumped of a partitioned table are its partitions; only the catalog knows which they are.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg

from pgstash.errors import DatabaseLoginError, DatabaseUnreachableError, RequiredTableError
from pgstash.postgres.options import split_list
from pgstash.postgres.source import Server, connect_again

_SECONDS_TO_CONNECT = 10
_SECONDS_TO_ANSWER = 60
_DEFAULT_SCHEMA = "public"

_IDENTIFIER = r'"(?:[^"]|"")+"|[^\W\d][\w$]*'
_NAME = re.compile(rf"(?:({_IDENTIFIER})\s*\.\s*)?({_IDENTIFIER})")
_NONEMPTY = re.compile(r"\s*:\s*nonempty\Z", re.IGNORECASE)
_UPPER = re.compile("[A-Z]+")

# The table itself and, where it is partitioned, all that is below it. The names go as bytes,
# so that no encoding stands between us and the catalog.
_QUERY = """
    WITH RECURSIVE wanted AS (
        SELECT c.oid, c.relkind, 0 AS depth
        FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
        CROSS JOIN pg_catalog.getdatabaseencoding() AS encoding
        WHERE n.nspname::text = pg_catalog.convert_from(%(schema)s, encoding)
          AND c.relname::text = pg_catalog.convert_from(%(table)s, encoding)
      UNION ALL
        SELECT c.oid, c.relkind, depth + 1
        FROM wanted
        JOIN pg_catalog.pg_inherits i ON i.inhparent = wanted.oid AND wanted.relkind = 'p'
        JOIN pg_catalog.pg_class c ON c.oid = i.inhrelid
    )
    SELECT w.relkind::text, n.nspname::text, c.relname::text
    FROM wanted w
    JOIN pg_catalog.pg_class c ON c.oid = w.oid
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    ORDER BY w.depth
"""

_TABLES = ("r", "p")
_OTHERS = {
    "v": "a view: it has no rows of its own",
    "m": "a materialized view: a restore computes its rows anew",
    "f": "a foreign table: its rows are on another server",
    "S": "a sequence",
}

Name = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Requirement:
    """A table that must be in the dump, and have rows there if it must not be empty."""

    schema: str
    table: str
    nonempty: bool = False

    def __str__(self) -> str:
        """Return the name as one reads it; not always as one would write it."""
        return f"{self.schema}.{self.table}"


@dataclass(frozen=True, slots=True)
class Expected:
    """A requirement, and the tables whose rows in a dump are the rows of it.

    ``stored`` is whether any of them holds rows by itself: not so a partitioned table that
    has no partition.
    """

    requirement: Requirement
    parts: Sequence[Name]
    stored: bool


def parse(text: str) -> list[Requirement]:
    """Read requirements, separated by commas, as one writes the names in SQL.

    What is not quoted is folded to lower case, a name without a schema is one of ``public``.
    Raises ValueError.
    """
    found = []
    for item in split_list(text):
        name = _NONEMPTY.sub("", item)
        identifiers = _identifiers(name)
        if identifiers is None:
            raise ValueError(f"has {item}, which is not the name of a table")
        found.append(Requirement(*identifiers, nonempty=name != item))
    return found


def contradictions(
    requirements: Iterable[Requirement], tables: Iterable[str], schemas: Iterable[str]
) -> list[Requirement]:
    """Return the requirements that such patterns exclude by name; wildcards are not looked at."""
    names = {_identifiers(pattern) for pattern in tables}
    # A schema alone is read as a table of public: only its own name counts.
    excluded = {found[1] for pattern in schemas if (found := _identifiers(pattern))}
    return [
        each
        for each in requirements
        if (each.schema, each.table) in names or each.schema in excluded
    ]


def _identifiers(name: str) -> Name | None:
    match = _NAME.fullmatch(name)
    if not match:
        return None
    return _unquoted(match[1] or _DEFAULT_SCHEMA), _unquoted(match[2])


def _unquoted(identifier: str) -> str:
    if identifier.startswith('"'):
        return identifier[1:-1].replace('""', '"')
    # Other letters are folded by single-byte encodings alone, and there by locale.
    return _UPPER.sub(lambda letters: letters[0].lower(), identifier)


def look_up(server: Server, requirements: Sequence[Requirement]) -> list[Expected]:
    """Find the required tables on the server.

    Raises RequiredTableError with every one that is not there, or is no table.
    """
    if not requirements:
        return []
    expected, problems = [], []
    for requirement, rows in zip(requirements, _ask(server, requirements), strict=True):
        kinds = [kind for kind, _ in rows]
        if not rows:
            problems.append(f"{requirement} does not exist in the database")
        elif kinds[0] not in _TABLES:
            problems.append(f"{requirement} is {_OTHERS.get(kinds[0], 'no table')}")
        else:
            parts = [name for kind, name in rows if kind in _TABLES]
            expected.append(Expected(requirement, parts, stored="r" in kinds))
    _refuse(problems)
    return expected


def check(expected: Iterable[Expected], rows: Mapping[Name, int]) -> None:
    """Compare what is required with the rows of the tables in a complete dump.

    Raises RequiredTableError with every table that is missing, or empty and must not be.
    """
    problems = []
    for each in expected:
        counts = [rows[part] for part in each.parts if part in rows]
        requirement = each.requirement
        if each.stored and not counts:
            problems.append(f"{requirement} is not in the dump with its rows: is it excluded?")
        elif requirement.nonempty and not sum(counts):
            problems.append(f"{requirement} is empty")
    _refuse(problems)


def _refuse(problems: Sequence[str]) -> None:
    if problems:
        raise RequiredTableError("\n".join(["REQUIRE_TABLES is not met:", *problems]))


def _ask(server: Server, requirements: Sequence[Requirement]) -> list[list[tuple[str, Name]]]:
    try:
        with connect_again(server, _SECONDS_TO_CONNECT) as session:
            session.execute(f"SET statement_timeout = '{_SECONDS_TO_ANSWER}s'")
            return [_ask_for(session, server.codec, each) for each in requirements]
    except psycopg.OperationalError as error:
        raise DatabaseUnreachableError(f"the connection was lost: {error}") from error
    except psycopg.Error as error:
        raise DatabaseLoginError(
            f"the database did not say which tables it has: {error}",
            hint="Look into the server's log.",
        ) from error


def _ask_for(
    session: psycopg.Connection[tuple[Any, ...]],
    codec: str,
    requirement: Requirement,
) -> list[tuple[str, Name]]:
    try:
        schema, table = (
            name.encode(codec, "surrogateescape")
            for name in (requirement.schema, requirement.table)
        )
    except UnicodeEncodeError:
        return []  # the database's encoding has no such name
    found = session.execute(_QUERY, {"schema": schema, "table": table}).fetchall()
    return [
        (
            kind.decode(),
            (schema.decode(codec, "surrogateescape"), name.decode(codec, "surrogateescape")),
        )
        for kind, schema, name in found
    ]
