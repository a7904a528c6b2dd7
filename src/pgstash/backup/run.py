"""A backup from the first byte to the last: dump, compress, encrypt, upload, then record.

The order is what keeps the promises: pg_dump has ended well before the manifest is stored,
the manifest is stored before the archive becomes visible, and becoming visible is one request.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime

from pgstash import (
    __version__,
    anomaly,
    catalog,
    events,
    hooks,
    neighbours,
    pieces,
    record,
    streams,
)
from pgstash import manifest as manifests
from pgstash.beside import Beside
from pgstash.errors import (
    EXIT_UNFORESEEN,
    HookError,
    Interrupted,
    ObjectExistsError,
    PgstashError,
    StorageError,
)
from pgstash.identity import Identity
from pgstash.owners import Owners
from pgstash.pipeline import encryption
from pgstash.postgres import (
    address,
    extensions,
    pooler,
    required,
    rights,
    roles,
    source,
    tools,
    writer,
)
from pgstash.postgres.source import Server
from pgstash.postgres.writer import Writer
from pgstash.storage.interface import Storage, Upload

_ID_BYTES = 8
_NAMES_TRIED = 5
_SECONDS_BETWEEN_PROGRESS = 0.25


@dataclass(frozen=True, slots=True)
class Plan:
    """What to back up, and how; ``environment`` is what client tools may choose from.

    ``jobs`` is how many sessions read rows, ``options`` are added to pg_dump's. A backup smaller
    than ``anomaly_ratio`` times the usual is warned of; with 0 none is.
    """

    source_url: str
    prefix: str
    compression_level: int
    passphrase: str | None
    jobs: int
    lock_seconds: float
    idle_seconds: float
    environment: Mapping[str, str]
    options: Sequence[str]
    required: Sequence[required.Requirement]
    hooks: hooks.Hooks
    anomaly_ratio: float


@dataclass(frozen=True, slots=True)
class World:
    """What comes from outside: the time, chance, who is told, and how to put a signal off.

    ``owners`` tells whose the stored backups are. ``uninterrupted`` is a context in which no
    signal is heard, or only after a while; ``hear`` raises Interrupted if one came meanwhile.
    """

    now: Callable[[], datetime]
    random: Callable[[int], bytes]
    emit: events.Emit
    owners: Owners
    uninterrupted: Callable[[], AbstractContextManager[None]]
    hear: Callable[[], None]


@dataclass(frozen=True, slots=True)
class Backup:
    """A backup that is complete and visible; ``seconds`` is how long it took."""

    name: str
    location: str
    manifest: manifests.Manifest
    seconds: float


def run(plan: Plan, storage: Storage, world: World) -> Backup:
    """Back one database up; return only when a complete archive is visible in the store.

    Raises a PgstashError where anything at all went wrong, WriterBusyError among them where
    another backup of this source to this place runs, and Interrupted on a signal; then there
    is no archive of this backup. A hook that fails after it is a warning.
    """
    began = time.monotonic()
    encrypted = plan.passphrase is not None
    started = world.now()
    base = manifests.base_name(started)
    host, database = address.named(plan.source_url)
    world.emit(events.BackupAttempted(host, database))
    source_facts = {"PGSTASH_HOST": host, "PGSTASH_DATABASE": database}
    try:
        if plan.hooks.before:
            hooks.run(plan.hooks.before, {"PGSTASH_HOOK": "before", **source_facts}, world.emit)
        storage.check()
        server = source.look(plan.source_url)
        with writer.hold(server, storage.url(plan.prefix), world.emit) as lock:
            known = neighbours.look(
                storage,
                plan.prefix,
                record.identity_of(server.database),
                world.owners,
                now=world.now(),
                emit=world.emit,
            )
            started, base = _unused_name(storage, plan.prefix, world)
            made = _back_up(
                plan, storage, world, server=server, lock=lock, started=started, known=known
            )
    except BaseException as error:
        foreseen = isinstance(error, PgstashError | Interrupted)
        failed = events.BackupFailed(
            name=manifests.archive_name(base, encrypted=encrypted),
            seconds=time.monotonic() - began,
            message=str(error) if foreseen else f"{type(error).__name__}: {error}",
            hint=getattr(error, "hint", ""),
            host=host,
            database=database,
            error=type(error).__name__,
            exit_code=getattr(error, "exit_code", EXIT_UNFORESEEN),
        )
        world.emit(failed)
        if isinstance(error, Exception):
            _run_hook_after(plan, world, record.told_of_failure(failed))
        raise
    _run_hook_after(plan, world, record.told_of_success(made.manifest, made.location, made.seconds))
    return made


def _run_hook_after(plan: Plan, world: World, facts: Mapping[str, str]) -> None:
    """Run the hook at the end; by then nothing of it changes how the backup ended."""
    if plan.hooks.after is None:
        return
    world.hear()
    try:
        hooks.run(plan.hooks.after, {"PGSTASH_HOOK": "after", **facts}, world.emit)
    except HookError as error:
        world.emit(events.Warned(f"{error.message}\n{error.hint}"))


def _unused_name(storage: Storage, prefix: str, world: World) -> tuple[datetime, str]:
    """Take the first second from now on in which no backup of this prefix began."""
    for _ in range(_NAMES_TRIED):
        started = world.now()
        base = manifests.base_name(started)
        if next(iter(storage.list(f"{prefix}/{base}")), None) is None:
            return started, base
        time.sleep(1.05 - started.microsecond / 1_000_000)
    raise ObjectExistsError(f"backups named {base} and before exist already under {prefix}")


def _client(plan: Plan, server: Server) -> tools.ClientTools:
    client = tools.find(server.major, plan.environment.get("PATH", ""), plan.environment)
    tools.refuse_unknown_parameters(client, server.connection, plan.environment)
    return client


def _back_up(  # noqa: PLR0913 - what was found out so far
    plan: Plan,
    storage: Storage,
    world: World,
    *,
    server: Server,
    lock: Writer,
    started: datetime,
    known: neighbours.Neighbourhood,
) -> Backup:
    began = time.monotonic()
    base = manifests.base_name(started)
    encrypted = plan.passphrase is not None
    name = manifests.archive_name(base, encrypted=encrypted)
    key = f"{plan.prefix}/{name}"
    backup_id = world.random(_ID_BYTES).hex()
    world.emit(events.BackupStarted(name))

    expected = required.look_up(server, plan.required)
    needed = roles.needed(server)
    if closed := rights.closed_mappings(server, plan.options):
        world.emit(events.Warned("\n".join(rights.told_of_mappings(closed))))
    of_extensions = extensions.look(server, plan.options)
    for told in extensions.told_of(of_extensions):
        world.emit(events.Warned("\n".join(told)))
    earlier = _earlier(plan, storage, world, known.source, started)
    client = _client(plan, server)
    cipher = _key(plan, world)
    stored = _Digest()

    world.emit(events.DumpStarted(name, client.version, server.version))
    upload: Upload | None = None
    beside = Beside(
        storage,
        plan.prefix,
        base,
        backup_id,
        new_key=lambda: _key(plan, world),
        of_source=record.encoded(known.source.metadata()),
        emit=world.emit,
    )
    try:
        with (
            streams.opened(
                pieces.Plan(
                    server=server,
                    client=client,
                    jobs=plan.jobs,
                    level=plan.compression_level,
                    options=plan.options,
                    lock_seconds=plan.lock_seconds,
                    idle_seconds=plan.idle_seconds,
                    environment=plan.environment,
                    emit=world.emit,
                    ask=lock.ask,
                ),
                plan.hooks.verify,
                record.told_to_verify(server, storage.url(key), name),
                name,
            ) as stream,
            storage.upload(
                key,
                metadata=record.metadata(
                    server,
                    client,
                    started,
                    backup_id,
                    encrypted=encrypted,
                    of_source=known.metadata(started),
                ),
                expected_size=server.database.bytes,
                usual_size=earlier.stored_bytes,
            ) as upload,
        ):
            world.emit(events.UploadStarted(name, storage.url(), upload.part_size))
            archive = _announce_end(stream, name, began, world.emit)
            if cipher:
                archive = encryption.encrypt(archive, cipher)
            archive = _announce(stored.watch(archive), name, stream, stored, world.emit)
            for chunk in lock.watch(archive):
                upload.write(chunk)
            tables = record.tables(stream.rows, server.codec)
            _compare(plan, server, tables, expected, world.emit)
            upload.flush()
            lock.check()

            globals_sha256 = beside.store_globals(server, client, plan.environment)
            schema_sha256 = beside.store_schema(stream.schema) if stream.schema else None
            manifest = manifests.Manifest(
                format=manifests.FORMAT,
                reader=manifests.READER,
                tool=f"pgstash {__version__}",
                id=backup_id,
                archive=name,
                started=record.iso(started),
                finished=record.iso(world.now()),
                server=server.version,
                client=client.version,
                database=server.database,
                raw_bytes=stream.raw_bytes,
                stored_bytes=stored.bytes,
                sha256=stored.hexdigest(),
                compression=manifests.Compression("gzip", plan.compression_level),
                encryption=record.encryption_of(cipher),
                tables=tables,
                members=stream.members,
                options=list(plan.options),
                roles=needed.roles,
                extensions=needed.extensions,
                globals_sha256=globals_sha256,
                schema_sha256=schema_sha256,
                left_out=of_extensions.left_out,
            )
            beside.store_manifest(manifest, record.facts(manifest, time.monotonic() - began))
            lock.check()
            with world.uninterrupted():
                upload.commit()
    except (PgstashError, Interrupted) as error:
        if upload is None or not upload.committed:
            if upload is not None and upload.committed is False:
                beside.remove(error)
            raise
        # Cut off while the answer to the commit was on its way, or stumbled after it.
        if isinstance(error, PgstashError):
            world.emit(events.Warned(f"{name} is complete, and then: {error}"))
    made = Backup(name, storage.url(key), manifest, time.monotonic() - began)
    with world.uninterrupted():
        lock.release()
        _tell_success(plan, world, made, earlier)
    return made


def _compare(
    plan: Plan,
    server: Server,
    tables: Iterable[manifests.Table],
    expected: Iterable[required.Expected],
    emit: events.Emit,
) -> None:
    """Raise where the dump lacks what is required, or pg_dump may have lost its settings."""
    rows = {(each.schema, each.name): each.rows for each in tables}
    required.check(expected, rows)
    rights.refuse_hidden_rows(server, plan.options, rows)
    pooler.refuse_swapping_again(server, emit)


@dataclass(slots=True)
class _Earlier:
    """What is known of the backups before this one: how large they are, when one was proven.

    ``stored_bytes`` is the size of the largest of the last ones, as it is stored.
    """

    stored_bytes: int | None = None
    figures: Sequence[anomaly.Figures] = ()
    last_proof: datetime | None = None


def _tell_success(plan: Plan, world: World, made: Backup, earlier: _Earlier) -> None:
    manifest, figures = made.manifest, record.figures(made.manifest)
    world.emit(events.UploadFinished(made.name, made.seconds, manifest.stored_bytes))
    shrunk = anomaly.shrunk(figures, earlier.figures, plan.anomaly_ratio)
    if shrunk:
        world.emit(events.Warned(f"{made.name} is much smaller than usual: {'; '.join(shrunk)}"))
    world.emit(
        events.BackupSucceeded(
            name=made.name,
            seconds=made.seconds,
            location=made.location,
            raw_bytes=manifest.raw_bytes,
            stored_bytes=manifest.stored_bytes,
            tables=figures.tables,
            rows=figures.rows,
            host=manifest.database.host,
            database=manifest.database.name,
            last_proof=earlier.last_proof,
        )
    )


def _earlier(
    plan: Plan, storage: Storage, world: World, ours: Identity, started: datetime
) -> _Earlier:
    """Look at the backups of the source before this one; not to know them is no reason to fail."""
    earlier = _Earlier()
    try:
        stored = catalog.read(storage, plan.prefix).backups
        proven = world.owners.last_proven(stored, ours, started)
        earlier.last_proof = proven.proven_by(started) if proven else None
        before = [backup for backup in stored if backup.started < started]
        earlier.stored_bytes = world.owners.usual_size(before, ours)
        if plan.anomaly_ratio:
            own = world.owners.newest_first(before, ours)
            earlier.figures = catalog.figures_of(storage, own)
    except StorageError as error:
        world.emit(events.Notice(f"The size of earlier backups is not known: {error}"))
    return earlier


class _Digest:
    """Observes the bytes of the archive as they will be stored."""

    def __init__(self) -> None:
        self.bytes = 0
        self._sha256 = hashlib.sha256()

    def watch(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        for chunk in chunks:
            self.bytes += len(chunk)
            self._sha256.update(chunk)
            yield chunk

    def hexdigest(self) -> str:
        return self._sha256.hexdigest()


def _announce_end(
    stream: streams.Stream, name: str, began: float, emit: events.Emit
) -> Iterator[bytes]:
    """Pass the archive on, and tell when the dump has ended well."""
    yield from stream.archive()
    emit(events.DumpFinished(name, time.monotonic() - began, stream.raw_bytes))


def _announce(
    chunks: Iterable[bytes],
    name: str,
    stream: streams.Stream,
    stored: _Digest,
    emit: events.Emit,
) -> Iterator[bytes]:
    """Pass chunks on, and tell now and then how far things are."""
    last = time.monotonic()
    for chunk in chunks:
        yield chunk
        now = time.monotonic()
        if now - last >= _SECONDS_BETWEEN_PROGRESS:
            last = now
            emit(events.Progressed(name, stream.raw_bytes, stored.bytes))


def _key(plan: Plan, world: World) -> encryption.Key | None:
    """Derive a key for one object, with a salt of its own."""
    if plan.passphrase is None:
        return None
    return encryption.Key.derive(plan.passphrase, world.random(encryption.SALT_BYTES))
