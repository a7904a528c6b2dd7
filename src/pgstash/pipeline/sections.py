"""Finds the end of a plain dump's session header, and of its drops, which come next.

``pg_dump --clean --if-exists`` writes the settings of the session, then a block of statements that
drop what the rest creates, then the rest. In an empty database the drops do nothing, or fail, so
they become a member of their own, which a restore can leave out. pg_dump works in this order
(RestoreArchive() in pg_backup_archiver.c) but does not promise it: each statement is read, and if
one is not what is expected at its place, no sections are found.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from pgstash.format.manifest import Section

_SPACE = re.compile(rb"\s*+")
_STATEMENT = re.compile(rb"""(?:[^"';]++|"[^"]*+"|'[^']*+')*+;""")
_QUOTED = re.compile(rb"""\"[^"]*+"|'[^']*+'""")
_LONGEST_STATEMENT = 1 << 20

# psql's commands, comments and the settings of the session.
_HEADER_LINE = re.compile(
    rb"(?:\\restrict \w+|--(?: (?:PostgreSQL|Dumped|Started|Completed) .*)?)\n"
)
_HEADER = re.compile(rb"SET |SELECT pg_catalog\.set_config\(")

# Statements that drop, and none that create, except for a view that another view depends on, which
# pg_dump first replaces by an empty one. Matched against a statement whose quotes were emptied.
_DROP_LINE = re.compile(rb"-- \*not\* dropping .*\n")
_DROP = re.compile(
    rb"DROP |ALTER .* (?:DROP|DETACH PARTITION) |SELECT pg_catalog\.lo_unlink\("
    rb"|CREATE OR REPLACE VIEW \S+ AS\s+SELECT(?:\s+NULL::|;)",
    re.DOTALL,
)

# The beginning of the rest: an entry of the table of contents, the end, or a setting that pg_dump
# writes only if an entry needs it.
_REST = re.compile(
    rb"--\n-- (?:TOC entry |(?:Data for |Statistics for )?Name: "
    rb"|PostgreSQL database dump complete\n)"
    rb"|SET default_(?:tablespace|table_access_method) = |SELECT pg_catalog\.lo_create\("
)
_LOOK_BYTES = 64

_Kind = Literal["header", "drops", "rest", "unknown", "more"]


@dataclass(frozen=True, slots=True)
class Border:
    """Between two chunks: the chunks up to the next border belong to this section."""

    section: Section | None


class Sections:
    """Puts borders around the session header and the drops of one plain dump.

    ``found`` becomes True once both were read to their ends and hold what they should. As long as
    it is False, the borders mean nothing.
    """

    def __init__(self) -> None:
        """Begin at the start of a dump."""
        self.found = False

    def split(self, chunks: Iterable[bytes]) -> Iterator[bytes | Border]:
        """Yield the same bytes, cut at the borders, and the borders."""
        source = iter(chunks)
        section: Section = "header"
        yield Border(section)
        buffer, last = b"", False
        while True:
            begin = position = 0
            while True:
                kind, end = _read(buffer, position, last=last)
                if kind == section:
                    position = end
                elif (section, kind) == ("header", "drops"):
                    if position:
                        yield buffer[:position]
                    begin, section = position, "drops"
                    yield Border(section)
                else:
                    break
            if begin < position:
                yield buffer[begin:position]
            buffer = buffer[position:]
            if kind != "more":
                break
            chunk = next(source, b"")
            last = not chunk
            buffer += chunk
        self.found = kind == "rest"
        yield Border(None)
        if buffer:
            yield buffer
        yield from source


def _read(buffer: bytes, position: int, *, last: bool) -> tuple[_Kind, int]:
    """Return the kind of statement at a position, and where it ends.

    ``more`` means that more bytes are needed to decide; if ``last``, there are none.
    """
    start = _end(_SPACE, buffer, position)
    if not last and len(buffer) - start < _LOOK_BYTES:
        return "more", position
    if _REST.match(buffer, start):
        return "rest", position
    kinds: tuple[tuple[_Kind, re.Pattern[bytes]], ...] = (
        ("header", _HEADER_LINE),
        ("drops", _DROP_LINE),
    )
    for kind, line in kinds:
        end = _end(line, buffer, start)
        if end > start:
            return kind, end
    end = _end(_STATEMENT, buffer, start)
    if end == start:
        may_grow = not last and len(buffer) - start < _LONGEST_STATEMENT
        return ("more" if may_grow else "unknown"), position
    statement = _QUOTED.sub(b'""', buffer[start:end])
    if _HEADER.match(statement):
        return "header", end
    return ("drops" if _DROP.match(statement) else "unknown"), end


def _end(pattern: re.Pattern[bytes], buffer: bytes, position: int) -> int:
    match = pattern.match(buffer, position)
    return match.end() if match else position
