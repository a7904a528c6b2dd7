"""A dump by several sessions at once that is one plain script all the same.

pg_dump writes all but the rows of big tables: what makes the objects, the rest of the rows. The
rows of big tables are read by psql in ranges of pages, under the snapshot that pg_dump has too.
Each piece becomes a member of the archive, in the order in which they are done: between what makes
the tables and what makes their indexes and constraints no order is needed, or all rows are left to
pg_dump (:mod:`pgstash.postgres.ordering`).
"""

from __future__ import annotations

import contextlib
import itertools
import queue
import textwrap
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from pgstash import events
from pgstash.errors import DatabaseError, DumpError, LockTimeoutError, PipelineError
from pgstash.manifest import Member, Section
from pgstash.pipeline.opening import Border, Opening
from pgstash.pipeline.packing import Others, Packed, Rows, pack_all
from pgstash.pipeline.tally import Part, Tally
from pgstash.postgres import copying, options, outline
from pgstash.postgres.copying import Chunk, LockRefusedError, Snapshot, Table
from pgstash.postgres.dump import dump, without_closing
from pgstash.postgres.outline import CompositionError, Script
from pgstash.postgres.process import Child
from pgstash.postgres.reader import Reader
from pgstash.postgres.source import Server
from pgstash.postgres.tools import ClientTools

_TRIES = 3
_SECONDS_BETWEEN_TRIES = 1.0
# By then one pg_dump holds all locks: who waits longer waits behind somebody who waits for it.
_SECONDS_FOR_SECOND_LOCK = 2.0

_SECONDS_TO_END = 2.0
_LONGEST_REASON = 1000  # characters: pg_dump names all tables that it could not lock
# A snapshot that another transaction took serves no serializable, deferrable one.
_NOT_SHARED = "--serializable-deferrable"


@dataclass(frozen=True, slots=True)
class Plan:
    """What to dump, by how many sessions; ``options`` are the user's own for pg_dump."""

    server: Server
    client: ClientTools
    jobs: int
    level: int
    options: Sequence[str]
    lock_seconds: float
    idle_seconds: float
    environment: Mapping[str, str]
    emit: events.Emit


_Task = Callable[[], Iterator[Packed]]


class Impossible(Exception):  # noqa: N818 - no error: one pg_dump does the work then
    """Why this database cannot be dumped by several sessions, in words."""


class Parallel:
    """A dump whose sessions hold their snapshot and all their locks.

    ``schema`` is pg_dump's table of contents; ``members`` and ``rows``, the number of rows by the
    name of the table as the dump writes it, are complete when :meth:`archive` came to its end.
    """

    def __init__(self, plan: Plan, schema: bytes, pieces: _Pieces) -> None:
        """Take over what was prepared."""
        self.schema = schema
        self.members: list[Member] = []
        self.rows: dict[bytes, int] = dict.fromkeys(pieces.tables, 0)
        self.raw_bytes = 0
        self._plan = plan
        self._pieces = pieces
        self._offset = 0
        self._numbers = {name: number for number, name in enumerate(pieces.tables)}

    def archive(self) -> Iterator[bytes]:
        """Yield the members, compressed. Raises DumpError, PipelineError."""
        for section, text in self._pieces.before:
            yield from self._placed(text, section)
        for done in self._pieces.run():
            yield self._place(done)
        self._check()
        yield from self._placed(self._pieces.after, "post-data")

    def _placed(self, text: bytes, section: Section) -> Iterator[bytes]:
        return map(self._place, pack_all(text, self._plan.level, section))

    def _place(self, done: Packed) -> bytes:
        number = None
        if done.table is not None:
            number = self._numbers.setdefault(done.table, len(self._numbers))
            self.rows[done.table] = self.rows.get(done.table, 0) + (done.member.rows or 0)
        self.members.append(replace(done.member, offset=self._offset, table=number))
        self._offset += done.member.stored
        self.raw_bytes += done.member.raw
        return done.data

    def _check(self) -> None:
        """Raise where the pieces do not hold the rows of just the tables that pg_dump lists."""
        found = self._pieces.left_to_pg_dump
        twice = found & self._pieces.copied
        missing = set(self._pieces.tables) - found - self._pieces.copied
        if twice or missing:
            names = ", ".join(
                name.decode(self._plan.server.codec, "replace")
                for name in itertools.islice(sorted(twice | missing), 5)
            )
            raise DumpError(
                f"the pieces of the dump do not add up to all tables: {names}",
                hint="Set DUMP_JOBS=1, and report this.",
            )


