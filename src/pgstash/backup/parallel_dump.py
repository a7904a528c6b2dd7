"""A dump by several sessions at once, whose result is still one plain script.

pg_dump writes everything but the rows of big tables: the statements that create the objects, and
the rows of all other tables. psql reads the rows of big tables in ranges of pages, under the same
snapshot as pg_dump. Members of rows are stored in the order in which they are finished: between
creating the tables and creating their indexes and constraints no order is needed. Otherwise all
rows are left to pg_dump (:mod:`pgstash.postgres.server.row_order`).
"""

from __future__ import annotations

import contextlib
import itertools
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from pgstash import events
from pgstash.backup import start_retries
from pgstash.backup.dump_workers import DumpWorkers, Plan
from pgstash.errors import (
    DatabaseError,
    DumpError,
    LockTimeoutError,
    PoolerError,
    WriterLostError,
)
from pgstash.format.manifest import Member, Section
from pgstash.pipeline.member_writer import Packed, pack_all
from pgstash.pipeline.sections import Border, Sections
from pgstash.pipeline.sql_scanner import split_name
from pgstash.postgres.dump import (
    baseline,
    extension_tables,
    owners_and_privileges,
    schema_dump,
)
from pgstash.postgres.dump import snapshot as copying
from pgstash.postgres.dump.baseline import Baseline
from pgstash.postgres.dump.moment import Moment
from pgstash.postgres.dump.owners_and_privileges import Objects
from pgstash.postgres.dump.schema_dump import CompositionError, Script
from pgstash.postgres.dump.snapshot import LockRefusedError
from pgstash.postgres.tools.toc import Contents

_TRIES_TO_LOCK = 3
_LONGEST_REASON = 1000  # characters: pg_dump names all tables that it could not lock
# A snapshot that another transaction took serves no serializable, deferrable one.
_NOT_SHARED = "--serializable-deferrable"


class ParallelDumpUnavailable(Exception):  # noqa: N818 - no error: one pg_dump does it instead
    """The reason, in words, why several sessions cannot dump this database."""


@dataclass(frozen=True, slots=True)
class _Statements:
    """The script without its rows; ``sequences`` are statements that pg_dump does not write.

    ``schema`` is the table of contents that it was made of, as was the script of the ``owners``.
    """

    before: Sequence[tuple[Section, bytes]]
    sequences: bytes
    after: bytes
    schema: bytes
    owners: Objects | CompositionError


class ParallelDump:
    """A dump whose sessions hold their snapshot and all their locks.

    ``schema`` is pg_dump's table of contents, ``owners`` the script of owners and privileges, or
    why there is none. ``members`` and ``rows``, the number of rows by the name of the table as the
    dump writes it, are complete when :meth:`archive` has ended.
    """

    def __init__(
        self,
        plan: Plan,
        statements: _Statements,
        workers: DumpWorkers,
        tables: Baseline,
    ) -> None:
        """Take over the sessions that were started, and what is known of the tables."""
        self.schema = statements.schema
        self.owners = statements.owners
        self.members: list[Member] = []
        self.rows: dict[bytes, int] = dict.fromkeys(workers.tables, 0)
        self.raw_bytes = 0
        self.moment: Moment | None = None
        self._plan = plan
        self._statements = statements
        self._workers = workers
        self._baseline = tables
        self._offset = 0
        self._numbers = {name: number for number, name in enumerate(workers.tables)}

    def archive(self) -> Iterator[bytes]:
        """Yield the members, compressed. Raises DumpError, PipelineError."""
        for section, text in self._statements.before:
            yield from self._placed(text, section)
        for done in self._workers.run():
            yield b"".join(map(self._place, done))
        self._check()
        if self._statements.sequences:
            yield from self._placed(self._statements.sequences, "sequences")
        yield from self._placed(self._statements.after, "post-data")

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
        """Compare the tables whose rows were dumped with those that pg_dump lists.

        Raises DumpError if they differ, or if a schema was renamed, so that the rows may be those
        of other tables.
        """
        found = self._workers.left_to_pg_dump
        twice = found & self._workers.copied
        missing = set(self._workers.tables) - found - self._workers.copied
        if twice or missing:
            names = ", ".join(
                name.decode(self._plan.server.codec, "replace")
                for name in itertools.islice(sorted(twice | missing), 5)
            )
            raise DumpError(
                f"the rows of some tables were dumped twice or not at all: {names}",
                hint="Set DUMP_JOBS=1, and report this.",
            )
        self._baseline.refuse_renamed(sorted(map(split_name, self.rows)))


