"""A restore from the first byte to the last: read, decrypt, decompress, psql, then commit.

The target is touched only after the key was seen to fit and the target to be one that may be
written to; it is committed, or gets its name, only after the last byte was as it had been written.
"""

from __future__ import annotations

import contextlib
import shlex
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial

from pgstash import events, fitting, loading, selection
from pgstash.archive import Archive
from pgstash.errors import EXIT_UNFORESEEN, Interrupted, PgstashError
from pgstash.manifest import Section
from pgstash.pipeline.refreshes import Refreshes
from pgstash.postgres import (
    address,
    binding,
    extensions,
    options,
    pooler,
    source,
    target,
    tools,
    views,
    working,
)
from pgstash.postgres.locks import waits_told
from pgstash.postgres.restore import Psql
from pgstash.postgres.source import Server
from pgstash.postgres.target import Outcome
from pgstash.unpacking import known_to

_SECONDS_BETWEEN_PROGRESS = 0.25


@dataclass(frozen=True, slots=True)
class Plan:
    """Where to restore to, and what is allowed.

    ``create`` is the name of a new database on the target's server, with ``any_locale`` if need
    be in another locale; ``overwrite`` allows a target that holds objects, ``create_roles`` makes
    the roles that the target lacks, which go again if they are made ``for_drill``. ``jobs`` is how
    many sessions restore into a new database.
    ``tables`` are patterns of the only tables that are wanted, if not all; with ``rows_only``
    nothing but their rows. ``observe`` is shown each piece of the script, of rows maybe not.
    ``environment`` is what client tools may choose from, ``uninterrupted`` a context in which no
    signal is heard, or only after a while.
    """

    target_url: str
    create: str | None
    overwrite: bool
    dry_run: bool
    environment: Mapping[str, str]
    uninterrupted: Callable[[], AbstractContextManager[None]]
    create_roles: bool = False
    for_drill: bool = False
    jobs: int = 1
    tables: Sequence[str] = ()
    rows_only: bool = False
    any_locale: bool = False
    observe: Callable[[bytes], None] = lambda _chunk: None


def run(plan: Plan, wanted: str, find: Callable[[], Archive], emit: events.Emit) -> int:
    """Restore the backup that ``find`` opens, or say in a dry run what would be done.

    Returns only when everything is in the target: how many sessions put it there. ``wanted`` is
    what the backup is called until it is found. Raises a PgstashError where anything went wrong,
    Interrupted on a signal; an event says then what became of the target.
    """
    began = time.monotonic()
    host, database = address.named(plan.target_url)
    state = _State(wanted, Outcome.NOTHING)
    sessions = 0
    try:
        archive = find()
        state.name = archive.name
        to = plan.create or database
        emit(events.RestoreStarted(archive.name, host, to, plan.dry_run, of=_of(archive)))
        _warn_of_what_is_lacking(archive, emit)
        try:
            sessions = _restore(plan, archive, emit, state)
        except (PgstashError, Interrupted) as error:
            if state.outcome is not Outcome.COMMITTED:
                raise
            # Cut off while the answer to the COMMIT was on its way.
            if isinstance(error, PgstashError):
                emit(events.Warned(f"{archive.name} is restored, and then: {error}"))
    except BaseException as error:
        foreseen = isinstance(error, PgstashError | Interrupted)
        emit(
            events.RestoreFailed(
                name=state.name,
                seconds=time.monotonic() - began,
                message=str(error) if foreseen else f"{type(error).__name__}: {error}",
                hint=getattr(error, "hint", ""),
                outcome=state.told,
                error=type(error).__name__,
                exit_code=getattr(error, "exit_code", EXIT_UNFORESEEN),
            )
        )
        raise
    if not plan.dry_run:
        if state.server and not plan.for_drill:
            into = working.seen_from(state.server, plan.create) if plan.create else state.server
            binding.warn_of_jobs(into, emit)
        emit(
            events.RestoreSucceeded(
                name=archive.name,
                seconds=time.monotonic() - began,
                host=host,
                database=plan.create or database,
                raw_bytes=state.raw_bytes,
                verified=archive.manifest is not None,
            )
        )
    return sessions


def _of(archive: Archive) -> str:
    database = archive.manifest.database if archive.manifest else None
    return f"{database.name} on {database.host}" if database else ""


