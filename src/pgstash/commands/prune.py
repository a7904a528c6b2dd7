"""The composition root: settings in, wired objects out.

What not every command needs is imported where it is used: `pgstash healthcheck` runs every few
minutes, and must not load what only a backup has a use for.
"""

from __future__ import annotations

import contextlib
import os
import traceback
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from pgstash import events, hooks
from pgstash.errors import (
    DatabaseError,
    DatabaseUnreachableError,
    PgstashError,
    WrongClockError,
)
from pgstash.identity import Identity
from pgstash.monitoring import listener
from pgstash.monitoring.scrub import Scrubber
from pgstash.owners import Owners, Seen
from pgstash.postgres import address, options, required
from pgstash.schedule import Cron, Interval, Schedule
from pgstash.settings import Settings, environment, secret_variables
from pgstash.storage.interface import Storage

if TYPE_CHECKING:
    from pydantic import SecretStr

    from pgstash import backup, catalog, prune
    from pgstash.monitoring import webhook

_SEEN: Seen = {}

CONNECT_SECONDS = 10.0
READ_SECONDS = 60.0
PROMPT_SECONDS = 5.0

_SECONDS_TO_ASK = 10


def utc_now() -> datetime:
    """Return the time of the wall clock."""
    return datetime.now(UTC)


def server_clock(settings: Settings) -> datetime:
    """Return what the clock of the source's server says. Raises DatabaseError."""
    from pgstash.postgres import source  # noqa: PLC0415

    return source.clock(settings.source_url, _SECONDS_TO_ASK)


def configured_source(settings: Settings) -> Identity | None:
    """Return what the settings tell of the source; None if they name none. Nothing is asked."""
    if not settings.has_source:
        return None
    return address.identity(settings.source_url, settings.source_variables)


def source_that_answers(settings: Settings) -> Identity | None:
    """Return the identity of the source as its server tells it; None if none answers."""
    from pgstash.postgres import source  # noqa: PLC0415

    with contextlib.suppress(DatabaseError):
        if settings.has_source:
            return source.identify(settings.source_url, _SECONDS_TO_ASK)
    return None


def owners_of(storage: Storage) -> Owners:
    """Return what tells whose stored backups are; this process asks once for each."""
    return Owners(storage, _SEEN)


def back_up(  # noqa: PLR0913, PLR0917 - what of the world can be another one
    settings: Settings,
    emit: events.Emit,
    uninterrupted: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext,
    hear: Callable[[], None] = lambda: None,
    now: Callable[[], datetime] = utc_now,
    server_now: Callable[[Settings], datetime] = server_clock,
) -> backup.Backup:
    """Run one backup as the settings say, then prune. Raises what :func:`backup.run` raises.

    Pruning that fails is a warning: the backup is complete by then. Nothing is pruned where
    ``now``, our clock, and ``server_now``, that of the source's server, are far apart. ``hear`` is
    called between the two, and before the hook at the end, to raise Interrupted if a signal was
    put off by ``uninterrupted``.
    """
    from pgstash import backup, record  # noqa: PLC0415

    plan = backup.Plan(
        source_url=settings.source_url,
        prefix=settings.backup_prefix,
        compression_level=settings.compression_level,
        passphrase=settings.passphrase,
        jobs=settings.dump_jobs,
        lock_seconds=settings.lock_timeout,
        idle_seconds=settings.dump_idle_timeout,
        environment=environment(),
        options=dump_options(settings),
        required=required_tables(settings),
        hooks=_hooks(settings),
        anomaly_ratio=settings.anomaly_ratio,
    )
    storage = open_storage(settings, emit)
    world = backup.World(
        now=now,
        random=os.urandom,
        emit=emit,
        owners=owners_of(storage),
        uninterrupted=uninterrupted,
        hear=hear,
    )
    made = backup.run(plan, storage, world)
    hear()
    source = record.identity_of(made.manifest.database)
    _prune_after_backup(settings, source, storage, emit, now, server_now)
    return made


def required_tables(settings: Settings) -> list[required.Requirement]:
    """Return the tables that must be in a backup."""
    return required.parse(settings.require_tables) if settings.require_tables else []


def dump_options(settings: Settings) -> list[str]:
    """Return the options that the settings give pg_dump."""
    excluded = options.excluding(
        tables=settings.exclude_tables or "",
        table_data=settings.exclude_table_data or "",
        schemas=settings.exclude_schemas or "",
    )
    return excluded + options.allowed(settings.pg_dump_extra_args or "")


