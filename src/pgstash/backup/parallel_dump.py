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
import textwrap
from collections.abc import Iterator
from dataclasses import replace

from pgstash import events, steady
from pgstash.errors import (
    DatabaseError,
    DumpError,
    LockTimeoutError,
    PoolerError,
    WriterLostError,
)
from pgstash.manifest import Member, Section
from pgstash.pieces import Pieces, Plan
from pgstash.pipeline.opening import Border, Opening
from pgstash.pipeline.packing import Packed, pack_all
from pgstash.pipeline.tally import split_name
from pgstash.postgres import baseline, copying, extensions, outline
from pgstash.postgres.baseline import Baseline
from pgstash.postgres.copying import LockRefusedError
from pgstash.postgres.outline import CompositionError, Script

_TRIES_TO_LOCK = 3
_LONGEST_REASON = 1000  # characters: pg_dump names all tables that it could not lock
# A snapshot that another transaction took serves no serializable, deferrable one.
_NOT_SHARED = "--serializable-deferrable"


class Impossible(Exception):  # noqa: N818 - no error: one pg_dump does the work then
    """Why this database cannot be dumped by several sessions, in words."""


class Parallel:
    """A dump whose sessions hold their snapshot and all their locks.

    ``schema`` is pg_dump's table of contents; ``members`` and ``rows``, the number of rows by the
    name of the table as the dump writes it, are complete when :meth:`archive` came to its end.
    """

    def __init__(
        self, plan: Plan, schema: bytes, pieces: Pieces, sequences: bytes, tables: Baseline
    ) -> None:
        """Take over what was prepared; ``sequences`` are statements that pg_dump does not write."""
        self.schema = schema
        self.members: list[Member] = []
        self.rows: dict[bytes, int] = dict.fromkeys(pieces.tables, 0)
        self.raw_bytes = 0
        self._plan = plan
        self._pieces = pieces
        self._sequences = sequences
        self._baseline = tables
        self._offset = 0
        self._numbers = {name: number for number, name in enumerate(pieces.tables)}

    def archive(self) -> Iterator[bytes]:
        """Yield the members, compressed. Raises DumpError, PipelineError."""
        for section, text in self._pieces.before:
            yield from self._placed(text, section)
        for done in self._pieces.run():
            yield b"".join(map(self._place, done))
        self._check()
        if self._sequences:
            yield from self._placed(self._sequences, "sequences")
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
        """Raise where the pieces do not hold the rows of just the tables that pg_dump lists.

        And where these may be those of others, because their schema was renamed.
        """
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
        self._baseline.refuse_renamed(sorted(map(split_name, self.rows)))


@contextlib.contextmanager
def opened(plan: Plan, patience: steady.Patience) -> Iterator[Parallel]:
    """Start a dump by several sessions; nothing of it is read before it can be whole.

    Raises Impossible where one pg_dump has to do it, what a dump raises otherwise. Leaving the
    block ends all sessions.
    """
    if plan.server.major < copying.FIRST_MAJOR:
        raise Impossible(f"PostgreSQL {plan.server.major} cannot read a table by ranges of pages")
    if _NOT_SHARED in plan.options:
        raise Impossible(f"{_NOT_SHARED} needs a snapshot that cannot be shared")
    refusals = 0

    def prepare(stack: contextlib.ExitStack, tables: Baseline) -> Parallel:
        nonlocal refusals
        try:
            return _prepared(plan, stack, tables)
        except LockRefusedError as error:
            refusals += 1
            if refusals == _TRIES_TO_LOCK:
                raise Impossible(error.message) from error
            raise

    with contextlib.ExitStack() as stack:
        try:
            made = stack.enter_context(steady.begun(plan, patience, prepare))
        except (LockTimeoutError, PoolerError, WriterLostError):
            raise  # one pg_dump would wait as long, and be given as many sessions
        except DatabaseError as error:
            said = textwrap.shorten(error.message, _LONGEST_REASON, placeholder=" …")
            raise Impossible(said) from error
        yield made


def _prepared(plan: Plan, stack: contextlib.ExitStack, tables: Baseline) -> Parallel:
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
        loaded = {entry.oid: into[0] for entry in contents.entries if (into := entry.loads_into)}
        baseline.refuse(tables.of_tables(loaded))
        script = outline.script(contents, plan.client, plan.options, plan.environment)
        big = snapshot.cut(contents.entries)
        # The second pg_dump locks all tables once more, and each reader the big ones.
        wanted = len(loaded) + plan.jobs * len(big)
        if wanted > snapshot.room_for_locks() * 3 // 4:
            raise Impossible(
                f"it would take {wanted} more locks, and the server has to have room for others: "
                "raise its max_locks_per_transaction"
            )
        if big and (reason := snapshot.kept_order()):
            plan.emit(events.Notice(f"All rows are left to pg_dump, in its order: {reason}"))
            big = []
        more = extensions.additions(plan.server, plan.options, loaded)
        before = list(_before(script))
        if more.before_rows:
            before.append(("pre-data", more.before_rows))
        first = snapshot.of_extensions(contents.entries, more.conditions)
        names = list(loaded.values())
        pieces = Pieces(plan, before, script.after, names, big, first=first)
        # The others have their locks before the first pg_dump gives its own back at the end of this
        # block. If all that it writes fits into the pipe it may have done so before: compare again.
        pieces.open(stack, snapshot)
        baseline.refuse(tables.of_tables(loaded))
        return Parallel(plan, contents.head, pieces, more.sequences, tables)


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
