"""A restore by several sessions: objects first, then rows, then what needs the rows.

Each member is read by itself, and compared with the manifest before one byte of it is handed out.
Nothing here is one transaction: it is for a database that gets its name when all is done.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from pgstash import events
from pgstash.archive import Archive
from pgstash.errors import CorruptedError, PgstashError, RestoreError
from pgstash.manifest import Manifest
from pgstash.postgres import loader, views
from pgstash.postgres.building import build
from pgstash.postgres.loader import Loader
from pgstash.postgres.restore import Psql
from pgstash.postgres.source import Server
from pgstash.postgres.tools import ClientTools
from pgstash.unpacking import footer, session_only, take_statement

_SECONDS_BETWEEN_PROGRESS = 0.25
_SECONDS_TO_END = 2.0

# What one request reads at most, in bytes, and into how many of them a session's share is cut.
_RUN_BYTES = 32 * 1024 * 1024
_SHARES = 4


@dataclass(frozen=True, slots=True)
class Plan:
    """Where to load to, by how many sessions. ``observe`` is shown what is not rows.

    ``for_drill`` no view is filled that asks a foreign server.
    """

    into: Server
    client: ClientTools
    jobs: int
    lc_monetary: str | None
    environment: Mapping[str, str]
    emit: events.Emit
    observe: Callable[[bytes], None]
    for_drill: bool


class Loading:
    """An archive that is opened for it: the key fits, and its two ends are as they were written."""

    def __init__(self, archive: Archive, watch: Callable[[int], None]) -> None:
        """Open it; ``watch`` hears of the bytes read from the store.

        Raises CorruptedError, EncryptionError, StorageError.
        """
        if archive.manifest is None:
            raise AssertionError("without a manifest there are no members")
        self._manifest = archive.manifest
        self._head = archive.schema()
        self._seeker = archive.seek(watch)
        self._parts = _Parts(archive.manifest)
        self.header = b"".join(
            piece for number in self._parts.header for piece in self._seeker.member(number)
        )
        self.footer = footer(self.header)
        self.raw_bytes = len(self.header)

    def run(self, plan: Plan, progressed: Callable[[int], None]) -> None:
        """Load everything; ``progressed`` hears now and then how many plain bytes were.

        Raises RestoreError, CorruptedError, StorageError. What is in the database by then counts
        for nothing.
        """
        with self._session(plan) as psql:
            for number in self._parts.before:
                for piece in self._compared(number):
                    plan.observe(piece)
                    psql.feed(piece)
            psql.feed(self.footer)
            psql.finish()
        self._load_rows(plan, progressed)
        for number in self._parts.after:
            for piece in self._compared(number):
                plan.observe(piece)
        for number in self._parts.left_out:
            self._compared(number)
        progressed(self.raw_bytes)
        if reason := loader.order_of_views(plan.into):
            plan.emit(events.Notice(f"Views are filled in the order of the script: {reason}"))
        fill = partial(self._fill, plan) if views.may_read_foreign(plan.into) else None
        build(
            plan.into,
            plan.client,
            self._head,
            jobs=plan.jobs,
            options=self._manifest.options,
            views_in_order=reason is not None,
            lc_monetary=plan.lc_monetary,
            environment=plan.environment,
            fill=fill,
        )

    def _fill(self, plan: Plan, found: Sequence[bytes]) -> None:
        views.fill(
            plan.into,
            found,
            session_only(self.header),
            for_drill=plan.for_drill,
            lc_monetary=plan.lc_monetary,
            emit=plan.emit,
        )
        views.warn_of_empty(plan.into, found, plan.emit, for_drill=plan.for_drill)

    @contextlib.contextmanager
    def _session(self, plan: Plan) -> Iterator[Psql]:
        psql = Psql(
            plan.into,
            plan.client,
            one_transaction=False,
            lc_monetary=plan.lc_monetary,
            environment=plan.environment,
            emit=plan.emit,
        )
        with psql:
            psql.feed(self.header)
            yield psql

    def _compared(self, number: int) -> Sequence[bytes]:
        pieces = self._seeker.member(number)
        self.raw_bytes += self._manifest.members[number].raw
        return list(pieces)

    def _load_rows(self, plan: Plan, progressed: Callable[[int], None]) -> None:
        jobs = plan.jobs
        if reason := loader.order_of_rows(plan.into):
            plan.emit(events.Notice(f"Rows are loaded in the order of the script: {reason}"))
            jobs = 1
        first = _queued(self._parts.set_apart(loader.tables_of_extensions(plan.into)))
        todo = _queued(self._parts.runs(jobs))
        done: _Done = queue.SimpleQueue()
        with contextlib.ExitStack() as stack:
            loaders = stack.enter_context(
                loader.opened(
                    plan.into,
                    session_only(self.header),
                    min(jobs, first.qsize() + todo.qsize()),
                    lc_monetary=plan.lc_monetary,
                    emit=plan.emit,
                )
            )
            if first.qsize():
                # What other tables compute may need rows of them all.
                alone = [[partial(self._load, loaders[0], first, done)]]
                self._run(alone, loaders[:1], done, progressed)
            sessions: list[Loader | Psql] = [*loaders]
            tasks = [[partial(self._load, each, todo, done)] for each in loaders] or [[]]
            if self._parts.in_order:
                psql = stack.enter_context(self._session(plan))
                sessions.append(psql)
                # Before it loads: so many sessions are at work at a time as there are to be.
                tasks[0].insert(0, partial(self._run_in_order, psql, done))
            self._run(tasks, sessions, done, progressed)

    def _run(
        self,
        tasks: Sequence[Sequence[_Task]],
        sessions: Sequence[Loader | Psql],
        done: _Done,
        progressed: Callable[[int], None],
    ) -> None:
        """Run all tasks, each list of them in a thread, which use these sessions."""
        stopping = threading.Event()
        threads = [
            threading.Thread(target=_work, args=(each, stopping, done), daemon=True)
            for each in tasks
        ]
        with contextlib.ExitStack() as stack:
            stack.callback(_end, sessions, threads, stopping)
            for thread in threads:
                thread.start()
            self._wait(done, len(threads), progressed)
            for thread in threads:  # their last word is said, and the sessions are used again
                thread.join()

    def _wait(self, done: _Done, running: int, progressed: Callable[[int], None]) -> None:
        """Return when all threads came to their end, or raise what one of them did."""
        while running:
            try:
                result = done.get(timeout=_SECONDS_BETWEEN_PROGRESS)
            except queue.Empty:
                progressed(self.raw_bytes)
                continue
            if isinstance(result, PgstashError):
                raise result
            if isinstance(result, Exception):
                raise RestoreError(f"the rows could not be loaded: {result!r}") from result
            if result is None:
                running -= 1
            else:
                self.raw_bytes += result

    def _run_in_order(self, psql: Psql, done: _Done, stopping: threading.Event) -> None:
        """Run what is no rows: large objects, sequences."""
        for number in self._parts.in_order:
            if stopping.is_set():
                return
            pieces = self._seeker.member(number)
            while pieces:
                psql.feed(pieces.popleft())
            done.put(self._manifest.members[number].raw)
        psql.feed(self.footer)
        psql.finish()

    def _load(
        self,
        session: Loader,
        todo: queue.SimpleQueue[range],
        done: _Done,
        stopping: threading.Event,
    ) -> None:
        """Load rows until there are no more. Raises RestoreError."""
        while not stopping.is_set():
            try:
                run = todo.get_nowait()
            except queue.Empty:
                break
            with contextlib.closing(self._seeker.members(run)) as members:
                numbered = zip(run, members, strict=True)
                for number, pieces in numbered:
                    statement = take_statement(pieces)
                    session.load(statement, self._block(number, pieces, numbered, done))
        if not stopping.is_set():
            session.refuse_swapped()

    def _block(
        self,
        number: int,
        pieces: deque[bytes],
        following: Iterator[tuple[int, deque[bytes]]],
        done: _Done,
    ) -> Iterator[bytes]:
        """Yield a COPY block, which may go on in the members that follow."""
        while True:
            while pieces:
                yield pieces.popleft()
            member = self._manifest.members[number]
            done.put(member.raw)
            if member.rows is not None:
                return
            number, pieces = next(following)


def _queued(runs: Iterable[range]) -> queue.SimpleQueue[range]:
    found: queue.SimpleQueue[range] = queue.SimpleQueue()
    for run in runs:
        found.put(run)
    return found


_Done = queue.SimpleQueue[int | Exception | None]
_Task = Callable[[threading.Event], None]


def _work(tasks: Iterable[_Task], stopping: threading.Event, done: _Done) -> None:
    try:
        for task in tasks:
            task(stopping)
        done.put(None)
    except Exception as error:  # noqa: BLE001 - carried to the caller's thread whole
        done.put(error)


def _end(
    sessions: Sequence[Loader | Psql],
    threads: Sequence[threading.Thread],
    stopping: threading.Event,
) -> None:
    """End all sessions, and then all threads: nothing may be closed under their hands."""
    stopping.set()
    if any(thread.is_alive() for thread in threads):
        for session in sessions:
            session.end()
    give_up = time.monotonic() + _SECONDS_TO_END
    for thread in threads:
        thread.join(max(0.0, give_up - time.monotonic()))


class _Parts:
    """The numbers of an archive's members, by what they are for."""

    def __init__(self, manifest: Manifest) -> None:
        self.header: list[int] = []
        self.before: list[int] = []
        self.rows: list[range] = []
        self.in_order: list[int] = []
        self.after: list[int] = []
        self.left_out: list[int] = []
        goes_on = False
        self._members = manifest.members
        self._tables = manifest.tables
        for number, member in enumerate(manifest.members):
            match member.section:
                case "header":
                    self.header.append(number)
                case "drops":
                    self.left_out.append(number)
                case "pre-data":
                    self.before.append(number)
                case "data" if member.table is not None:
                    first = self.rows.pop().start if goes_on else number
                    self.rows.append(range(first, number + 1))
                    goes_on = member.rows is None
                case "data" | "sequences":
                    self.in_order.append(number)
                case "post-data":
                    self.after.append(number)
                case _:
                    raise CorruptedError("the manifest has a member of no known section")

    def set_apart(self, tables: Collection[tuple[str, str]]) -> list[range]:
        """Return the blocks with rows of these tables, in their order; ``runs`` is without them."""
        numbers = {
            number for number, each in enumerate(self._tables) if (each.schema, each.name) in tables
        }
        apart: list[range] = []
        blocks, self.rows = self.rows, []
        for block in blocks:
            (apart if self._members[block.start].table in numbers else self.rows).append(block)
        return apart

    def runs(self, jobs: int) -> list[range]:
        """Return the members with rows, by what one request reads and one session loads.

        The last ones are short, so that all sessions come to their end together.
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
