"""A backup from the first byte to the last: dump, compress, encrypt, upload, then record.

The order is what keeps the promises: pg_dump has ended well before the manifest is stored,
the manifest is stored before the archive becomes visible, and becoming visible is one request.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import quote

from pgstash import __version__, anomaly, catalog, events, hooks
from pgstash import manifest as manifests
from pgstash.errors import (
    EXIT_UNFORESEEN,
    HookError,
    Interrupted,
    ObjectExistsError,
    PgstashError,
    StorageError,
)
from pgstash.pipeline import compression, encryption
from pgstash.pipeline.tally import Tally, split_name
from pgstash.postgres import required, source, tools
from pgstash.postgres.dump import dump
from pgstash.postgres.source import Server
from pgstash.storage.interface import Storage, Upload

_ID_BYTES = 8
_NAMES_TRIED = 5
_SECONDS_BETWEEN_PROGRESS = 0.25

# S3 keeps metadata in headers: ASCII, one line, 2 KB together
# (https://docs.aws.amazon.com/AmazonS3/latest/userguide/UsingMetadata.html).
_HEADER_SAFE = " !\"#$&'()*+,-./:;<=>?@[\\]^_`{|}~"
_LONGEST_HEADER = 255


@dataclass(frozen=True, slots=True)
class Plan:
    """What to back up, and how; ``environment`` is what client tools may choose from.

    ``options`` are added to pg_dump's. A backup smaller than ``anomaly_ratio`` times the usual
    is warned of; with 0 none is.
    """

    source_url: str
    prefix: str
    compression_level: int
    passphrase: str | None
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

    ``uninterrupted`` is a context in which no signal is heard, or only after a while; ``hear``
    raises Interrupted if one came meanwhile.
    """

    now: Callable[[], datetime]
    random: Callable[[int], bytes]
    emit: events.Emit
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

    Raises a PgstashError where anything at all went wrong, Interrupted on a signal; then
    there is no archive of this backup. A hook that fails after it is a warning.
    """
    began = time.monotonic()
    encrypted = plan.passphrase is not None
    started = world.now()
    base = manifests.base_name(started)
    host, database = source.named(plan.source_url)
    world.emit(events.BackupAttempted(host, database))
    source_facts = {"PGSTASH_HOST": host, "PGSTASH_DATABASE": database}
    try:
        if plan.hooks.before:
            hooks.run(plan.hooks.before, {"PGSTASH_HOOK": "before", **source_facts}, world.emit)
        storage.check()
        started, base = _unused_name(storage, plan.prefix, world)
        made = _back_up(plan, storage, world, started, base)
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
            _run_hook_after(plan, world, _facts_of_failure(failed))
        raise
    _run_hook_after(plan, world, _facts_of_success(made))
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


def _facts_of_failure(event: events.BackupFailed) -> dict[str, str]:
    return {
        "PGSTASH_STATUS": "failure",
        "PGSTASH_BACKUP": event.name,
        "PGSTASH_SECONDS": f"{event.seconds:.1f}",
        "PGSTASH_ERROR": event.error,
        "PGSTASH_EXIT_CODE": str(event.exit_code),
        "PGSTASH_HOST": event.host,
        "PGSTASH_DATABASE": event.database,
    }


def _facts_of_success(made: Backup) -> dict[str, str]:
    return {
        "PGSTASH_STATUS": "success",
        "PGSTASH_BACKUP": made.name,
        "PGSTASH_LOCATION": made.location,
        "PGSTASH_SECONDS": f"{made.seconds:.1f}",
        "PGSTASH_RAW_BYTES": str(made.manifest.raw_bytes),
        "PGSTASH_STORED_BYTES": str(made.manifest.stored_bytes),
        "PGSTASH_EXIT_CODE": "0",
        "PGSTASH_HOST": made.manifest.database.host,
        "PGSTASH_DATABASE": made.manifest.database.name,
    }


def _unused_name(storage: Storage, prefix: str, world: World) -> tuple[datetime, str]:
    """Take the first second from now on in which no backup of this prefix began."""
    for _ in range(_NAMES_TRIED):
        started = world.now()
        base = manifests.base_name(started)
        if next(iter(storage.list(f"{prefix}/{base}")), None) is None:
            return started, base
        time.sleep(1.05 - started.microsecond / 1_000_000)
    raise ObjectExistsError(f"backups named {base} and before exist already under {prefix}")


def _back_up(plan: Plan, storage: Storage, world: World, started: datetime, base: str) -> Backup:
    began = time.monotonic()
    encrypted = plan.passphrase is not None
    name = manifests.archive_name(base, encrypted=encrypted)
    key = f"{plan.prefix}/{name}"
    backup_id = world.random(_ID_BYTES).hex()
    world.emit(events.BackupStarted(name))

    server = source.look(plan.source_url)
    expected = required.look_up(server, plan.required)
    predecessors = _predecessors(plan, storage, world, started)
    client = tools.find(server.major, plan.environment.get("PATH", ""), plan.environment)
    cipher = _key(plan, world)
    tally, stored, members = Tally(), _Digest(), list[manifests.Member]()

    world.emit(events.DumpStarted(name, client.version, server.version))
    upload: Upload | None = None
    manifest_key = ""
    try:
        with (
            dump(
                server,
                client,
                options=plan.options,
                lock_seconds=plan.lock_seconds,
                idle_seconds=plan.idle_seconds,
                environment=plan.environment,
                emit=world.emit,
            ) as chunks,
            hooks.verifying(
                plan.hooks.verify, _facts_to_verify(server, storage.url(key), name), world.emit
            ) as verified,
            storage.upload(
                key,
                metadata=_metadata(plan, server, client, started, backup_id),
                expected_size=server.database.bytes,
            ) as upload,
        ):
            world.emit(events.UploadStarted(name, storage.url(), upload.part_size))
            plain = _announce_end(tally.watch(chunks), name, tally, began, world.emit)
            archive = compression.compress(
                verified(plain), level=plan.compression_level, record=members.append
            )
            if cipher:
                archive = encryption.encrypt(archive, cipher)
            for chunk in _announce(stored.watch(archive), name, tally, stored, world.emit):
                upload.write(chunk)
            tables = _tables(tally, server.codec)
            required.check(expected, {(each.schema, each.name): each.rows for each in tables})
            upload.flush()

            manifest = manifests.Manifest(
                format=manifests.FORMAT,
                tool=f"pgstash {__version__}",
                id=backup_id,
                archive=name,
                started=_iso(started),
                finished=_iso(world.now()),
                server=server.version,
                client=client.version,
                database=server.database,
                raw_bytes=tally.raw_bytes,
                stored_bytes=stored.bytes,
                sha256=stored.hexdigest(),
                compression=manifests.Compression("gzip", plan.compression_level),
                encryption=_encryption(cipher),
                tables=tables,
                members=members,
                options=list(plan.options),
            )
            manifest_key = (
                f"{plan.prefix}/{manifests.manifest_name(base, backup_id, encrypted=encrypted)}"
            )
            storage.put(
                manifest_key,
                _sealed(manifest, plan, world),
                _facts_of(manifest, time.monotonic() - began),
            )
            with world.uninterrupted():
                upload.commit()
    except (PgstashError, Interrupted) as error:
        if upload is None or not upload.committed:
            if upload is not None and upload.committed is False and manifest_key:
                _remove_orphan(storage, manifest_key, error)
            raise
        # Cut off while the answer to the commit was on its way, or stumbled after it.
        if isinstance(error, PgstashError):
            world.emit(events.Warned(f"{name} is complete, and then: {error}"))
    made = Backup(name, storage.url(key), manifest, time.monotonic() - began)
    figures = _figures(manifest)
    with world.uninterrupted():
        world.emit(events.UploadFinished(name, made.seconds, stored.bytes))
        shrunk = anomaly.shrunk(figures, predecessors, plan.anomaly_ratio)
        if shrunk:
            world.emit(events.Warned(f"{name} is much smaller than usual: {'; '.join(shrunk)}"))
        world.emit(
            events.BackupSucceeded(
                name=name,
                seconds=made.seconds,
                location=made.location,
                raw_bytes=tally.raw_bytes,
                stored_bytes=stored.bytes,
                tables=figures.tables,
                rows=figures.rows,
                host=server.database.host,
                database=server.database.name,
            )
        )
    return made


def _predecessors(
    plan: Plan, storage: Storage, world: World, started: datetime
) -> list[anomaly.Figures]:
    """Ask how large the backups before this one are; not to know it is no reason to fail."""
    if not plan.anomaly_ratio:
        return []
    try:
        return catalog.figures_before(storage, plan.prefix, started)
    except StorageError as error:
        world.emit(events.Notice(f"The size of earlier backups is not known: {error.message}"))
        return []


def _figures(manifest: manifests.Manifest) -> anomaly.Figures:
    return anomaly.Figures(
        raw_bytes=manifest.raw_bytes,
        tables=len(manifest.tables),
        rows=sum(table.rows for table in manifest.tables),
    )


def _facts_to_verify(server: Server, location: str, name: str) -> dict[str, str]:
    return {
        "PGSTASH_HOOK": "verify",
        "PGSTASH_BACKUP": name,
        "PGSTASH_LOCATION": location,
        "PGSTASH_HOST": server.database.host,
        "PGSTASH_DATABASE": server.database.name,
    }


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
    chunks: Iterable[bytes], name: str, tally: Tally, began: float, emit: events.Emit
) -> Iterator[bytes]:
    """Pass chunks on, and tell when pg_dump has ended well."""
    yield from chunks
    emit(events.DumpFinished(name, time.monotonic() - began, tally.raw_bytes))


def _announce(
    chunks: Iterable[bytes], name: str, tally: Tally, stored: _Digest, emit: events.Emit
) -> Iterator[bytes]:
    """Pass chunks on, and tell now and then how far things are."""
    last = time.monotonic()
    for chunk in chunks:
        yield chunk
        now = time.monotonic()
        if now - last >= _SECONDS_BETWEEN_PROGRESS:
            last = now
            emit(events.Progressed(name, tally.raw_bytes, stored.bytes))


def _key(plan: Plan, world: World) -> encryption.Key | None:
    """Derive a key for one object, with a salt of its own."""
    if plan.passphrase is None:
        return None
    return encryption.Key.derive(plan.passphrase, world.random(encryption.SALT_BYTES))


def _sealed(manifest: manifests.Manifest, plan: Plan, world: World) -> bytes:
    """Return the manifest as it is stored: compressed, and encrypted if the archive is."""
    key = _key(plan, world)
    text = manifests.dump(manifest, key.authenticate if key else None)
    compressed = gzip.compress(text, mtime=0)
    return b"".join(encryption.encrypt([compressed], key)) if key else compressed


def _encryption(key: encryption.Key | None) -> manifests.Encryption | None:
    if key is None:
        return None
    return manifests.Encryption(
        cipher="aes-256-cbc",
        kdf="pbkdf2-hmac-sha256",
        rounds=encryption.ROUNDS,
        salt=key.salt.hex(),
    )


def _metadata(
    plan: Plan, server: Server, client: tools.ClientTools, started: datetime, backup_id: str
) -> dict[str, str]:
    """Return what a reader needs to know of an archive when the manifest is not at hand."""
    values = {
        "timestamp": _iso(started),
        "database": server.database.name,
        "host": server.database.host,
        "id": backup_id,
        "format": str(manifests.FORMAT),
        "tool": f"pgstash {__version__}",
        "server": server.version,
        "client": client.version,
        "encoding": server.database.encoding,
        "compression": "gzip",
        "encryption": f"aes-256-cbc pbkdf2 {encryption.ROUNDS}" if plan.passphrase else "none",
    }
    return {key: _header(value) for key, value in values.items()}


def _facts_of(manifest: manifests.Manifest, seconds: float) -> dict[str, str]:
    """Return what a reader may want to know of a backup without its key."""
    figures = _figures(manifest)
    values = {
        "id": manifest.id,
        "raw-bytes": str(figures.raw_bytes),
        "stored-bytes": str(manifest.stored_bytes),
        "tables": str(figures.tables),
        "rows": str(figures.rows),
        "seconds": f"{seconds:.1f}",
        "server": manifest.server,
        "database": manifest.database.name,
    }
    return {key: _header(value) for key, value in values.items()}


def _header(value: str) -> str:
    """Percent-encode what a header cannot carry: non-ASCII, controls, spaces at the ends."""
    inner = _HEADER_SAFE if value == value.strip() else _HEADER_SAFE.strip()
    return quote(value, safe=inner, errors="surrogateescape")[:_LONGEST_HEADER]


def _tables(tally: Tally, codec: str) -> list[manifests.Table]:
    tables = []
    for qualified, rows in tally.rows.items():
        schema, table = (part.decode(codec, "surrogateescape") for part in split_name(qualified))
        tables.append(manifests.Table(schema, table, rows))
    return tables


def _remove_orphan(storage: Storage, manifest_key: str, error: BaseException) -> None:
    """Remove the manifest of an archive that certainly is not there and will not be.

    A signal leaves no time for it, and a store that is down no way; without an archive of
    its id a manifest means nothing.
    """
    if isinstance(error, PgstashError):
        with contextlib.suppress(StorageError):
            storage.delete([manifest_key])


def _iso(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
