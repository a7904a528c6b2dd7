"""The objects under a prefix: backups, their companions, and leftovers.

The store is the only source of truth. A name counts as one of pgstash only if all of it matches.
Objects further down (``<prefix>/other/…``) may belong to another instance and are ignored.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from pgstash.counting import counted
from pgstash.errors import BackupNotFoundError
from pgstash.format import names
from pgstash.format.iso_time import iso
from pgstash.storage.interface import PendingUpload, Storage, StoredObject

CLOCKS_APART = timedelta(hours=1)
"""The tolerance between the clocks of two machines."""

# The end of a name by which it can be found: four digits or more, with or without endings.
_TAIL = re.compile(r"_?\d[\d_]{2,}\d(\.sql\.gz(\.enc)?)?", re.ASCII)
_MOST_NAMED = 5


@dataclass(frozen=True, slots=True)
class Companion:
    """An object that belongs to an archive: its manifest, roles, schema or a proof.

    ``id`` is that of its backup, and ``archive_key`` the key that its archive has or would have.
    ``modified`` is the time of storing in UTC, and ``proven`` the time of the drill of a proof.
    """

    key: str
    id: str
    archive_key: str
    modified: datetime
    kind: names.Kind
    proven: datetime | None


@dataclass(frozen=True, slots=True)
class Backup:
    """A visible archive, and all companions of its name, its own or not.

    ``started`` is the time in its name, in UTC, and ``size`` is in bytes. ``archived`` is the
    storage class of an archive that has to be thawed, unless it has been; it is empty for others.
    A backup of the earlier shell service has no companions.
    """

    name: str
    key: str
    started: datetime
    size: int
    companions: Sequence[Companion]
    archived: str = ""

    @property
    def encrypted(self) -> bool:
        """Whether it is encrypted, according to its name."""
        return self.name.endswith(".enc")

    @property
    def manifests(self) -> Sequence[Companion]:
        """The companions that are manifests: one, unless a failed backup left another."""
        return [companion for companion in self.companions if companion.kind == "manifest"]

    @property
    def proven(self) -> datetime | None:
        """The time of the last drill that passed; None if none did, or if it cannot be decided.

        Only the archive's metadata identifies its own id if its companions have several.
        """
        return max(self._proofs(), default=None)

    def proven_by(self, moment: datetime) -> datetime | None:
        """Return the same up to ``moment``: a proof hours after it came from a wrong clock."""
        by_then = moment + CLOCKS_APART
        return max((proven for proven in self._proofs() if proven <= by_then), default=None)

    def _proofs(self) -> list[datetime]:
        if len({companion.id for companion in self.companions}) != 1:
            return []
        return [each.proven for each in self.companions if each.proven]


@dataclass(frozen=True, slots=True)
class FailedRun:
    """The stored record of a backup or a drill that failed, which belongs to no archive.

    ``key`` is that of the record; None if only its passphrase is left, wrapped for public keys
    (``wrapped``) or by ``kms``. ``size`` is that of the record, ``started`` the time in its name.
    """

    id: str
    started: datetime
    key: str | None = None
    size: int = 0
    wrapped: str | None = None
    kms: str | None = None

    @property
    def keys(self) -> list[str]:
        """The keys of its objects, the record first."""
        return [each for each in (self.key, self.wrapped, self.kms) if each]


@dataclass(frozen=True, slots=True)
class Catalog:
    """All backups under a prefix, the oldest first, and companions that may be leftovers.

    A suspect has no archive of its name in the listing, or its archive has companions of several
    ids. :func:`pgstash.repository.object_metadata.orphan` decides. ``failures`` are the records of
    failed runs, the oldest first.
    """

    backups: Sequence[Backup]
    suspects: Sequence[Companion]
    failures: Sequence[FailedRun] = ()


def read(storage: Storage, prefix: str, *, since: datetime | None = None) -> Catalog:
    """Read the catalog from one listing, only of backups that started after ``since`` if given.

    Raises StorageError.
    """
    archives: dict[str, tuple[str, datetime, StoredObject]] = {}
    companions: dict[str, list[Companion]] = {}
    failures: dict[tuple[datetime, str], FailedRun] = {}
    after = f"{prefix}/{names.base_name(since)}" if since else ""
    for stored in storage.list(f"{prefix}/backup_", start_after=after):
        name = stored.key.removeprefix(f"{prefix}/")
        if found := names.ARCHIVE_NAME.fullmatch(name):
            if started := names.started_of(found[1]):
                archives[stored.key] = (name, started, stored)
        elif named := names.companion_of(name):
            companion = Companion(
                key=stored.key,
                id=named.id,
                archive_key=f"{prefix}/{named.archive}",
                modified=stored.modified,
                kind=named.kind,
                proven=named.proven,
            )
            companions.setdefault(companion.archive_key, []).append(companion)
        elif failed := names.failure_of(name):
            run = failed.started, failed.id
            known = failures.get(run, FailedRun(failed.id, failed.started))
            failures[run] = _with_object(known, failed.kind, stored)
    backups = [
        Backup(name, key, started, stored.size, tuple(companions.get(key, ())), stored.archived)
        for key, (name, started, stored) in archives.items()
    ]
    suspects = [
        companion
        for key, together in companions.items()
        if key not in archives or len({companion.id for companion in together}) > 1
        for companion in together
    ]
    backups.sort(key=lambda backup: (backup.started, backup.name))
    return Catalog(backups, suspects, [failures[run] for run in sorted(failures)])


def _with_object(run: FailedRun, kind: str, stored: StoredObject) -> FailedRun:
    if kind == "record":
        return replace(run, key=stored.key, size=stored.size)
    if kind == "kms":
        return replace(run, kms=stored.key)
    return replace(run, wrapped=stored.key)


def within(storage: Storage, prefix: str, *, since: datetime, until: datetime) -> list[Backup]:
    """Return the backups that started within these times, the oldest first, without companions.

    Only objects newer than ``since`` are listed, however many backups there are. Empty archives are
    left out. Raises StorageError.
    """
    found: list[Backup] = []
    after = f"{prefix}/{names.base_name(since)}"
    for stored in storage.list(f"{prefix}/backup_", start_after=after):
        name = stored.key.removeprefix(f"{prefix}/")
        archive = names.ARCHIVE_NAME.fullmatch(name)
        started = names.started_of(archive[1]) if archive else None
        if started and started > until:
            break
        if started and stored.size:
            found.append(Backup(name, stored.key, started, stored.size, ()))
    return found


def find(catalog: Catalog, name: str, now: datetime) -> Backup:
    """Return a backup by name: ``latest``, an archive's name with or without endings, or a part.

    A part is the end of a name, from four digits on, or the time as :func:`iso` writes it. The
    latest is the newest one that is not :func:`ahead`, if there is such a one. Raises
    BackupNotFoundError.
    """
    if name == "latest" and catalog.backups:
        wrong = len(ahead(catalog, now))  # they are the last in the catalog
        return catalog.backups[-1 - wrong if wrong < len(catalog.backups) else -1]
    found = [each for each in catalog.backups if is_named(each, name)] or [
        each for each in catalog.backups if _is_part(name, each)
    ]
    if len(found) > 1:
        every = [backup.name for backup in found[-_MOST_NAMED:]]
        if older := found[:-_MOST_NAMED]:
            every.append(counted(len(older), "older backup"))
        raise BackupNotFoundError(
            f"{name} may mean {', '.join(every[:-1])} and {every[-1]}", hint="Give the whole name."
        )
    if not found:
        wanted = "backup" if name == "latest" else f"backup {name}"
        raise BackupNotFoundError(f"there is no {wanted}")
    return found[0]


def is_named(backup: Backup, name: str) -> bool:
    """Return whether a name is the whole name of a backup, with or without endings."""
    return name in (backup.name, _base(backup))


def _is_part(name: str, backup: Backup) -> bool:
    if _TAIL.fullmatch(name):
        return backup.name.endswith(name) or _base(backup).endswith(name)
    return name == iso(backup.started)


def _base(backup: Backup) -> str:
    return backup.name.partition(".")[0]


def ahead(catalog: Catalog, now: datetime) -> Sequence[Backup]:
    """Return the backups dated in the future, by a clock that was wrong."""
    return [backup for backup in catalog.backups if backup.started > now + CLOCKS_APART]


def find_before(catalog: Catalog, moment: datetime) -> Backup:
    """Return the newest backup started at or before ``moment``. Raises BackupNotFoundError."""
    found = [backup for backup in catalog.backups if backup.started <= moment]
    if not found:
        oldest = [f"; the oldest is {each.name}" for each in catalog.backups[:1]]
        raise BackupNotFoundError(f"no backup started at or before {iso(moment)}{''.join(oldest)}")
    return found[-1]


def neighbours(catalog: Catalog, backup: Backup) -> tuple[Backup | None, Backup | None]:
    """Return the backup before this one, and the one after it, if there are such."""
    at = catalog.backups.index(backup)
    before = catalog.backups[at - 1] if at else None
    return before, next(iter(catalog.backups[at + 1 :]), None)


def by_proof(backups: Iterable[Backup], until: datetime) -> list[Backup]:
    """Return the proven backups, the one whose drill passed last first.

    Proofs count as in :meth:`Backup.proven_by`.
    """
    drilled = [
        (proven, backup.name, backup) for backup in backups if (proven := backup.proven_by(until))
    ]
    return [backup for _, _, backup in sorted(drilled, reverse=True)]


def pending(storage: Storage, prefix: str) -> Iterator[PendingUpload]:
    """Yield the uploads directly under ``prefix`` whose names are of pgstash.

    Raises StorageError.
    """
    for upload in storage.pending(f"{prefix}/backup_"):
        name = upload.key.removeprefix(f"{prefix}/")
        found = names.ARCHIVE_NAME.fullmatch(name)
        if (found and names.started_of(found[1])) or names.companion_of(name):
            yield upload
