"""Makes members from the output of several sessions: rows of one table, or other statements."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from pgstash.format.manifest import Member, Section
from pgstash.pipeline.compression import Packing, pack

MEMBER_BYTES = 8 * 1024 * 1024
"""Uncompressed size at which a member is closed, at the end of a row, in bytes."""

_END_OF_ROWS = b"\\.\n\n\n"


@dataclass(frozen=True, slots=True)
class Packed:
    """A finished member; ``table`` is the name as the dump writes it.

    If it ends in the middle of a row or of a statement, it ``goes_on``: the next member of the same
    table or statements has to follow it.
    """

    data: bytes = field(repr=False)
    member: Member
    table: bytes | None
    goes_on: bool = False


class Rows:
    """Makes members from COPY blocks of one table, each of them a whole block.

    If a row is as long as two members, the block goes on in the next one. With ``written`` the
    input begins with the COPY statement and holds the end of the block.
    """

    def __init__(self, level: int, table: bytes, load: bytes, *, written: bool = False) -> None:
        """Begin; ``table`` is the name as the dump writes it, ``load`` the COPY statement."""
        self._level = level
        self._table = table
        self._load = load
        self._written = written
        self._packing = Packing(level)
        self._data: list[bytes] = []
        self._rows = 0
        self._needs_header, self._has_header = True, written
        self._last = b"\n"
        self._ended = self._goes_on = False

    def write(self, piece: bytes) -> Iterator[Packed]:
        """Take the next piece, and yield the members that it completes."""
        self._count(piece[len(self._load) :] if self._has_header else piece)
        if self._needs_header and not self._has_header:
            # In one piece: the first piece decides on the engine, and should be like the rest.
            piece = self._load + piece
        self._needs_header = self._has_header = False
        whole = not self._ended and self._packing.raw + len(piece) >= MEMBER_BYTES
        border = piece.rfind(b"\n") + 1 if whole else 0
        if not border:
            self._data.append(self._packing.write(piece))
            if whole and self._packing.raw >= 2 * MEMBER_BYTES:
                self._goes_on = True
                yield self._done(None)
            return
        yield self._finish(piece[:border] + _END_OF_ROWS)
        if border < len(piece):
            self._data.append(self._packing.write(self._load + piece[border:]))
        else:
            self._needs_header = True

    def _count(self, piece: bytes) -> None:
        """Count the rows of a block, which may end in this piece; each row ends with a newline."""
        if self._ended:
            return
        end = -1
        if self._written:
            # The end is at the beginning of a line; the newline may be in the piece before.
            end = (self._last + piece).find(b"\n" + _END_OF_ROWS[:3])
            self._ended = end >= 0
        self._last = piece[-1:] or self._last
        self._rows += piece.count(b"\n", 0, end if end >= 0 else len(piece))

    def _finish(self, text: bytes) -> Packed:
        self._data.append(self._packing.write(text))
        rows, self._rows, self._goes_on = self._rows, 0, False
        return self._done(rows)

    def _done(self, rows: int | None) -> Packed:
        tail, member = self._packing.close("data")
        data, member = b"".join((*self._data, tail)), replace(member, rows=rows)
        done = Packed(data, member, self._table, goes_on=rows is None)
        self._packing, self._data = Packing(self._level), []
        return done

    def close(self) -> Iterator[Packed]:
        """End the last member; without any rows there is none."""
        if self._packing.raw or self._goes_on:
            yield self._finish(b"" if self._written else _END_OF_ROWS)


class Others:
    """Makes members from statements that are not COPY blocks.

    The caller closes a full member where a statement begins. A member that grows to twice the size
    before that is cut anywhere.
    """

    def __init__(self, level: int, section: Section) -> None:
        """Begin; all members belong to this section."""
        self._level = level
        self._section = section
        self._packing = Packing(level)
        self._data: list[bytes] = []

    @property
    def full(self) -> bool:
        """Whether the member is large enough to be closed."""
        return self._packing.raw >= MEMBER_BYTES

    def write(self, piece: bytes) -> Iterator[Packed]:
        """Take the next piece, and yield the members that it completes."""
        self._data.append(self._packing.write(piece))
        if self._packing.raw >= 2 * MEMBER_BYTES:
            yield self._done(goes_on=True)

    def close(self) -> Iterator[Packed]:
        """End the last member, if there is one: the input ends with a statement."""
        if self._packing.raw:
            yield self._done(goes_on=False)

    def _done(self, *, goes_on: bool) -> Packed:
        tail, member = self._packing.close(self._section)
        done = Packed(b"".join((*self._data, tail)), member, None, goes_on)
        self._packing, self._data = Packing(self._level), []
        return done


def pack_all(text: bytes, level: int, section: Section) -> Iterator[Packed]:
    """Yield a text as members, which have to follow each other."""
    ends = range(MEMBER_BYTES, len(text) + MEMBER_BYTES, MEMBER_BYTES)
    for end in ends or [MEMBER_BYTES]:
        part = text[end - MEMBER_BYTES : end]
        yield Packed(*pack(part, level, section), None, goes_on=end < len(text))
