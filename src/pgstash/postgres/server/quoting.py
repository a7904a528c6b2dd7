"""How names and text are written in SQL.

Each function takes text or bytes: bytes are in the encoding of the database, whichever that is.
"""

from __future__ import annotations

from typing import AnyStr


def identifier(name: AnyStr) -> AnyStr:
    """Quote a name, so that it is taken as it is."""
    if isinstance(name, bytes):
        return b'"' + name.replace(b'"', b'""') + b'"'
    return '"' + name.replace('"', '""') + '"'


def qualified(schema: AnyStr, name: AnyStr) -> AnyStr:
    """Quote the name of something in a schema."""
    if isinstance(schema, bytes):
        return identifier(schema) + b"." + identifier(name)
    return identifier(schema) + "." + identifier(name)


def literal(text: AnyStr) -> AnyStr:
    r"""Quote text so that it means the same whatever standard_conforming_strings is."""
    if isinstance(text, bytes):
        quoted = b"'" + text.replace(b"'", b"''").replace(b"\\", b"\\\\") + b"'"
        return b"E" + quoted if b"\\" in text else quoted
    quoted = "'" + text.replace("'", "''").replace("\\", "\\\\") + "'"
    return "E" + quoted if "\\" in text else quoted