def _hooks(settings: Settings) -> hooks.Hooks:
    secrets = settings.secrets()
    visible = hooks.visible(environment(), secret_variables(), Scrubber(secrets).knows)

    def hook(name: str) -> hooks.Hook | None:
        command: str | None = getattr(settings, name)
        if command is None:
            return None
        words = hooks.words(command)
        return hooks.Hook(name.upper(), words, settings.hook_timeout, visible, secrets)

    return hooks.Hooks(
        before=hook("hook_before_backup"),
        after=hook("hook_after_backup"),
        verify=hook("hook_verify"),
    )


def remove_old_backups(
    settings: Settings, emit: events.Emit, *, sources: Sequence[str] = (), dry_run: bool = False
) -> prune.Pruned:
    """Prune as the settings say. Raises what :func:`prune.run` raises, and tells it.

    The backups are those of the ``sources`` that the user names, or else of the source that is
    configured. Raises SourceUnclearError where that is not clear, and WrongClockError where a
    database server is configured, answers, and its clock and ours are far apart.
    """
    try:
        now = utc_now()
        with contextlib.suppress(DatabaseError):  # pruning needs no database
            if settings.has_source:
                _compare_clocks(now, server_clock(settings))
        storage = open_storage(settings, emit)
        answer = None if sources else source_that_answers(settings)

        def choose(backups: Sequence[catalog.Backup]) -> Sequence[Identity]:
            if answer is not None:
                return [answer]
            hint = configured_source(settings)
            return owners_of(storage).choose(backups, named=sources, settings=hint)

        return _prune(settings, choose, storage, emit, now, explained=True, dry_run=dry_run)
    except PgstashError as error:
        emit(events.PruneFailed(error.message, error.hint))
        raise


def _prune_after_backup(  # noqa: PLR0913, PLR0917 - as back_up()
    settings: Settings,
    source: Identity,
    storage: Storage,
    emit: events.Emit,
    now: Callable[[], datetime],
    server_now: Callable[[Settings], datetime],
) -> None:
    """Prune; nothing that goes wrong in it is a failure of the backup."""
    try:
        ours = now()
        _compare_clocks(ours, server_now(settings))
        _prune(
            settings, lambda _backups: [source], storage, emit, ours, explained=False, dry_run=False
        )
    except PgstashError as error:
        emit(events.Warned(f"Pruning failed: {error.message}\n{error.hint}".rstrip()))
    except Exception as error:  # noqa: BLE001 - nothing that happens now undoes the backup
        emit(events.Warned(f"Pruning failed: {type(error).__name__}: {error}"))
        emit(events.Notice(traceback.format_exc()))


def _compare_clocks(ours: datetime, theirs: datetime) -> None:
    """Raise WrongClockError for a clock by which all older backups might look outdated."""
    from pgstash import catalog  # noqa: PLC0415

    if abs(theirs - ours) > catalog.CLOCKS_APART:
        raise WrongClockError(
            f"nothing is pruned: by this machine's clock it is {ours:%Y-%m-%d %H:%M} UTC, and by "
            f"the database server's {theirs:%Y-%m-%d %H:%M} UTC"
        )


def _prune(  # noqa: PLR0913 - what differs by who asked for it
    settings: Settings,
    choose: prune.Choose,
    storage: Storage,
    emit: events.Emit,
    now: datetime,
    *,
    explained: bool,
    dry_run: bool,
) -> prune.Pruned:
    from pgstash import prune, retention  # noqa: PLC0415

    plan = prune.Plan(
        prefix=settings.backup_prefix,
        policy=retention.Policy(
            days=settings.backup_retention_days,
            last=settings.retention_keep_last,
            daily=settings.retention_keep_daily,
            weekly=settings.retention_keep_weekly,
            monthly=settings.retention_keep_monthly,
            yearly=settings.retention_keep_yearly,
        ),
        sweep_after_days=settings.sweep_after_days,
        explained=explained,
    )
    return prune.run(
        plan,
        storage,
        owners=owners_of(storage),
        choose=choose,
        alone=lambda: _alone(settings, storage, emit),
        now=now,
        emit=emit,
        dry_run=dry_run,
    )


