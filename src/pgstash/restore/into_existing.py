"""Restores single tables into a database that is in use, next to everything else in it.

One transaction creates the tables with their rows and all that belongs to them. What connects them
with other tables is made afterwards, statement by statement: it locks tables that applications use,
and may be impossible by now.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pgstash import events
from pgstash.counting import counted
from pgstash.errors import Interrupted, PgstashError, TableNotStoredError
from pgstash.postgres.restore import owners_and_privileges, presence, session_settings
from pgstash.postgres.restore.copy_loader import Loader
from pgstash.postgres.restore.placing import Placement
from pgstash.postgres.restore.request import Request
from pgstash.postgres.restore.target import LockTable, Outcome
from pgstash.postgres.restore.transaction import Transaction
from pgstash.postgres.server.connection import Server
from pgstash.postgres.server.lock_waits import warn_of_lock_waits
from pgstash.postgres.tools import toc
from pgstash.postgres.tools.toc import Entry
from pgstash.repository.archive import Archive
from pgstash.restore import planner_statistics, preflight, table_owners, table_parts
from pgstash.restore.administrator_file import AdministratorFile
from pgstash.restore.connecting import connect, warn_of_interruption
from pgstash.restore.state import Progress, State
from pgstash.restore.table_parts import Parts
from pgstash.restore.table_places import (
    codec_of,
    listed,
    placed,
    planned,
    refuse_lacking,
    refuse_taken,
    renamed,
    some,
    text,
    warn_of_publications,
)
from pgstash.restore.table_rows import load
from pgstash.restore.table_selection import Selection

_SETUP = (b"ENCODING", b"STDSTRINGS", b"SEARCHPATH")
# As pg_restore sets them (_doSetFixedOutputState() in pg_backup_archiver.c).
_FIXED = (
    b"SET check_function_bodies = false;\n"
    b"SET xmloption = content;\n"
    b"SET client_min_messages = warning;\n"
    b"SET row_security = off;\n"
)


@dataclass(frozen=True, slots=True)
class Job:
    """Tables to restore into an existing database: the ``selection``, and where to read it."""

    archive: Archive
    selection: Selection
    server: Server
    request: Request
    emit: events.Emit


def prepared(
    archive: Archive,
    selection: Selection | None,
    server: Server,
    request: Request,
    emit: events.Emit,
) -> IntoExisting | None:
    """Return the restore of a selection into an existing database, if that is what was asked for.

    Raises an error if it is impossible: TableNotStoredError, TargetNotEmptyError, TargetLacksError,
    another RestoreError.
    """
    if selection is None or not request.into_existing:
        return None
    found = IntoExisting(Job(archive, selection, server, request, emit))
    found.refuse()
    return found


class IntoExisting:
    """A restore of single tables into an existing database."""

    def __init__(self, job: Job) -> None:
        """Find what belongs to the tables. Raises TableNotStoredError."""
        self._job = job
        contents = toc.read(job.selection.head)
        if contents is None:
            raise TableNotStoredError(
                f"the schema companion of {job.archive.name} is truncated",
                hint="Restore the whole backup with --create.",
            )
        self._contents = contents
        self._parts = table_parts.of_tables(contents, job.selection.tables)
        self._codec = codec_of(job.selection.manifest, job.server)
        self._lost: Sequence[Entry] = ()
        self._refused: Sequence[table_owners.Refused] = ()
        objects = self._parts.objects
        self._placement = Placement(objects, {name: name for name in objects.all})
        self._header = _FIXED + b"".join(
            toc.definition(contents, entry)
            for entry in contents.entries
            if entry.description in _SETUP
        )

    def refuse(self) -> None:
        """Raise an error if the tables cannot be restored; in a dry run, report what would be done.

        Raises TargetNotEmptyError, TargetLacksError, RestoreError.
        """
        parts, emit = self._parts, self._job.emit
        with self._session() as session:
            self._placement = placed(session.run, parts, self._job.request.renamed, self._codec)
            refuse_taken(session.run, self._placement, self._job.server, self._codec)
            refuse_lacking(session.run, parts, self._placement, self._job.server, self._codec)
            warn_of_publications(session.run, self._placement, self._job.server, self._codec, emit)
            if not self._is_copy:
                self._lost = presence.missing(session.run, parts.dependents)
        if empty := _without_rows(self._contents, parts, self._codec):
            emit(
                events.Warned(
                    f"The backup has no rows of {some(empty)}: EXCLUDE_TABLE_DATA or an option of "
                    "pg_dump left them out"
                )
            )
        if self._job.request.dry_run:
            emit(events.Informed(planned(parts, self._codec, copy=self._is_copy)))
            self._warn_of_lost()
        if others := renamed(self._placement, self._codec):
            emit(events.Informed(others))

    def run(
        self,
        progress: Progress,
        state: State,
        locks: LockTable,
        lc_monetary: str | None,
        administrator: AdministratorFile,
    ) -> int:
        """Restore the tables by one session, and return this number.

        Owners and privileges that are refused are for the ``administrator``. Raises RestoreError,
        CorruptedError, StorageError.
        """
        job = self._job
        attempts = () if self._is_copy else self._parts.attempts
        try:
            with preflight.explained(job.archive.manifest, job.server, locks, job.request):
                self._transact(progress, state, lc_monetary)
        except (PgstashError, Interrupted) as error:
            # It may have committed, although the answer was lost.
            if state.target.outcome is not Outcome.COMMITTED:
                raise
            if isinstance(error, Interrupted):
                self._report(administrator)
                warn_of_interruption(self._contents, attempts, self._codec, job.emit)
                raise
            job.emit(events.Warned(f"The tables were restored, but then: {error}"))
        self._report(administrator)
        connect(self._session, self._contents, attempts, self._codec, job.emit)
        final = (self._placement.names[name] for name in self._placement.objects.tables)
        names = [text(b".".join(name), self._codec) for name in final]
        planner_statistics.analyse(job.server, job.request, names, job.emit)
        return 1

    def _transact(self, progress: Progress, state: State, lc_monetary: str | None) -> None:
        """Create the tables and load their rows."""
        job, parts = self._job, self._parts
        with warn_of_lock_waits(job.server, lambda: state.raw_bytes, job.emit) as watched:
            transaction = Transaction(watched, self._header, lc_monetary=lc_monetary, emit=job.emit)
            try:
                with transaction:
                    self._placement.begin(transaction.run)
                    self._create(transaction, parts.before)
                    table_owners.give_early(transaction, parts, self._placement, job.request)
                    load(transaction, self._placement, job.archive, job.selection, progress)
                    self._create(transaction, parts.after)
                    self._placement.finish(transaction.run)
                    self._refused = table_owners.give(
                        transaction, self._contents, parts, self._placement, job.request
                    )
                    transaction.commit()
            finally:
                state.target.outcome = transaction.outcome

    def _report(self, administrator: AdministratorFile) -> None:
        """Report what the restored tables lack."""
        session = owners_and_privileges.session_of(self._header)
        table_owners.warn(self._refused, session, administrator)
        self._warn_of_lost()
        if self._is_copy and (left_out := [attempt.entry for attempt in self._parts.attempts]):
            self._job.emit(
                events.Informed(f"Left out, because it is a copy: {listed(left_out, self._codec)}")
            )

    @property
    def _is_copy(self) -> bool:
        """Whether the table gets another name, next to the one that may exist."""
        return bool(self._job.request.renamed)

    def _warn_of_lost(self) -> None:
        """Warn of objects that were dropped with the tables."""
        if not self._lost:
            return
        count = counted(len(self._lost), "object")
        self._job.emit(
            events.Warned(
                f"The database lacks {count} of the backup that cannot exist without these "
                f"tables: {listed(self._lost, self._codec)}\n"
                "They are not restored. `pgstash cat "
                f"{self._job.archive.name}` prints their definitions",
                to_do=True,
            )
        )

    @contextlib.contextmanager
    def _session(self) -> Iterator[Loader]:
        job = self._job
        session = Loader(
            job.server,
            self._header,
            lc_monetary=None,
            emit=job.emit,
            settings=session_settings.NEUTRAL,
        )
        with contextlib.closing(session):
            yield session

    def _create(self, transaction: Transaction, entries: Sequence[Entry]) -> None:
        for entry in entries:
            if definition := toc.definition(self._contents, entry):
                transaction.run(self._placement.created(definition))


def _without_rows(contents: toc.Contents, parts: Parts, codec: str) -> list[str]:
    """Return the names of tables whose rows were not dumped; an empty table is not one of them."""
    dumped = {number for each in contents.entries if each.loads_into for number in each.depends_on}
    return [
        text(b".".join((each.schema, each.tag)), codec)
        for each in parts.tables
        if each.number not in dumped
        and each.description == b"TABLE"
        and b"\nPARTITION BY " not in toc.definition(contents, each)
    ]
