"""Who else writes under our prefix, as far as the bucket can tell.

The writer lock keeps out who backs the same database up from the same server. Another source, or
another standby of ours, it cannot see; what such a neighbour leaves in the bucket can be seen.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta

from pgstash import catalog, events, identity
from pgstash.errors import StorageError
from pgstash.identity import Claim, Identity
from pgstash.owners import Owners
from pgstash.storage.interface import Storage

_MOST_NAMED = 5

YOUNG = timedelta(days=1)
"""An upload that began no longer ago may well be a backup that still runs."""


@dataclass(frozen=True, slots=True)
class Neighbourhood:
    """What the bucket tells of the source and of others.

    ``since`` is when the source made its first backup that names its server, ``reported`` is what
    the metadata of its next backup tell of others; None if it is not known.
    """

    source: Identity
    since: datetime | None = None
    reported: str | None = None

    def metadata(self, started: datetime) -> dict[str, str]:
        """Return the metadata that tell the next backup of the source from those of others."""
        if self.reported is None:
            return self.source.metadata()
        return {
            **identity.continued(self.source, self.since, started),
            identity.OTHERS: self.reported,
        }


def look(  # noqa: PLR0913 - who looks, and what at
    storage: Storage,
    prefix: str,
    source: Identity,
    owners: Owners,
    *,
    now: datetime,
    emit: events.Emit,
) -> Neighbourhood:
    """Warn of unfinished uploads, and of backups of other sources that were not reported yet.

    To be called under the writer lock, before a backup begins: what is unfinished then is not
    of a backup that the lock knows. Nothing that goes wrong here fails a backup: it would have
    succeeded without.
    """
    with _if_it_can_tell(emit):
        _unfinished(storage, prefix, now, emit)
    known = []
    with _if_it_can_tell(emit):
        known.append(_others(storage, prefix, source, owners, emit))
    return known[0] if known else Neighbourhood(source)


def _unfinished(storage: Storage, prefix: str, now: datetime, emit: events.Emit) -> None:
    found = [upload for upload in catalog.pending(storage, prefix) if now - upload.started < YOUNG]
    if not found:
        return
    newest = max(found, key=lambda upload: upload.started)
    minutes = max(0, int((now - newest.started).total_seconds() // 60))
    others = f", and {len(found) - 1} more" if len(found) > 1 else ""
    emit(
        events.Warned(
            f"Under this prefix is an unfinished upload: {storage.url(newest.key)}, begun "
            f"{minutes} minutes ago (upload id {newest.upload_id}){others}. Either a backup was "
            "killed, or somebody backs up another source, or another standby, to the same "
            "BACKUP_PREFIX"
        )
    )


def _others(
    storage: Storage, prefix: str, source: Identity, owners: Owners, emit: events.Emit
) -> Neighbourhood:
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
    return Neighbourhood(source, claim.since, identity.reported_after(before or (), others))


@contextmanager
def _if_it_can_tell(emit: events.Emit) -> Iterator[None]:
    try:
        yield
    except StorageError as error:
        emit(events.Notice(f"Could not check for other writers under this prefix: {error}"))
