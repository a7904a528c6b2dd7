"""What is stored under a prefix: the backups, what lies beside them, and what was left over.

The bucket is the only truth, and a name is taken for ours only where all of it fits. Objects
further down (``<prefix>/other/…``) may belong to another instance and are not looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import islice
from typing import TypeVar
from urllib.parse import unquote

from pgstash import manifest as manifests
from pgstash.anomaly import MOST, Figures
from pgstash.errors import (
    BackupNotFoundError,
    ObjectNotFoundError,
    StorageError,
    StorageUnreachableError,
)
from pgstash.storage.interface import PendingUpload, Storage

T = TypeVar("T")

REQUESTS_AT_A_TIME = 16
"""How many objects are asked for their metadata at once."""

CLOCKS_APART = timedelta(hours=1)
"""How far two clocks may be apart: what one machine has just made is the latest for another."""

# Of backups that say nothing of their size so many are asked, and no more.
_MOST_ASKED = 2 * MOST


@dataclass(frozen=True, slots=True)
class Companion:
    """An object that belongs to an archive: its manifest, its roles, or a proof.

    ``id`` is that of its backup, ``archive_key`` where its archive is, or would be, and
    ``modified`` when it was stored, in UTC; ``proven`` is when the drill of a proof passed.
    """

    key: str
    id: str
    archive_key: str
    modified: datetime
    kind: manifests.Kind
    proven: datetime | None


@dataclass(frozen=True, slots=True)
class Backup:
    """An archive that is visible, and all companions of its name, its own or not.

    ``started`` is what the name says, in UTC, ``size`` is in bytes. A backup of the earlier
    shell service has no companions.
    """

    name: str
    key: str
    started: datetime
    size: int
    companions: Sequence[Companion]

    @property
    def encrypted(self) -> bool:
        """Whether it is encrypted, by its name."""
        return self.name.endswith(".enc")

    @property
    def manifests(self) -> Sequence[Companion]:
        """The companions that are manifests: one, but where a failed backup left another."""
        return [companion for companion in self.companions if companion.kind == "manifest"]

    @property
    def proven(self) -> datetime | None:
        """When a drill of this backup last passed; None where none did, or nobody can tell whose.

        Only the archive's metadata say which of several ids is its own.
        """
        return max(self._proofs(), default=None)

    def proven_by(self, moment: datetime) -> datetime | None:
        """When one last did by then: a proof of hours later had a clock that is wrong."""
        by_then = moment + CLOCKS_APART
        return max((proven for proven in self._proofs() if proven <= by_then), default=None)

    def _proofs(self) -> list[datetime]:
        if len({companion.id for companion in self.companions}) != 1:
            return []
        return [each.proven for each in self.companions if each.proven]


@dataclass(frozen=True, slots=True)
class Catalog:
    """All backups under a prefix, the oldest first, and companions that may be left over.

    A suspect has no archive of its name in the listing, or shares the archive's name with
    another companion: :func:`is_orphan` asks the store.
    """

    backups: Sequence[Backup]
    suspects: Sequence[Companion]


def read(storage: Storage, prefix: str) -> Catalog:
    """Read the catalog from one listing. Raises StorageError."""
    archives: dict[str, tuple[str, datetime, int]] = {}
    companions: dict[str, list[Companion]] = {}
    for stored in storage.list(f"{prefix}/backup_"):
        name = stored.key.removeprefix(f"{prefix}/")
        if found := manifests.ARCHIVE_NAME.fullmatch(name):
            if started := manifests.started_of(found[1]):
                archives[stored.key] = (name, started, stored.size)
        elif beside := manifests.companion_of(name):
            companion = Companion(
                key=stored.key,
                id=beside.id,
                archive_key=f"{prefix}/{beside.archive}",
                modified=stored.modified,
                kind=beside.kind,
                proven=beside.proven,
            )
            companions.setdefault(companion.archive_key, []).append(companion)
    backups = [
        Backup(name, key, started, size, tuple(companions.get(key, ())))
        for key, (name, started, size) in archives.items()
    ]
    suspects = [
        companion
        for key, together in companions.items()
        if key not in archives or len({companion.id for companion in together}) > 1
        for companion in together
    ]
    return Catalog(sorted(backups, key=lambda backup: (backup.started, backup.name)), suspects)


def within(storage: Storage, prefix: str, *, since: datetime, until: datetime) -> list[Backup]:
    """Return the backups that began within these times, the oldest first, without companions.

    Only what is newer than ``since`` is listed, however many backups there are. An empty archive
    is none. Raises StorageError.
    """
    found: list[Backup] = []
    after = f"{prefix}/{manifests.base_name(since)}"
    for stored in storage.list(f"{prefix}/backup_", start_after=after):
        name = stored.key.removeprefix(f"{prefix}/")
        archive = manifests.ARCHIVE_NAME.fullmatch(name)
        started = manifests.started_of(archive[1]) if archive else None
        if started and started > until:
            break
        if started and stored.size:
            found.append(Backup(name, stored.key, started, stored.size, ()))
    return found


def find(catalog: Catalog, name: str, now: datetime) -> Backup:
    """Return the backup of a name: ``latest``, or an archive's name with or without endings.

    The latest is none of those that are :func:`ahead`, if there are others. Raises
    BackupNotFoundError.
    """
    found = [
        backup
        for backup in catalog.backups
        if name in (backup.name, backup.name.partition(".")[0], "latest")
    ]
    if name == "latest" and found:
        wrong = len(ahead(catalog, now))  # the last ones
        return found[-1 - wrong if wrong < len(found) else -1]
    if len(found) > 1:
        every = " and ".join(backup.name for backup in found)
        raise BackupNotFoundError(f"there are {every}", hint="Give the whole name.")
    if not found:
        wanted = "backup" if name == "latest" else f"backup {name}"
        raise BackupNotFoundError(f"there is no {wanted}")
    return found[0]


def ahead(catalog: Catalog, now: datetime) -> Sequence[Backup]:
    """Return the backups that bear a time in the future: some clock was wrong by hours or more."""
    return [backup for backup in catalog.backups if backup.started > now + CLOCKS_APART]


def find_before(catalog: Catalog, moment: datetime) -> Backup:
    """Return the newest backup that began at ``moment`` or before. Raises BackupNotFoundError."""
    found = [backup for backup in catalog.backups if backup.started <= moment]
    if not found:
        raise BackupNotFoundError(f"there is no backup that began at {moment} or before")
    return found[-1]


def metadata(storage: Storage, backups: Sequence[Backup]) -> list[Mapping[str, str]]:
    """Return what the store says of each backup beside its name and size, decoded.

    That of the manifest goes before that of the archive: it is written when everything is
    known. Asked for in parallel, without any key. One that is gone by now has none. Raises
    StorageError.
    """
    return _in_parallel(lambda backup: _metadata(storage, backup), backups)


def archive_metadata(
    storage: Storage, backups: Sequence[Backup]
) -> list[Mapping[str, str] | StorageError]:
    """Return the metadata of each archive, decoded, or why they cannot be read.

    Those of one that is gone are empty. Asked for in parallel, one request each. Raises
    StorageUnreachableError.
    """

    def ask(backup: Backup) -> Mapping[str, str] | StorageError:
        try:
            return _decoded(_head(storage, backup.key))
        except StorageUnreachableError:
            raise
        except StorageError as error:
            return error

    return _in_parallel(ask, backups)


def _in_parallel(ask: Callable[[Backup], T], backups: Sequence[Backup]) -> list[T]:
    pool = ThreadPoolExecutor(REQUESTS_AT_A_TIME)
    try:
        return list(pool.map(ask, backups))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _metadata(storage: Storage, backup: Backup) -> Mapping[str, str]:
    found: dict[str, str] = {}
    # A second manifest of one name is rare, and only the archive tells which one is its own.
    if len(backup.manifests) == 1:
        found |= _head(storage, backup.manifests[0].key)
    if "database" not in found:
        found = {**_head(storage, backup.key), **found}
    return _decoded(found)


def _decoded(metadata: Mapping[str, str]) -> Mapping[str, str]:
    return {key: unquote(value, errors="surrogateescape") for key, value in metadata.items()}


def _head(storage: Storage, key: str) -> Mapping[str, str]:
    try:
        return storage.head(key).metadata
    except ObjectNotFoundError:
        return {}


def own_companions(storage: Storage, backup: Backup) -> list[Companion]:
    """Return the companions that hold the id of the archive's metadata. Raises StorageError.

    Where the archive has no id, a copy that lost its metadata say, nothing tells whose they
    are, and all are taken for its own. One that is gone has none.
    """
    try:
        metadata = storage.head(backup.key).metadata
    except ObjectNotFoundError:
        return []
    return companions_of(backup, metadata)


def companions_of(backup: Backup, metadata: Mapping[str, str]) -> list[Companion]:
    """Return those of :func:`own_companions`, by the metadata of the archive."""
    return [
        companion
        for companion in backup.companions
        if metadata.get("id", companion.id) == companion.id
    ]


def settled(storage: Storage, backup: Backup) -> Backup:
    """Return a backup that knows whether it is proven: without the companions of another.

    The archive is asked only where names do not tell whose a proof is. Raises StorageError.
    """
    ids = {companion.id for companion in backup.companions}
    if len(ids) == 1 or not any(companion.proven for companion in backup.companions):
        return backup
    return replace(backup, companions=tuple(own_companions(storage, backup)))


def own_manifests(storage: Storage, backup: Backup) -> list[Companion]:
    """Return those of :func:`own_companions` that are manifests. Raises StorageError."""
    return [each for each in own_companions(storage, backup) if each.kind == "manifest"]


def facts(storage: Storage, backup: Backup) -> Mapping[str, str]:
    """Return the metadata of a backup's own manifest; empty where it has none. Raises StorageError.

    They are readable without the encryption key.
    """
    beside = backup.manifests
    for companion in beside if len(beside) == 1 else own_manifests(storage, backup):
        try:
            metadata = storage.head(companion.key).metadata
        except ObjectNotFoundError:
            continue
        if metadata.get("id") == companion.id:
            return metadata
    return {}


def by_proof(backups: Iterable[Backup], until: datetime) -> list[Backup]:
    """Return the backups that are proven, the one whose drill passed last first.

    Proofs count as :meth:`Backup.proven_by` counts them.
    """
    drilled = [
        (proven, backup.name, backup) for backup in backups if (proven := backup.proven_by(until))
    ]
    return [backup for _, _, backup in sorted(drilled, reverse=True)]


def figures_of(storage: Storage, backups: Iterable[Backup]) -> list[Figures]:
    """Return how large backups are, in their order: of as many of the first as are compared.

    Raises StorageError.
    """
    found: list[Figures] = []
    for backup in islice(backups, _MOST_ASKED):
        figures = Figures.of(facts(storage, backup))
        if figures:
            found.append(figures)
        if len(found) == MOST:
            break
    return found


def orphan(storage: Storage, companion: Companion) -> Mapping[str, str] | None:
    """Return the metadata of a companion that is ours and has no archive; None for any other.

    The objects themselves are asked, since a listing may be late; ours is what has its id in
    its metadata as well as in its name. Raises StorageError.
    """
    try:
        archive = storage.head(companion.archive_key).metadata
    except ObjectNotFoundError:
        archive = {"id": ""}
    if archive.get("id", companion.id) == companion.id:
        return None
    found = _decoded(_head(storage, companion.key))
    return found if found.get("id") == companion.id else None


def pending(storage: Storage, prefix: str) -> Iterator[PendingUpload]:
    """Yield the uploads of our names directly under ``prefix``. Raises StorageError."""
    for upload in storage.pending(f"{prefix}/backup_"):
        name = upload.key.removeprefix(f"{prefix}/")
        found = manifests.ARCHIVE_NAME.fullmatch(name)
        if (found and manifests.started_of(found[1])) or manifests.companion_of(name):
            yield upload
