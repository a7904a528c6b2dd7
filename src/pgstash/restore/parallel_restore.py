"""A restore by several sessions: objects first, then rows, then what depends on the rows.

Each member is read by itself, and compared with the manifest before its first byte is used. There
is no single transaction: this is for a staging database, which is renamed when all is done.
"""

from __future__ import annotations

import contextlib
import queue
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from pgstash import events, workers
from pgstash.errors import PgstashError, RestoreError
from pgstash.pipeline.decompression import Edit
from pgstash.postgres.restore import copy_loader, foreign_views
from pgstash.postgres.restore.copy_loader import Loader
from pgstash.postgres.restore.post_data import PostData, build
from pgstash.postgres.restore.psql import Psql
from pgstash.postgres.server.connection import Server
from pgstash.postgres.tools.tool_run import ToolRun
from pgstash.repository.archive import Archive
from pgstash.repository.script import session_only, take_statement, unrestrict_line
from pgstash.restore.member_runs import MemberRuns
from pgstash.throttle import PROGRESS_SECONDS
from pgstash.workers import Crew

_SECONDS_TO_END = 2.0


@dataclass(frozen=True, slots=True)
class Plan:
    """Where to restore to, and by how many sessions (``jobs``).

    ``observe`` receives everything but the rows. In a drill (``for_drill``) views that read from a
    foreign server are not filled.
    """

    into: Server
    tool_run: ToolRun
    jobs: int
    lc_monetary: str | None
    observe: Callable[[bytes], None]
    for_drill: bool


