"""The head of pg_dump's custom format: its table of contents, which stands before all data.

The format is that of WriteHead() and WriteToc() in pg_backup_archiver.c and of pg_backup_custom.c,
versions 1.14 (pg_dump 14 and 15), 1.15 (16) and 1.16 (17 and 18). pg_restore reads a file that ends
after it, as long as nothing is asked of it that would need data.
"""

from __future__ import annotations

import re
import struct
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

# A sign of one byte, and the number without it: ReadInt() in pg_backup_archiver.c.
_INTEGERS = {size: struct.Struct(f"<?{code}") for size, code in ((4, "I"), (8, "Q"))}

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


class Reading:
    """Reads a table of contents while it comes, each byte once: 3,000 tables have 10 MB of it."""

    def __init__(self) -> None:
        """Begin at the beginning of an archive."""
        self._data = bytearray()
        self._cursor = _Cursor(self._data)
        self._version: tuple[int, int] | None = None
        self._count = 0
        self._entries: list[Entry] = []

    def __len__(self) -> int:
        """Return the number of bytes that came."""
        return len(self._data)

    def feed(self, chunk: bytes) -> Contents | None:
        """Take what comes next; return the table of contents if it ends in it, None before.

        Raises TocError if it is none, or one of a format that is not known.
        """
        self._data += chunk
        cursor = self._cursor
        kept = cursor.position
        try:
            if self._version is None:
                version = _head(cursor)
                self._count = cursor.integer()
                self._version, kept = version, cursor.position
            with_relkind = self._version >= _WITH_RELKIND
            while len(self._entries) < self._count:
                self._entries.append(_entry(cursor, with_relkind=with_relkind))
                kept = cursor.position
        except _CutShortError:
            cursor.position = kept
            return None
        return Contents(bytes(self._data[:kept]), tuple(self._entries))


def read(data: bytes) -> Contents | None:
    """Read a table of contents from the beginning of an archive; None if it ends further on.

    Raises TocError where it is none, or one of a format that is not known.
    """
    return Reading().feed(data)


def _head(cursor: _Cursor) -> tuple[int, int]:
    if cursor.take(len(_MAGIC)) != _MAGIC:
        raise TocError("not an archive in pg_dump's custom format")
    major, minor, _revision, int_bytes, cursor.offset_bytes, kind = cursor.take(6)
    version = (major, minor)
    if version not in _KNOWN or kind != _CUSTOM:
        raise TocError(f"format {kind} in version {major}.{minor} of the archive is not known")
    if int_bytes not in _INTEGERS:
        raise TocError(f"numbers of {int_bytes} bytes are not known")
    cursor.integers = _INTEGERS[int_bytes]
    if version >= _WITH_ALGORITHM:
        cursor.take(1)
    else:
        cursor.integer()
    for _ in range(_FIELDS_OF_TIME):
        cursor.integer()
    for _ in ("database", "server", "pg_dump"):
        cursor.skip()
    return version


def _entry(cursor: _Cursor, *, with_relkind: bool) -> Entry:
    number = cursor.integer()
    cursor.integer()  # whether it has data
    cursor.skip()  # the catalog that the oid is of
    oid = cursor.text()
    tag, description = cursor.text(), cursor.text()
    section = cursor.integer()
    cursor.skip()  # what makes it
    cursor.skip()  # what drops it
    copy, schema = cursor.text(), cursor.text()
    cursor.skip()  # tablespace
    cursor.skip()  # access method
    if with_relkind:
        cursor.integer()
    cursor.skip()  # owner
    cursor.skip()  # whether it has OIDs
    depends_on = frozenset(map(_number, iter(cursor.optional, None)))
    cursor.take(1 + cursor.offset_bytes)  # where its data is
    return Entry(number, _number(oid), description, section, tag, schema, copy, depends_on)


def _number(text: bytes) -> int:
    try:
        return int(text)
    except ValueError:
        raise TocError(f"{text[:20]!r} is not a number") from None


class _Cursor:
    """Reads one value after the other."""

    def __init__(self, data: bytearray) -> None:
        self._data = data
        self.position = self.offset_bytes = 0
        self.integers = _INTEGERS[4]

    def take(self, count: int) -> bytes:
        end = self.position + count
        if end > len(self._data):
            raise _CutShortError
        taken, self.position = bytes(self._data[self.position : end]), end
        return taken

    def integer(self) -> int:
        try:
            sign: bool
            value: int
            sign, value = self.integers.unpack_from(self._data, self.position)
        except struct.error:
            raise _CutShortError from None
        self.position += self.integers.size
        return -value if sign else value

    def optional(self) -> bytes | None:
        length = self._length()
        return None if length < 0 else self.take(length)

    def text(self) -> bytes:
        return self.optional() or b""

    def skip(self) -> None:
        length = self._length()
        self.position += max(0, length)
        if self.position > len(self._data):
            raise _CutShortError

    def _length(self) -> int:
        length = self.integer()
        if length > _LONGEST_STRING:
            raise TocError("a string is too long to be one")
        return length
