"""A backup from the first byte to the last: dump, compress, encrypt, upload, then record.

The order is what keeps the promises: pg_dump has ended well before the manifest is stored,
the manifest is stored before the archive becomes visible, and becoming visible is one request.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from urllib.parse import quote

from pgstash import __version__, events, neighbours
from pgstash import manifest as manifests
from pgstash.errors import (
    EXIT_UNFORESEEN,
    Interrupted,
    ObjectExistsError,
    PgstashError,
    StorageError,
)
from pgstash.pipeline import compression, encryption
from pgstash.pipeline.opening import Opening
from pgstash.pipeline.tally import Tally, split_name
from pgstash.postgres import source, tools, writer
from pgstash.postgres.dump import dump
from pgstash.postgres.source import Server
from pgstash.postgres.writer import Writer
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
    """What to back up, and how; ``environment`` is what client tools may choose from."""

    source_url: str
    prefix: str
    compression_level: int
    passphrase: str | None
    lock_seconds: float
    idle_seconds: float
    environment: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class World:
    """What comes from outside: the time, chance, who is told, and how to put a signal off.

    ``uninterrupted`` is a context in which no signal is heard, or only after a while.
    """

    now: Callable[[], datetime]
    random: Callable[[int], bytes]
    emit: events.Emit
    uninterrupted: Callable[[], AbstractContextManager[None]]


@dataclass(frozen=True, slots=True)
class Backup:
    """A backup that is complete and visible."""

    name: str
    location: str
    manifest: manifests.Manifest


def run(plan: Plan, storage: Storage, world: World) -> Backup:
    """Back one database up; return only when a complete archive is visible in the store.

    Raises a PgstashError where anything at all went wrong, WriterBusyError among them where
    another backup of this source to this place runs, and Interrupted on a signal; then there
    is no archive of this backup.
    """
    began = time.monotonic()
    encrypted = plan.passphrase is not None
    started = world.now()
    base = manifests.base_name(started)
    host, database = source.named(plan.source_url)
    world.emit(events.BackupAttempted(host, database))
    try:
        storage.check()
        server = source.look(plan.source_url)
        with writer.hold(server, storage.url(plan.prefix), world.emit) as lock:
            name = _header(server.database.name)
            neighbours.look(storage, plan.prefix, name, now=world.now(), emit=world.emit)
            started, base = _unused_name(storage, plan.prefix, world)
            return _back_up(plan, storage, world, server=server, lock=lock, started=started)
    except BaseException as error:
        foreseen = isinstance(error, PgstashError | Interrupted)
        world.emit(
            events.BackupFailed(
                name=manifests.archive_name(base, encrypted=encrypted),
                seconds=time.monotonic() - began,
                message=str(error) if foreseen else f"{type(error).__name__}: {error}",
                hint=getattr(error, "hint", ""),
                host=host,
                database=database,
                error=type(error).__name__,
                exit_code=getattr(error, "exit_code", EXIT_UNFORESEEN),
            )
        )
        raise


def _unused_name(storage: Storage, prefix: str, world: World) -> tuple[datetime, str]:
    """Take the first second from now on in which no backup of this prefix began."""
    for _ in range(_NAMES_TRIED):
        started = world.now()
        base = manifests.base_name(started)
        if next(iter(storage.list(f"{prefix}/{base}")), None) is None:
            return started, base
        time.sleep(1.05 - started.microsecond / 1_000_000)
    raise ObjectExistsError(f"backups named {base} and before exist already under {prefix}")


def _back_up(  # noqa: PLR0913 - what was found out so far
    plan: Plan,
    storage: Storage,
    world: World,
    *,
    server: Server,
    lock: Writer,
    started: datetime,
) -> Backup:
    began = time.monotonic()
    base = manifests.base_name(started)
    encrypted = plan.passphrase is not None
    name = manifests.archive_name(base, encrypted=encrypted)
    key = f"{plan.prefix}/{name}"
    backup_id = world.random(_ID_BYTES).hex()
    world.emit(events.BackupStarted(name))

    client = tools.find(server.major, plan.environment.get("PATH", ""), plan.environment)
    cipher = _key(plan, world)
    tally, opening, stored = Tally(), Opening(), _Digest()
    members: list[manifests.Member] = []

    world.emit(events.DumpStarted(name, client.version, server.version))
    upload: Upload | None = None
    manifest_key = ""
    try:
        with (
            dump(
                server,
                client,
                lock_seconds=plan.lock_seconds,
                idle_seconds=plan.idle_seconds,
                environment=plan.environment,
                emit=world.emit,
            ) as chunks,
            storage.upload(
                key,
                metadata=_metadata(plan, server, client, started, backup_id),
                expected_size=server.database.bytes,
            ) as upload,
        ):
            world.emit(events.UploadStarted(name, storage.url(), upload.part_size))
            plain = _announce_end(tally.watch(chunks), name, tally, began, world.emit)
            archive = compression.compress(
                opening.split(plain), level=plan.compression_level, record=members.append
            )
            if cipher:
                archive = encryption.encrypt(archive, cipher)
            archive = _announce(stored.watch(archive), name, tally, stored, world.emit)
            for chunk in lock.watch(archive):
                upload.write(chunk)
            upload.flush()
            lock.check()

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
                tables=_tables(tally, server.codec),
                members=_sections(members, opening, name, world.emit),
            )
            manifest_key = (
                f"{plan.prefix}/{manifests.manifest_name(base, backup_id, encrypted=encrypted)}"
            )
            storage.put(manifest_key, _sealed(manifest, plan, world), {"id": backup_id})
            lock.check()
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
    with world.uninterrupted():
        lock.release()
        world.emit(events.UploadFinished(name, time.monotonic() - began, stored.bytes))
        world.emit(
            events.BackupSucceeded(
                name=name,
                seconds=time.monotonic() - began,
                location=storage.url(key),
                raw_bytes=tally.raw_bytes,
                stored_bytes=stored.bytes,
                tables=len(manifest.tables),
                rows=sum(table.rows for table in manifest.tables),
                host=server.database.host,
                database=server.database.name,
            )
        )
    return Backup(name, storage.url(key), manifest)


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


def _sections(
    members: list[manifests.Member], opening: Opening, name: str, emit: events.Emit
) -> list[manifests.Member]:
    """Return the members with the sections they are of, where these are certain."""
    if opening.found:
        return members
    emit(
        events.Warned(
            f"{name}: the dump does not begin as expected, so that a restore into an empty "
            "database cannot leave its DROP statements out"
        )
    )
    return [replace(member, section=None) for member in members]


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