def _warn_of_what_is_lacking(archive: Archive, emit: events.Emit) -> None:
    """Warn of what looks whole, and was not meant to be: nothing else says so."""
    given = options.leaving_out(archive.manifest.options if archive.manifest else ())
    if given:
        emit(
            events.Warned(
                f"{archive.name} may lack what the source had: it was made with {shlex.join(given)}"
            )
        )
    if archive.manifest and archive.manifest.left_out:
        emit(events.Warned(f"{archive.name} lacks {extensions.rows_of(archive.manifest.left_out)}"))


@dataclass(slots=True)
class _State:
    """The name of the backup, and what became of the target so far.

    ``left`` is the name of a database that was to be dropped, and could not be. Where the
    target ``is_empty`` there is nothing to drop, and some of the drops would fail. ``server`` is
    the target's, once it was asked.
    """

    name: str
    outcome: Outcome
    raw_bytes: int = 0
    is_empty: bool = False
    left: str = ""
    server: Server | None = None

    @property
    def told(self) -> str:
        return f"the database {self.left} is left, incomplete" if self.left else self.outcome.value

    def became(self, outcome: Outcome) -> None:
        self.outcome = outcome

    def has_left(self, name: str) -> None:
        self.left = name

    def wants(self, section: Section | None) -> bool:
        return section != "drops" or not self.is_empty


def _restore(plan: Plan, archive: Archive, emit: events.Emit, state: _State) -> int:
    progress = _Progress(archive, state, emit)
    with contextlib.ExitStack() as stack:
        # The key has shown to fit before the target is looked at.
        way = _Way.open(plan, archive, progress, emit, stack)
        server = state.server = source.look(plan.target_url)
        client = fitting.client(archive.manifest, server, plan.environment)
        tools.refuse_unknown_parameters(client, server.connection, plan.environment)
        if way.loading and (reason := _only_one_session(archive, client, server)):
            emit(events.Notice(f"One session restores {archive.name}: {reason}"))
            opened = archive.script(progress.read, state.wants, way.edit)
            way = replace(way, loading=None, script=stack.enter_context(opened))
        locks = target.lock_table(server)
        state.is_empty = fitting.refuse(
            server,
            archive.manifest,
            locks,
            create=plan.create,
            overwrite=plan.overwrite,
            of_tables=bool(plan.tables),
            rows_only=plan.rows_only,
        )
        if archive.manifest and not plan.rows_only:
            fitting.look_for_roles(
                server,
                archive,
                archive.manifest,
                emit,
                create=plan.create_roles,
                for_drill=plan.for_drill,
                dry_run=plan.dry_run,
            )
        if plan.dry_run:
            emit(_planned(plan, archive, way.selected, server, client))
            return 0
        into = server
        if plan.create:
            like = archive.manifest.database if archive.manifest else None
            into = stack.enter_context(
                working.created(
                    server,
                    plan.create,
                    like,
                    plan.uninterrupted,
                    emit,
                    any_locale=plan.any_locale,
                    became=state.became,
                    left=state.has_left,
                )
            )
            if archive.manifest:
                wanted = archive.manifest.extensions
                binding.make(into, plan.create, wanted, emit, for_drill=plan.for_drill)
        lc_monetary = fitting.lc_monetary(archive.manifest, server, emit)
        if way.loading:
            load = loading.Plan(
                into=into,
                client=client,
                jobs=plan.jobs,
                lc_monetary=lc_monetary,
                environment=plan.environment,
                emit=emit,
                observe=plan.observe,
                for_drill=plan.for_drill,
            )
            with fitting.explained(archive.manifest, server, locks, rows_only=False):
                way.loading.run(load, progress.loaded)
            pooler.refuse_swapping_again(into, emit)
            return plan.jobs
        script = way.script
        if way.selected:
            script = selection.script(
                way.selected, archive, client, plan.environment, progress.read
            )
            script = way.edit.edit(script)
        if not plan.create:  # nobody else is at work in a new one
            into = stack.enter_context(waits_told(server, lambda: state.raw_bytes, emit))
        psql = Psql(
            into,
            client,
            one_transaction=not plan.create,
            lc_monetary=lc_monetary,
            environment=plan.environment,
            emit=emit,
        )
        try:
            read = progress.watch(script)
            with fitting.explained(archive.manifest, server, locks, rows_only=plan.rows_only):
                _feed(psql, known_to(into.major, read), plan, into, emit)
        finally:
            # A database under a working name counts for nothing until it has its own.
            if not plan.create:
                state.outcome = psql.outcome
        views.warn_of_empty(into, way.edit.views, emit, for_drill=plan.for_drill)
    return 1


