"""The script of selected tables, from the members of the archive that hold them."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence

from pgstash.errors import CorruptedError, TableNotStoredError
from pgstash.format.manifest import Member
from pgstash.postgres.dump import schema_dump
from pgstash.postgres.tools.tool_run import ToolRun
from pgstash.repository.archive import Archive
from pgstash.repository.members import Seeker
from pgstash.repository.script import take_statement, unrestrict_line
from pgstash.restore.table_selection import Selection

# The end of a COPY block in a script.
_END = b"\\.\n"
_END_OF_ROWS = _END + b"\n\n"


def script(
    selection: Selection,
    archive: Archive,
    tool_run: ToolRun,
    watch: Callable[[int], None],
) -> Iterator[bytes]:
    """Yield the script of the selected tables; each member is verified before it is used.

    ``watch`` receives the number of bytes read from the store so far. Raises CorruptedError,
    StorageError, and TableNotStoredError if pg_restore cannot write the indexes and constraints.
    """
    seeker = archive.seek(watch)
    header, *others = selection.members
    begins = b"".join(seeker.member(header))
    yield begins
    if selection.rows_only:
        known = selection.manifest.members
        for _, numbers in itertools.groupby(others, lambda number: known[number].table):
            yield from _as_one(numbers, known, seeker)
    else:
        for number in others:
            yield from seeker.member(number)
    if selection.after:
        try:
            options = selection.manifest.options
            yield schema_dump.entries(selection.head, tool_run, selection.after, options)
        except schema_dump.CompositionError as error:
            raise TableNotStoredError(
                f"the indexes and constraints of the tables of {archive.name} cannot be restored: "
                f"{error.message}",
                hint="Restore the whole backup with --create, or only the rows with --data-only.",
            ) from error
    yield unrestrict_line(begins)


def _as_one(numbers: Iterable[int], members: Sequence[Member], seeker: Seeker) -> Iterator[bytes]:
    """Yield the rows of a table as a single COPY if possible: its keys are checked at its end."""
    following = iter(numbers)
    begun = b""
    for number in following:
        pieces = seeker.member(number)
        statement = take_statement(pieces)
        if statement != begun:
            # Rows that load through the root of partitions have each partition's order of columns.
            if begun:
                yield _END_OF_ROWS
            yield statement
            begun = statement
        yield from _rows(_block(number, pieces, following, members, seeker))
    yield _END_OF_ROWS


def _block(
    number: int,
    pieces: deque[bytes],
    following: Iterator[int],
    members: Sequence[Member],
    seeker: Seeker,
) -> Iterator[bytes]:
    """Yield what follows a COPY statement; it may continue in the following members."""
    while True:
        while pieces:
            yield pieces.popleft()
        if members[number].rows is not None:
            return
        number = next(following, -1)
        if number < 0:
            raise CorruptedError("the rows of a table end in the middle of a block")
        pieces = seeker.member(number)


def _rows(block: Iterator[bytes]) -> Iterator[bytes]:
    """Yield the rows of a block, without its end and what follows that."""
    held = b"\n"  # its first byte is one that was yielded, or comes before the first row
    for piece in block:
        data = held + piece
        end = data.find(b"\n" + _END)
        if end >= 0:
            yield data[1 : end + 1]
            for _ in block:
                pass  # comments; they still have to be read, and verified
            return
        kept = max(0, len(data) - len(_END))
        yield data[1:kept]
        held = data[max(0, kept - 1) :]
    raise CorruptedError("a block of rows has no end")
