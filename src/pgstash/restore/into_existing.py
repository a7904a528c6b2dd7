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
from pgstash.errors import TableNotStoredError, TargetLacksError, TargetNotEmptyError
from pgstash.postgres.restore import presence, session_settings, statistics
from pgstash.postgres.restore.copy_loader import Loader
from pgstash.postgres.restore.request import Request
from pgstash.postgres.restore.target import LockTable
from pgstash.postgres.restore.transaction import Transaction
from pgstash.postgres.server.connection import Server
from pgstash.postgres.server.lock_waits import warn_of_lock_waits
from pgstash.postgres.server.quoting import identifier, qualified
from pgstash.postgres.tools import toc
from pgstash.postgres.tools.toc import Entry
from pgstash.repository.archive import Archive
from pgstash.restore import preflight, table_owners, table_parts
from pgstash.restore.connecting import connect
from pgstash.restore.state import Progress, State
from pgstash.restore.table_parts import Parts
from pgstash.restore.table_rows import load
from pgstash.restore.table_selection import Selection

_SHOWN = 10
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
        self._lost: Sequence[Entry] = ()
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
            self._refuse_taken(session.run)
            self._refuse_lacking(session.run)
            self._lost = presence.missing(session.run, parts.dependents)
        if empty := _without_rows(self._contents, parts):
            emit(
                events.Warned(
                    f"The backup has no rows of {_some(empty)}: EXCLUDE_TABLE_DATA or an option of "
                    "pg_dump left them out"
                )
            )
        if self._job.request.dry_run:
            emit(events.Informed(_planned(parts)))
            self._warn_of_lost()

    def run(
        self, progress: Progress, state: State, locks: LockTable, lc_monetary: str | None
    ) -> int:
        """Restore the tables by one session, and return this number.

        Raises RestoreError, CorruptedError, StorageError.
        """
        job = self._job
        with preflight.explained(job.archive.manifest, job.server, locks, job.request):
            refused = self._transact(progress, state, lc_monetary)
        table_owners.warn(refused, job.emit)
        self._warn_of_lost()
        connect(self._session, self._contents, self._parts.attempts, job.emit)
        names = [_text(b".".join((each.schema, each.tag))) for each in self._parts.tables]
        statistics.update(job.server, job.request, 1, job.emit, names)
        return 1

    def _transact(
        self, progress: Progress, state: State, lc_monetary: str | None
    ) -> Sequence[table_owners.Refused]:
        """Create the tables and load their rows; return the statements that were refused."""
        job, parts = self._job, self._parts
        with warn_of_lock_waits(job.server, lambda: state.raw_bytes, job.emit) as watched:
            transaction = Transaction(watched, self._header, lc_monetary=lc_monetary, emit=job.emit)
            try:
                with transaction:
                    self._create(transaction, parts.before)
                    load(transaction, job.archive, job.selection, progress, state)
                    self._create(transaction, parts.after)
                    refused = table_owners.give(transaction, self._contents, parts, job.request)
                    transaction.commit()
            finally:
                state.target.outcome = transaction.outcome
        return refused

    def _warn_of_lost(self) -> None:
        """Warn of objects that were dropped with the tables."""
        if not self._lost:
            return
        count = counted(len(self._lost), "object")
        self._job.emit(
            events.Warned(
                f"The database lacks {count} of the backup that cannot exist without these "
                f"tables: {_listed(self._lost)}\n"
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

    def _refuse_taken(self, run: presence.Run) -> None:
        parts, database = self._parts, self._job.server.database.name
        taken = presence.taken_relations(run, parts.relations)
        tables = {(entry.schema, entry.tag) for entry in parts.tables}
        if there := [name for name in taken if name in tables]:
            names = _some([_text(b".".join(name)) for name in there])
            first = _text(qualified(*there[0]))
            raise TargetNotEmptyError(
                f"the database {database} already has {names}",
                hint="Load only the rows into the table that is there, with --data-only in place "
                "of --into-existing. Or move the existing table out of the way first, in psql: "
                f"ALTER TABLE {first} RENAME TO …; or drop it.",
            )
        taken += presence.taken_statistics(run, parts.statistics)
        if taken:
            names = _some([_text(b".".join(name)) for name in taken])
            raise TargetNotEmptyError(
                f"the database {database} already has {names}, as the backup calls indexes, "
                "sequences or statistics of the tables",
                hint="A table that was renamed keeps the names of its indexes and sequences. "
                f"Rename them first, in psql: ALTER INDEX {_text(qualified(*taken[0]))} RENAME TO "
                "…; (or ALTER SEQUENCE, ALTER STATISTICS).",
            )

    def _refuse_lacking(self, run: presence.Run) -> None:
        parts = self._parts
        schemas = presence.missing_schemas(run, [entry.schema for entry in parts.tables])
        lacking = presence.missing(
            run, [each for each in parts.needed if each.description != b"SCHEMA"]
        )
        if not schemas and not lacking:
            return
        names = [f"schema {_text(schema)}" for schema in schemas]
        hints = [f"CREATE SCHEMA {_text(identifier(schema))};" for schema in schemas]
        if any(each.description in table_parts.TABLES for each in lacking):
            hints.append("Restore the missing tables along with these: add --table for each.")
        hints.append(
            "Create what is missing first. To get its definition, restore into a new database "
            "with --create, and run pg_dump --schema-only there."
        )
        raise TargetLacksError(
            f"the database {self._job.server.database.name} lacks what the tables need: "
            + _some([*names, *map(_named, lacking)]),
            hint="\n".join(hints),
        )

    def _create(self, transaction: Transaction, entries: Sequence[Entry]) -> None:
        for entry in entries:
            if definition := toc.definition(self._contents, entry):
                transaction.run(definition)


def _without_rows(contents: toc.Contents, parts: Parts) -> list[str]:
    """Return the names of tables whose rows were not dumped; an empty table is not one of them."""
    dumped = {number for each in contents.entries if each.loads_into for number in each.depends_on}
    return [
        _text(b".".join((each.schema, each.tag)))
        for each in parts.tables
        if each.number not in dumped
        and each.description == b"TABLE"
        and b"\nPARTITION BY " not in toc.definition(contents, each)
    ]


def _planned(parts: Parts) -> str:
    """Return what would be done, for people."""
    rest = len(parts.before) + len(parts.after) - len(parts.tables)
    tables = counted(len(parts.tables), "table")
    planned = f"One transaction would create {tables} with {counted(rest, 'part')} and all rows"
    if parts.attempts:
        named = _listed([attempt.entry for attempt in parts.attempts])
        planned += f". After it, these would be created if possible: {named}"
    return planned


def _listed(entries: Sequence[Entry]) -> str:
    return _some([_named(entry) for entry in entries])


def _some(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f", and {more} more" if more > 0 else "")


def _named(entry: Entry) -> str:
    """Return an entry's kind and name, for people."""
    kind = entry.description
    said = "foreign key" if kind == table_parts.FOREIGN_KEY else _text(kind).lower()
    return f"{said} {_text(b'.'.join(filter(None, (entry.schema, entry.tag))))}"


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")
