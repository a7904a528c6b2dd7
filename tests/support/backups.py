"""What a test does with a stored backup: find it, open it with the standard tools, restore it."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from support.cli import TOOLS_ON_PATH_ALONE, environment, run_pgstash
from support.postgres import clean_environment

if TYPE_CHECKING:
    from support.postgres import Database

PASSPHRASE = "a passphrase of more than thirty-two characters: 'ä€\"$x"
PREFIX = "postgres-backups"
_OPENSSL = ("openssl", "enc", "-d", "-aes-256-cbc", "-pbkdf2", "-pass", "env:KEY")


@dataclass(frozen=True)
class StoredBackup:
    """The files of one backup in a directory storage."""

    archive: Path
    manifest_file: Path

    @property
    def encrypted(self) -> bool:
        return self.archive.suffix == ".enc"

    @property
    def metadata(self) -> dict[str, str]:
        text = self.archive.with_name(f".{self.archive.name}.metadata.json").read_text()
        metadata: dict[str, str] = json.loads(text)
        return metadata

    @property
    def manifest(self) -> dict[str, Any]:
        packed = self.manifest_file.read_bytes()
        if self.encrypted:
            packed = decrypted(packed)
        manifest: dict[str, Any] = json.loads(gzip.decompress(packed))
        return manifest

    @property
    def row_counts(self) -> dict[tuple[str, str], int]:
        return {(schema, name): rows for schema, name, rows in self.manifest["tables"]["rows"]}

    def script(self) -> bytes:
        """Return the plain SQL, by openssl and gunzip."""
        packed = self.archive.read_bytes()
        if self.encrypted:
            packed = decrypted(packed)
        return subprocess.run(
            ["gunzip", "-c"], input=packed, stdout=subprocess.PIPE, check=True
        ).stdout

    def restore(self, target: Database, *, bin_dir: Path | None = None) -> None:
        """Restore by ``openssl | gunzip | psql`` as the documentation says."""
        decrypt = f"{' '.join(_OPENSSL)} -in" if self.encrypted else "cat"
        pipe = f'{decrypt} "$ARCHIVE" | gunzip | psql -X -q -v ON_ERROR_STOP=1 -d "$TARGET"'
        done = subprocess.run(
            ["bash", "-o", "pipefail", "-c", pipe],
            env=clean_environment(bin_dir or target.bin_dir)
            | {"KEY": PASSPHRASE, "ARCHIVE": str(self.archive), "TARGET": target.conninfo},
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        assert done.returncode == 0, done.stderr


def decrypted(data: bytes) -> bytes:
    """Decrypt an object by openssl."""
    return subprocess.run(
        _OPENSSL,
        input=data,
        env=dict(os.environ) | {"KEY": PASSPHRASE},
        stdout=subprocess.PIPE,
        check=True,
    ).stdout


def settings(database: Database, folder: Path, *, encrypted: bool = False) -> dict[str, str]:
    """Return the settings of a backup of this database into a local directory."""
    values = {"DATABASE_URL": database.uri, "STORAGE_URL": folder.as_uri()}
    if encrypted:
        values |= {"BACKUP_ENCRYPTION": "true", "BACKUP_ENCRYPTION_KEY": PASSPHRASE}
    return values


def stored(folder: Path, prefix: str = PREFIX) -> list[StoredBackup]:
    """Return the backups that a reader of the directory sees, oldest first."""
    archives = sorted((folder / prefix).glob("backup_????????_??????.sql.gz*"))
    found = []
    for archive in archives:
        base = archive.name.partition(".sql.gz")[0]
        backup_id = json.loads(archive.with_name(f".{archive.name}.metadata.json").read_text())[
            "id"
        ]
        [manifest] = (folder / prefix).glob(f"{base}.{backup_id}.manifest.json.gz*")
        found.append(StoredBackup(archive, manifest))
    return found


def back_up(
    database: Database,
    folder: Path,
    *,
    encrypted: bool = False,
    tools: Path | None = None,
    **more: str,
) -> StoredBackup:
    """Run ``pgstash once`` into a directory and return what it stored.

    It uses these ``tools``, by default the server's own, whatever else the machine has.
    """
    env = environment(
        tools or database.bin_dir, **(settings(database, folder, encrypted=encrypted) | more)
    )
    done = run_pgstash(["once"], env, statements=TOOLS_ON_PATH_ALONE)
    assert done.returncode == 0, done.stdout + done.stderr
    return stored(folder)[-1]
