"""The preflight: try every part that a backup, a drill or a notification needs, in order."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from pgstash.check import (
    configuration,
    database,
    drills,
    kms,
    object_lock,
    other_sources,
    storage,
    webhooks,
)
from pgstash.check.finding import Finding, Part
from pgstash.errors import ConfigurationError, StorageError
from pgstash.format.identity import Identity
from pgstash.postgres.server.connection import Server
from pgstash.repository import catalog
from pgstash.repository.owners import Owners
from pgstash.storage.interface import Storage


@dataclass(frozen=True, slots=True)
class Copy:
    """A copy to check; ``as_written`` names settings of a store as they are named for the copy."""

    name: str
    storage: storage.Plan
    open: Callable[[], Storage]
    lock: object_lock.Lock | None
    as_written: Callable[[str], str]


@dataclass(frozen=True, slots=True)
class Plan:
    """What to check.

    ``source`` identifies the source by the settings, for the case that no server answers; None if
    the settings name none. ``lock`` is None if new backups are not locked, ``kms`` if no key of AWS
    KMS is a recipient.
    """

    configuration: configuration.Plan
    database: database.Plan
    storage: storage.Plan
    drills: drills.Plan
    webhooks: Sequence[webhooks.Destination]
    source: Identity | None = None
    lock: object_lock.Lock | None = None
    copies: Sequence[Copy] = ()
    kms: kms.Plan | None = None


def run(
    plan: Plan,
    part: Part | None,
    open_storage: Callable[[], Storage],
    owners_of: Callable[[Storage], Owners],
) -> Iterator[Finding]:
    """Yield the findings of one part, or of all parts.

    The store is opened only if a part needs it, and a test notification is sent only if ``part``
    is the webhook, or to notify.
    """
    if part in ("webhook", "notify"):
        yield from webhooks.tried(plan.webhooks, part, plan.database.source_url)
        return
    server: Server | None = None
    if part is None:
        yield from configuration.look(plan.configuration)
        yield from kms.look(plan.kms) if plan.kms else ()
    if part != "storage":
        server = yield from database.look(plan.database)
    if part == "database":
        return
    store = open_storage()
    owners = owners_of(store)
    yield from storage.look(plan.storage, store)
    if plan.lock:
        yield object_lock.look(plan.lock)
    source = server.database.identity if server else plan.source
    if owners.may_read:
        yield other_sources.look(store, plan.storage.prefix, source, owners)
    else:
        yield Finding("other sources", "skipped", storage.ONLY_WRITES)
    for copy in plan.copies:
        yield from _of_copy(copy)
    if part is None:
        yield drills.look(plan.drills, server)
        yield _part_size(plan.storage, store, owners, server)
        yield from webhooks.untried(plan.webhooks)


def _of_copy(copy: Copy) -> Iterator[Finding]:
    """Yield the findings about the store of a copy. A failure of it fails no backup: it warns."""
    for finding in _of_its_store(copy):
        yield Finding(
            f"copy {copy.name}: {finding.topic}",
            "warning" if finding.state == "failure" else finding.state,
            copy.as_written(finding.found),
            copy.as_written(finding.remedy),
        )


def _of_its_store(copy: Copy) -> Iterator[Finding]:
    try:
        store = copy.open()
    except ConfigurationError as error:
        yield Finding("settings", "failure", error.message)
        return
    yield from storage.look(copy.storage, store)
    if copy.lock:
        yield object_lock.look(copy.lock)


def _part_size(
    plan: storage.Plan, store: Storage, owners: Owners, server: Server | None
) -> Finding:
    if plan.endpoint is None:
        return Finding("part size", "ok", "none: a directory needs no parts")
    if server is None:
        return Finding("part size", "skipped", "the size of the database is unknown")
    usual = None
    with contextlib.suppress(ConfigurationError, StorageError):  # other findings report it
        backups = catalog.read(store, plan.prefix).backups
        usual = owners.usual_size(backups, server.database.identity)
    return storage.part_size(server.database.bytes, plan, usual)
