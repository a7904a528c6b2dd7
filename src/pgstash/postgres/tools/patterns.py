"""Which tables match the patterns of pg_dump and psql.

https://www.postgresql.org/docs/current/app-psql.html#APP-PSQL-PATTERNS, except that characters of
regular expressions have no special meaning here. pg_dump itself decides what it dumps. This module
serves to read what it wrote, and to predict what it will read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

Fits = Callable[[str, str], bool]
"""Returns whether a pattern matches a schema and a table, or another object with such a name."""

_TOKEN = re.compile(r'"((?:[^"]|"")*)"|([^"])')
# Unquoted names are taken as they are, but for what a pattern or a quote would be.
_PART = r'("(?:[^"]|"")+"|[^".*?\s]+)'
_NAME = re.compile(rf"(?:{_PART}\.)?{_PART}")
_DEFAULT_SCHEMA = "public"


def compiled(pattern: str) -> Fits:
    """Return the test for one pattern. A pattern without a schema matches in any schema."""
    schemas, table = _parts(pattern)

    def fits(schema: str, name: str) -> bool:
        if not table.fullmatch(name):
            return False
        return not schemas or bool(schemas[-1].fullmatch(schema))

    return fits


def name(text: str) -> tuple[str | None, str]:
    """Return the schema, if there is one, and the name of a table, written as in SQL.

    Raises ValueError if the text is something else, such as a pattern.
    """
    found = _NAME.fullmatch(text)
    if not found:
        raise ValueError(text)
    parts = [None if part is None else _unquoted(part) for part in found.groups()]
    return parts[0], parts[1] or ""


def _unquoted(part: str) -> str:
    if part.startswith('"'):
        return part[1:-1].replace('""', '"')
    return "".join(map(_folded, part))


def dumped(options: Sequence[str]) -> Fits:
    """Return the test whether pg_dump dumps a table, with options of the form ``--name=pattern``.

    A pattern without a schema matches in ``public``, as for pg_dump with the default search_path.
    """
    tables = _any(options, ("table", "table-and-children"))
    schemas = _any_schema(options, "schema")
    without = _any(options, ("exclude-table", "exclude-table-and-children"))
    without_schemas = _any_schema(options, "exclude-schema")
    selected = selects(options)

    def fits(schema: str, name: str) -> bool:
        wanted = not selected or tables(schema, name) or schemas(schema, name)
        return wanted and not (without(schema, name) or without_schemas(schema, name))

    return fits


def read(options: Sequence[str]) -> Fits:
    """Return the test whether pg_dump reads the rows of a table that it dumps."""
    without = _any(options, ("exclude-table-data", "exclude-table-data-and-children"))
    return lambda schema, name: not without(schema, name)


def with_large_objects(options: Sequence[str]) -> bool:
    """Return whether pg_dump dumps large objects: with a whole database, or with an option."""
    if not {"-B", "--no-blobs", "--no-large-objects"}.isdisjoint(options):
        return False
    return not selects(options) or not {"-b", "--blobs", "--large-objects"}.isdisjoint(options)


def selects(options: Sequence[str]) -> bool:
    """Return whether pg_dump dumps only selected objects, and nothing that has no schema."""
    names = ("--table=", "--table-and-", "--schema=", "--extension=")
    return any(each.startswith(names) for each in options)


def _any(options: Sequence[str], names: Sequence[str]) -> Fits:
    found = [_parts(pattern) for pattern in _values(options, names)]

    def fits(schema: str, name: str) -> bool:
        return any(
            table.fullmatch(name)
            and (schemas[-1].fullmatch(schema) if schemas else schema == _DEFAULT_SCHEMA)
            for schemas, table in found
        )

    return fits


def _any_schema(options: Sequence[str], name: str) -> Fits:
    found = [_parts(pattern)[1] for pattern in _values(options, [name])]
    return lambda schema, _name: any(each.fullmatch(schema) for each in found)


def _values(options: Sequence[str], names: Sequence[str]) -> list[str]:
    pairs = (each.removeprefix("--").partition("=") for each in options)
    return [value for name, _, value in pairs if name in names]


def _parts(pattern: str) -> tuple[list[re.Pattern[str]], re.Pattern[str]]:
    parts = [""]
    for match in _TOKEN.finditer(pattern):
        quoted, bare = match[1], match[2]
        if quoted is not None:
            parts[-1] += re.escape(quoted.replace('""', '"'))
        elif bare == ".":
            parts.append("")
        else:
            parts[-1] += {"*": ".*", "?": "."}.get(bare, re.escape(_folded(bare)))
    *schemas, table = (re.compile(part, re.DOTALL) for part in parts)
    return schemas, table


def _folded(letter: str) -> str:
    """Return an ASCII letter in lower case; PostgreSQL keeps the case of other letters."""
    return letter.lower() if letter.isascii() else letter
