"""Reads the records of failed runs. They describe what went wrong, and nothing depends on them."""

from __future__ import annotations

from collections.abc import Mapping

from pgstash.errors import CorruptedError
from pgstash.format import failure_record, names
from pgstash.format.failure_record import Failure
from pgstash.repository import keys, stored_manifest
from pgstash.repository.access import Access
from pgstash.repository.catalog import FailedRun
from pgstash.storage.interface import Storage


def read(storage: Storage, run: FailedRun, known: Mapping[str, str], access: Access) -> Failure:
    """Return a record; ``known`` are its decoded metadata.

    Raises CorruptedError, EncryptionError if there is no key for it, UnverifiedError, StorageError.
    """
    if run.key is None or run.size > failure_record.LARGEST:
        raise CorruptedError(f"{run.key or run.id} is no record of a failure that pgstash writes")
    if run.key.endswith(".enc"):
        stored = keys.Stored(run.key, known, run.wrapped, run.key, run.kms, run.id)
        access = keys.settled(storage, stored, access)
    found = stored_manifest.read_failure(storage, run.key, access)
    if found.id != run.id:
        raise CorruptedError(f"{run.key} is the record of another failure")
    return found


def has_some(storage: Storage, prefix: str) -> bool:
    """Return whether there is a backup or the record of a failure under a prefix.

    Raises StorageError.
    """
    listed = storage.list(f"{prefix}/backup_")
    found = (each.key.removeprefix(f"{prefix}/") for each in listed)
    return any(names.ARCHIVE_NAME.fullmatch(name) or names.failure_of(name) for name in found)
