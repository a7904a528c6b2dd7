"""Finds other writers under our prefix, as far as the bucket shows them.

The writer lock keeps out other backups of the same database of the same server. It cannot see
another source, or another standby of ours; but what these leave in the bucket can be seen.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta

from pgstash import events
from pgstash.errors import StorageError
from pgstash.format import identity
from pgstash.format.identity import Claim, Identity
from pgstash.repository import catalog
from pgstash.repository.owners import Owners
from pgstash.runtime import Runtime
from pgstash.storage.interface import Storage

_MOST_NAMED = 5

YOUNG = timedelta(days=1)
"""An upload younger than this may well be a backup that is still running."""


@dataclass(frozen=True, slots=True)
class OtherWriters:
    """What the bucket shows of the source and of others.

    ``since`` is when the source made its first backup that names its server. ``reported`` are the
    other sources that were reported, for the metadata of the next backup; None if unknown.
    """

    source: Identity
    since: datetime | None = None
    reported: str | None = None

    def metadata(self, started: datetime) -> dict[str, str]:
        """Return the metadata by which the next backup of the source differs from others."""
        if self.reported is None:
            return self.source.metadata()
        return {
            **identity.continued(self.source, self.since, started),
            identity.OTHERS: self.reported,
        }


def look(
    storage: Storage, prefix: str, source: Identity, owners: Owners, runtime: Runtime
) -> OtherWriters:
    """Warn of unfinished uploads, and of backups of other sources that were not reported yet.

    Call this under the writer lock, before a backup begins: then no unfinished upload belongs to a
    backup that the lock knows. Nothing that goes wrong here fails a backup, which would have
    succeeded without this check. Nothing is requested on a host that may not read.
    """
    if not owners.may_read:
        return OtherWriters(source)
    emit = runtime.emit
    with _never_failing(emit):
        _warn_of_unfinished(storage, prefix, runtime.now(), emit)
    known = []
    with _never_failing(emit):
        known.append(_others(storage, prefix, source, owners, emit))
    return known[0] if known else OtherWriters(source)


def _warn_of_unfinished(storage: Storage, prefix: str, now: datetime, emit: events.Emit) -> None:
    found = [upload for upload in catalog.pending(storage, prefix) if now - upload.started < YOUNG]
    if not found:
        return
    newest = max(found, key=lambda upload: upload.started)
    minutes = max(0, int((now - newest.started).total_seconds() // 60))
    others = f", and {len(found) - 1} more" if len(found) > 1 else ""
    emit(
        events.Warned(
            f"There is an unfinished upload under this prefix: {storage.url(newest.key)}, begun "
            f"{minutes} minutes ago (upload id {newest.upload_id}){others}. A backup was killed, "
            "or another source (or standby) is being backed up to the same BACKUP_PREFIX"
        )
    )


def _others(
    storage: Storage, prefix: str, source: Identity, owners: Owners, emit: events.Emit
) -> OtherWriters:
    backups = catalog.read(storage, prefix).backups
    origins = owners.back_to_last(backups, source)
    claim = Claim([source], origins)
    ours = [each for each in origins[-1:] if source.relation(each.identity) == "same"]
    before = ours[0].reported if ours else None
    others = list(dict.fromkeys(each.identity for each in origins if not claim.covers(each)))
    new = [each.label for each in others if each.digest not in (before or ())]
    if new:
        more = f" and {len(new) - _MOST_NAMED} more" if len(new) > _MOST_NAMED else ""
        emit(
            events.Warned(
                f"Under {storage.url(prefix)} are backups of other sources: "
                f"{', '.join(new[:_MOST_NAMED])}{more}. This source is {source.label}. pgstash "
                "leaves the others alone. Give each database a BACKUP_PREFIX of its own. If one "
                "of them is this database before it was moved, upgraded or renamed, its old "
                f"backups stay until you remove them: pgstash prune --dry-run --source "
                f"{shlex.quote(source.label)} --source {shlex.quote(new[0])}"
            )
        )
    return OtherWriters(source, claim.since, identity.reported_after(before or (), others))


@contextmanager
def _never_failing(emit: events.Emit) -> Iterator[None]:
    try:
        yield
    except StorageError as error:
        emit(events.Notice(f"Could not check for other writers under this prefix: {error}"))