class ParallelRestore:
    """An archive that is open for a parallel restore: the key fits, and both ends are verified."""

    def __init__(self, archive: Archive, watch: Callable[[int], None]) -> None:
        """Open the archive; ``watch`` receives the number of bytes read from the store so far.

        Raises CorruptedError, EncryptionError, StorageError.
        """
        if archive.manifest is None:
            raise AssertionError("without a manifest there are no members")
        self._manifest = archive.manifest
        self._head = archive.schema()
        self._edit: Edit | None = None
        self._seeker = archive.seek(watch)
        self._members = MemberRuns(archive.manifest)
        self.header = b"".join(
            piece for number in self._members.header for piece in self._seeker.member(number)
        )
        self.unrestrict_line = unrestrict_line(self.header)
        self.raw_bytes = len(self.header)

    def leave_out(self, edit: Edit, head: bytes) -> None:
        """Change the definitions before the rows by ``edit``; ``head`` has those after them."""
        self._edit = edit
        self._head = head

    def run(self, plan: Plan, progressed: Callable[[int], None]) -> None:
        """Restore everything; ``progressed`` receives the number of plain bytes so far.

        Raises RestoreError, CorruptedError, StorageError. The database is incomplete then.
        """
        emit = plan.tool_run.emit
        emit(events.PhaseStarted("objects"))
        with self._session(plan) as psql:
            for number in self._members.before:
                for piece in self._verified(number):
                    plan.observe(piece)
                    psql.feed(self._edit.feed(piece) if self._edit else piece)
            psql.feed((self._edit.rest() if self._edit else b"") + self.unrestrict_line)
            psql.finish()
        emit(events.PhaseStarted("rows"))
        self._load_rows(plan, progressed)
        for number in self._members.after:
            for piece in self._verified(number):
                plan.observe(piece)
        for number in self._members.unused:
            self._verified(number)
        progressed(self.raw_bytes)
        if reason := copy_loader.order_of_views(plan.into):
            emit(events.Notice(f"Views are filled in the order of the script: {reason}"))
        fill = partial(self._fill, plan) if foreign_views.may_read_foreign(plan.into) else None
        post_data = PostData(
            self._head,
            self._manifest.options,
            views_in_order=reason is not None,
            lc_monetary=plan.lc_monetary,
            fill=fill,
        )
        build(plan.into, plan.tool_run, post_data, jobs=plan.jobs)

    def _fill(self, plan: Plan, found: Sequence[bytes]) -> None:
        foreign_views.fill(
            plan.into,
            [foreign_views.filling(view, for_drill=plan.for_drill) for view in found],
            session_only(self.header),
            lc_monetary=plan.lc_monetary,
            emit=plan.tool_run.emit,
        )
        foreign_views.warn_of_empty(plan.into, found, plan.tool_run.emit, for_drill=plan.for_drill)

    @contextlib.contextmanager
    def _session(self, plan: Plan) -> Iterator[Psql]:
        psql = Psql(plan.into, plan.tool_run, one_transaction=False, lc_monetary=plan.lc_monetary)
        with psql:
            psql.feed(self.header)
            yield psql

    def _verified(self, number: int) -> Sequence[bytes]:
        pieces = self._seeker.member(number)
        self.raw_bytes += self._manifest.members[number].raw
        return list(pieces)

    def _load_rows(self, plan: Plan, progressed: Callable[[int], None]) -> None:
        jobs = plan.jobs
        if reason := copy_loader.order_of_rows(plan.into):
            plan.tool_run.emit(
                events.Notice(f"Rows are loaded in the order of the script: {reason}")
            )
            jobs = 1
        first = _queued(self._members.set_apart(copy_loader.tables_of_extensions(plan.into)))
        todo = _queued(self._members.runs(jobs))
        with contextlib.ExitStack() as stack:
            loaders = stack.enter_context(
                copy_loader.opened(
                    plan.into,
                    session_only(self.header),
                    min(jobs, first.qsize() + todo.qsize()),
                    lc_monetary=plan.lc_monetary,
                    emit=plan.tool_run.emit,
                )
            )
            if first.qsize():
                # What other tables compute may need the rows of extensions, all of them.
                self._run([partial(self._load, loaders[0], first)], loaders[:1], progressed)
            sessions: list[Loader | Psql] = [*loaders]
            tasks = [[partial(self._load, each, todo)] for each in loaders] or [[]]
            if self._members.in_order:
                psql = stack.enter_context(self._session(plan))
                sessions.append(psql)
                # Before its thread loads rows, so that no more than ``jobs`` sessions work at once.
                tasks[0].insert(0, partial(self._run_in_order, psql))
            self._run([partial(_in_turn, each) for each in tasks], sessions, progressed)

    def _run(
        self,
        tasks: Sequence[_Task],
        sessions: Sequence[Loader | Psql],
        progressed: Callable[[int], None],
    ) -> None:
        """Run all tasks, each in a thread of its own; they use these sessions.

        If one of them fails, or a signal comes, all sessions are ended, and the threads are joined
        for a limited time: nothing should be closed while a thread still uses it.
        """
        results = workers.crew(
            [partial(_translated, task) for task in tasks],
            stop=partial(_end, sessions),
            seconds_to_end=_SECONDS_TO_END,
            idle=(PROGRESS_SECONDS, 0),
        )
        with contextlib.closing(results):
            for raw_bytes in results:
                self.raw_bytes += raw_bytes
                progressed(self.raw_bytes)

    def _run_in_order(self, psql: Psql, crew: Crew[int]) -> None:
        """Run what is not rows of tables: large objects, sequences."""
        for number in self._members.in_order:
            if crew.stopping:
                return
            pieces = self._seeker.member(number)
            while pieces:
                psql.feed(pieces.popleft())
            crew.hand_over(self._manifest.members[number].raw)
        psql.feed(self.unrestrict_line)
        psql.finish()

    def _load(self, session: Loader, todo: queue.SimpleQueue[range], crew: Crew[int]) -> None:
        """Load rows until there are no more. Raises RestoreError."""
        while not crew.stopping:
            try:
                run = todo.get_nowait()
            except queue.Empty:
                break
            with contextlib.closing(self._seeker.members(run)) as members:
                numbered = zip(run, members, strict=True)
                for number, pieces in numbered:
                    statement = take_statement(pieces)
                    session.load(statement, self._block(number, pieces, numbered, crew))
        if not crew.stopping:
            session.refuse_swapped()

    def _block(
        self,
        number: int,
        pieces: deque[bytes],
        following: Iterator[tuple[int, deque[bytes]]],
        crew: Crew[int],
    ) -> Iterator[bytes]:
        """Yield a COPY block, which may continue in the following members."""
        while True:
            while pieces:
                yield pieces.popleft()
            member = self._manifest.members[number]
            crew.hand_over(member.raw)
            if member.rows is not None:
                return
            number, pieces = next(following)


_Task = Callable[[Crew[int]], None]


def _queued(runs: Iterable[range]) -> queue.SimpleQueue[range]:
    found: queue.SimpleQueue[range] = queue.SimpleQueue()
    for run in runs:
        found.put(run)
    return found


def _end(sessions: Sequence[Loader | Psql]) -> None:
    for session in sessions:
        session.end()


def _in_turn(tasks: Iterable[_Task], crew: Crew[int]) -> None:
    for task in tasks:
        task(crew)


def _translated(task: _Task, crew: Crew[int]) -> None:
    try:
        task(crew)
    except PgstashError:
        raise
    except Exception as error:  # whatever a thread met, the rows are incomplete
        raise RestoreError(f"the rows could not be loaded: {error!r}") from error