@contextlib.contextmanager
def _alone(settings: Settings, storage: Storage, emit: events.Emit) -> Iterator[None]:
    """Hold the writer lock: no backup of the source runs meanwhile. Raises DatabaseError."""
    if not settings.has_source:
        raise DatabaseUnreachableError(
            "no database is configured that could tell whether a backup runs"
        )
    # Imported here, as elsewhere in this module: a healthcheck has no use for it.
    from pgstash.postgres import source, writer  # noqa: PLC0415

    server = source.look(settings.source_url)
    with writer.hold(server, storage.url(settings.backup_prefix), emit):
        yield


def schedule(settings: Settings, anchor: datetime) -> Schedule:
    """Return when backups are due; an interval is counted from ``anchor``."""
    if settings.backup_schedule:
        return Cron(settings.backup_schedule, settings.tz)
    return Interval(settings.backup_interval, anchor)


@contextlib.contextmanager
def listening(settings: Settings) -> Iterator[events.Emit]:
    """Yield what events are told to: log, progress, webhook, dead-man switch.

    At the end of the block it waits until everything is delivered, though not for long.
    """
    from pgstash.monitoring import progress  # noqa: PLC0415

    with contextlib.ExitStack() as stack:
        listeners = [listener.listen, stack.enter_context(progress.listen())]
        listeners += stack.enter_context(_messengers(settings))

        def emit(event: events.Event) -> None:
            for listener in listeners:
                listener(event)

        yield emit


@contextlib.contextmanager
def _messengers(settings: Settings) -> Iterator[list[events.Emit]]:
    hook, ping = settings.webhook_url, settings.healthcheck_ping_url
    of_drills = settings.verify_webhook_url
    if not (hook or ping or of_drills):
        yield []
        return
    # Imported here: an HTTP client takes its time, and most runs have no use for it.
    from pgstash.monitoring import delivery, webhook  # noqa: PLC0415

    scrubber = Scrubber(settings.secrets())
    listeners: list[events.Emit] = []
    couriers: list[delivery.Courier] = []

    def courier(what: str) -> delivery.Courier:
        couriers.append(delivery.Courier(what, lambda text: listener.listen(events.Warned(text))))
        return couriers[-1]

    if ping:
        to_ping = courier("The healthcheck ping")
        listeners.append(webhook.Ping(ping.get_secret_value(), to_ping, scrubber))

    def webhook_to(url: SecretStr, what: str, operations: Collection[webhook.Operation]) -> None:
        listeners.append(
            webhook.Webhook(
                url.get_secret_value(),
                courier(what),
                scrubber,
                on_success=settings.webhook_on_success,
                on_failure=settings.webhook_on_failure,
                operations=operations,
            )
        )

    if hook:
        webhook_to(hook, "The webhook", ["backup"] if of_drills else webhook.OPERATIONS)
    if of_drills:
        webhook_to(of_drills, "The webhook of drills", ["drill"])
    with delivery.finished(couriers):
        yield listeners


def open_storage(settings: Settings, emit: events.Emit, *, prompt: bool = False) -> Storage:
    """Return the store that the settings name; nothing is sent to it yet.

    A ``prompt`` one tries everything once, and waits for seconds only.
    """
    if settings.storage_folder:
        from pgstash.storage.directory import DirectoryStorage  # noqa: PLC0415

        return DirectoryStorage(settings.storage_folder)
    # Imported here: botocore takes its time, and a directory has no use for it.
    from pgstash import catalog  # noqa: PLC0415
    from pgstash.storage import parts  # noqa: PLC0415
    from pgstash.storage.s3 import S3Storage  # noqa: PLC0415

    endpoint, bucket = settings.s3_endpoint, settings.s3_bucket
    access_key, secret = settings.s3_access_key_id, settings.s3_secret_access_key
    if not (endpoint and bucket and access_key and secret):
        raise AssertionError("the settings were checked for this")
    return S3Storage(
        endpoint=endpoint,
        bucket=bucket,
        region=settings.s3_region,
        access_key_id=access_key.get_secret_value(),
        secret_access_key=secret.get_secret_value(),
        retry_attempts=0 if prompt else settings.retry_attempts,
        retry_delay=settings.retry_delay,
        max_parts=settings.s3_max_parts,
        part_size=settings.part_size,
        # The most that run at once: a restore, a listing with metadata or an upload, and one more
        # for the thread that waits for them.
        connections=1 + max(settings.restore_jobs, catalog.REQUESTS_AT_A_TIME, parts.SENDERS),
        connect_timeout=PROMPT_SECONDS if prompt else CONNECT_SECONDS,
        read_timeout=PROMPT_SECONDS if prompt else READ_SECONDS,
        emit=emit,
    )
