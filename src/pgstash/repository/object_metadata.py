"""The metadata of stored objects, and what follows from it: owned companions, sizes, orphans."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from typing import TypeVar
from urllib.parse import unquote

from pgstash.errors import ObjectNotFoundError, StorageError, StorageUnreachableError
from pgstash.format import metadata as stored_metadata
from pgstash.format.identity import Claim, Identity
from pgstash.format.size_history import MOST, Figures
from pgstash.repository.catalog import Backup, Companion, FailedRun
from pgstash.storage.interface import Storage

Q = TypeVar("Q")
T = TypeVar("T")

REQUESTS_AT_A_TIME = 16
"""The number of metadata requests that run at once."""

# The most backups that are read to find recorded sizes: some backups have none.
_MOST_ASKED = 2 * MOST


def of_backups(
    storage: Storage, backups: Sequence[Backup], *, complete: bool = False
) -> list[Mapping[str, str]]:
    """Return the decoded metadata of each backup, without needing the encryption key.

    That of the manifest takes precedence over that of the archive: it is written when everything is
    known. That of the archive is added if the manifest does not name the source, and always with
    ``complete``: only the archive has the versions of pg_dump and pgstash. The requests run in
    parallel. A backup that no longer exists has none. Raises StorageError.
    """
    return in_parallel(lambda backup: _metadata(storage, backup, complete=complete), backups)


def of_archives(
    storage: Storage, backups: Sequence[Backup]
) -> list[Mapping[str, str] | StorageError]:
    """Return the decoded metadata of each archive, or the error that reading it raised.

    That of an archive that no longer exists is empty. The requests run in parallel, one for each
    archive. Raises StorageUnreachableError.
    """

    def ask(backup: Backup) -> Mapping[str, str] | StorageError:
        try:
            return decoded(_head(storage, backup.key))
        except StorageUnreachableError:
            raise
        except StorageError as error:
            return error

    return in_parallel(ask, backups)


def of_keys(storage: Storage, backups: Sequence[Backup]) -> list[Mapping[str, str]]:
    """Return the decoded metadata of each archive, with those of its wrapped passphrases if any.

    The recipients of both are joined. The requests run in parallel. A backup that no longer exists
    has none. Raises StorageError.
    """

    def ask(backup: Backup) -> Mapping[str, str]:
        metadata = _head(storage, backup.key)
        own = companions_of(backup, metadata)
        first = {each.kind: each.key for each in own[::-1] if each.kind in ("key", "kms")}
        wrapped = [_head(storage, first[kind]) for kind in sorted(first)]
        return decoded({**metadata, **_joined(wrapped)})

    return in_parallel(ask, backups)


def _joined(wrapped: Sequence[Mapping[str, str]]) -> Mapping[str, str]:
    """Return the metadata of one wrapped passphrase, or of two with the recipients of both."""
    if len(wrapped) < 2:  # noqa: PLR2004 - one or two
        return wrapped[0] if wrapped else {}
    both = {**wrapped[1], **wrapped[0]}
    names = [each.get(stored_metadata.RECIPIENTS, "") for each in wrapped]
    both[stored_metadata.RECIPIENTS] = ", ".join(name for name in names if name)
    counts = [each.get(stored_metadata.RECIPIENT_COUNT, "")[:9] for each in wrapped]
    known = all(count.isascii() and count.isdecimal() for count in counts)
    both[stored_metadata.RECIPIENT_COUNT] = str(sum(map(int, counts))) if known else ""
    return both


def of_objects(storage: Storage, keys: Sequence[str]) -> list[Mapping[str, str]]:
    """Return the decoded metadata of each object; one that no longer exists has none.

    The requests run in parallel. Raises StorageError.
    """
    return in_parallel(lambda key: decoded(_head(storage, key)), keys)


def in_parallel(ask: Callable[[Q], T], questions: Sequence[Q]) -> list[T]:
    """Return the answer to each question; several are asked at a time."""
    pool = ThreadPoolExecutor(REQUESTS_AT_A_TIME)
    try:
        return list(pool.map(ask, questions))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _metadata(storage: Storage, backup: Backup, *, complete: bool) -> Mapping[str, str]:
    found: dict[str, str] = {}
    # A second manifest of one name is rare. Then only the archive identifies its own.
    if len(backup.manifests) == 1:
        found |= _head(storage, backup.manifests[0].key)
    if complete or not {"database", "host"} <= found.keys():
        found = {**_head(storage, backup.key), **found}
    return decoded(found)


def decoded(metadata: Mapping[str, str]) -> Mapping[str, str]:
    """Return metadata as they were before :func:`pgstash.format.metadata.encoded`."""
    return {key: unquote(value, errors="surrogateescape") for key, value in metadata.items()}


def _head(storage: Storage, key: str) -> Mapping[str, str]:
    try:
        return storage.head(key).metadata
    except ObjectNotFoundError:
        return {}


def own_companions(storage: Storage, backup: Backup) -> list[Companion]:
    """Return the companions with the id in the archive's metadata. Raises StorageError.

    An archive without an id, such as a copy that lost its metadata, owns all companions of its
    name. An archive that no longer exists owns none.
    """
    try:
        metadata = storage.head(backup.key).metadata
    except ObjectNotFoundError:
        return []
    return companions_of(backup, metadata)


def companions_of(backup: Backup, metadata: Mapping[str, str]) -> list[Companion]:
    """Return the same as :func:`own_companions`, by the given metadata of the archive."""
    return [
        companion
        for companion in backup.companions
        if metadata.get("id", companion.id) == companion.id
    ]


def with_own_companions(storage: Storage, backup: Backup) -> Backup:
    """Keep only the companions whose id matches the archive's, so that ``proven`` can be trusted.

    The metadata of the archive is read only if the names of the companions are not sufficient to
    decide. Raises StorageError.
    """
    ids = {companion.id for companion in backup.companions}
    if len(ids) == 1 or not any(companion.proven for companion in backup.companions):
        return backup
    return replace(backup, companions=tuple(own_companions(storage, backup)))


def own_manifests(storage: Storage, backup: Backup) -> list[Companion]:
    """Return the manifests among :func:`own_companions`. Raises StorageError."""
    return [each for each in own_companions(storage, backup) if each.kind == "manifest"]


def of_manifest(storage: Storage, backup: Backup) -> Mapping[str, str]:
    """Return the metadata of a backup's own manifest; empty if it has none. Raises StorageError.

    It is readable without the encryption key.
    """
    found = backup.manifests
    for companion in found if len(found) == 1 else own_manifests(storage, backup):
        try:
            metadata = storage.head(companion.key).metadata
        except ObjectNotFoundError:
            continue
        if metadata.get("id") == companion.id:
            return metadata
    return {}


def figures_of(storage: Storage, backups: Iterable[Backup]) -> list[Figures]:
    """Return the recorded sizes of the first backups, in order: as many as are compared.

    Raises StorageError.
    """
    found: list[Figures] = []
    for backup in islice(backups, _MOST_ASKED):
        figures = Figures.of(of_manifest(storage, backup))
        if figures:
            found.append(figures)
        if len(found) == MOST:
            break
    return found


def orphan(storage: Storage, companion: Companion) -> Mapping[str, str] | None:
    """Return the metadata of a companion of pgstash without an archive; None for any other.

    The objects themselves are requested, because a listing may be outdated. A companion of pgstash
    has its id in its metadata as well as in its name. Raises StorageError.
    """
    try:
        archive = storage.head(companion.archive_key).metadata
    except ObjectNotFoundError:
        archive = {"id": ""}
    if archive.get("id", companion.id) == companion.id:
        return None
    found = decoded(_head(storage, companion.key))
    return found if found.get("id") == companion.id else None


def is_own_failure(storage: Storage, run: FailedRun, claim: Claim) -> bool:
    """Return whether the objects of a failed run are of pgstash, and of the claimed sources.

    Each of them has its id and its source in the metadata. Raises StorageError.
    """
    found = decoded(_head(storage, run.keys[0]))
    return found.get("id") == run.id and claim.covers_failure(Identity.of(found))
