"""The earlier backups of the source: how large they are, and when one was last proven."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from pgstash import events
from pgstash.backup.job import Job
from pgstash.errors import StorageError
from pgstash.format import size_history
from pgstash.repository import catalog, object_metadata


@dataclass(slots=True)
class Earlier:
    """What is known of the backups before this one; ``figures`` begin with the newest.

    ``stored_bytes`` is the size in the store of the largest of the latest ones.
    """

    stored_bytes: int | None = None
    figures: Sequence[size_history.Figures] = ()
    last_proof: datetime | None = None


def find(job: Job) -> Earlier:
    """Read the sizes and proofs of the earlier backups. A store that fails is only a notice."""
    earlier = Earlier()
    ours, started = job.others.source, job.started
    try:
        stored = catalog.read(job.storage, job.plan.prefix).backups
        proven = job.owners.last_proven(stored, ours, started)
        earlier.last_proof = proven.proven_by(started) if proven else None
        before = [backup for backup in stored if backup.started < started]
        earlier.stored_bytes = job.owners.usual_size(before, ours)
        if job.plan.anomaly_ratio and job.owners.may_read:
            own = job.owners.newest_first(before, ours)
            earlier.figures = object_metadata.figures_of(job.storage, own)
    except StorageError as error:
        job.emit(events.Notice(f"The size of earlier backups is not known: {error}"))
    return earlier
