"""The folder of a database below a prefix that many databases share.

Any name of a database has a folder of its own, on any store: file systems exist that ignore case,
that allow no ``:``, or that drop a dot at the end. Lower-case letters, digits, ``_`` and ``-`` stay
as they are; every other byte is written as ``=`` and two hexadecimal digits.
"""

from __future__ import annotations

import re

_KEPT = frozenset(b"abcdefghijklmnopqrstuvwxyz0123456789_-")
_FOLDER = re.compile(r"(?:[a-z0-9_-]|=[0-9a-f]{2})+", re.ASCII)
_ENCODED = re.compile(r"=([0-9a-f]{2})", re.ASCII)


def folder_of(database: str) -> str:
    """Return the folder of a database."""
    return "".join(
        chr(byte) if byte in _KEPT else f"={byte:02x}" for byte in database.encode("utf-8")
    )


def database_of(folder: str) -> str | None:
    """Return the database whose folder this is; None if it is none."""
    if not _FOLDER.fullmatch(folder):
        return None
    stored = _ENCODED.sub(lambda found: chr(int(found[1], 16)), folder).encode("latin-1")
    try:
        database = stored.decode("utf-8")
    except UnicodeDecodeError:
        return None
    if "\0" in database:  # no database has such a name
        return None
    return database if folder_of(database) == folder else None
