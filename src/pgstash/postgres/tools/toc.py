"""The head of pg_dump's custom format: its table of contents, which precedes all data.

The format is that of WriteHead() and WriteToc() in pg_backup_archiver.c and of pg_backup_custom.c,
versions 1.14 (pg_dump 14 and 15), 1.15 (16) and 1.16 (17 and 18). pg_restore accepts a file that
ends after the head, unless it needs data.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Container
from dataclasses import dataclass, field
from enum import IntEnum

_MAGIC = b"PGDMP"
_ROWS = b"TABLE DATA"
_UNDEFINED = b"-- Its definition is in the archive."
_CUSTOM = 1
_VERSION_BYTES = 3
_WITH_ALGORITHM = (1, 15)
_WITH_RELKIND = (1, 16)
_KNOWN = ((1, 14), (1, 15), (1, 16))

_FIELDS_OF_TIME = 7
_LONGEST_STRING = 1 << 30

# A sign of one byte, then the absolute value: ReadInt() in pg_backup_archiver.c.
_INTEGERS = {size: struct.Struct(f"<?{code}") for size, code in ((4, "I"), (8, "Q"))}

_NAME = rb'(?:"(?:[^"]|"")+"|[^".\s(]+)'
_COPY = re.compile(
    rb"COPY (" + _NAME + rb"(?:\." + _NAME + rb")?) (?:\((.+)\))? ?FROM stdin;\n", re.DOTALL
)


class TocError(Exception):
    """The bytes are not a table of contents in a known format."""


class _CutShortError(Exception):
    """The table of contents continues after the bytes so far."""


class Section(IntEnum):
    """The section of an entry; the numbers are those of teSection in pg_backup.h."""

    NONE = 1
    PRE_DATA = 2
    DATA = 3
    POST_DATA = 4


@dataclass(frozen=True, slots=True)
class Entry:
    """One object of the dump. Text is in the dump's encoding, as it is in the catalog.

    ``number`` is pg_dump's own, ``oid`` is the object's, ``copy`` is the COPY statement that loads
    the rows, ``depends_on`` are the numbers of other entries. ``definition`` is from where to
    where the head has the statements that create it, with their length.
    """

    number: int
    oid: int
    description: bytes
    section: int
    tag: bytes
    schema: bytes
    copy: bytes
    depends_on: frozenset[int]
    owner: bytes = b""
    definition: tuple[int, int] = field(default=(0, 0), compare=False)

    @property
    def loads_into(self) -> tuple[bytes, bytes] | None:
        """The table that rows are loaded into, as a dump writes it: its name, and its columns.

        None if the entry does not contain rows. A table may have no columns.
        """
        found = _COPY.fullmatch(self.copy)
        return (found[1], found[2] or b"") if found and self.description == _ROWS else None


@dataclass(frozen=True, slots=True)
class Contents:
    """A table of contents: the bytes up to its end, and its entries."""

    head: bytes
    entries: tuple[Entry, ...]


class Reading:
    """Reads a table of contents as it arrives, each byte once: that of 3,000 tables has 10 MB."""

    def __init__(self) -> None:
        """Start at the beginning of an archive."""
        self._data = bytearray()
        self._cursor = _Cursor(self._data)
        self._version: tuple[int, int] | None = None
        self._count = 0
        self._entries: list[Entry] = []

    def __len__(self) -> int:
        """Return the number of bytes so far."""
        return len(self._data)

    def feed(self, chunk: bytes) -> Contents | None:
        """Read the next bytes; return the table of contents if it ends there, else None.

        Raises TocError if it is not a table of contents in a known format.
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
    """Read a table of contents from the beginning of an archive; None if it is not complete.

    Raises TocError if it is not a table of contents in a known format.
    """
    return Reading().feed(data)


def definition(contents: Contents, entry: Entry) -> bytes:
    """Return the statements that create an object, or what the entry has in their place."""
    cursor = _Cursor(bytearray(contents.head[slice(*entry.definition)]))
    cursor.integers = _integers(contents.head)
    return cursor.text()


def without_definitions(contents: Contents, kept: Container[bytes]) -> bytes:
    """Return a table of contents that creates nothing: its entries define a comment instead.

    What pg_restore makes of it by itself remains: the statements that give an object its owner.
    Entries whose description is ``kept`` stay as they are.
    """
    return _undefined(contents, lambda entry: entry.description not in kept)


def without(contents: Contents, left_out: Container[int]) -> bytes:
    """Return a table of contents in which the entries of these numbers define a comment instead."""
    return _undefined(contents, lambda entry: entry.number in left_out)


def _undefined(contents: Contents, chosen: Callable[[Entry], bool]) -> bytes:
    head, done, parts = contents.head, 0, []
    integers = _integers(head)
    comment = integers.pack(False, len(_UNDEFINED)) + _UNDEFINED  # noqa: FBT003 - the sign
    for entry in contents.entries:
        if chosen(entry):
            start, end = entry.definition
            parts += [head[done:start], comment]
            done = end
    return b"".join([*parts, head[done:]])


def _integers(head: bytes) -> struct.Struct:
    return _INTEGERS[head[len(_MAGIC) + _VERSION_BYTES]]


def _head(cursor: _Cursor) -> tuple[int, int]:
    if cursor.take(len(_MAGIC)) != _MAGIC:
        raise TocError("not an archive in pg_dump's custom format")
    major, minor, _revision, int_bytes, cursor.offset_bytes, kind = cursor.take(6)
    version = (major, minor)
    if version not in _KNOWN or kind != _CUSTOM:
        raise TocError(f"unknown format: kind {kind} in version {major}.{minor} of the archive")
    if int_bytes not in _INTEGERS:
        raise TocError(f"unknown format: integers of {int_bytes} bytes")
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
    cursor.skip()  # the catalog of the oid
    oid = cursor.text()
    tag, description = cursor.text(), cursor.text()
    section = cursor.integer()
    start = cursor.position
    cursor.skip()  # the statements that create it
    definition = (start, cursor.position)
    cursor.skip()  # the statement that drops it
    copy, schema = cursor.text(), cursor.text()
    cursor.skip()  # tablespace
    cursor.skip()  # access method
    if with_relkind:
        cursor.integer()
    owner = cursor.text()
    cursor.skip()  # whether it has OIDs
    depends_on = frozenset(map(_number, iter(cursor.optional, None)))
    cursor.take(1 + cursor.offset_bytes)  # where its data is
    return Entry(
        number,
        _number(oid),
        description,
        section,
        tag,
        schema,
        copy,
        depends_on,
        owner,
        definition,
    )


def _number(text: bytes) -> int:
    try:
        return int(text)
    except ValueError:
        raise TocError(f"{text[:20]!r} is not a number") from None


class _Cursor:
    """Reads one value after another."""

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
            raise TocError("a string is too long")
        return length
