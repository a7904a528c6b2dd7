"""Prune: by hand, and after a backup."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial

from pgstash import events
from pgstash.commands.job_runs import server_of
from pgstash.commands.source import (
    configured_source,
    owners_of,
    server_clock,
    source_password,
    source_that_answers,
)
from pgstash.commands.storage import open_storage, refuse_if_only_writes
from pgstash.errors import (
    DatabaseError,
    DatabaseUnreachableError,
    PgstashError,
    WrongClockError,
)
from pgstash.format.identity import Identity
from pgstash.postgres.server import conninfo, login, writer_lock
from pgstash.prune import retention
from pgstash.prune import run as prune
from pgstash.repository import catalog
from pgstash.runtime import Runtime, utc_now
from pgstash.settings import Settings
from pgstash.storage.interface import Storage


def remove_old_backups(
    settings: Settings,
    emit: events.Emit,
    *,
    sources: Sequence[str] = (),
    dry_run: bool = False,
    away: set[str] | None = None,
) -> prune.Pruned:
    """Prune according to the settings. Raises and emits what :func:`prune.run` raises.

    The backups are those of the ``sources`` that the user names, or else of the configured source.
    The servers that are ``away`` are not asked; one that cannot be reached is added to them.
    Raises SourceUnclearError if it is not clear which backups those are, and WrongClockError if a
    configured database server answers and its clock and ours are far apart.
    """
    refuse_if_only_writes(settings, "prune")
    away = set() if away is None else away
    server = server_of(settings)
    try:
        now = utc_now()
        try:
            if settings.has_source and server not in away:
                _compare_clocks(now, server_clock(settings))
        except DatabaseUnreachableError:
            away.add(server)
        except DatabaseError:
            pass  # pruning needs no database
        storage = open_storage(settings, emit)
        is_away = server in away
        answer = None if sources or is_away else source_that_answers(settings)

        def choose(backups: Sequence[catalog.Backup]) -> Sequence[Identity]:
            if answer is not None:
                return [answer]
            hint = configured_source(settings)
            return owners_of(storage).choose(backups, named=sources, settings=hint)

        plan = replace(_plan(settings, choose, storage, emit), dry_run=dry_run)
        if is_away:
            plan = replace(plan, exclusive=_not_exclusive)
        # The time that was compared with the clock of the server.
        runtime = Runtime(emit, now=lambda: now)
        return prune.run(plan, storage, owners_of(storage), runtime)
    except PgstashError as error:
        emit(events.PruneFailed(error.message, error.hint))
        raise


def prune_after_backup(
    settings: Settings,
    source: Identity,
    storage: Storage,
    runtime: Runtime,
    server_now: Callable[[Settings], datetime],
) -> None:
    """Prune; nothing that goes wrong in it is a failure of the backup.

    The settings may be those of a copy.
    """
    emit = runtime.emit
    host, database = conninfo.named(settings.source_url)
    failed = partial(
        events.PruneFailed,
        copy=settings.copy_name,
        after_backup=True,
        host=host,
        database=database,
    )
    try:
        ours = runtime.now()
        _compare_clocks(ours, server_now(settings))
        plan = replace(_plan(settings, lambda _backups: [source], storage, emit), explained=False)
        prune.run(plan, storage, owners_of(storage), replace(runtime, now=lambda: ours))
    except PgstashError as error:
        name, code = type(error).__name__, error.exit_code
        emit(failed(error.message, error.hint, error=name, exit_code=code))
    except Exception as error:  # noqa: BLE001 - nothing that happens now undoes the backup
        name = type(error).__name__
        emit(failed(f"{name}: {error}", "", error=name))
        emit(events.Notice(traceback.format_exc()))


def _compare_clocks(ours: datetime, theirs: datetime) -> None:
    """Raise WrongClockError for a clock that could make all older backups appear outdated."""
    if abs(theirs - ours) > catalog.CLOCKS_APART:
        raise WrongClockError(
            f"nothing was pruned: by this machine's clock it is {ours:%Y-%m-%d %H:%M} UTC, but by "
            f"the database server's clock {theirs:%Y-%m-%d %H:%M} UTC"
        )


def policy_of(settings: Settings) -> retention.Policy:
    """Return the retention of the primary, or that of a copy."""
    return retention.Policy(
        days=settings.backup_retention_days,
        last=settings.retention_keep_last,
        daily=settings.retention_keep_daily,
        weekly=settings.retention_keep_weekly,
        monthly=settings.retention_keep_monthly,
        yearly=settings.retention_keep_yearly,
    )


def _plan(
    settings: Settings, choose: prune.Choose, storage: Storage, emit: events.Emit
) -> prune.Plan:
    return prune.Plan(
        prefix=settings.backup_prefix,
        policy=policy_of(settings),
        sweep_after_days=settings.sweep_after_days,
        choose=choose,
        exclusive=lambda: _exclusive(settings, storage, emit),
        versions=settings.prune_versions,
    )


def _not_exclusive() -> contextlib.AbstractContextManager[None]:
    """Raise DatabaseUnreachableError: who has the writer lock is unknown."""
    raise DatabaseUnreachableError("the database server cannot be reached")


@contextlib.contextmanager
def _exclusive(settings: Settings, storage: Storage, emit: events.Emit) -> Iterator[None]:
    """Hold the writer lock: no backup of the source runs meanwhile. Raises DatabaseError."""
    if not settings.has_source:
        raise DatabaseUnreachableError(
            "no source database is configured, so a running backup could not be detected"
        )

    server = login.inspect(settings.source_url, source_password(settings))
    with writer_lock.hold(server, storage.url(settings.backup_prefix), emit):
        yield
