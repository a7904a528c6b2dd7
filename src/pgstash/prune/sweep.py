"""Deletes what failed backups left in the store.

Backups of another source or standby do not hold the writer lock of this one, so age decides as
well. A manifest is an orphan one day after it was stored, because the backup that stored it makes
its archive visible, or fails, right after that. An upload is abandoned if it started longer ago
than any backup takes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta
from functools import partial

from pgstash import events
from pgstash.format import trial_objects
from pgstash.format.identity import Claim, Origin
from pgstash.prune.journal import Journal
from pgstash.prune.locks import Locks
from pgstash.repository import catalog, object_metadata
from pgstash.repository.catalog import Companion, FailedRun
from pgstash.storage.interface import PendingUpload, Storage

ORPHAN_AGE = timedelta(days=1)


class Sweep:
    """Finds leftovers and deletes them, or only reports them in a ``dry_run``."""

    def __init__(self, storage: Storage, journal: Journal, locks: Locks, *, dry_run: bool) -> None:
        """Prepare; nothing is requested yet. Ages are counted up to the time of ``locks``."""
        self._storage = storage
        self._journal = journal
        self._locks = locks
        self._now = locks.now
        self._dry_run = dry_run

    def old(self, companions: Iterable[Companion]) -> list[Companion]:
        """Return the companions that a backup running now cannot have stored."""
        return [each for each in companions if self._is_old(each)]

    def _is_old(self, companion: Companion) -> bool:
        return self._now - companion.modified >= ORPHAN_AGE

    def abandoned(self, prefix: str, days: int) -> list[PendingUpload]:
        """Return the uploads under ``prefix`` that started at least ``days`` days ago.

        A younger one may belong to a backup of another source that is running now.
        """
        uploads: list[PendingUpload] = []
        with self._journal.keep_going():
            uploads = list(catalog.pending(self._storage, prefix))
        longest = timedelta(days=days)
        return [upload for upload in uploads if self._now - upload.started >= longest]

    def trials(self, prefix: str) -> Iterator[str]:
        """Delete the old trial objects of `pgstash check` under ``prefix``; yield their keys.

        A host that may not delete leaves them, and so does a check that is killed.
        """
        found: list[str] = []
        with self._journal.keep_going():
            found = [
                each.key
                for each in self._storage.list(f"{prefix}/{trial_objects.PREFIX}")
                if trial_objects.NAME.fullmatch(each.key.removeprefix(f"{prefix}/"))
                and self._now - each.modified >= ORPHAN_AGE
            ]
        for key in found:
            if not self._is_locked(key) and self._removes(key):
                yield self._swept(key, "`pgstash check` left it")

    def _is_locked(self, key: str) -> bool:
        return self._locks.hold(key.rpartition("/")[2], [key])

    def _removes(self, key: str) -> bool:
        """Delete an object, unless this is a dry run; return whether it is gone, or would be."""
        return self._dry_run or self._locks.deletes(key, self._journal)

    def orphans(self, companions: Sequence[Companion], claim: Claim) -> Iterator[str]:
        """Delete the companions of claimed sources that have no archive; yield their keys."""
        for companion in companions:
            found = None
            with self._journal.keep_going():
                found = object_metadata.orphan(self._storage, companion)
            own = found is not None and claim.covers(Origin.of(found, companion.modified))
            if own and not self._is_locked(companion.key) and self._removes(companion.key):
                yield self._swept(companion.key, "no backup belongs to it")

    def expired(self, failures: Iterable[FailedRun], days: int) -> list[FailedRun]:
        """Return the failed runs from before the last ``days`` days, by the time in their names."""
        return [each for each in failures if self._now - each.started > timedelta(days=days)]

    def failures(self, failures: Iterable[FailedRun], claim: Claim) -> Iterator[str]:
        """Delete the records of failed runs of claimed sources; yield their keys."""
        for run in failures:
            own = False
            with self._journal.keep_going():
                own = object_metadata.is_own_failure(self._storage, run, claim)
            if not own or self._locks.hold(run.keys[0].rpartition("/")[2], run.keys):
                continue
            # The record goes last: without it, the source of the others would be less certain.
            for key in reversed(run.keys):
                if self._removes(key):
                    days = (self._now - run.started).days
                    yield self._swept(key, f"it is of a run that failed {days} days ago")

    def uploads(self, uploads: Sequence[PendingUpload]) -> Iterator[str]:
        """Abort the uploads; yield their keys."""
        for upload in uploads:
            abort = partial(self._storage.abort, upload)
            name = upload.key.rpartition("/")[2]
            if self._dry_run or self._locks.permit(name, abort, self._journal):
                days = (self._now - upload.started).days
                yield self._swept(upload.key, f"an upload that began {days} days ago")

    def _swept(self, key: str, reason: str) -> str:
        self._journal.emit(events.LeftoverSwept(self._storage.url(key), reason, self._dry_run))
        return key