@dataclass(frozen=True, slots=True)
class _Way:
    """How an archive is read: as one script, by several sessions, or only some tables of it.

    ``edit`` changes the script on its way, whichever that is.
    """

    edit: Refreshes
    script: Iterable[bytes] = ()
    loading: loading.Loading | None = None
    selected: selection.Selection | None = None

    @classmethod
    def open(
        cls,
        plan: Plan,
        archive: Archive,
        progress: _Progress,
        emit: events.Emit,
        stack: contextlib.ExitStack,
    ) -> _Way:
        # In one transaction there is no room for those of pg_dump.
        edit = Refreshes(
            partial(views.filling, for_drill=plan.for_drill),
            keeps_transactions=plan.create is not None,
        )
        if plan.tables:
            selected = selection.select(archive, plan.tables, emit, rows_only=plan.rows_only)
            return cls(edit, selected=selected)
        if plan.create and plan.jobs > 1 and archive.is_seekable:
            return cls(edit, loading=loading.Loading(archive, progress.read))
        if plan.jobs > 1 and archive.manifest and archive.manifest.schema_sha256 and plan.create:
            emit(events.Warned(f"The schema beside {archive.name} is gone: one session restores"))
        opened = archive.script(progress.read, progress.state.wants, edit)
        return cls(edit, script=stack.enter_context(opened))


def _only_one_session(archive: Archive, client: tools.ClientTools, server: Server) -> str:
    """Say why several sessions cannot restore, if they cannot."""
    if not fitting.reads_archive(archive.manifest, client, server):
        return f"pg_restore {client.major} cannot do its part on a server of {server.major}"
    if not pooler.passes_options_on(server):
        return "the pooler in between does not pass on the settings that pg_restore needs"
    return ""


def _feed(psql: Psql, script: Iterator[bytes], plan: Plan, into: Server, emit: events.Emit) -> None:
    chunks = _observed(script, plan.observe)
    with psql:
        for chunk in chunks:
            psql.feed(chunk)
        pooler.refuse_swapping_again(into, emit)
        psql.finish()


def _planned(
    plan: Plan,
    archive: Archive,
    selected: selection.Selection | None,
    server: Server,
    client: tools.ClientTools,
) -> events.RestorePlanned:
    manifest = archive.manifest
    raw_bytes = manifest.raw_bytes if manifest else None
    tables = len(manifest.tables) if manifest else None
    rows = sum(table.rows for table in manifest.tables) if manifest else None
    if selected:
        raw_bytes, tables, rows = selected.raw_bytes, len(selected.names), selected.rows
    return events.RestorePlanned(
        name=archive.name,
        host=server.database.host,
        database=plan.create or server.database.name,
        created=plan.create is not None,
        server=server.version,
        client=client.version,
        verified=manifest is not None,
        raw_bytes=raw_bytes,
        tables=tables,
        rows=rows,
    )


class _Progress:
    """Counts what was read from the store and handed on, and tells now and then."""

    def __init__(self, archive: Archive, state: _State, emit: events.Emit) -> None:
        self._archive = archive
        self.state = state
        self._emit = emit
        self._stored_bytes = 0
        self._last = time.monotonic()

    def read(self, stored_bytes: int) -> None:
        self._stored_bytes = stored_bytes

    def watch(self, script: Iterable[bytes]) -> Iterator[bytes]:
        for chunk in script:
            yield chunk
            self.loaded(self.state.raw_bytes + len(chunk))

    def loaded(self, raw_bytes: int) -> None:
        self.state.raw_bytes = raw_bytes
        now = time.monotonic()
        if now - self._last >= _SECONDS_BETWEEN_PROGRESS:
            self._last = now
            self._emit(
                events.RestoreProgressed(
                    self._archive.name, raw_bytes, self._stored_bytes, self._archive.size
                )
            )


def _observed(script: Iterator[bytes], observe: Callable[[bytes], None]) -> Iterator[bytes]:
    for chunk in script:
        observe(chunk)
        yield chunk
