"""Check that a backup can be made, according to the settings."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from functools import partial

from pgstash import events
from pgstash.check import (
    bucket_rules,
    configuration,
    database,
    drills,
    kms,
    object_lock,
    run,
    storage,
    webhooks,
)
from pgstash.check.finding import Finding, Part
from pgstash.commands import copies, notifications, other_stores
from pgstash.commands import kms as configured_kms
from pgstash.commands.backup import dump_options, required_tables
from pgstash.commands.source import configured_source, owners_of, source_password
from pgstash.commands.storage import open_storage
from pgstash.monitoring import notify, webhook
from pgstash.pipeline import recipients
from pgstash.postgres.tools import pg_dump_options
from pgstash.settings import ODD_VALUE_REMEDY, Settings, environment


def check(settings: Settings, part: Part | None, emit: events.Emit) -> Iterator[Finding]:
    """Yield the findings of one part, or of all parts: see :func:`run.run`."""
    plan = run.Plan(
        configuration=configuration.Plan(
            encrypted=settings.passphrase is not None,
            recipients=[recipients.label(each) for each in settings.recipients],
            weak_key=settings.weak_key,
            misspelt=settings.misspelt,
            odd_values=settings.odd_values,
            odd_value_remedy=ODD_VALUE_REMEDY,
            notes=settings.notes,
        ),
        database=database.Plan(
            source_url=settings.source_url,
            environment=environment(),
            clock=time.time,
            options=dump_options(settings),
            required=required_tables(settings),
            globals_passwords=settings.globals_passwords,
            source_password=source_password(settings),
        ),
        storage=_storage(settings),
        drills=drills.Plan(
            wanted=settings.verify_interval is not None,
            scratch_url=settings.scratch_url,
            environment=environment(),
            partial=bool(pg_dump_options.leaving_out(dump_options(settings))),
        ),
        webhooks=_webhooks(settings),
        source=configured_source(settings),
        lock=_lock(settings),
        copies=[_copy(each, emit) for each in copies.of(settings)],
        kms=_kms(settings, emit),
    )
    owners = partial(owners_of, may_read=not settings.only_writes)
    return run.run(plan, part, lambda: open_storage(settings, emit), owners)


def _storage(settings: Settings) -> storage.Plan:
    parts = other_stores.parts(settings)
    return storage.Plan(
        prefix=settings.backup_prefix,
        endpoint=_endpoint(settings),
        now=lambda: datetime.now(UTC),
        random=os.urandom,
        part_size=parts.size,
        max_parts=parts.most,
        endpoint_setting=other_stores.endpoint_setting(settings),
        storage_class=None if settings.store else settings.s3_storage_class,
        only_writes=settings.only_writes,
        rules=_rules(settings),
    )


def _copy(copy: copies.Copy, emit: events.Emit) -> run.Copy:
    return run.Copy(
        name=copy.name,
        storage=_storage(copy.settings),
        open=lambda: copy.open(emit),
        lock=_lock(copy.settings),
        as_written=copy.settings.as_written,
    )


def _lock(settings: Settings) -> object_lock.Lock | None:
    days = settings.s3_object_lock_days
    if days is None:
        return None
    return object_lock.Lock(days, settings.s3_object_lock_mode, settings.backup_retention_days)


def _rules(settings: Settings) -> bucket_rules.Plan | None:
    """Return what to compare the rules of the bucket with: a writer does not have the retention.

    Months and years are as long as the longest ones.
    """
    if settings.only_writes:
        return None
    longest = (
        settings.backup_retention_days,
        settings.retention_keep_daily or 0,
        (settings.retention_keep_weekly or 0) * 7,
        (settings.retention_keep_monthly or 0) * 31,
        (settings.retention_keep_yearly or 0) * 366,
    )
    return bucket_rules.Plan(
        days=settings.backup_retention_days,
        longest_days=max(longest),
        locks=settings.s3_object_lock_days is not None,
        prunes_versions=settings.prune_versions,
    )


def _kms(settings: Settings, emit: events.Emit) -> kms.Plan | None:
    arns = recipients.of_kms(settings.recipients)
    return kms.Plan(arns, configured_kms.opener(settings, emit), os.urandom) if arns else None


def _endpoint(settings: Settings) -> str | None:
    """Return the URL of the store; None for a directory."""
    if settings.storage_folder:
        return None
    if settings.store:
        return other_stores.endpoint(settings, settings.store)
    return settings.s3_url


def _webhooks(settings: Settings) -> Sequence[webhooks.Destination]:
    each = (
        ("webhook", "WEBHOOK_URL", settings.webhook_url),
        ("drill webhook", "VERIFY_WEBHOOK_URL", settings.verify_webhook_url),
    )
    found = [
        webhooks.Destination(
            topic,
            "webhook",
            variable,
            partial(webhook.send_test, notifications.receiver_of(settings, url)),
        )
        for topic, variable, url in each
        if url
    ]
    if settings.notify_urls:
        addresses = notifications.addresses_of(settings)
        found.append(
            webhooks.Destination(
                "notify", "notify", "NOTIFY_URLS", addresses.test, notify.missing()
            )
        )
    return found