@contextlib.contextmanager
def opened(plan: Plan, retries: start_retries.Retries) -> Iterator[ParallelDump]:
    """Start a dump by several sessions; none of it is read before it is known to be whole.

    Raises ParallelDumpUnavailable if one pg_dump has to make the dump, and what a dump raises
    otherwise. Leaving the block ends all sessions.
    """
    if plan.server.major < copying.FIRST_MAJOR:
        raise ParallelDumpUnavailable(
            f"PostgreSQL {plan.server.major} cannot read a table by ranges of pages"
        )
    if _NOT_SHARED in plan.options:
        raise ParallelDumpUnavailable(f"{_NOT_SHARED} needs a snapshot that cannot be shared")
    refusals = 0

    def prepare(stack: contextlib.ExitStack, tables: Baseline) -> ParallelDump:
        nonlocal refusals
        try:
            return _prepared(plan, stack, tables)
        except LockRefusedError as error:
            refusals += 1
            if refusals == _TRIES_TO_LOCK:
                raise ParallelDumpUnavailable(error.message) from error
            raise

    with contextlib.ExitStack() as stack:
        try:
            made = stack.enter_context(start_retries.started(plan, retries, prepare))
        except (LockTimeoutError, PoolerError, WriterLostError):
            raise  # one pg_dump would fail in the same way
        except DatabaseError as error:
            said = textwrap.shorten(error.message, _LONGEST_REASON, placeholder=" …")
            raise ParallelDumpUnavailable(said) from error
        yield made


def _prepared(plan: Plan, stack: contextlib.ExitStack, tables: Baseline) -> ParallelDump:
    snapshot = stack.enter_context(copying.snapshot(plan.server))
    with schema_dump.opened(
        plan.server, plan.tool_run, plan.options, plan.limits, snapshot=snapshot.name
    ) as contents:
        loaded = {entry.oid: into[0] for entry in contents.entries if (into := entry.loads_into)}
        baseline.refuse(tables.of_tables(loaded))
        script = schema_dump.script(contents, plan.tool_run, plan.options)
        big = snapshot.cut(contents.entries)
        # The second pg_dump locks all tables once more, and each reader locks the big ones.
        wanted = len(loaded) + plan.jobs * len(big)
        if wanted > snapshot.room_for_locks() * 3 // 4:
            raise ParallelDumpUnavailable(
                f"it would take {wanted} more locks, and the server has to have room for others: "
                "raise its max_locks_per_transaction"
            )
        if big and (reason := snapshot.kept_order()):
            plan.tool_run.emit(
                events.Notice(f"All rows are left to pg_dump, in its order: {reason}")
            )
            big = []
        more = extension_tables.additions(plan.server, plan.options, loaded)
        before = list(_before(script))
        if more.before_rows:
            before.append(("pre-data", more.before_rows))
        first = snapshot.of_extensions(contents.entries, more.conditions)
        workers = DumpWorkers(plan, list(loaded.values()), big, first)
        # Normally the readers and the second pg_dump hold their locks before the first pg_dump
        # releases its own at the end of this block. If its whole output fits into the pipe, it may
        # have exited earlier: check again for rewritten tables.
        workers.open(stack, snapshot)
        baseline.refuse(tables.of_tables(loaded))
        owners = _owners(plan, contents)
        statements = _Statements(before, more.sequences, script.after, contents.head, owners)
        return ParallelDump(plan, statements, workers, tables)


def _owners(plan: Plan, contents: Contents) -> Objects | CompositionError:
    """Return the script of owners and privileges. A dump without it is still a dump."""
    try:
        return owners_and_privileges.of_objects(plan.tool_run, contents)
    except CompositionError as error:
        return error


def _before(script: Script) -> Iterator[tuple[Section, bytes]]:
    """Yield the script before the rows in sections: session header, drops, pre-data."""
    sections = Sections()
    section: Section | None = None
    parts: dict[Section, list[bytes]] = {"header": [], "drops": [], "pre-data": []}
    for piece in sections.split([script.before + script.after]):
        if isinstance(piece, Border):
            section = piece.section
        else:
            parts[section or "pre-data"].append(piece)
    if not sections.found:
        raise CompositionError("the script does not begin as expected")
    for name, found in parts.items():
        text = b"".join(found)
        if name == "pre-data":
            text = text[: len(text) - len(script.after)]
        if text:
            yield name, text
