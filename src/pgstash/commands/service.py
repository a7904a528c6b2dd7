"""Run the service, according to the settings: back up, drill when one is due, answer probes."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

from pgstash import events
from pgstash.check import freshness
from pgstash.commands import copies_after_backup, health, metrics
from pgstash.commands.backup import back_up
from pgstash.commands.drill import drill_backup
from pgstash.commands.schedules import blackout_of, schedule_of
from pgstash.commands.source import configured_source, owners_of, source_that_answers
from pgstash.commands.storage import open_storage
from pgstash.errors import ConfigurationError, PgstashError
from pgstash.format.identity import Identity
from pgstash.monitoring import health_server, log, messages, probes
from pgstash.monitoring.job_metrics import JobMetrics
from pgstash.monitoring.redaction import Scrubber
from pgstash.repository import catalog
from pgstash.runtime import Runtime
from pgstash.service.retries import NextRun, Retries
from pgstash.settings import Settings
from pgstash.signals import kept_for_this_thread
from pgstash.storage.interface import Storage

RequestCopies = Callable[[Identity], None]


def plan(settings: Settings, runtime: Runtime) -> Retries:
    """Return the plan of the runs. The first is due now, or counted from the newest backup."""
    first = None if settings.backup_on_start else first_run(settings, runtime)
    blackout, now = blackout_of(settings), runtime.now()
    if (over := blackout.over(first.at if first else now)) > now:
        first = NextRun(over, reason=first.reason if first else "BLACKOUT prevents an earlier one")
    return Retries(
        schedule_of(settings, first.at if first else now),
        runtime,
        first,
        exit_on_first_failure=settings.exit_on_first_failure,
        blackout=blackout,
    )


def first_run(settings: Settings, runtime: Runtime) -> NextRun:
    """Return when the first run is due, counted from the newest stored backup of the source.

    It is due now if that is overdue, if there is none, or if the store does not answer: a platform
    that often starts the service again must not prevent backups.
    """
    now = runtime.now()
    try:
        storage = open_storage(settings, events.ignore, prompt=True)
        newest = _newest(settings, storage, _source(settings), now)
    except PgstashError as error:
        runtime.emit(events.Warned(f"Could not find the newest backup: {error.message}"))
        return NextRun(now, reason="the age of the newest backup is unknown")
    if newest is None:
        return NextRun(now, reason="there is no recent backup")
    due = schedule_of(settings, newest.started).after(newest.started)
    age = messages.span((now - newest.started).total_seconds())
    return NextRun(max(due, now), reason=f"the newest backup, {newest.name}, is {age} old")


def _newest(
    settings: Settings, storage: Storage, source: Identity, now: datetime
) -> catalog.Backup | None:
    """Return the newest backup of a source, unless it is certainly stale. Raises StorageError."""
    wanted = freshness.Plan(settings.backup_prefix, source, health.stale_at(settings), now)
    owners = owners_of(storage, may_read=not settings.only_writes)
    return freshness.newest(wanted, storage, owners)


def _source(settings: Settings) -> Identity:
    """Return the source as its server identifies it, or else as far as the settings do."""
    return source_that_answers(settings) or configured_source(settings) or Identity()


def is_drill_due(settings: Settings, now: datetime) -> bool:
    """Return whether the newest proof is older than ``VERIFY_INTERVAL``. Raises StorageError.

    The proofs are read from the store, because a restarted service remembers nothing.
    """
    if settings.verify_interval is None:
        return False
    if settings.verify_interval == "after-backup":
        return True
    storage = open_storage(settings, events.ignore)
    found = catalog.read(storage, settings.backup_prefix).backups
    proven = owners_of(storage).last_proven(found, _source(settings), now)
    last = proven.proven_by(now) if proven else None
    return last is None or (now - last).total_seconds() >= settings.verify_interval


@contextlib.contextmanager
def copies(settings: Settings, runtime: Runtime) -> Iterator[RequestCopies]:
    """Make copies in the background while the block runs; yield what asks for them.

    At the start, what the copies lack from before is copied too.
    """
    with copies_after_backup.in_background(settings, runtime) as request:
        if settings.copy_names:
            # In a thread: a server that does not answer must not delay the first backup.
            with kept_for_this_thread():
                threading.Thread(
                    target=_request_at_start, args=(settings, request), daemon=True
                ).start()
        yield request


def _request_at_start(settings: Settings, request: RequestCopies) -> None:
    try:
        if source := source_that_answers(settings):
            request(source)
    except PgstashError as error:
        log.LOGGER.debug("Nothing was copied at the start: %s", error)


def back_up_and_drill(
    settings: Settings, runtime: Runtime, request_copies: RequestCopies = lambda _source: None
) -> None:
    """Run one backup, then a drill of the newest backup if one is due.

    ``request_copies`` is called after the backup, and again after the drill: a proof is copied too.
    If the backup fails, the drill of an older one still runs, unless every backup has to be proven,
    or the backup will be tried again before its next scheduled time: then the drill waits for that.
    Raises the failure of the backup. That of the drill is only reported, because a run that raises
    is tried again, which would make another backup.
    """
    failure: PgstashError | None = None
    try:
        made = back_up(settings, runtime)
    except ConfigurationError:
        raise
    except PgstashError as error:
        failure = error
    runtime.interruption.raise_if_interrupted()
    if failure is None:
        source = made.manifest.database.identity
        request_copies(source)
        if _drill_if_due(settings, runtime):
            request_copies(source)
        return
    if settings.verify_interval != "after-backup" and not runtime.follow_up(failure).early:
        _drill_if_due(settings, runtime)
    raise failure


def _drill_if_due(settings: Settings, runtime: Runtime) -> bool:
    """Drill the newest backup if a drill is due; return whether it passed.

    Raises ConfigurationError and nothing else.
    """
    try:
        due = is_drill_due(settings, runtime.now())
    except PgstashError as error:
        runtime.emit(events.Warned(f"Could not determine whether a drill is due: {error.message}"))
        return False
    if not due:
        return False
    try:
        drill_backup(settings, "latest", runtime)
    except ConfigurationError:
        raise
    except PgstashError as error:  # the drill has reported it
        log.LOGGER.debug("Traceback of the failure", exc_info=error)
        return False
    return True


@contextlib.contextmanager
def health_port(settings: Settings, emit: events.Emit) -> Iterator[events.Emit]:
    """Serve probes while the block runs, if ``HEALTH_PORT`` is set; yield the emitter to use.

    Raises ConfigurationError if the port is not available.
    """
    if settings.health_port is None:
        yield emit
        return
    known = health_server.Health(Scrubber(settings.secrets()), health.stale_at(settings))
    measured, figures = metrics.of_job(settings)

    def report(event: events.Event) -> None:
        known(event)
        figures(event)
        emit(event)

    with probes.serving(settings.health_port, known, measured):
        # In a thread: a store that does not answer must not delay the first backup.
        with kept_for_this_thread():
            threading.Thread(target=_remember, args=(settings, known, figures), daemon=True).start()
        yield report


def _remember(settings: Settings, known: health_server.Health, figures: JobMetrics) -> None:
    """Find the newest backup and the last proof from before the service started.

    The backup comes first, with a short listing, because readiness waits for it. A proof may belong
    to any backup, however old, so all objects are listed for it.
    """
    prefix, now = settings.backup_prefix, datetime.now(UTC)
    try:
        storage = open_storage(settings, events.ignore, prompt=True)
        ours = _source(settings)
        if found := _newest(settings, storage, ours, now):
            known.found(found.name, found.started, found.size)
        every = catalog.read(storage, prefix).backups
        owners = owners_of(storage, may_read=not settings.only_writes)
        proven = owners.last_proven(every, ours, now)
        if proven and (at := proven.proven_by(now)):
            known.found_proof(proven.name, at)
        metrics.remember(settings, figures, ours, now)
    except PgstashError as error:
        log.LOGGER.debug("The stored backups could not be listed: %s", error)
