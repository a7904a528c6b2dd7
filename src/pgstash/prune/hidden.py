"""Removes for good what delete markers hide, in a bucket with versioning.

Anyone who may delete can put a marker in front of a good backup. So a hidden backup is removed only
if the rules would remove it if it were visible, and any other one is reported. A visible object
keeps all of its versions, because an earlier one may be the good one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property, partial
from itertools import chain, islice

from pgstash import events
from pgstash.counting import counted
from pgstash.errors import ObjectNotFoundError, StorageError, StorageUnreachableError
from pgstash.format import names
from pgstash.format.identity import Claim, Identity, Origin
from pgstash.prune import retention
from pgstash.prune.journal import Journal
from pgstash.prune.locks import Locks
from pgstash.prune.retention import Decision
from pgstash.prune.sweep import ORPHAN_AGE
from pgstash.prune.version_listing import Stored, VersionListing
from pgstash.repository import object_metadata
from pgstash.repository.catalog import Backup, Companion
from pgstash.repository.owners import Owners
from pgstash.storage.interface import ObjectVersion, Versioned

_DAY = timedelta(days=1)
_MOST_NAMED = 5
_BATCH = 100


@dataclass(frozen=True, slots=True)
class Plan:
    """What to remove: what is hidden of these sources, if the policy does not keep it.

    The keys in ``gone`` count as hidden. In a ``dry_run`` nothing is removed.
    """

    prefix: str
    policy: retention.Policy
    sources: Sequence[Identity]
    gone: frozenset[str] = frozenset()
    dry_run: bool = False


def remove(plan: Plan, storage: Versioned, owners: Owners, journal: Journal, locks: Locks) -> None:
    """Remove it, and report that. What cannot be removed is recorded in the journal.

    Raises StorageError if the versions cannot be read.
    """
    _Removal(plan, storage, owners, journal, locks).run()


@dataclass(frozen=True, slots=True)
class _Group:
    """Objects that are removed together. If they are a backup, its archive is the first."""

    name: str
    objects: Sequence[Stored]
    is_backup: bool = False

    @property
    def data(self) -> list[ObjectVersion]:
        return [version for each in self.objects for version in each.data]

    @property
    def markers(self) -> list[ObjectVersion]:
        return [version for each in self.objects for version in each.markers]


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
        self._trials = listing.trials
        self._lone_markers = listing.lone_markers

    def run(self) -> None:
        groups = [*self._expired(), *self._leftovers()]
        free = [each for each in groups if not self._locks.hold_versions(each.name, each.data)]
        self._report(free if self._plan.dry_run else list(self._remove(free)))

    def _expired(self) -> Iterator[_Group]:
        """Yield the hidden backups that the rules do not keep; report the others."""
        if not any(each.is_hidden for each in self._archives.values()):
            return
        own = [
            self._backup(each)
            for each in self._archives.values()
            if all(self._claim.covers(origin) for origin in self._origins[each.key])
        ]
        decisions = retention.decide(own, self._plan.policy, self._now)
        of_hidden = [each for each in decisions if self._archives[each.backup.key].is_hidden]
        self._report_kept([each.backup for each in of_hidden if each.keep])
        expired = [each.backup for each in of_hidden if not each.keep]
        if expired:
            self._require_kept(decisions)
        for backup in expired:
            companions = [each for each, _ in self._companions.get(backup.key, ())]
            archive = self._archives[backup.key]
            own_hidden = [each for each in companions if each.is_hidden]
            yield _Group(backup.name, [archive, *own_hidden], is_backup=True)

    def _backup(self, archive: Stored) -> Backup:
        """Return an archive as the rules see it. A visible backup has only visible companions."""
        started = names.started_of(archive.name.partition(".")[0])
        if started is None:
            raise AssertionError("the name was checked")
        companions = [
            Companion(
                stored.key, name.id, archive.key, stored.data[0].modified, name.kind, name.proven
            )
            for stored, name in self._companions.get(archive.key, ())
            if archive.is_hidden or not stored.is_hidden
        ]
        size = max(each.size for each in archive.data)
        return Backup(archive.name, archive.key, started, size, tuple(companions))

    @cached_property
    def _origins(self) -> Mapping[str, Sequence[Origin]]:
        """The origins of each archive, by its key: one for each version of a hidden one."""
        stored = self._archives.values()
        hidden = [each for each in stored if each.is_hidden]
        visible = [self._backup(each) for each in stored if not each.is_hidden]
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
        for decision in (*past[:1], *proven):
            [current, *_] = self._archives[decision.backup.key].data
            try:
                self._storage.head_version(current)
            except ObjectNotFoundError as error:
                raise ObjectNotFoundError(
                    f"{decision.backup.name} is listed but does not exist: no version was removed",
                    hint="It was deleted, or the listing of the store is outdated. Prune again "
                    "later.",
                ) from error

    def _leftovers(self) -> Iterator[_Group]:
        """Yield hidden companions without an archive, and hidden trial objects."""
        for archive, companions in self._companions.items():
            for stored, _ in companions if archive not in self._archives else ():
                if stored.is_hidden and self._is_old(stored):
                    origins = self._of_versions(stored)
                    if all(self._claim.covers(origin) for origin in origins):
                        yield _Group(stored.name, [stored])
        for stored in self._trials:
            if stored.is_hidden and self._age(stored) >= ORPHAN_AGE:
                yield _Group(stored.name, [stored])

    def _is_old(self, companion: Stored) -> bool:
        """Return whether a backup of that name would be too old to be kept for its age."""
        started = names.started_of(companion.name.partition(".")[0]) or self._now
        is_expired = (self._now - started) / _DAY > self._plan.policy.days
        return is_expired and self._age(companion) >= ORPHAN_AGE

    def _age(self, stored: Stored) -> timedelta:
        return self._now - stored.data[0].modified

    def _remove(self, groups: Iterable[_Group]) -> Iterator[_Group]:
        """Remove the groups, and yield those that are gone.

        A marker is removed after all the versions that it hides: until then, they stay hidden. An
        earlier run may have left markers that hide nothing.
        """
        if self._lone_markers:
            with self._journal.keep_going():
                self._storage.delete_versions(self._lone_markers)
        remaining = iter(groups)
        while batch := list(islice(remaining, _BATCH)):
            gone = self._removed(batch)
            if not gone:
                return  # a key without permission would be refused each time
            with self._journal.keep_going():
                self._storage.delete_versions([each for group in gone for each in group.markers])
            yield from gone

    def _removed(self, groups: Sequence[_Group]) -> list[_Group]:
        """Remove the versions of the groups, and return those whose versions are all gone."""
        delete = self._storage.delete_versions
        try:
            delete([version for group in groups for version in group.data])
        except StorageUnreachableError:
            raise
        except StorageError:
            return [each for each in groups if self._journal.succeeds(partial(delete, each.data))]
        return list(groups)

    def _report(self, removed: Sequence[_Group]) -> None:
        if not removed:
            return
        versions = sum(len(group.data) for group in removed)
        backups = [group.name for group in removed if group.is_backup]
        others = len(removed) - len(backups)
        parts = [
            *([f"{counted(len(backups), 'backup')} ({_named(backups)})"] if backups else []),
            *([counted(others, "leftover")] if others else []),
        ]
        did = "Would be removed" if self._plan.dry_run else "Removed"
        what = f"{' and '.join(parts)}, {counted(versions, 'version')}"
        self._journal.emit(events.Informed(f"{did} for good, with the delete markers: {what}"))

    def _report_kept(self, backups: Sequence[Backup]) -> None:
        if not backups:
            return
        named = _named([each.name for each in backups])
        self._journal.emit(
            events.Warned(
                f"Hidden by delete markers although the retention keeps them: "
                f"{counted(len(backups), 'backup')} ({named}). They were not removed for good. If "
                "nobody deleted them on purpose, remove their delete markers"
            )
        )


def _named(backups: Sequence[str]) -> str:
    more = [f"and {len(backups) - _MOST_NAMED} more"] if len(backups) > _MOST_NAMED else []
    return ", ".join([*backups[:_MOST_NAMED], *more])
