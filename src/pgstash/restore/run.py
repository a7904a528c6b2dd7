"""A restore from the first byte to the last: read, decrypt, decompress, psql, then commit.

The target is touched only after the key was found to fit, and the target to be one that may be
written to: the database that the backup is of, or one that was named for this restore. It is
committed, or gets its name, only after the last byte has been verified.
"""

from __future__ import annotations

import contextlib
import itertools
import shlex
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from pgstash import events, failure
from pgstash.errors import Interrupted, PgstashError
from pgstash.format.manifest import Manifest
from pgstash.postgres.dump import extension_omissions
from pgstash.postgres.restore import (
    activity,
    bound_extensions,
    foreign_views,
    logins,
    staging_database,
    target,
)
from pgstash.postgres.restore.psql import Psql
from pgstash.postgres.restore.request import Request
from pgstash.postgres.restore.target import Outcome
from pgstash.postgres.server import conninfo, login, marks, pooler
from pgstash.postgres.server.connection import Password, Server
from pgstash.postgres.server.lock_waits import warn_of_lock_waits
from pgstash.postgres.tools import installed, pg_dump_options
from pgstash.postgres.tools.tool_run import ToolRun
from pgstash.repository.archive import Archive
from pgstash.repository.script import without_settings_unknown_to
from pgstash.restore import (
    administrator_file,
    dry_run,
    into_existing,
    owners,
    parallel_restore,
    preflight,
    replacing,
    selected_script,
    to_do,
)
from pgstash.restore.leaving_out import LeavingOut
from pgstash.restore.planner_statistics import PlannerStatistics
from pgstash.restore.state import Progress, State
from pgstash.restore.strategy import Opener, Strategy
from pgstash.runtime import Runtime


@dataclass(frozen=True, slots=True)
class Plan:
    """Where to restore to, what was asked for, and how many sessions (``jobs``) restore.

    Several sessions restore only into a new database. ``environment`` is where client tools are
    found. ``observe`` receives each piece of the script; pieces that are rows may be left out.
    ``target_password`` returns the password for one login, if it is not in ``target_url``.
    """

    target_url: str
    request: Request
    environment: Mapping[str, str]
    jobs: int = 1
    observe: Callable[[bytes], None] = lambda _chunk: None
    target_password: Password | None = field(default=None, repr=False)

    def into(self, database: str) -> str:
        """Return the name of the database to restore into: a new one, or that of the URL."""
        return database if self.request.create is None else self.request.create


def run(plan: Plan, wanted: str, find: Callable[[], Archive], runtime: Runtime) -> int:
    """Restore the backup that ``find`` opens, or report in a dry run what would be done.

    Returns the number of sessions that restored it, once everything is in the target. ``wanted`` is
    the name of the backup until it is found. Raises a PgstashError if anything fails, Interrupted
    on a signal; an event then reports the outcome for the target. What is left to do is reported
    after the event of success or failure.
    """
    with to_do.at_the_end(runtime) as held:
        return _run(plan, wanted, find, held)


def _run(plan: Plan, wanted: str, find: Callable[[], Archive], runtime: Runtime) -> int:
    emit = runtime.emit
    began = time.monotonic()
    host, database = conninfo.named(plan.target_url)
    state = State(wanted)
    sessions = 0
    try:
        archive = find()
        state.name = archive.name
        state.target.mark = marks.text_of(archive.name, archive.manifest, wanted=plan.request.mark)
        started = events.RestoreStarted(
            archive.name, host, plan.into(database), plan.request.dry_run, of=_of(archive)
        )
        emit(started)
        preflight.refuse_unnamed_target(plan.target_url, database, archive, request=plan.request)
        _warn_of_partial_backup(archive, emit)
        try:
            sessions = _restore(plan, archive, runtime, state)
        except (PgstashError, Interrupted) as error:
            if state.target.outcome is not Outcome.COMMITTED:
                raise
            # The answer to the COMMIT was cut off, but it did commit.
            if isinstance(error, PgstashError):
                emit(events.Warned(f"{archive.name} was restored, but then: {error}"))
    except BaseException as error:
        emit(
            events.RestoreFailed(
                name=state.name,
                seconds=time.monotonic() - began,
                outcome=state.target.description,
                **failure.fields(error),
            )
        )
        raise
    if not plan.request.dry_run:
        _warn_of_jobs(plan, state, emit)
        emit(
            events.RestoreSucceeded(
                name=archive.name,
                seconds=time.monotonic() - began,
                host=host,
                database=plan.into(database),
                raw_bytes=state.raw_bytes,
                verified=archive.manifest is not None,
                kept=state.target.kept,
            )
        )
    return sessions


def _of(archive: Archive) -> str:
    database = archive.manifest.database if archive.manifest else None
    return f"{database.name} on {database.host}" if database else ""


def _warn_of_partial_backup(archive: Archive, emit: events.Emit) -> None:
    """Warn of a backup that was made without all of the source: nothing else shows it."""
    given = pg_dump_options.leaving_out(archive.manifest.options if archive.manifest else ())
    if given:
        emit(
            events.Warned(
                f"{archive.name} may be a partial backup: it was made with {shlex.join(given)}"
            )
        )
    if archive.manifest and archive.manifest.left_out:
        emit(
            events.Warned(
                f"{archive.name} does not contain "
                f"{extension_omissions.rows_of(archive.manifest.left_out)}"
            )
        )


