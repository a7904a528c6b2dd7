"""The pieces of a dump by several sessions, and who makes them.

One pg_dump writes the rows that are left to it, each psql reads chunks of big tables; a thread for
each makes members of what comes, and hands them over in the order in which they are done.
"""

from __future__ import annotations

import contextlib
import itertools
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from pgstash import events
from pgstash.errors import DatabaseError, DumpError, LockTimeoutError, PipelineError
from pgstash.manifest import Section
from pgstash.pipeline.opening import Border, Opening
from pgstash.pipeline.packing import Others, Packed, Rows, pack_all
from pgstash.pipeline.tally import Part, Tally
from pgstash.postgres import options
from pgstash.postgres.baseline import Ask
from pgstash.postgres.copying import Chunk, LockRefusedError, Snapshot, Table
from pgstash.postgres.dump import dump, without_closing
from pgstash.postgres.process import Child
from pgstash.postgres.reader import Reader
from pgstash.postgres.source import Server
from pgstash.postgres.tools import ClientTools

# By then one pg_dump holds all locks: who waits longer waits behind somebody who waits for it.
_SECONDS_FOR_SECOND_LOCK = 2.0

_SECONDS_TO_END = 2.0

# Of small members so many bytes are handed over together.
_HANDED_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Plan:
    """What to dump, by how many sessions; ``options`` are the user's own for pg_dump.

    ``ask`` asks the server in a session that lives until the archive is stored.
    """

    server: Server
    client: ClientTools
    jobs: int
    level: int
    options: Sequence[str]
    lock_seconds: float
    idle_seconds: float
    environment: Mapping[str, str]
    emit: events.Emit
    ask: Ask


_Task = Callable[[], Iterator[Packed]]


