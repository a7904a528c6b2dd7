"""Tables that must be in a backup: found in the catalog before the dump, checked after it.

Of a partitioned table, the dump contains the partitions. Only the catalog lists them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from pgstash.errors import RequiredTableError
from pgstash.postgres.server import query
from pgstash.postgres.server.connection import Server
from pgstash.postgres.tools.pg_dump_options import split_list

_DEFAULT_SCHEMA = "public"

_IDENTIFIER = r'"(?:[^"]|"")+"|[^\W\d][\w$]*'
_NAME = re.compile(rf"(?:({_IDENTIFIER})\s*\.\s*)?({_IDENTIFIER})")
_NONEMPTY = re.compile(r"\s*:\s*nonempty\Z", re.IGNORECASE)
_UPPER = re.compile("[A-Z]+")

# The table itself and, if it is partitioned, all its partitions. Names are passed as bytes, so that
# they are not converted.
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
    "v": "a view, which has no rows of its own",
    "m": "a materialized view, whose rows a restore computes again",
    "f": "a foreign table, whose rows are on another server",
    "S": "a sequence",
}

Name = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Requirement:
    """A table that must be in the dump; if ``nonempty``, with rows."""

    schema: str
    table: str
    nonempty: bool = False

    def __str__(self) -> str:
        """Return the name for messages, without quotes."""
        return f"{self.schema}.{self.table}"


@dataclass(frozen=True, slots=True)
class Expected:
    """A requirement, and the tables whose rows in a dump are its rows.

    ``stored`` if any of them can store rows, which a partitioned table without partitions cannot.
    """

    requirement: Requirement
    parts: Sequence[Name]
    stored: bool


def parse(text: str) -> list[Requirement]:
    """Parse requirements, separated by commas, with names as in SQL.

    Names without quotes are folded to lower case. The default schema is ``public``. Raises
    ValueError.
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
    """Return the requirements that these patterns exclude by name; wildcards are ignored."""
    names = {_identifiers(pattern) for pattern in tables}
    # A schema alone is parsed as a table of public: only its own name counts.
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
    # Other letters are folded only in single-byte encodings, depending on the locale.
    return _UPPER.sub(lambda letters: letters[0].lower(), identifier)


def look_up(server: Server, requirements: Sequence[Requirement]) -> list[Expected]:
    """Find the required tables on the server.

    Raises RequiredTableError, which names every one that does not exist or is not a table.
    """
    if not requirements:
        return []
    expected, problems = [], []
    for requirement, rows in zip(requirements, _ask(server, requirements), strict=True):
        kinds = [kind for kind, _ in rows]
        if not rows:
            problems.append(f"{requirement} does not exist in the database")
        elif kinds[0] not in _TABLES:
            problems.append(f"{requirement} is {_OTHERS.get(kinds[0], 'not a table')}")
        else:
            parts = [name for kind, name in rows if kind in _TABLES]
            expected.append(Expected(requirement, parts, stored="r" in kinds))
    _refuse(problems)
    return expected


def check(expected: Iterable[Expected], rows: Mapping[Name, int]) -> None:
    """Compare the requirements with the rows of the tables in a complete dump.

    Raises RequiredTableError, which names every table that is missing, or empty but must not be.
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
    with query.opened(server, "which tables it has") as session:
        return [_ask_for(session, server.codec, each) for each in requirements]


def _ask_for(
    session: query.Connection, codec: str, requirement: Requirement
) -> list[tuple[str, Name]]:
    try:
        schema, table = (
            name.encode(codec, "surrogateescape")
            for name in (requirement.schema, requirement.table)
        )
    except UnicodeEncodeError:
        return []  # no table can have this name in the database's encoding
    found = session.execute(_QUERY, {"schema": schema, "table": table}).fetchall()
    return [
        (
            kind.decode(),
            (schema.decode(codec, "surrogateescape"), name.decode(codec, "surrogateescape")),
        )
        for kind, schema, name in found
    ]
