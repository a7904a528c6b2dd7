"""Stores a backup of any script without a database: for tests of what reads backups."""

from __future__ import annotations

import gzip
import hashlib
import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pgstash.format import manifest as manifests
from pgstash.format import names
from pgstash.pipeline import compression, encryption
from pgstash.storage.directory.storage import DirectoryStorage

if TYPE_CHECKING:
    from pathlib import Path

    from pgstash.storage.interface import Storage

DATABASE = manifests.Database(
    name="shop",
    host="db.internal",
    port=5432,
    encoding="UTF8",
    collate="C",
    ctype="C",
    locale_provider="c",
    locale=None,
    lc_monetary="C",
    settings=[],
    bytes=1000,
)
CLOSING = b"\n--\n-- PostgreSQL database dump complete\n--\n\n"


@dataclass(frozen=True)
class Made:
    """The objects of a backup, made and not stored yet."""

    base: str
    manifest: manifests.Manifest
    archive: bytes
    passphrase: str | None
    rounds: int = encryption.ROUNDS

    @property
    def key(self) -> str:
        return f"p/{self.manifest.archive}"

    @property
    def manifest_key(self) -> str:
        encrypted = self.passphrase is not None
        return f"p/{names.manifest_name(self.base, self.manifest.id, encrypted=encrypted)}"

    def store(self, storage: Storage) -> None:
        storage.put(self.key, self.archive, {"id": self.manifest.id})
        storage.put(self.manifest_key, self.packed_manifest(), {"id": self.manifest.id})

    def store_as_backup(self, folder: Path) -> None:
        """Store it where pgstash looks by default."""
        storage = DirectoryStorage(folder)
        for key, data in ((self.key, self.archive), (self.manifest_key, self.packed_manifest())):
            storage.put(key.replace("p/", "postgres-backups/"), data, {"id": self.manifest.id})

    def packed_manifest(self) -> bytes:
        key = key_of(self.passphrase, self.rounds)
        packed = gzip.compress(manifests.dump(self.manifest, key.authenticate if key else None))
        return b"".join(encryption.encrypt([packed], key)) if key else packed

    def with_manifest(self, **changes: object) -> Made:
        return replace(self, manifest=replace(self.manifest, **changes))  # type: ignore[arg-type]


def key_of(passphrase: str | None, rounds: int = encryption.ROUNDS) -> encryption.Key | None:
    return encryption.Key.derive(passphrase, os.urandom(8), rounds) if passphrase else None


def make(
    script: bytes,
    *,
    passphrase: str | None = None,
    base: str = "backup_20260131_020000",
    member_bytes: int = 1000,
    database: manifests.Database = DATABASE,
    rounds: int = encryption.ROUNDS,
) -> Made:
    """Make a backup of a script whose members are about so long."""
    members: list[manifests.Member] = []
    step = max(1, member_bytes // 3)
    chunks = [script[start : start + step] for start in range(0, len(script), step)]
    stored = compression.compress(chunks, level=6, record=members.append, member_bytes=member_bytes)
    key = key_of(passphrase, rounds)
    archive = b"".join(encryption.encrypt(stored, key) if key else stored)
    manifest = manifests.Manifest(
        format=manifests.FORMAT,
        tool="pgstash test",
        id=os.urandom(8).hex(),
        archive=names.archive_name(base, encrypted=key is not None),
        started="2026-01-31T02:00:00Z",
        finished="2026-01-31T02:00:09Z",
        server="16.15",
        client="16.15",
        database=database,
        raw_bytes=len(script),
        stored_bytes=len(archive),
        sha256=hashlib.sha256(archive).hexdigest(),
        compression=manifests.Compression("gzip", 6),
        encryption=manifests.Encryption("aes-256-cbc", "pbkdf2", rounds, key.salt.hex())
        if key
        else None,
        tables=[],
        members=members,
    )
    return Made(base, manifest, archive, passphrase, rounds)
