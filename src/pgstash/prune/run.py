"""Pruning: delete what the retention policy no longer keeps, and sweep what was left behind.

An archive goes first, then what belongs to it, so that whatever is visible stays complete.
What was left behind is looked for while no backup runs that the writer lock knows of. The others,
of another source or standby, are told by age: a manifest is an orphan when a day has passed since
it was stored, because the backup that stored it makes its archive visible, or fails, in the next
moment; an upload is abandoned when it began longer ago than any backup takes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from itertools import islice

from pgstash import catalog, events, retention
from pgstash.catalog import Backup, Catalog, Companion
from pgstash.errors import (
    DatabaseError,
    ObjectNotFoundError,
    StorageError,
    StorageUnreachableError,
)
from pgstash.identity import Claim, Identity, Origin
from pgstash.owners import Owners
from pgstash.retention import Decision
from pgstash.storage.interface import PendingUpload, Storage

ORPHAN_AGE = timedelta(days=1)

# Deleted with one request. Where that fails, one by one; where all of them fail, no more are
# tried: a key that may not delete would otherwise be refused a thousand times.
_BATCH = 100


@dataclass(frozen=True, slots=True)
class Plan:
    """What to prune, by which policy; uploads are swept ``sweep_after_days`` after they began.

    Without ``explained`` no archive is asked whose it is while all are young.
    """

    prefix: str
    policy: retention.Policy
    sweep_after_days: int
    explained: bool = True


@dataclass(frozen=True, slots=True)
class Pruned:
    """What was kept, removed and swept; in a dry run, what would be. ``swept`` are keys.

    Backups of other sources are in none of them.
    """

    kept: Sequence[Decision[Backup]]
    removed: Sequence[Decision[Backup]]
    swept: Sequence[str]


Choose = Callable[[Sequence[Backup]], Sequence[Identity]]
"""Says of which sources the backups are pruned, as if they were of one; raises StorageError."""


Alone = Callable[[], AbstractContextManager[object]]
"""A block in which no backup runs; raises DatabaseError, with the reason, where nobody can tell."""


def run(  # noqa: PLR0913 - two of them say how the rest is done
    plan: Plan,
    storage: Storage,
    *,
    owners: Owners,
    choose: Choose,
    alone: Alone,
    now: datetime,
    emit: events.Emit,
    dry_run: bool = False,
) -> Pruned:
    """Apply the policy to the backups of the sources that are chosen; delete nothing in a dry run.

    What is of another source is left alone: backups, what lies beside them, and uploads.

    Leftovers are swept within ``alone``; where that fails they are left, and it is told.
    What cannot be deleted is told, and the rest goes on, unless the store is not reached or
    refuses everything. Then, or at the end, the first StorageError is raised.
    """
    return _Run(plan, storage, owners, choose, alone, now, emit, dry_run=dry_run).run()


class _Run:
    """One run, and what went wrong in it so far."""

    def __init__(  # noqa: PLR0913, PLR0917 - as run()
        self,
        plan: Plan,
        storage: Storage,
        owners: Owners,
        choose: Choose,
        alone: Alone,
        now: datetime,
        emit: events.Emit,
        *,
        dry_run: bool,
    ) -> None:
        self._plan = plan
        self._storage = storage
        self._owners = owners
        self._choose = choose
        self._alone = alone
        self._now = now
        self._emit = emit
        self._dry_run = dry_run
        self._errors: list[StorageError] = []

    def run(self) -> Pruned:
        stored = catalog.read(self._storage, self._plan.prefix)
        sources = self._choose(stored.backups)
        own = stored.backups
        if self._plan.explained or self._may_remove(stored):
            own = self._owners.of(stored.backups, sources)
            self._errors += self._owners.unreadable.values()
            self._tell_of_others(stored.backups, sources)
        decisions = self._decide(own)
        kept = [decision for decision in decisions if decision.keep]
        doomed = [decision for decision in decisions if not decision.keep]
        removed: list[Decision[Backup]] = []
        swept: list[str] = []
        try:
            if self._dry_run:
                removed = doomed
                for decision in decisions:
                    self._tell(decision)
            else:
                for decision in kept:
                    self._tell(decision)
                self._look_at_the_newest(kept, doomed)
                for removal in self._remove(doomed):
                    removed.append(removal)
                    self._tell(removal)
            swept.extend(self._sweep(stored, sources))
        finally:
            self._emit(
                events.PruneFinished(
                    location=self._storage.url(self._plan.prefix),
                    kept=len(kept),
                    removed=len(removed),
                    swept=len(swept),
                    dry_run=self._dry_run,
                )
            )
        if self._errors:
            raise self._errors[0]
        return Pruned(kept, removed, swept)

    def _may_remove(self, stored: Catalog) -> bool:
        """Tell whether anything would be removed if all backups were of one source.

        If nothing would, then nothing of any source: with fewer backups each rule keeps more. That
        is looked at by names first, and then with the proofs that only the archives tell of: one
        that is proven may cost an older one its rule.
        """
        by_name = retention.decide(stored.backups, self._plan.policy, self._now)
        if not all(decision.keep for decision in by_name):
            return True
        return not all(decision.keep for decision in self._decide(stored.backups))

    def _decide(self, backups: Sequence[Backup]) -> list[Decision[Backup]]:
        settled = [catalog.settled(self._storage, backup) for backup in backups]
        return retention.decide(settled, self._plan.policy, self._now)

    def _tell_of_others(self, backups: Sequence[Backup], sources: Sequence[Identity]) -> None:
        for label, number, _ in self._owners.counted(backups, sources):
            self._emit(events.OthersLeft(label, number))
        if self._errors:
            number, first = len(self._errors), self._errors[0].message
            self._emit(
                events.Warned(
                    f"{number} backups are left, as nobody can tell whose they are: {first}"
                )
            )

    def _tell(self, decision: Decision[Backup]) -> None:
        name, reasons = decision.backup.name, decision.reasons
        self._emit(
            events.BackupKept(name, reasons)
            if decision.keep
            else events.BackupRemoved(name, reasons, self._dry_run)
        )

    def _look_at_the_newest(
        self, kept: Sequence[Decision[Backup]], doomed: Sequence[Decision[Backup]]
    ) -> None:
        """Raise unless the last good backup is really there: the others go on its account.

        A listing may be late, and still show what was deleted. The same goes for the newest that
        is proven, and for its proof, where an older one that is proven goes on their account.
        """
        if not doomed:
            return
        past = [each.backup for each in reversed(kept) if each.backup.started <= self._now]
        self._ask_for(next((each for each in past if each.size), past[0]).key, "newest backup")
        if any(each.backup.proven and each.backup.size for each in doomed):
            proven = next(each.backup for each in kept if retention.PROVEN in each.reasons)
            self._ask_for(proven.key, "newest proven backup")
            proofs = (each for each in proven.companions if each.proven == proven.proven)
            self._ask_for(next(proofs).key, "proof of the newest proven backup")

    def _ask_for(self, key: str, what: str) -> None:
        """Raise ObjectNotFoundError unless a listed object is there, and StorageError."""
        try:
            self._storage.head(key)
        except ObjectNotFoundError as error:
            name = key.removeprefix(f"{self._plan.prefix}/")
            raise ObjectNotFoundError(
                f"{name} is listed as the {what} and is not there: no backup was removed",
                hint="Somebody deleted it, or the store's listing is late: prune again later.",
            ) from error

    def _remove(self, doomed: Sequence[Decision[Backup]]) -> Iterator[Decision[Backup]]:
        """Delete backup after backup, the oldest first, and yield each whose archive is gone."""
        remaining = iter(doomed)
        while batch := list(islice(remaining, _BATCH)):
            companions = {
                decision.backup.key: self._companions_to_remove(decision.backup)
                for decision in batch
            }
            archives = [decision.backup.key for decision in batch]
            gone = self._delete(archives)
            yield from (decision for decision in batch if decision.backup.key in gone)
            self._delete([key for each in archives if each in gone for key in companions[each]])
            if not gone:
                raise self._errors[0]

    def _companions_to_remove(self, backup: Backup) -> list[str]:
        """Return what goes with an archive: its own. What another backup left is swept later."""
        [origin] = self._owners.origins([backup])
        return [each.key for each in backup.companions if origin.id in (None, each.id)]

    def _is_old(self, companion: Companion) -> bool:
        return self._now - companion.modified >= ORPHAN_AGE

    def _delete(self, keys: Sequence[str]) -> set[str]:
        """Delete objects, and return those that are gone; what the others met is kept."""
        if not keys:
            return set()
        try:
            self._storage.delete(keys)
        except StorageUnreachableError:
            raise
        except StorageError:
            return {key for key in keys if self._done(partial(self._storage.delete, [key]))}
        return set(keys)

    def _sweep(self, stored: Catalog, sources: Sequence[Identity]) -> Iterator[str]:
        """Delete what failed backups of the sources left.

        An upload does not say of which source it is: so none is swept if there are others. It was
        listed before nobody else was at work: so whatever begins later is not in it.
        """
        companions = [each for each in stored.suspects if self._is_old(each)]
        uploads = self._abandoned()
        if not (companions or uploads):
            return
        claim = Claim(sources, self._owners.origins(stored.backups))
        if uploads and not claim.is_alone:
            self._emit(
                events.SweepLeftOut(
                    f"unfinished uploads ({len(uploads)}), which take space, may be of another "
                    "source that has backups under this prefix. A lifecycle rule of the bucket "
                    "removes them"
                )
            )
            uploads = []
        try:
            with self._alone():
                yield from self._sweep_orphans(companions, claim)
                yield from self._sweep_uploads(uploads)
        except DatabaseError as error:
            self._emit(events.SweepLeftOut(error.message))

    def _sweep_orphans(self, companions: Sequence[Companion], claim: Claim) -> Iterator[str]:
        """Delete the companions that a backup stored which then failed, a day ago or longer."""
        for companion in companions:
            found = None
            with self._going_on():
                found = catalog.orphan(self._storage, companion)
            own = found is not None and claim.covers(Origin.of(found, companion.modified))
            sweep = partial(self._storage.delete, [companion.key])
            if own and (self._dry_run or self._done(sweep)):
                yield self._swept(companion.key, "no backup belongs to it")

    def _abandoned(self) -> list[PendingUpload]:
        """Return the uploads that nobody will commit any more.

        One that is younger may be a backup of another source that runs right now.
        """
        uploads: list[PendingUpload] = []
        with self._going_on():
            uploads = list(catalog.pending(self._storage, self._plan.prefix))
        longest = timedelta(days=self._plan.sweep_after_days)
        return [upload for upload in uploads if self._now - upload.started >= longest]

    def _sweep_uploads(self, uploads: Sequence[PendingUpload]) -> Iterator[str]:
        for upload in uploads:
            if self._dry_run or self._done(partial(self._storage.abort, upload)):
                days = (self._now - upload.started).days
                yield self._swept(upload.key, f"an upload that began {days} days ago")

    def _done(self, action: Callable[[], None]) -> bool:
        """Do one thing, and tell whether it went well; see :meth:`_going_on`."""
        failures = len(self._errors)
        with self._going_on():
            action()
        return len(self._errors) == failures

    @contextmanager
    def _going_on(self) -> Iterator[None]:
        """Tell what fails in the block and go on after it, unless the store is not reached."""
        try:
            yield
        except StorageUnreachableError:
            raise
        except StorageError as error:
            self._errors.append(error)
            self._emit(events.Warned(error.message))

    def _swept(self, key: str, reason: str) -> str:
        self._emit(events.LeftoverSwept(self._storage.url(key), reason, self._dry_run))
        return key
