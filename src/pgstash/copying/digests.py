"""What the archive in a store has to be: its size and its digest, as far as they are known."""

from __future__ import annotations

import re
from dataclasses import dataclass

from pgstash.errors import CorruptedError, PipelineError
from pgstash.format import metadata as stored_metadata
from pgstash.repository import archive, object_metadata
from pgstash.repository.access import Access
from pgstash.repository.catalog import Backup
from pgstash.storage.interface import Storage

_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Expected:
    """The size in bytes, and the SHA-256 in hex, of an archive as stored; None if unknown."""

    size: int | None
    sha256: str | None


def of(storage: Storage, backup: Backup, access: Access) -> Expected:
    """Return what the manifest of a backup records of its archive.

    The metadata of the manifest have both without a key. Those of earlier versions lack the digest:
    then it is read from the manifest, if ``access`` can. Raises CorruptedError if the manifest of
    an unencrypted backup is damaged or of another size, StorageError.
    """
    recorded = object_metadata.of_manifest(storage, backup)
    size = recorded.get("stored-bytes", "")
    digest = recorded.get(stored_metadata.SHA256, "")
    return Expected(
        int(size) if size.isascii() and size.isdecimal() else None,
        digest if _SHA256.fullmatch(digest) else _read(storage, backup, access),
    )


def _read(storage: Storage, backup: Backup, access: Access) -> str | None:
    try:
        manifest = archive.open_stored(storage, backup, access, to_read=False).manifest
    except CorruptedError:
        if not backup.encrypted:
            raise
        return None  # the key may be another one
    except PipelineError:
        return None
    return manifest.sha256 if manifest else None
