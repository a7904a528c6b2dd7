"""Runs the workers of a parallel dump: one thread for each session that reads rows.

Each psql reads chunks of big tables; one pg_dump writes the rows of all other tables. The threads
turn the output into members of the archive, and hand them over as they are finished.
"""

from __future__ import annotations

import contextlib
import itertools
import queue
import threading
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

from pgstash import workers
from pgstash.errors import DatabaseError, DumpError, LockTimeoutError, PipelineError
from pgstash.format.manifest import Section
from pgstash.pipeline.member_writer import Others, Packed, Rows, pack_all
from pgstash.pipeline.sections import Border, Sections
from pgstash.pipeline.sql_scanner import Part, SqlScanner
from pgstash.postgres.dump.baseline import Ask
from pgstash.postgres.dump.copy_reader import Reader
from pgstash.postgres.dump.pg_dump import Dump, dump, without_closing
from pgstash.postgres.dump.snapshot import Chunk, LockRefusedError, Snapshot, Table
from pgstash.postgres.server.connection import Server
from pgstash.postgres.tools import pg_dump_options
from pgstash.postgres.tools.process import Child
from pgstash.postgres.tools.tool_run import Limits, ToolRun

# The first pg_dump already holds every lock. If this second request blocks for longer, a third
# session is queued behind that pg_dump for a conflicting lock, and we are queued behind the third:
# a deadlock.
_SECONDS_FOR_SECOND_LOCK = 2.0

_SECONDS_TO_END = 2.0

# Small members are handed over together, in batches of this size.
_HANDED_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Plan:
    """What to dump, and by how many sessions; ``options`` are the user's own for pg_dump.

    ``ask`` queries the server in a session that stays open until the archive is stored.
    """

    server: Server
    tool_run: ToolRun
    jobs: int
    level: int
    options: Sequence[str]
    limits: Limits
    ask: Ask


_Batch = Sequence[Packed]


