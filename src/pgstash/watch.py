"""The composition root of what only looks: check, healthcheck and the health port."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Generator, Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal

from pgstash import app, catalog, events
from pgstash.check import freshness
from pgstash.errors import PgstashError, StaleBackupError, StorageError
from pgstash.identity import Identity
from pgstash.monitoring import log, wording
from pgstash.monitoring.scrub import Scrubber
from pgstash.postgres import address, source
from pgstash.schedule import stale_at
from pgstash.settings import Settings, environment
from pgstash.signals import kept_for_this_thread

if TYPE_CHECKING:
    from pgstash.check.finding import Finding
    from pgstash.monitoring import health
    from pgstash.postgres.source import Server

Part = Literal["database", "storage", "webhook"]

_PING_SECONDS = 3


def check(settings: Settings, part: Part | None, emit: events.Emit) -> Iterator[Finding]:
    """Yield what works and what does not: of one part, or of all.

    The webhook gets a message only where it is the one part asked for.
    """
    from pgstash.check.configuration import look  # noqa: PLC0415

    if part == "webhook":
        yield from _webhooks_tried(settings)
        return
    server: Server | None = None
    if part is None:
        yield from look(
            encrypted=settings.passphrase is not None,
            weak_key=settings.weak_key,
            misspelt=settings.misspelt,
        )
    if part != "storage":
        server = yield from _database(settings)
    if part != "database":
        yield from _storage(settings, emit)
        yield _others(settings, server, emit)
    if part is None:
        yield _drills(settings, server)
        yield _part_size(settings, server, emit)
        yield from _webhooks_unsent(settings)


def _database(settings: Settings) -> Generator[Finding, None, Server | None]:
    from pgstash.check import database  # noqa: PLC0415

    return database.look(
        database.Plan(
            source_url=settings.source_url,
            environment=environment(),
            clock=time.time,
            options=app.dump_options(settings),
            required=app.required_tables(settings),
        )
    )


def _drills(settings: Settings, server: Server | None) -> Finding:
    from pgstash.check import drills  # noqa: PLC0415

    return drills.look(
        drills.Plan(
            wanted=settings.verify_interval is not None,
            scratch_url=settings.scratch_url,
            environment=environment(),
        ),
        server,
    )


def _storage(settings: Settings, emit: events.Emit) -> Iterator[Finding]:
    from pgstash.check import storage  # noqa: PLC0415

    return storage.look(
        storage.Plan(
            prefix=settings.backup_prefix,
            endpoint=None if settings.storage_folder else settings.s3_endpoint,
            now=lambda: datetime.now(UTC),
            random=os.urandom,
        ),
        app.open_storage(settings, emit),
    )


def _others(settings: Settings, server: Server | None, emit: events.Emit) -> Finding:
    from pgstash import record  # noqa: PLC0415
    from pgstash.check import others  # noqa: PLC0415

    source = app.configured_source(settings)
    if server is not None:
        source = record.identity_of(server.database)
    storage = app.open_storage(settings, emit)
    return others.look(storage, settings.backup_prefix, source, app.owners_of(storage))


def _part_size(settings: Settings, server: Server | None, emit: events.Emit) -> Finding:
    from pgstash import record  # noqa: PLC0415
    from pgstash.check import storage  # noqa: PLC0415
    from pgstash.check.finding import Finding  # noqa: PLC0415

    if settings.storage_folder:
        return Finding("part size", "ok", "none: a directory takes a stream as it is")
    if server is None:
        return Finding("part size", "skipped", "the size of the database is not known")
    usual = None
    store = app.open_storage(settings, emit)
    with contextlib.suppress(StorageError):  # other findings tell
        backups = catalog.read(store, settings.backup_prefix).backups
        usual = app.owners_of(store).usual_size(backups, record.identity_of(server.database))
    return storage.part_size(
        server.database.bytes,
        settings.part_size,
        settings.s3_max_parts,
        usual,
        settings.s3_endpoint,
    )


def _webhooks(settings: Settings) -> list[tuple[str, str, str]]:
    """Return what each webhook is called, its variable, and its URL."""
    each = (
        ("webhook", "WEBHOOK_URL", settings.webhook_url),
        ("drill webhook", "VERIFY_WEBHOOK_URL", settings.verify_webhook_url),
    )
    return [(topic, name, url.get_secret_value()) for topic, name, url in each if url]


def _webhooks_unsent(settings: Settings) -> Iterator[Finding]:
    from pgstash.check.finding import Finding  # noqa: PLC0415

    found = _webhooks(settings)
    if not found:
        yield Finding("webhook", "skipped", "WEBHOOK_URL is not set")
    for topic, _, _ in found:
        yield Finding(topic, "skipped", "not sent: run `pgstash check webhook`")


def _webhooks_tried(settings: Settings) -> Iterator[Finding]:
    from pgstash.check.finding import Finding  # noqa: PLC0415
    from pgstash.monitoring import webhook  # noqa: PLC0415

    found = _webhooks(settings)
    if not found:
        yield Finding("webhook", "skipped", "WEBHOOK_URL is not set")
    host, database = address.named(settings.source_url)
    for topic, variable, url in found:
        problem = webhook.send_test(url, host, database, Scrubber(settings.secrets()))
        if problem:
            remedy = f"Check {variable}, and what its receiver says of it."
            yield Finding(topic, "failure", problem, remedy)
        else:
            yield Finding(topic, "ok", "the receiver took a test notification")


def healthcheck(settings: Settings) -> str:
    """Return in a sentence that all is well, or raise what is not.

    Raises DatabaseError, StorageError or StaleBackupError: the first one met.
    """
    ours = source.identify(settings.source_url, _PING_SECONDS)
    storage = app.open_storage(settings, events.ignore, prompt=True)
    now = datetime.now(UTC)
    rule = _stale_at(settings)
    owners = app.owners_of(storage)
    found = freshness.newest(storage, settings.backup_prefix, ours, owners, rule, now)
    where = storage.url(settings.backup_prefix)
    if found is None:
        raise StaleBackupError(f"there is no recent backup under {where}")
    late = (now - rule(found.started)).total_seconds()
    age = wording.span((now - found.started).total_seconds())
    if late >= 0:
        raise StaleBackupError(
            f"the newest backup under {where}, {found.name}, is {age} old, "
            f"{wording.span(late)} too old"
        )
    return f"the database and the store answer, and the newest backup, {found.name}, is {age} old"


@contextlib.contextmanager
def health_port(settings: Settings, emit: events.Emit) -> Iterator[events.Emit]:
    """Serve probes while the block runs, if the settings want it; yield who is to be told.

    Raises ConfigurationError where the port cannot be had.
    """
    if settings.health_port is None:
        yield emit
        return
    from pgstash.monitoring import health  # noqa: PLC0415

    known = health.Health(Scrubber(settings.secrets()), _stale_at(settings))

    def tell(event: events.Event) -> None:
        known(event)
        emit(event)

    with health.serving(settings.health_port, known):
        # On the side: a store that does not answer must not hold the first backup up.
        with kept_for_this_thread():
            threading.Thread(target=_remember, args=(settings, known), daemon=True).start()
        yield tell


def _remember(settings: Settings, known: health.Health) -> None:
    """Look once for the newest backup, and the last proof, of before the service started.

    The backup first, with a short listing: readiness waits for it. A proof may be beside any
    backup, however old, so everything is listed for it.
    """
    prefix, now = settings.backup_prefix, datetime.now(UTC)
    try:
        storage = app.open_storage(settings, events.ignore, prompt=True)
        ours = app.source_that_answers(settings) or app.configured_source(settings) or Identity()
        owners = app.owners_of(storage)
        if found := freshness.newest(storage, prefix, ours, owners, _stale_at(settings), now):
            known.found(found.name, found.started, found.size)
        proven = owners.last_proven(catalog.read(storage, prefix).backups, ours, now)
        if proven and (at := proven.proven_by(now)):
            known.found_proof(proven.name, at)
    except PgstashError as error:
        log.LOGGER.debug("What is stored could not be looked up: %s", error)


def _stale_at(settings: Settings) -> freshness.StaleAt:
    """Return the rule of the schedule; an interval counts from the backup itself."""
    return lambda last: stale_at(app.schedule(settings, last), last)
