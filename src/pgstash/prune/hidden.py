"""Decides what to remove for good of what delete markers hide, in a bucket with versioning.

Anyone who may delete can put a marker in front of a good backup. So a hidden backup is removed only
if the rules would remove it if it were visible, and any other one is reported. A visible object
keeps all of its versions, because an earlier one may be the good one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import cached_property
from itertools import chain

from pgstash import events
from pgstash.counting import counted
from pgstash.errors import ObjectNotFoundError, StorageRefusedError
from pgstash.format import names
from pgstash.format.identity import Claim, Identity, Origin
from pgstash.format.names import CompanionName
from pgstash.prune import retention
from pgstash.prune.erasure import Erasure, Group, named
from pgstash.prune.journal import Journal
from pgstash.prune.locks import Locks
from pgstash.prune.retention import Decision
from pgstash.prune.sweep import ORPHAN_AGE
from pgstash.prune.version_listing import Stored, VersionListing
from pgstash.repository import object_metadata
from pgstash.repository.catalog import Backup, Companion
from pgstash.repository.owners import Owners
from pgstash.storage.interface import Versioned

_DAY = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Plan:
    """What to remove: what is hidden of these sources, if the policy does not keep it.

    ``newest`` is the key of the newest visible backup, which the listing of versions must have. The
    keys in ``gone`` count as hidden. In a ``dry_run`` nothing is removed.
    """

    prefix: str
    policy: retention.Policy
    sources: Sequence[Identity]
    newest: str | None = None
    gone: frozenset[str] = frozenset()
    dry_run: bool = False


def remove(plan: Plan, storage: Versioned, owners: Owners, journal: Journal, locks: Locks) -> None:
    """Remove it, and report that. What cannot be removed is recorded in the journal.

    Raises StorageError if the versions cannot be read.
    """
    _Removal(plan, storage, owners, journal, locks).run()


class _Removal:
    """One removal, by one listing of all versions."""

    def __init__(
        self, plan: Plan, storage: Versioned, owners: Owners, journal: Journal, locks: Locks
    ) -> None:
        self._plan = plan
        self._storage = storage
        self._owners = owners
        self._journal = journal
        self._locks = locks
        self._now = locks.now
        listing = VersionListing(storage, plan.prefix, plan.gone)
        self._archives = listing.archives
        self._companions = listing.companions
        self._failures = listing.failures
        self._trials = listing.trials
        self._lone_markers = listing.lone_markers

    def run(self) -> None:
        self._require_complete()
        groups = [*self._expired(), *self._leftovers()]
        free = [each for each in groups if not self._locks.hold_versions(each.name, each.data)]
        erasure = Erasure(self._storage, self._journal)
        if self._plan.dry_run:
            erasure.report(free, "Would be removed")
        else:
            erasure.erase(free, self._lone_markers)

    def _require_complete(self) -> None:
        """Raise StorageRefusedError if the listing lacks the newest backup that is visible."""
        newest = self._plan.newest
        if newest and newest not in self._archives:
            name = newest.removeprefix(f"{self._plan.prefix}/")
            raise StorageRefusedError(
                f"the listing of versions lacks {name}: no version was removed",
                hint="The listing is incomplete, or the store does not list versions. Prune again "
                "later, and unset PRUNE_VERSIONS if this error stays.",
            )

    def _expired(self) -> Iterator[Group]:
        """Yield the hidden backups that the rules do not keep; report the others."""
        hidden = [each.name for each in self._archives.values() if each.is_hidden]
        if not hidden:
            return
        if not self._plan.sources:
            self._report_kept("No backup is visible. Hidden by delete markers", hidden)
            return
        own = [
            self._backup(each)
            for each in self._archives.values()
            if each.is_clear and all(map(self._claim.covers, self._origins[each.key]))
        ]
        decisions = retention.decide(own, self._plan.policy, self._now)
        of_hidden = [each for each in decisions if self._archives[each.backup.key].is_hidden]
        self._report_kept(
            "Hidden by delete markers although the retention keeps them",
            [each.backup.name for each in of_hidden if each.keep],
        )
        expired = [each.backup for each in of_hidden if not each.keep]
        if expired:
            self._require_kept(decisions)
        for backup in expired:
            archive = self._archives[backup.key]
            own_hidden = [each for each, _ in self._own(archive) if each.is_hidden]
            yield Group(backup.name, [archive, *own_hidden], is_backup=True)

    def _backup(self, archive: Stored) -> Backup:
        """Return an archive as the rules see it. A visible backup has only visible companions.

        A hidden one is as good as its best version, because it is removed with all of them.
        """
        companions = [
            Companion(
                stored.key, name.id, archive.key, stored.data[0].modified, name.kind, name.proven
            )
            for stored, name in self._own(archive)
            if archive.is_hidden or not stored.is_hidden
        ]
        if not archive.is_hidden:
            return replace(_visible(archive), companions=tuple(companions))
        if proven := [each.id for each in companions if each.proven]:
            companions = [each for each in companions if each.id == proven[0]]
        size = max(each.size for each in archive.data)
        return replace(_visible(archive), size=size, companions=tuple(companions))

    def _own(self, archive: Stored) -> list[tuple[Stored, CompanionName]]:
        """Return the companions that have the id of a version of the archive; all if it has none.

        The others are leftovers, which are removed later.
        """
        ids = {origin.id for origin in self._origins[archive.key]}
        every = self._companions.get(archive.key, ())
        return [each for each in every if None in ids or each[1].id in ids]

    @cached_property
    def _origins(self) -> Mapping[str, Sequence[Origin]]:
        """The origins of each archive, by its key: one for each version of a hidden one."""
        stored = self._archives.values()
        hidden = [each for each in stored if each.is_hidden]
        visible = [_visible(each) for each in stored if not each.is_hidden]
        known = zip(visible, self._owners.origins(visible), strict=True)
        of_hidden = object_metadata.in_parallel(self._of_versions, hidden)
        return {
            **{backup.key: [origin] for backup, origin in known},
            **{each.key: found for each, found in zip(hidden, of_hidden, strict=True)},
        }

    @cached_property
    def _claim(self) -> Claim:
        return Claim(self._plan.sources, list(chain.from_iterable(self._origins.values())))

    def _of_versions(self, stored: Stored) -> list[Origin]:
        """Return the origin of each version, according to its metadata. Raises StorageError."""
        started = names.started_of(stored.name.partition(".")[0]) or stored.data[0].modified
        return [
            Origin.of(object_metadata.decoded(self._storage.head_version(each).metadata), started)
            for each in stored.data
        ]

    def _require_kept(self, decisions: Sequence[Decision[Backup]]) -> None:
        """Raise ObjectNotFoundError unless the backups that others are removed for exist."""
        kept = [each for each in reversed(decisions) if each.keep]
        past = [each for each in kept if each.backup.started <= self._now and each.backup.size]
        proven = [each for each in past if events.KEPT_AS_PROVEN in each.reasons]
        archives = [self._archives[each.backup.key] for each in (*past[:1], *proven)]
        proofs = [
            stored
            for decision in proven
            for stored, name in self._own(self._archives[decision.backup.key])
            if name.proven and name.proven == decision.backup.proven
        ]
        for stored in (*archives, *proofs):
            try:
                self._storage.head_version(stored.data[0])
            except ObjectNotFoundError as error:
                raise ObjectNotFoundError(
                    f"{stored.name} is listed but does not exist: no version was removed",
                    hint="It was deleted, or the listing of the store is outdated. Prune again "
                    "later.",
                ) from error

    def _leftovers(self) -> Iterator[Group]:
        """Yield hidden companions without an archive, records of failures, and trial objects."""
        for archive, companions in self._companions.items():
            for stored, _ in companions if archive not in self._archives else ():
                if stored.is_hidden and self._is_old(stored):
                    origins = self._of_versions(stored)
                    if all(self._claim.covers(origin) for origin in origins):
                        yield Group(stored.name, [stored])
        for stored in self._failures:
            if stored.is_hidden and self._is_old(stored):
                origins = self._of_versions(stored)
                if all(self._claim.covers_failure(origin.identity) for origin in origins):
                    yield Group(stored.name, [stored])
        for stored in self._trials:
            if stored.is_hidden and self._age(stored) >= ORPHAN_AGE:
                yield Group(stored.name, [stored])

    def _is_old(self, companion: Stored) -> bool:
        """Return whether a backup of that name would be too old to be kept for its age."""
        started = names.started_of(companion.name.partition(".")[0]) or self._now
        is_expired = (self._now - started) / _DAY > self._plan.policy.days
        return is_expired and self._age(companion) >= ORPHAN_AGE

    def _age(self, stored: Stored) -> timedelta:
        return self._now - stored.data[0].modified

    def _report_kept(self, found: str, backups: Sequence[str]) -> None:
        if not backups:
            return
        self._journal.emit(
            events.Warned(
                f"{found}: {counted(len(backups), 'backup')} ({named(backups)}). They were not "
                "removed for good. If nobody deleted them on purpose, remove their delete markers"
            )
        )


def _visible(archive: Stored) -> Backup:
    """Return an archive without companions, as its current version is listed."""
    started = names.started_of(archive.name.partition(".")[0])
    if started is None:
        raise AssertionError("the name was checked")
    return Backup(archive.name, archive.key, started, archive.data[0].size, ())
