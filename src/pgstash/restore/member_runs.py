"""The members of an archive, in the order and the runs that a parallel restore reads them in."""

from __future__ import annotations

from collections.abc import Collection

from pgstash.errors import CorruptedError
from pgstash.format.manifest import Manifest

# The most bytes that one request reads, and the number of requests for a session's share.
_RUN_BYTES = 32 * 1024 * 1024
_SHARES = 4


class MemberRuns:
    """The numbers of an archive's members, by how a parallel restore uses them.

    ``rows`` are runs of members that hold one COPY block each; ``in_order`` are large objects and
    sequences; ``unused`` are the drops, which an empty database does not need.
    """

    def __init__(self, manifest: Manifest) -> None:
        """Sort the members. Raises CorruptedError."""
        self.header: list[int] = []
        self.before: list[int] = []
        self.rows: list[range] = []
        self.in_order: list[int] = []
        self.after: list[int] = []
        self.unused: list[int] = []
        continues = False
        self._members = manifest.members
        self._tables = manifest.tables
        for number, member in enumerate(manifest.members):
            match member.section:
                case "header":
                    self.header.append(number)
                case "drops":
                    self.unused.append(number)
                case "pre-data":
                    self.before.append(number)
                case "data" if member.table is not None:
                    first = self.rows.pop().start if continues else number
                    self.rows.append(range(first, number + 1))
                    continues = member.rows is None
                case "data" | "sequences":
                    self.in_order.append(number)
                case "post-data":
                    self.after.append(number)
                case _:
                    raise CorruptedError("the manifest has a member of an unknown section")

    def set_apart(self, tables: Collection[tuple[str, str]]) -> list[range]:
        """Take out the blocks with rows of these tables, and return them in their order."""
        numbers = {
            number for number, each in enumerate(self._tables) if (each.schema, each.name) in tables
        }
        apart: list[range] = []
        blocks, self.rows = self.rows, []
        for block in blocks:
            (apart if self._members[block.start].table in numbers else self.rows).append(block)
        return apart

    def runs(self, jobs: int) -> list[range]:
        """Return the members with rows, in runs that one request reads and one session loads.

        The last runs are short, so that all of the ``jobs`` sessions finish at about the same time.
        """
        runs: list[range] = []
        left = sum(self._stored(block) for block in self.rows)
        room = 0
        for block in self.rows:
            if room > 0 and runs[-1].stop == block.start:
                runs[-1] = range(runs[-1].start, block.stop)
            else:
                runs.append(block)
                room = min(_RUN_BYTES, left // (_SHARES * jobs))
            room -= self._stored(block)
            left -= self._stored(block)
        return runs

    def _stored(self, numbers: range) -> int:
        return sum(member.stored for member in self._members[numbers.start : numbers.stop])