def _warn_of_jobs(plan: Plan, state: State, emit: events.Emit) -> None:
    request = plan.request
    if state.server is None or request.for_drill:
        return
    into = state.server
    if request.create is not None:
        into = target.seen_from(state.server, request.create)
    bound_extensions.warn_of_jobs(into, emit)


def _restore(plan: Plan, archive: Archive, runtime: Runtime, state: State) -> int:
    request, manifest, emit = plan.request, archive.manifest, runtime.emit
    progress = Progress(archive, state, emit)
    with contextlib.ExitStack() as stack:
        # Opening the archive shows that the key fits, before the target is contacted.
        opener = Opener(archive, state, progress, emit, stack)
        strategy = opener.open(request, plan.jobs)
        server = state.server = login.inspect(plan.target_url, plan.target_password)
        # The name in the URL may be one that a pooler uses for another database.
        preflight.refuse_unnamed_target(
            plan.target_url, server.database.name, archive, request=request
        )
        client = preflight.client(manifest, server, plan.environment)
        installed.refuse_unknown_parameters(client, server.connection, plan.environment)
        tool_run = ToolRun(client, plan.environment, emit)
        strategy = opener.for_target(strategy, client, server, request)
        locks = target.lock_table(server)
        state.is_empty = preflight.refuse(server, manifest, locks, request, emit)
        leaving_out = LeavingOut(archive, request, strategy, emit).look(server)
        state.target.replaced = replacing.planned(server, request, runtime)
        closed = preflight.look_for_roles(server, archive, request, emit)
        stack.callback(logins.warn_of_closed, closed, emit)  # even if it fails: the roles stay
        given = preflight.owners_and_privileges(server, archive, request, emit)
        replacing.refuse_closed(state.target.replaced, archive.name, given)
        single = into_existing.prepared(archive, strategy.selected, server, request, emit)
        if request.dry_run:
            emit(dry_run.planned(archive, strategy.selected, server, client, request))
            return 0
        into = server
        administrator = stack.enter_context(
            administrator_file.kept(
                archive.name,
                plan.target_url,
                plan.into(conninfo.named(plan.target_url)[1]),
                state.target,
                emit,
            )
        )
        if request.create is not None:
            into = stack.enter_context(_created(request, manifest, server, state, runtime))
        owned = owners.Owners(
            leaving_out.settle(into, given, administrator), request, tool_run, administrator
        )
        lc_monetary = preflight.lc_monetary(manifest, server, emit)
        if single:
            return single.run(progress, state, locks, lc_monetary, administrator)
        if strategy.parallel:
            load = parallel_restore.Plan(
                into=into,
                tool_run=tool_run,
                jobs=plan.jobs,
                lc_monetary=lc_monetary,
                observe=plan.observe,
                for_drill=request.for_drill,
            )
            with preflight.explained(manifest, server, locks, request):
                strategy.parallel.run(load, progress.restored)
            PlannerStatistics(archive, request, tool_run, plan.jobs).update(into)
            state.target.refused = not owned.complete(into)
            pooler.refuse_swapping_again(into, emit)
            return plan.jobs
        if request.create is None:  # nobody else uses a new database
            into = stack.enter_context(warn_of_lock_waits(server, lambda: state.raw_bytes, emit))
        psql = Psql(
            into,
            tool_run,
            one_transaction=request.create is None,
            lc_monetary=lc_monetary,
            taken=owned.giving.read,
        )
        try:
            read = without_settings_unknown_to(
                into.major, progress.counted(_script(archive, strategy, tool_run, progress))
            )
            with preflight.explained(manifest, server, locks, request):
                _feed(psql, itertools.chain(read, _ending(owned, request, state)), plan, into, emit)
        finally:
            # What is in a staging database does not count before the database gets its name.
            if request.create is None:
                state.target.outcome = psql.outcome
        foreign_views.warn_of_empty(into, strategy.edit.views, emit, for_drill=request.for_drill)
        PlannerStatistics(archive, request, tool_run, plan.jobs).update(
            into, strategy.selected.names if strategy.selected else None
        )
        state.target.refused = not owned.complete(into)
    return 1


@contextlib.contextmanager
def _created(
    request: Request, manifest: Manifest | None, server: Server, state: State, runtime: Runtime
) -> Iterator[Server]:
    """Create the new database for the length of the block; yield the server as seen from it."""
    like = manifest.database if manifest else None
    with staging_database.created(server, request, like, state.target, runtime) as into:
        if manifest:
            bound_extensions.make(into, request, manifest.extensions, runtime.emit)
        yield target.without_event_triggers(into)


def _script(
    archive: Archive, strategy: Strategy, tool_run: ToolRun, progress: Progress
) -> Iterator[bytes]:
    if not strategy.selected:
        return iter(strategy.script)
    script = selected_script.script(strategy.selected, archive, tool_run, progress.read)
    return strategy.edit.edit(script)


def _feed(psql: Psql, script: Iterator[bytes], plan: Plan, into: Server, emit: events.Emit) -> None:
    emit(events.PhaseStarted("objects, rows and indexes"))
    with activity.reported(target.without_event_triggers(into), emit), psql:
        for chunk in _observed(script, plan.observe):
            psql.feed(chunk)
        pooler.refuse_swapping_again(into, emit)
        psql.finish()


def _ending(owned: owners.Owners, request: Request, state: State) -> Iterator[bytes]:
    yield from owned.giving.script()
    if request.create is None and state.target.mark:
        yield marks.of_psql(state.target.mark)


def _observed(script: Iterator[bytes], observe: Callable[[bytes], None]) -> Iterator[bytes]:
    for chunk in script:
        observe(chunk)
        yield chunk
