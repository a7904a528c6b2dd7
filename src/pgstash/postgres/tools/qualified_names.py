"""Gives objects other names in the statements that pg_dump wrote for them.

pg_dump and the server's own functions for definitions, such as pg_get_indexdef(), write the schema
of an object wherever they name one. Only such pairs of names are replaced, and the text that is
cast to ``regclass``. Text in quotes and comments stay as they are.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from pgstash.postgres.server.quoting import literal, qualified

Name = tuple[bytes, bytes]
"""The schema and the name of an object."""

# https://www.postgresql.org/docs/current/sql-syntax-lexical.html, as far as definitions need it.
_TOKEN = re.compile(
    rb"""
      (?P<blank> \s+ | --[^\n]* | /\*.*?\*/ )
    | (?P<dollar> \$ (?P<tag> [A-Za-z_\x80-\xff][\w\x80-\xff]* )? \$ .*? \$ (?(tag)(?P=tag)) \$ )
    | (?P<escaped> [eE] ' (?: [^'\\] | \\. | '' )* ' )
    | (?P<text> ' (?: [^'] | '' )* ' )
    | (?P<quoted> " (?: [^"] | "" )+ " )
    | (?P<word> [A-Za-z_\x80-\xff][\w$\x80-\xff]* )
    | (?P<other> . )
    """,
    re.DOTALL | re.VERBOSE,
)
_CAST = (b":", b":", b"regclass")
_SETVAL = (b"setval", b"(")


def renamed(script: bytes, names: Mapping[Name, Name]) -> bytes:
    """Return statements in which objects have other names: ``names`` are the old and new ones."""
    tokens = [found for found in _TOKEN.finditer(script) if found.lastgroup != "blank"]
    done, parts = 0, []
    for start, end, new in _replacements(tokens, names):
        parts += [script[done:start], new]
        done = end
    return b"".join([*parts, script[done:]])


def _replacements(
    tokens: Sequence[re.Match[bytes]], names: Mapping[Name, Name]
) -> Iterator[tuple[int, int, bytes]]:
    """Yield what to replace: from where to where, and by what."""
    for place, token in enumerate(tokens):
        if found := names.get(_pair(tokens[place : place + 3])):
            if place == 0 or tokens[place - 1][0] != b".":
                yield token.start(), tokens[place + 2].end(), qualified(*found)
        elif token.lastgroup in {"text", "escaped"} and _is_name(tokens, place):
            content = _content(token)
            inner = [each for each in _TOKEN.finditer(content) if each.lastgroup != "blank"]
            if len(inner) == 3 and (found := names.get(_pair(inner))):  # noqa: PLR2004
                yield token.start(), token.end(), literal(qualified(*found))


def _is_name(tokens: Sequence[re.Match[bytes]], place: int) -> bool:
    """Return whether text is taken for the name of a relation."""
    after = tuple(token[0] for token in tokens[place + 1 : place + 4])
    before = tuple(token[0] for token in tokens[max(0, place - 2) : place])
    return after == _CAST or before == _SETVAL


def _pair(tokens: Sequence[re.Match[bytes]]) -> Name:
    """Return the names of ``schema.name``; empty ones if the tokens are something else."""
    if len(tokens) == 3 and tokens[1][0] == b".":  # noqa: PLR2004
        return _name(tokens[0]), _name(tokens[2])
    return b"", b""


def _name(token: re.Match[bytes]) -> bytes:
    if token.lastgroup == "quoted":
        return token[0][1:-1].replace(b'""', b'"')
    return token[0].lower() if token.lastgroup == "word" else b""


def _content(token: re.Match[bytes]) -> bytes:
    """Return the content of text in quotes."""
    if token.lastgroup == "escaped":
        return re.sub(rb"\\(.)|'(')", rb"\1\2", token[0][2:-1], flags=re.DOTALL)
    return token[0][1:-1].replace(b"''", b"'")