@contextlib.contextmanager
def opened(plan: Plan) -> Iterator[Parallel]:
    """Start a dump by several sessions; nothing of it is read before it can be whole.

    Raises Impossible where one pg_dump has to do it, what a dump raises otherwise. Leaving the
    block ends all sessions.
    """
    if plan.server.major < copying.FIRST_MAJOR:
        raise Impossible(f"PostgreSQL {plan.server.major} cannot read a table by ranges of pages")
    if _NOT_SHARED in plan.options:
        raise Impossible(f"{_NOT_SHARED} needs a snapshot that cannot be shared")
    for tried in itertools.count(1):
        with contextlib.ExitStack() as stack:
            try:
                made = _prepared(plan, stack)
            except LockRefusedError as error:
                if tried == _TRIES:
                    raise Impossible(error.message) from error
                plan.emit(events.Notice(f"Trying again: {error.message}"))
            except LockTimeoutError:
                raise  # one pg_dump would wait as long, and not get it either
            except DatabaseError as error:
                said = textwrap.shorten(error.message, _LONGEST_REASON, placeholder=" …")
                raise Impossible(said) from error
            else:
                yield made
                return
        time.sleep(_SECONDS_BETWEEN_TRIES)


def _prepared(plan: Plan, stack: contextlib.ExitStack) -> Parallel:
    snapshot = stack.enter_context(copying.snapshot(plan.server))
    with outline.opened(
        plan.server,
        plan.client,
        snapshot=snapshot.name,
        options=plan.options,
        lock_seconds=plan.lock_seconds,
        idle_seconds=plan.idle_seconds,
        environment=plan.environment,
        emit=plan.emit,
    ) as contents:
        script = outline.script(contents, plan.client, plan.options, plan.environment)
        tables = [into[0] for entry in contents.entries if (into := entry.loads_into)]
        big = snapshot.cut(contents.entries)
        # The second pg_dump locks all tables once more, and each reader the big ones.
        wanted = len(tables) + plan.jobs * len(big)
        if wanted > snapshot.room_for_locks() * 3 // 4:
            raise Impossible(
                f"it would take {wanted} more locks, and the server has to have room for others: "
                "raise its max_locks_per_transaction"
            )
        if big and (reason := snapshot.kept_order()):
            plan.emit(events.Notice(f"All rows are left to pg_dump, in its order: {reason}"))
            big = []
        pieces = _Pieces(plan, list(_before(script)), script.after, tables, big)
        # All locks are held before the first one of them is given back at the end of this block, or
        # by then, where all that the first pg_dump writes fits into its pipe. So look again.
        pieces.open(stack, snapshot)
        snapshot.refuse_rewritten(contents.entries)
        return Parallel(plan, contents.head, pieces)


def _before(script: Script) -> Iterator[tuple[Section, bytes]]:
    """Cut what stands before the rows: the session's header, what drops, what makes the objects."""
    opening = Opening()
    section: Section | None = None
    parts: dict[Section, list[bytes]] = {"header": [], "drops": [], "pre-data": []}
    for piece in opening.split([script.before + script.after]):
        if isinstance(piece, Border):
            section = piece.section
        else:
            parts[section or "pre-data"].append(piece)
    if not opening.found:
        raise CompositionError("the script does not begin as expected")
    for name, found in parts.items():
        text = b"".join(found)
        if name == "pre-data":
            text = text[: len(text) - len(script.after)]
        if text:
            yield name, text


class _Pieces:
    """All that is dumped, and who dumps it: threads, one for each session that reads rows."""

    def __init__(
        self,
        plan: Plan,
        before: Sequence[tuple[Section, bytes]],
        after: bytes,
        tables: Sequence[bytes],
        big: Sequence[Table],
    ) -> None:
        self.before = before
        self.after = after
        self.tables = list(dict.fromkeys(tables))
        self.copied = frozenset(table.name for table in big)
        self._big = big
        self._plan = plan
        self._tally = Tally()
        self._children: list[Child] = []
        self._readers: list[Reader] = []
        self._threads: list[threading.Thread] = []
        self._todo: queue.SimpleQueue[Chunk] = queue.SimpleQueue()
        self._room: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[Packed | Exception | None] = queue.SimpleQueue()
        self._turn = threading.Lock()
        self._stopping = threading.Event()
        self._chunks = [chunk for table in big for chunk in table.chunks]

    @property
    def left_to_pg_dump(self) -> set[bytes]:
        """The tables that pg_dump wrote the rows of, by name, as far as it has come."""
        return set(self._tally.rows)

    def open(self, stack: contextlib.ExitStack, snapshot: Snapshot) -> None:
        """Start all sessions, and return when they have their locks. Raises LockRefusedError."""
        plan = self._plan
        for _ in range(min(plan.jobs, len(self._chunks))):
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

    def run(self) -> Iterator[Packed]:
        """Yield members as they are done. Raises DumpError, PipelineError."""
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
                reader.refuse_renamed(self._big)
            self._done.put(None)
        except Exception as error:  # noqa: BLE001 - carried to the caller's thread whole
            self._done.put(error)

    def _hand_over(self, members: Iterable[Packed]) -> None:
        """Hand over members; those that belong together without one of others in between."""
        with contextlib.ExitStack() as turn:
            mine = False
            for packed in members:
                if not mine:
                    turn.enter_context(self._turn)
                    mine = True
                self._room.get()
                if self._stopping.is_set():
                    return
                self._done.put(packed)
                if not packed.goes_on:
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
        for piece in reader.read(chunk):
            yield from rows.write(piece)
        yield from rows.close()

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