class Pieces:
    """All that is dumped, and who dumps it: threads, one for each session that reads rows."""

    def __init__(  # noqa: PLR0913 - what each part of a dump is made of
        self,
        plan: Plan,
        before: Sequence[tuple[Section, bytes]],
        after: bytes,
        tables: Sequence[bytes],
        big: Sequence[Table],
        *,
        first: Sequence[Table] = (),
    ) -> None:
        """Start nothing yet; ``tables`` are all, by name, ``big`` those that are read in chunks.

        ``first`` are those whose rows come before all others, each in one piece.
        """
        self.before = before
        self.after = after
        self.tables = list(dict.fromkeys(tables))
        self._big = [*first, *big]
        self.copied = frozenset(table.name for table in self._big)
        self._plan = plan
        self._tally = Tally()
        self._children: list[Child] = []
        self._readers: list[Reader] = []
        self._threads: list[threading.Thread] = []
        self._todo: queue.SimpleQueue[Chunk] = queue.SimpleQueue()
        self._room: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[Sequence[Packed] | Exception | None] = queue.SimpleQueue()
        self._turn = threading.Lock()
        self._stopping = threading.Event()
        self._first = [chunk for table in first for chunk in table.chunks]
        self._chunks = [chunk for table in big for chunk in table.chunks]

    @property
    def left_to_pg_dump(self) -> set[bytes]:
        """The tables that pg_dump wrote the rows of, by name, as far as it has come."""
        return set(self._tally.rows)

    def open(self, stack: contextlib.ExitStack, snapshot: Snapshot) -> None:
        """Start all sessions, and return when they have their locks. Raises LockRefusedError."""
        plan = self._plan
        for _ in range(min(plan.jobs, max(len(self._chunks), len(self._first[:1])))):
            reader = Reader(
                plan.server,
                plan.client,
                snapshot=snapshot.name,
                role=options.role(plan.options),
                idle_seconds=plan.idle_seconds,
                environment=plan.environment,
                emit=plan.emit,
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
                plan.client,
                options=[
                    *options.of_rows_alone(plan.options),
                    "--section=data",
                    f"--snapshot={snapshot.name}",
                    *without,
                ],
                lock_seconds=plan.lock_seconds,
                first_lock_seconds=min(_SECONDS_FOR_SECOND_LOCK, plan.lock_seconds),
                idle_seconds=plan.idle_seconds,
                environment=plan.environment,
                emit=plan.emit,
                started=self._children.append,
            )
        )
        for reader in self._readers:
            reader.begin(self._big)
        try:
            first = next(rest, b"")
        except LockTimeoutError as error:
            raise LockRefusedError(error.message) from error
        self._rest = itertools.chain([first], rest)
        stack.callback(self._end)

    def run(self) -> Iterator[Sequence[Packed]]:
        """Yield members as they are done, one or many. Raises DumpError, PipelineError."""
        for chunk in self._first:
            yield from _together(self._from_reader(chunk, self._readers[0]))
        for chunk in self._chunks:
            self._todo.put(chunk)
        first: list[_Task] = [self._from_pg_dump]
        workers = max(1, min(self._plan.jobs, len(self._chunks)))
        for _ in range(workers + 2):
            self._room.put(None)
        for number in range(workers):
            tasks = first if number == 0 else []
            reader = self._readers[number] if self._readers else None
            thread = threading.Thread(target=self._work, args=(tasks, reader), daemon=True)
            self._threads.append(thread)
            thread.start()
        running = workers
        while running:
            result = self._done.get()
            if result is None:
                running -= 1
            elif isinstance(result, Exception):
                if isinstance(result, DatabaseError | PipelineError):
                    raise result
                raise PipelineError(f"the dump failed: {result!r}") from result
            else:
                yield result
                self._room.put(None)

    def _work(self, tasks: Iterable[_Task], reader: Reader | None) -> None:
        try:
            for task in tasks:
                self._hand_over(task())
            while reader and not self._stopping.is_set():
                try:
                    chunk = self._todo.get_nowait()
                except queue.Empty:
                    break
                self._hand_over(self._from_reader(chunk, reader))
            if reader and not self._stopping.is_set():
                reader.refuse_swapped()
            self._done.put(None)
        except Exception as error:  # noqa: BLE001 - carried to the caller's thread whole
            self._done.put(error)

    def _hand_over(self, members: Iterable[Packed]) -> None:
        """Hand over members; those that belong together without one of others in between.

        Many small ones at a time: each turn of the two threads may cost more than the member.
        """
        with contextlib.ExitStack() as turn:
            mine = False
            for packed in _together(members):
                if not mine:
                    turn.enter_context(self._turn)
                    mine = True
                self._room.get()
                if self._stopping.is_set():
                    return
                self._done.put(packed)
                if not packed[-1].goes_on:
                    turn.close()
                    mine = False

    def _end(self) -> None:
        """End all that reads, and then all threads: nothing may be closed under their hands."""
        self._stopping.set()
        for child in self._children:
            child.end()
        for _ in self._threads:
            self._room.put(None)
        give_up = time.monotonic() + _SECONDS_TO_END
        for thread in self._threads:
            thread.join(max(0.0, give_up - time.monotonic()))

    def _from_reader(self, chunk: Chunk, reader: Reader) -> Iterator[Packed]:
        rows = Rows(self._plan.level, chunk.table.name, chunk.table.load)
        counted = 0
        written = map(rows.write, reader.read(chunk))
        for packed in itertools.chain(itertools.chain.from_iterable(written), rows.close()):
            counted += packed.member.rows or 0
            yield packed
        reader.confirm(chunk, counted)

    def _from_pg_dump(self) -> Iterator[Packed]:
        """Yield what one pg_dump writes of the rest, without the header, which is there."""
        opening = Opening()
        section: Section | None = None
        beginning: list[bytes] = []
        stream = opening.split(self._rest)
        for piece in stream:
            if isinstance(piece, Border):
                section = piece.section
                if section is None:
                    break
            elif section == "drops":
                beginning.append(piece)
        if not opening.found:
            raise DumpError(
                "the dump of the rows does not begin as expected",
                hint="Set DUMP_JOBS=1, and report this.",
            )
        if beginning:
            yield from pack_all(b"".join(beginning), self._plan.level, "drops")
        rows = (piece for piece in stream if not isinstance(piece, Border))
        yield from _cut(without_closing(rows), self._tally, self._plan.level)


def _together(members: Iterable[Packed]) -> Iterator[Sequence[Packed]]:
    """Yield the members in their order, as many at a time as have some bytes together."""
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


def _cut(text: Iterable[bytes], tally: Tally, level: int) -> Iterator[Packed]:
    """Yield what pg_dump writes as members: rows of one table, or other statements."""
    part: Rows | Others = Others(level, "data")
    for piece in tally.split(text):
        if isinstance(piece, Part):
            yield from part.close()
            if piece.table is not None:
                part = Rows(level, piece.table, piece.load, written=True)
            else:
                part = Others(level, "sequences" if piece.sequences else "data")
        else:
            yield from part.write(piece)
        # Rows of others may stand between two members: not in the middle of a statement.
        tally.tells_next_statement = isinstance(part, Others) and part.full
    yield from part.close()