class DumpWorkers:
    """The sessions of a parallel dump, and the threads that make members of what these read."""

    def __init__(
        self,
        plan: Plan,
        tables: Sequence[bytes],
        big: Sequence[Table],
        first: Sequence[Table] = (),
    ) -> None:
        """Start nothing yet.

        ``tables`` are the names of all tables, ``big`` are those that are read in chunks. The rows
        of ``first`` come before all others, each table in one chunk.
        """
        self.tables = list(dict.fromkeys(tables))
        self._big = [*first, *big]
        self.copied = frozenset(table.name for table in self._big)
        self._plan = plan
        self._scanner = SqlScanner()
        self._children: list[Child | Dump] = []
        self._readers: list[Reader] = []
        self._todo: queue.SimpleQueue[Chunk] = queue.SimpleQueue()
        self._results: Generator[_Batch, None, None] | None = None
        self._turn = threading.Lock()
        self._first = [chunk for table in first for chunk in table.chunks]
        self._chunks = [chunk for table in big for chunk in table.chunks]

    @property
    def left_to_pg_dump(self) -> set[bytes]:
        """The names of the tables whose rows pg_dump has written so far."""
        return set(self._scanner.rows)

    def open(self, stack: contextlib.ExitStack, snapshot: Snapshot) -> None:
        """Start all sessions, and return when they hold their locks. Raises LockRefusedError."""
        plan = self._plan
        for _ in range(min(plan.jobs, max(len(self._chunks), len(self._first[:1])))):
            reader = Reader(
                plan.server,
                plan.tool_run,
                snapshot=snapshot.name,
                role=pg_dump_options.role(plan.options),
                idle_seconds=plan.limits.idle,
            )
            self._readers.append(stack.enter_context(reader))
            self._children.append(reader.child)
        codec = plan.server.codec
        without = (
            f"--exclude-table-data={table.pattern.decode(codec, 'surrogateescape')}"
            for table in self._big
        )
        rest = stack.enter_context(
            dump(
                plan.server,
                plan.tool_run,
                [
                    *pg_dump_options.of_rows_alone(plan.options),
                    "--section=data",
                    f"--snapshot={snapshot.name}",
                    *without,
                ],
                replace(plan.limits, first_lock=min(_SECONDS_FOR_SECOND_LOCK, plan.limits.lock)),
            )
        )
        self._children.append(rest)
        for reader in self._readers:
            reader.begin(self._big)
        try:
            first = next(rest, b"")
        except LockTimeoutError as error:
            raise LockRefusedError(error.message) from error
        self._rest = itertools.chain([first], rest)
        stack.callback(self._end)

    def run(self) -> Iterator[_Batch]:
        """Yield members as they are finished, one or many. Raises DumpError, PipelineError."""
        for chunk in self._first:
            yield from _together(self._from_reader(chunk, self._readers[0]))
        for chunk in self._chunks:
            self._todo.put(chunk)
        count = max(1, min(self._plan.jobs, len(self._chunks)))
        tasks = [
            partial(
                self._work,
                reader=self._readers[number] if self._readers else None,
                reads_pg_dump=number == 0,
            )
            for number in range(count)
        ]
        self._results = workers.crew(
            tasks, room=count + 2, stop=self._stop, seconds_to_end=_SECONDS_TO_END
        )
        try:
            yield from self._results
        except (DatabaseError, PipelineError):
            raise
        except Exception as error:  # whatever a thread met, the dump has failed
            raise PipelineError(f"the dump failed: {error!r}") from error

    def _work(
        self, crew: workers.Crew[_Batch], *, reader: Reader | None, reads_pg_dump: bool
    ) -> None:
        if reads_pg_dump and not self._hand_over(self._from_pg_dump(), crew):
            return
        while reader and not crew.stopping:
            try:
                chunk = self._todo.get_nowait()
            except queue.Empty:
                break
            if not self._hand_over(self._from_reader(chunk, reader), crew):
                return
        if reader and not crew.stopping:
            reader.refuse_swapped()

    def _hand_over(self, members: Iterable[Packed], crew: workers.Crew[_Batch]) -> bool:
        """Hand members over, and return whether to go on.

        Members that have to follow each other are handed over without others in between. Small
        ones are handed over in batches: to switch between the two threads may cost more than
        making one member.
        """
        with contextlib.ExitStack() as turn:
            mine = False
            for packed in _together(members):
                if not mine:
                    turn.enter_context(self._turn)
                    mine = True
                if not crew.hand_over(packed):
                    return False
                if not packed[-1].goes_on:
                    turn.close()
                    mine = False
        return True

    def _stop(self) -> None:
        for child in self._children:
            child.end()

    def _end(self) -> None:
        """End the child processes, and then the threads, before anything they use is closed."""
        self._stop()
        if self._results:
            self._results.close()

    def _from_reader(self, chunk: Chunk, reader: Reader) -> Iterator[Packed]:
        rows = Rows(self._plan.level, chunk.table.name, chunk.table.load)
        counted = 0
        written = map(rows.write, reader.read(chunk))
        for packed in itertools.chain(itertools.chain.from_iterable(written), rows.close()):
            counted += packed.member.rows or 0
            yield packed
        reader.confirm(chunk, counted)

    def _from_pg_dump(self) -> Iterator[Packed]:
        """Yield the members of the one pg_dump, without its header: the archive has one."""
        sections = Sections()
        section: Section | None = None
        beginning: list[bytes] = []
        stream = sections.split(self._rest)
        for piece in stream:
            if isinstance(piece, Border):
                section = piece.section
                if section is None:
                    break
            elif section == "drops":
                beginning.append(piece)
        if not sections.found:
            raise DumpError(
                "the dump of the rows does not begin as expected",
                hint="Set DUMP_JOBS=1, and report this.",
            )
        if beginning:
            yield from pack_all(b"".join(beginning), self._plan.level, "drops")
        rows = (piece for piece in stream if not isinstance(piece, Border))
        yield from _cut(without_closing(rows), self._scanner, self._plan.level)


def _together(members: Iterable[Packed]) -> Iterator[Sequence[Packed]]:
    """Yield the members in their order, in batches."""
    batch: list[Packed] = []
    stored = 0
    for packed in members:
        batch.append(packed)
        stored += packed.member.stored
        if stored >= _HANDED_BYTES:
            yield batch
            batch, stored = [], 0
    if batch:
        yield batch


def _cut(text: Iterable[bytes], scanner: SqlScanner, level: int) -> Iterator[Packed]:
    """Yield the output of pg_dump as members: rows of one table, or other statements."""
    part: Rows | Others = Others(level, "data")
    for piece in scanner.split(text):
        if isinstance(piece, Part):
            yield from part.close()
            if piece.table is not None:
                part = Rows(level, piece.table, piece.load, written=True)
            else:
                part = Others(level, "sequences" if piece.sequences else "data")
        else:
            yield from part.write(piece)
        # Rows of other tables may come between two members, but not within a statement.
        scanner.tells_next_statement = isinstance(part, Others) and part.full
    yield from part.close()
