"""Finds where a plain dump's session header ends, and its drops, which come next.

``pg_dump --clean --if-exists`` writes the settings of the session, then a block of statements
that drop what the rest creates, then the rest. Into an empty database the drops do nothing, or
break: so they become a member of their own, which a restore can leave out. That they stand so is
how pg_dump works (RestoreArchive() in pg_backup_archiver.c) and nothing it promises: each
statement is read, and where one is not what is expected there, nothing is told apart.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from pgstash.manifest import Section

_SPACE = re.compile(rb"\s*+")
_STATEMENT = re.compile(rb"""(?:[^"';]++|"[^"]*+"|'[^']*+')*+;""")
_QUOTED = re.compile(rb"""\"[^"]*+"|'[^']*+'""")
_LONGEST_STATEMENT = 1 << 20

# psql's commands, comments and the settings of the session.
_HEADER_LINE = re.compile(
    rb"(?:\\restrict \w+|--(?: (?:PostgreSQL|Dumped|Started|Completed) .*)?)\n"
)
_HEADER = re.compile(rb"SET |SELECT pg_catalog\.set_config\(")

# What drops, and nothing that creates: but for a view that another one hangs on, which pg_dump
# replaces by an empty one first. Matched against a statement whose quotes were emptied.
_DROP_LINE = re.compile(rb"-- \*not\* dropping .*\n")
_DROP = re.compile(
    rb"DROP |ALTER .* (?:DROP|DETACH PARTITION) |SELECT pg_catalog\.lo_unlink\("
    rb"|CREATE OR REPLACE VIEW \S+ AS\s+SELECT(?:\s+NULL::|;)",
    re.DOTALL,
)

# What the rest begins with: an entry of the table of contents, the end, or a setting that
# pg_dump writes only where an entry needs it.
_REST = re.compile(
    rb"--\n-- (?:TOC entry |(?:Data for |Statistics for )?Name: "
    rb"|PostgreSQL database dump complete\n)"
    rb"|SET default_(?:tablespace|table_access_method) = |SELECT pg_catalog\.lo_create\("
)
_LOOK_BYTES = 64

_Kind = Literal["header", "drops", "rest", "unknown", "more"]


@dataclass(frozen=True, slots=True)
class Border:
    """Between two chunks: what follows, up to the next border, is of this section."""

    section: Section | None


class Opening:
    """Puts borders around the session header and the drops of one plain dump.

    ``found`` is True once both were read to their ends and hold what they should; it stays
    False where they do not, and then the borders mean nothing.
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
    """Tell what stands at a position, and where it ends.

    ``more`` means that it cannot be told without more bytes, of which there are none if ``last``.
    """
    start = _end(_SPACE, buffer, position)
    if not last and len(buffer) - start < _LOOK_BYTES:
        return "more", position
    if _REST.match(buffer, start):
        return "rest", position
    for kind, line in (("header", _HEADER_LINE), ("drops", _DROP_LINE)):
        end = _end(line, buffer, start)
        if end > start:
            return kind, end  # type: ignore[return-value]
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
