"""Pruning: delete the backups that the retention policy no longer keeps, and sweep leftovers.

An archive is deleted before its companions, so that every visible backup stays complete.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import islice

from pgstash import events
from pgstash.errors import (
    DatabaseError,
    ObjectNotFoundError,
    StorageError,
    StorageUnreachableError,
)
from pgstash.format.identity import Claim, Identity
from pgstash.prune import hidden, retention
from pgstash.prune.journal import Journal
from pgstash.prune.locks import Locks
from pgstash.prune.retention import Decision
from pgstash.prune.sweep import Sweep
from pgstash.repository import catalog, object_metadata
from pgstash.repository.catalog import Backup, Catalog
from pgstash.repository.owners import Owners
from pgstash.runtime import Runtime
from pgstash.storage.interface import Storage, Versioned

# The number deleted with one request. If that fails, they are deleted one by one. If all of them
# fail, pruning stops: a key without permission to delete would be refused a thousand times.
_BATCH = 100


Choose = Callable[[Sequence[Backup]], Sequence[Identity]]
"""Selects the sources whose backups are pruned, as if they were one. Raises StorageError."""

Exclusive = Callable[[], AbstractContextManager[object]]
"""A block in which no backup runs. Raises DatabaseError, with the reason, if that is unknown."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to prune, and by which policy. In a ``dry_run`` nothing is deleted.

    Uploads are swept ``sweep_after_days`` after they started. Leftovers are removed within
    ``exclusive``. Unless ``explained``, the sources of the backups are not determined while all
    backups are too young to be removed. With ``versions``, all versions of what was removed are
    removed for good.
    """

    prefix: str
    policy: retention.Policy
    sweep_after_days: int
    choose: Choose
    exclusive: Exclusive
    explained: bool = True
    dry_run: bool = False
    versions: bool = False


@dataclass(frozen=True, slots=True)
class Pruned:
    """What was kept, removed and swept, or would be in a dry run. ``swept`` are keys.

    Backups of other sources are not included.
    """

    kept: Sequence[Decision[Backup]]
    removed: Sequence[Decision[Backup]]
    swept: Sequence[str]


def run(plan: Plan, storage: Storage, owners: Owners, runtime: Runtime) -> Pruned:
    """Apply the policy to the backups of the selected sources, and sweep their leftovers.

    Backups, companions and uploads of other sources are not touched. If ``plan.exclusive`` fails,
    leftovers are not swept, and that is reported. What cannot be deleted is reported and skipped,
    unless the store cannot be reached or refuses everything. Then, or at the end, the first
    StorageError is raised.
    """
    return _Run(plan, storage, owners, runtime).run()


class _Run:
    """One run of pruning; the time is read once, when it starts."""

    def __init__(self, plan: Plan, storage: Storage, owners: Owners, runtime: Runtime) -> None:
        self._plan = plan
        self._storage = storage
        self._owners = owners
        self._now = runtime.now()
        self._emit = runtime.emit
        self._journal = Journal(runtime.emit)
        self._locks = Locks(storage, self._now)

    def run(self) -> Pruned:
        stored = catalog.read(self._storage, self._plan.prefix)
        sources = self._plan.choose(stored.backups)
        own = stored.backups
        if self._plan.explained or self._may_remove(stored):
            own = self._owners.of(stored.backups, sources)
            self._journal.errors += self._owners.unreadable.values()
            self._report_others(stored.backups, sources)
        decisions = self._decide(own)
        kept = [decision for decision in decisions if decision.keep]
        expired = [decision for decision in decisions if not decision.keep]
        removed: list[Decision[Backup]] = []
        swept: list[str] = []
        try:
            expired = [each for each in expired if not self._is_locked(each.backup)]
            if self._plan.dry_run:
                removed = expired
                for decision in decisions:
                    self._report(decision)
            else:
                for decision in kept:
                    self._report(decision)
                self._require_newest(kept, expired)
                for removal in self._remove(expired):
                    removed.append(removal)
                    self._report(removal)
            swept.extend(self._sweep(stored, sources))
            self._remove_hidden(stored.backups, sources, [each.backup for each in removed], swept)
        finally:
            self._locks.report(self._emit)
            self._emit(
                events.PruneFinished(
                    location=self._storage.url(self._plan.prefix),
                    kept=len(kept),
                    removed=len(removed),
                    swept=len(swept),
                    dry_run=self._plan.dry_run,
                )
            )
        if self._journal.errors:
            raise self._journal.errors[0]
        return Pruned(kept, removed, swept)

    def _is_locked(self, backup: Backup) -> bool:
        """Return whether the store has locked the archive or a companion: then all of them stay."""
        return self._locks.hold(
            backup.name, [backup.key, *(each.key for each in backup.companions)]
        )

    def _may_remove(self, stored: Catalog) -> bool:
        """Return whether anything would be removed if all backups were of one source.

        If not, nothing of any source would be: with fewer backups each rule keeps more. The names
        are checked first, and then the proofs that only the archives identify: a proven backup may
        take the place of an older one.
        """
        by_name = retention.decide(stored.backups, self._plan.policy, self._now)
        if not all(decision.keep for decision in by_name):
            return True
        return not all(decision.keep for decision in self._decide(stored.backups))

    def _decide(self, backups: Sequence[Backup]) -> list[Decision[Backup]]:
        found = [object_metadata.with_own_companions(self._storage, backup) for backup in backups]
        return retention.decide(found, self._plan.policy, self._now)

    def _report_others(self, backups: Sequence[Backup], sources: Sequence[Identity]) -> None:
        for label, number, _ in self._owners.counted(backups, sources):
            self._emit(events.OthersLeft(label, number))
        if self._journal.errors:
            unread, first = _backups(len(self._journal.errors)), self._journal.errors[0].message
            self._emit(
                events.Warned(
                    f"{unread} not pruned, because the source cannot be determined: {first}"
                )
            )

    def _report(self, decision: Decision[Backup]) -> None:
        name, reasons = decision.backup.name, decision.reasons
        self._emit(
            events.BackupKept(name, reasons)
            if decision.keep
            else events.BackupRemoved(name, reasons, self._plan.dry_run)
        )

    def _require_newest(
        self, kept: Sequence[Decision[Backup]], expired: Sequence[Decision[Backup]]
    ) -> None:
        """Raise unless the last good backup really exists: the others are removed because of it.

        A listing may be outdated and still show deleted objects. The same check applies to the
        newest proven backup and its proof, if an older proven one is removed because of them.
        """
        if not expired:
            return
        past = [each.backup for each in reversed(kept) if each.backup.started <= self._now]
        self._require(next((each for each in past if each.size), past[0]).key, "newest backup")
        if any(each.backup.proven and each.backup.size for each in expired):
            proven = next(each.backup for each in kept if events.KEPT_AS_PROVEN in each.reasons)
            self._require(proven.key, "newest proven backup")
            proofs = (each for each in proven.companions if each.proven == proven.proven)
            self._require(next(proofs).key, "proof of the newest proven backup")

    def _require(self, key: str, what: str) -> None:
        """Raise ObjectNotFoundError unless a listed object exists. Raises StorageError."""
        try:
            self._storage.head(key)
        except ObjectNotFoundError as error:
            name = key.removeprefix(f"{self._plan.prefix}/")
            raise ObjectNotFoundError(
                f"{name} is listed as the {what} but does not exist: no backup was removed",
                hint="It was deleted, or the listing of the store is outdated. Prune again later.",
            ) from error

    def _remove(self, expired: Sequence[Decision[Backup]]) -> Iterator[Decision[Backup]]:
        """Delete the backups, the oldest first, and yield each whose archive is gone."""
        remaining = iter(expired)
        while batch := list(islice(remaining, _BATCH)):
            companions = {
                decision.backup.key: self._companions_to_remove(decision.backup)
                for decision in batch
            }
            archives = [decision.backup.key for decision in batch]
            failures = len(self._journal.errors)
            gone = self._delete(archives)
            yield from (decision for decision in batch if decision.backup.key in gone)
            self._delete([key for each in archives if each in gone for key in companions[each]])
            if not gone and len(self._journal.errors) > failures:
                raise self._journal.errors[0]

    def _companions_to_remove(self, backup: Backup) -> list[str]:
        """Return the keys of a backup's own companions; those of another one are swept later."""
        [origin] = self._owners.origins([backup])
        return [each.key for each in backup.companions if origin.id in (None, each.id)]

    def _delete(self, keys: Sequence[str]) -> set[str]:
        """Delete objects, and return those that are gone; the errors of the others are recorded."""
        if not keys:
            return set()
        try:
            self._storage.delete(keys)
        except StorageUnreachableError:
            raise
        except StorageError:
            return {key for key in keys if self._locks.deletes(key, self._journal)}
        return set(keys)

    def _sweep(self, stored: Catalog, sources: Sequence[Identity]) -> Iterator[str]:
        """Yield the key of each leftover of the sources as it is deleted.

        An upload does not name its source, so no upload is swept if there are other sources. The
        uploads are listed before the exclusive block, so none that starts later is among them.
        """
        sweep = Sweep(self._storage, self._journal, self._locks, dry_run=self._plan.dry_run)
        yield from sweep.trials(self._plan.prefix)
        companions = sweep.old(stored.suspects)
        uploads = sweep.abandoned(self._plan.prefix, self._plan.sweep_after_days)
        failures = sweep.expired(stored.failures, self._plan.policy.days)
        if not (companions or uploads or failures):
            return
        claim = Claim(sources, self._owners.origins(stored.backups))
        yield from sweep.failures(failures, claim)
        if uploads and not claim.is_alone:
            self._emit(
                events.Informed(
                    f"Leftovers were not swept: unfinished uploads ({len(uploads)}), which take up "
                    "space, may belong to another source with backups under this prefix. A "
                    "lifecycle rule of the bucket removes them"
                )
            )
            uploads = []
        try:
            with self._plan.exclusive():
                yield from sweep.orphans(companions, claim)
                yield from sweep.uploads(uploads)
        except DatabaseError as error:
            self._emit(events.Informed(f"Leftovers were not swept: {error.message}"))

    def _remove_hidden(
        self,
        visible: Sequence[Backup],
        sources: Sequence[Identity],
        removed: Sequence[Backup],
        swept: Sequence[str],
    ) -> None:
        """Remove what is hidden for good. In a dry run, what would be removed counts as hidden."""
        if not (self._plan.versions and isinstance(self._storage, Versioned)):
            return
        gone: list[str] = []
        if self._plan.dry_run:
            companions = [each.key for backup in removed for each in backup.companions]
            gone = [*(backup.key for backup in removed), *companions, *swept]
        # No rule removes the newest one of all sources.
        newest = visible[-1].key if visible else None
        prefix, policy, dry_run = self._plan.prefix, self._plan.policy, self._plan.dry_run
        plan = hidden.Plan(prefix, policy, sources, newest, frozenset(gone), dry_run)
        with self._journal.keep_going():
            hidden.remove(plan, self._storage, self._owners, self._journal, self._locks)


def _backups(number: int) -> str:
    return "1 backup was" if number == 1 else f"{number} backups were"
