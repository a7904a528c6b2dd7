"""Metrics, according to the settings: what a job is called, and what the store knows of it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from pgstash import events
from pgstash.commands import health, job_runs
from pgstash.commands.source import configured_source, owners_of
from pgstash.commands.storage import open_storage
from pgstash.errors import Interrupted
from pgstash.format import failure_record
from pgstash.format.identity import Identity
from pgstash.monitoring import event_log
from pgstash.monitoring.job_metrics import JobMetrics, Key
from pgstash.monitoring.metrics import Labels, Metrics, for_gateway, is_available
from pgstash.repository import catalog, object_metadata
from pgstash.repository.catalog import Backup, FailedRun
from pgstash.settings import Settings
from pgstash.storage.interface import Storage

if TYPE_CHECKING:
    from pgstash.monitoring.metrics_file import MetricsFile

SECONDS_AFTER_SIGNAL = 1.0
_MOST_FAILURES = 100
_LONGEST_COUNT = len(str(2**64))

_PUSHED_AFTER = (
    events.BackupSucceeded,
    events.BackupFailed,
    events.DrillSucceeded,
    events.DrillFailed,
)


def labels_of(settings: Settings) -> Labels:
    """Return what distinguishes the series of a job."""
    source = configured_source(settings)
    database = source.database if source else None
    job = settings.job or database or ""
    return Labels(job, database or "", job_runs.server_of(settings))


def figures_of(settings: Settings) -> JobMetrics:
    """Return the figures of a job, which are not known yet."""
    return JobMetrics(health.stale_at(settings))


def of_job(settings: Settings) -> tuple[Metrics, JobMetrics]:
    """Return the metrics of one job, and its figures."""
    metrics, figures = Metrics(), figures_of(settings)
    metrics.add(labels_of(settings), figures)
    return metrics, figures


@contextlib.contextmanager
def outputs(settings: Settings, *, file: bool) -> Iterator[events.Emit]:
    """Yield the listener that sends metrics of one job to a Pushgateway, and to a ``file``.

    Nothing is done before a backup or a drill is tried. The end of the block waits for both, for a
    limited time.
    """
    with contextlib.ExitStack() as stack:
        listeners: list[events.Emit] = []
        started = False

        def listen(event: events.Event) -> None:
            nonlocal started
            if not started and isinstance(event, events.BackupAttempted | events.DrillAttempted):
                started = True
                listeners.extend(stack.enter_context(_outputs(settings, file=file)))
            for listener in listeners:
                listener(event)

        yield listen


@contextlib.contextmanager
def _outputs(settings: Settings, *, file: bool) -> Iterator[list[events.Emit]]:
    path, gateway = settings.metrics_file if file else None, settings.metrics_pushgateway
    name = "METRICS_FILE" if path else "METRICS_PUSHGATEWAY"
    if not (path or gateway) or not is_usable(name):
        yield []
        return
    metrics, figures = of_job(settings)
    with contextlib.ExitStack() as stack:
        listeners: list[events.Emit] = [figures]
        if path:
            listeners.append(stack.enter_context(written(path, metrics)))
        if gateway:
            listeners.append(stack.enter_context(_pushed(gateway.get_secret_value(), metrics)))
        yield listeners


def is_usable(name: str) -> bool:
    """Return whether the setting of this name can be followed; warn if its library is missing."""
    if is_available():
        return True
    remedy = "It needs the extra metrics. Install it: pip install 'pgstash[metrics]'"
    _warn(f"{name} is ignored. {remedy}")
    return False


@contextlib.contextmanager
def written(path: str, metrics: Metrics) -> Iterator[MetricsFile]:
    """Yield the listener that writes the metrics to a file, also at the end of the block."""
    from pgstash.monitoring.metrics_file import (  # noqa: PLC0415 - most have none
        SECONDS_TO_END,
        MetricsFile,
    )

    file, seconds = MetricsFile(Path(path), metrics, _warn), SECONDS_TO_END
    try:
        yield file
    except Interrupted:
        seconds = SECONDS_AFTER_SIGNAL
        raise
    finally:
        file.finish(seconds)


@contextlib.contextmanager
def _pushed(url: str, metrics: Metrics) -> Iterator[events.Emit]:
    from pgstash.monitoring import http_delivery, pushgateway  # noqa: PLC0415 - most have none

    [labels] = metrics.jobs()
    courier = http_delivery.Courier("The Pushgateway", _warn)

    def push(event: events.Event) -> None:
        if isinstance(event, _PUSHED_AFTER):
            courier.send(pushgateway.request(url, labels.job, lambda: for_gateway(metrics)))

    with http_delivery.finished([courier]):
        yield push


def _warn(text: str) -> None:
    event_log.listen(events.Warned(text))


def remember(settings: Settings, figures: JobMetrics, source: Identity, now: datetime) -> None:
    """Take what the store knows of a job from before. Raises StorageError."""
    if settings.only_writes:
        return
    storage = open_storage(settings, events.ignore, prompt=True)
    owners = owners_of(storage)
    found = catalog.read(storage, settings.backup_prefix)
    until = now + catalog.CLOCKS_APART
    whole = [each for each in found.backups if each.size and each.started <= until]
    newest = first[0] if (first := owners.first(reversed(whole), source)) else None
    known: dict[Key, float] = {}
    if newest:
        known |= _of_newest(storage, newest)
    if proven := owners.last_proven(found.backups, source, now):
        known |= _of_proof(storage, proven, now)
    passed = known.get(("drill_last_success_timestamp_seconds",), 0.0)
    began = newest.started.timestamp() if newest else 0.0
    known |= _of_failures(storage, found.failures, source, {"backup": began, "drill": passed})
    figures.remember(known, newest.started if newest else None)


def _of_newest(storage: Storage, backup: Backup) -> dict[Key, float]:
    [facts] = object_metadata.of_backups(storage, [backup])
    names = {"raw-bytes": "raw_bytes", "tables": "tables", "rows": "rows"}
    found: dict[Key, float] = {
        (f"backup_last_{name}",): value
        for key, name in names.items()
        if (value := failure_record.seconds_of(facts.get(key, ""), _LONGEST_COUNT)) is not None
    }
    found["backup_last_stored_bytes",] = backup.size
    if (seconds := failure_record.seconds_of(facts.get("seconds", ""))) is not None:
        found["backup_last_duration_seconds",] = seconds
        tried = backup.started.timestamp()
        found["backup_last_attempt_timestamp_seconds",] = tried
    return found


def _of_proof(storage: Storage, backup: Backup, now: datetime) -> dict[Key, float]:
    at = backup.proven_by(now)
    keys = [each.key for each in backup.companions if each.proven == at]
    if at is None:
        return {}
    found: dict[Key, float] = {("drill_last_success_timestamp_seconds",): at.timestamp()}
    [facts] = object_metadata.of_objects(storage, keys[:1])
    if (seconds := failure_record.seconds_of(facts.get("restore-seconds", ""))) is not None:
        found["drill_last_restore_seconds",] = seconds
    return found


def _of_failures(
    storage: Storage, failures: Sequence[FailedRun], source: Identity, last: Mapping[str, float]
) -> dict[Key, float]:
    """Count the failures since the ``last`` success of each operation, the newest ones at most."""
    records = [each for each in failures if each.key][-_MOST_FAILURES:]
    newer = [each for each in records if each.started.timestamp() > min(last.values())]
    known = object_metadata.of_objects(storage, [each.key or "" for each in newer])
    counts, tried = dict.fromkeys(last, 0), 0.0
    for run, facts in zip(newer, known, strict=True):
        operation, at = failure_record.read_facts(facts).operation, run.started.timestamp()
        if at > last[operation] and source.relation(Identity.of(facts)) != "other":
            counts[operation] += 1
            tried = max(tried, at) if operation == "backup" else tried
    found: dict[Key, float] = {
        (f"{operation}_failures_in_a_row",): count for operation, count in counts.items()
    }
    return found | ({("backup_last_attempt_timestamp_seconds",): tried} if tried else {})
