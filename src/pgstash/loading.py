"""A restore by several sessions: objects first, then rows in any order, then what needs the rows.

Each member is read by itself, and compared with the manifest before one byte of it is handed out.
Nothing here is one transaction: it is for a database that gets its name when all is done.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from pgstash import events
from pgstash.archive import Archive
from pgstash.errors import CorruptedError, PgstashError, RestoreError
from pgstash.manifest import Manifest
from pgstash.postgres.building import build
from pgstash.postgres.restore import Psql
from pgstash.postgres.source import Server
from pgstash.postgres.tools import ClientTools
from pgstash.unpacking import footer

_SECONDS_BETWEEN_PROGRESS = 0.25
_SECONDS_TO_END = 2.0


@dataclass(frozen=True, slots=True)
class Plan:
    """Where to load to, by how many sessions. ``observe`` is shown what is not rows."""

    into: Server
    client: ClientTools
    jobs: int
    lc_monetary: str | None
    environment: Mapping[str, str]
    emit: events.Emit
    observe: Callable[[bytes], None]


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
        build(
            plan.into,
            plan.client,
            self._head,
            jobs=plan.jobs,
            lc_monetary=plan.lc_monetary,
            environment=plan.environment,
        )

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
        todo: queue.SimpleQueue[Sequence[int]] = queue.SimpleQueue()
        done: queue.SimpleQueue[int | Exception | None] = queue.SimpleQueue()
        if self._parts.in_order:
            todo.put(self._parts.in_order)
        for numbers in self._parts.rows:
            todo.put(numbers)
        with contextlib.ExitStack() as stack:
            sessions = [stack.enter_context(self._session(plan)) for _ in range(plan.jobs)]
            stopping = threading.Event()
            threads = [
                threading.Thread(target=self._work, args=(psql, todo, done, stopping), daemon=True)
                for psql in sessions
            ]
            stack.callback(_end, sessions, threads, stopping)
            for thread in threads:
                thread.start()
            running = len(threads)
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

    def _work(
        self,
        psql: Psql,
        todo: queue.SimpleQueue[Sequence[int]],
        done: queue.SimpleQueue[int | Exception | None],
        stopping: threading.Event,
    ) -> None:
        try:
            while not stopping.is_set():
                try:
                    numbers = todo.get_nowait()
                except queue.Empty:
                    break
                for number in numbers:
                    pieces = self._seeker.member(number)
                    while pieces:
                        psql.feed(pieces.popleft())
                    done.put(self._manifest.members[number].raw)
            psql.feed(self.footer)
            psql.finish()
            done.put(None)
        except Exception as error:  # noqa: BLE001 - carried to the caller's thread whole
            done.put(error)


def _end(
    sessions: Sequence[Psql], threads: Sequence[threading.Thread], stopping: threading.Event
) -> None:
    """End all sessions, and then all threads: nothing may be closed under their hands."""
    stopping.set()
    if any(thread.is_alive() for thread in threads):
        for psql in sessions:
            psql.end()
    give_up = time.monotonic() + _SECONDS_TO_END
    for thread in threads:
        thread.join(max(0.0, give_up - time.monotonic()))


class _Parts:
    """The numbers of an archive's members, by what they are for."""

    def __init__(self, manifest: Manifest) -> None:
        self.header: list[int] = []
        self.before: list[int] = []
        self.rows: list[list[int]] = []
        self.in_order: list[int] = []
        self.after: list[int] = []
        self.left_out: list[int] = []
        goes_on = False
        for number, member in enumerate(manifest.members):
            match member.section:
                case "header":
                    self.header.append(number)
                case "drops":
                    self.left_out.append(number)
                case "pre-data":
                    self.before.append(number)
                case "data" if member.table is not None:
                    if goes_on:
                        self.rows[-1].append(number)
                    else:
                        self.rows.append([number])
                    goes_on = member.rows is None
                case "data" | "sequences":
                    self.in_order.append(number)
                case "post-data":
                    self.after.append(number)
                case _:
                    raise CorruptedError("the manifest has a member of no known section")
