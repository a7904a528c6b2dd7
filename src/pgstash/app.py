"""The composition root: settings in, wired objects out."""

from __future__ import annotations

import contextlib
import os
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pgstash import archive, backup, catalog, events, prune, restore, retention
from pgstash import manifest as manifests
from pgstash.errors import PgstashError, UnverifiedError
from pgstash.monitoring import log, progress
from pgstash.monitoring.scrub import Scrubber
from pgstash.schedule import Cron, Interval, Schedule
from pgstash.settings import Settings, environment
from pgstash.storage.directory import DirectoryStorage
from pgstash.storage.interface import Storage


def back_up(
    settings: Settings,
    emit: events.Emit,
    uninterrupted: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext,
    hear: Callable[[], None] = lambda: None,
) -> backup.Backup:
    """Run one backup as the settings say, then prune. Raises what :func:`backup.run` raises.

    Pruning that fails is a warning: the backup is complete by then. ``hear`` is called
    between the two, to raise Interrupted if a signal was put off by ``uninterrupted``.
    """
    plan = backup.Plan(
        source_url=settings.source_url,
        prefix=settings.backup_prefix,
        compression_level=settings.compression_level,
        passphrase=settings.passphrase,
        lock_seconds=settings.lock_timeout,
        idle_seconds=settings.dump_idle_timeout,
        environment=environment(),
    )
    world = backup.World(
        now=lambda: datetime.now(UTC),
        random=os.urandom,
        emit=emit,
        uninterrupted=uninterrupted,
    )
    storage = _storage(settings, emit)
    made = backup.run(plan, storage, world)
    hear()
    _prune_after_backup(settings, storage, emit)
    return made


def remove_old_backups(
    settings: Settings, emit: events.Emit, *, dry_run: bool = False
) -> prune.Pruned:
    """Prune as the settings say. Raises what :func:`prune.run` raises, and tells it."""
    try:
        return _prune(settings, _storage(settings, emit), emit, dry_run=dry_run)
    except PgstashError as error:
        emit(events.PruneFailed(error.message, error.hint))
        raise


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which backup: by name, or the newest that began at a time or before, or a file.

    A file needs no storage; ``-`` is stdin.
    """

    name: str
    at: datetime | None = None
    unverified: bool = False

    @property
    def is_file(self) -> bool:
        """Whether it lies outside the storage."""
        return self.name == "-" or "/" in self.name or Path(self.name).is_file()


def list_backups(settings: Settings, *, newest: int | None) -> list[Listed]:
    """Return the backups that are stored, the newest first. Raises StorageError."""
    storage = _storage(settings, events.ignore)
    backups = catalog.read(storage, settings.backup_prefix).backups[::-1][:newest]
    known = catalog.metadata(storage, backups)
    return [Listed(backup, facts) for backup, facts in zip(backups, known, strict=True)]


@dataclass(frozen=True, slots=True)
class Listed:
    """A backup, and what its metadata say of it."""

    backup: catalog.Backup
    metadata: Mapping[str, str]


def manifest_of(settings: Settings, name: str, emit: events.Emit) -> manifests.Manifest:
    """Return the manifest of a backup. Raises what :func:`open_archive` raises."""
    found = open_archive(settings, Wanted(name, unverified=True), emit)
    if found.manifest is None:
        raise UnverifiedError(f"{found.name} has no manifest, so there is nothing to show")
    return found.manifest


def open_archive(settings: Settings, wanted: Wanted, emit: events.Emit) -> archive.Archive:
    """Open a backup to read. Raises what the functions of :mod:`pgstash.archive` raise."""
    access = archive.Access(
        passphrase=settings.reading_passphrase,
        unverified=wanted.unverified,
        only_encrypted=settings.backup_encryption,
    )
    if wanted.name == "-":
        return archive.open_stdin(access)
    if wanted.is_file:
        return archive.open_file(Path(wanted.name), access)
    storage = _storage(settings, emit)
    found = catalog.read(storage, settings.backup_prefix)
    if wanted.at:
        backup = catalog.find_before(found, wanted.at)
    else:
        backup = catalog.find(found, wanted.name)
    return archive.open_stored(storage, backup, access)


def restore_backup(  # noqa: PLR0913 - one argument for each option
    settings: Settings,
    wanted: Wanted,
    emit: events.Emit,
    uninterrupted: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext,
    *,
    create: str | None,
    overwrite: bool,
    dry_run: bool,
) -> None:
    """Restore one backup. Raises what :func:`open_archive` and :func:`restore.run` raise."""
    plan = restore.Plan(
        target_url=settings.target_url,
        create=create,
        overwrite=overwrite,
        dry_run=dry_run,
        environment=environment(),
        uninterrupted=uninterrupted,
    )
    restore.run(plan, wanted.name, lambda: open_archive(settings, wanted, emit), emit)


def _prune_after_backup(settings: Settings, storage: Storage, emit: events.Emit) -> None:
    try:
        _prune(settings, storage, emit, dry_run=False)
    except PgstashError as error:
        emit(events.Warned(f"Pruning failed: {error.message}\n{error.hint}".rstrip()))
    except Exception as error:  # noqa: BLE001 - nothing that happens now undoes the backup
        emit(events.Warned(f"Pruning failed: {type(error).__name__}: {error}"))
        emit(events.Notice(traceback.format_exc()))


def _prune(
    settings: Settings, storage: Storage, emit: events.Emit, *, dry_run: bool
) -> prune.Pruned:
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
    )
    return prune.run(plan, storage, now=datetime.now(UTC), emit=emit, dry_run=dry_run)


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
    with contextlib.ExitStack() as stack:
        listeners = [log.listen, stack.enter_context(progress.listen())]
        listeners += stack.enter_context(_messengers(settings))

        def emit(event: events.Event) -> None:
            for listener in listeners:
                listener(event)

        yield emit


@contextlib.contextmanager
def _messengers(settings: Settings) -> Iterator[list[events.Emit]]:
    hook, ping = settings.webhook_url, settings.healthcheck_ping_url
    if not (hook or ping):
        yield []
        return
    # Imported here: an HTTP client takes its time, and most runs have no use for it.
    from pgstash.monitoring import delivery, webhook  # noqa: PLC0415

    scrubber = Scrubber(settings.secrets())
    listeners: list[events.Emit] = []
    couriers: list[delivery.Courier] = []

    def courier(what: str) -> delivery.Courier:
        couriers.append(delivery.Courier(what, lambda text: log.listen(events.Warned(text))))
        return couriers[-1]

    if ping:
        to_ping = courier("The healthcheck ping")
        listeners.append(webhook.Ping(ping.get_secret_value(), to_ping, scrubber))
    if hook:
        listeners.append(
            webhook.Webhook(
                hook.get_secret_value(),
                courier("The webhook"),
                scrubber,
                on_success=settings.webhook_on_success,
                on_failure=settings.webhook_on_failure,
            )
        )
    with delivery.finished(couriers):
        yield listeners


def _storage(settings: Settings, emit: events.Emit) -> Storage:
    if settings.storage_folder:
        return DirectoryStorage(settings.storage_folder)
    # Imported here: botocore takes its time, and a directory has no use for it.
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
        retry_attempts=settings.retry_attempts,
        retry_delay=settings.retry_delay,
        max_parts=settings.s3_max_parts,
        part_size=settings.s3_part_size * 1024 * 1024 if settings.s3_part_size else None,
        emit=emit,
    )
