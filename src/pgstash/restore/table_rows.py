"""Loads the rows of selected tables into a transaction, from the members that hold them."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterator, Sequence

from pgstash.postgres.restore.placing import Placement
from pgstash.postgres.restore.transaction import Transaction
from pgstash.repository.archive import Archive
from pgstash.repository.script import take_statement
from pgstash.restore.state import Progress
from pgstash.restore.table_selection import Selection

# The most members that one request reads.
_MOST_MEMBERS = 64


def load(
    transaction: Transaction,
    placement: Placement,
    archive: Archive,
    selection: Selection,
    progress: Progress,
) -> None:
    """Load all rows of the selection; each member is verified before it is used.

    Raises RestoreError, CorruptedError, StorageError.
    """
    seeker = archive.seek(progress.read)
    members = selection.manifest.members

    def block(
        number: int, pieces: deque[bytes], following: Iterator[tuple[int, deque[bytes]]]
    ) -> Iterator[bytes]:
        """Yield what follows a COPY statement; it may continue in the following members."""
        while True:
            while pieces:
                yield pieces.popleft()
            progress.restored_more(members[number].raw)
            if members[number].rows is not None:
                return
            number, pieces = next(following)

    ends = {number for number in selection.members if members[number].rows is not None}
    for run in _runs(selection.members[1:], ends):
        with contextlib.closing(seeker.members(run)) as found:
            numbered = zip(run, found, strict=True)
            for number, pieces in numbered:
                statement = placement.created(take_statement(pieces))
                transaction.load(statement, block(number, pieces, numbered))


def _runs(numbers: Sequence[int], ends: set[int]) -> Iterator[range]:
    """Yield the same numbers in runs of consecutive ones, none of which splits a COPY block.

    A block ends with one of the ``ends``.
    """
    run = range(0)
    for number in numbers:
        full = len(run) >= _MOST_MEMBERS and run[-1] in ends
        if run and (full or number != run.stop):
            yield run
            run = range(0)
        run = range(run.start if run else number, number + 1)
    if run:
        yield run
