"""The head of pg_dump's custom format: its table of contents, which stands before all data.

The format is that of WriteHead() and WriteToc() in pg_backup_archiver.c and of pg_backup_custom.c,
versions 1.14 (pg_dump 14 and 15), 1.15 (16) and 1.16 (17 and 18). pg_restore reads a file that ends
after it, as long as nothing is asked of it that would need data.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

_MAGIC = b"PGDMP"
_ROWS = b"TABLE DATA"
_CUSTOM = 1
_WITH_ALGORITHM = (1, 15)
_WITH_RELKIND = (1, 16)
_KNOWN = ((1, 14), (1, 15), (1, 16))

_FIELDS_OF_TIME = 7
_LONGEST_STRING = 1 << 30

_NAME = rb'(?:"(?:[^"]|"")+"|[^".\s(]+)'
_COPY = re.compile(
    rb"COPY (" + _NAME + rb"(?:\." + _NAME + rb")?) (?:\((.+)\))? ?FROM stdin;\n", re.DOTALL
)


class TocError(Exception):
    """These bytes are no table of contents that is understood here."""


class _CutShortError(Exception):
    """It ends behind the bytes that are there."""


class Section(IntEnum):
    """Where an entry stands; numbers of teSection in pg_backup.h."""

    NONE = 1
    PRE_DATA = 2
    DATA = 3
    POST_DATA = 4


@dataclass(frozen=True, slots=True)
class Entry:
    """One object of the dump. Text is in the dump's encoding, as it was in the catalog.

    ``number`` is pg_dump's own, ``oid`` that of the object, ``copy`` the COPY statement that is to
    load the rows, ``depends_on`` the numbers of other entries.
    """

    number: int
    oid: int
    description: bytes
    section: int
    tag: bytes
    schema: bytes
    copy: bytes
    depends_on: frozenset[int]

    @property
    def loads_into(self) -> tuple[bytes, bytes] | None:
        """Where the rows of a table belong, as a dump writes it: its name, and its columns.

        None where this is something else. A table may be without columns.
        """
        found = _COPY.fullmatch(self.copy)
        return (found[1], found[2] or b"") if found and self.description == _ROWS else None


@dataclass(frozen=True, slots=True)
class Contents:
    """A table of contents: the bytes up to its end, and what it lists."""

    head: bytes
    entries: tuple[Entry, ...]


def read(data: bytes) -> Contents | None:
    """Read a table of contents from the beginning of an archive; None where more is needed.

    Raises TocError where it is none, or one of a format that is not known.
    """
    cursor = _Cursor(data)
    try:
        version = _head(cursor)
        count = cursor.integer()
        entries = tuple(_entries(cursor, count, version))
    except _CutShortError:
        return None
    return Contents(data[: cursor.position], entries)


def _head(cursor: _Cursor) -> tuple[int, int]:
    if cursor.take(len(_MAGIC)) != _MAGIC:
        raise TocError("not an archive in pg_dump's custom format")
    major, minor, _revision, cursor.int_bytes, cursor.offset_bytes, kind = cursor.take(6)
    version = (major, minor)
    if version not in _KNOWN or kind != _CUSTOM:
        raise TocError(f"format {kind} in version {major}.{minor} of the archive is not known")
    if version >= _WITH_ALGORITHM:
        cursor.take(1)
    else:
        cursor.integer()
    for _ in range(_FIELDS_OF_TIME):
        cursor.integer()
    for _ in ("database", "server", "pg_dump"):
        cursor.text()
    return version


def _entries(cursor: _Cursor, count: int, version: tuple[int, int]) -> Iterator[Entry]:
    for _ in range(count):
        number = cursor.integer()
        cursor.integer()  # whether it has data
        cursor.text()  # the catalog that the oid is of
        oid = cursor.text()
        tag, description = cursor.text(), cursor.text()
        section = cursor.integer()
        cursor.text()  # what makes it
        cursor.text()  # what drops it
        copy, schema = cursor.text(), cursor.text()
        cursor.text()  # tablespace
        cursor.text()  # access method
        if version >= _WITH_RELKIND:
            cursor.integer()
        cursor.text()  # owner
        cursor.text()  # whether it has OIDs
        depends_on = frozenset(map(_number, iter(cursor.optional, None)))
        cursor.take(1 + cursor.offset_bytes)  # where its data is
        yield Entry(number, _number(oid), description, section, tag, schema, copy, depends_on)


def _number(text: bytes) -> int:
    try:
        return int(text)
    except ValueError:
        raise TocError(f"{text[:20]!r} is not a number") from None


class _Cursor:
    """Reads one value after the other."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.position = 0
        self.int_bytes = self.offset_bytes = 0

    def take(self, count: int) -> bytes:
        end = self.position + count
        if end > len(self._data):
            raise _CutShortError
        taken, self.position = self._data[self.position : end], end
        return taken

    def integer(self) -> int:
        sign, *rest = self.take(1 + self.int_bytes)
        value = int.from_bytes(bytes(rest), "little")
        return -value if sign else value

    def optional(self) -> bytes | None:
        length = self.integer()
        if length > _LONGEST_STRING:
            raise TocError("a string is too long to be one")
        return None if length < 0 else self.take(length)

    def text(self) -> bytes:
        return self.optional() or b""
