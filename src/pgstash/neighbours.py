"""Who else writes under our prefix, as far as the bucket can tell.

The writer lock keeps out who backs the same database up from the same server. Another source, or
another standby of ours, it cannot see; what such a neighbour leaves in the bucket can be seen.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from urllib.parse import unquote

from pgstash import catalog, events
from pgstash.errors import StorageError
from pgstash.storage.interface import Storage

YOUNG = timedelta(days=1)
"""An upload that began no longer ago may well be a backup that still runs."""


def look(storage: Storage, prefix: str, database: str, *, now: datetime, emit: events.Emit) -> None:
    """Warn of unfinished uploads, and where the newest backup is of another database.

    To be called under the writer lock, before a backup begins: what is unfinished then is not
    of a backup that the lock knows. ``database`` is the name as the metadata of an archive
    hold it. Nothing that goes wrong here fails a backup: it would have succeeded without.
    """
    with _if_it_can_tell(emit):
        _unfinished(storage, prefix, now, emit)
    with _if_it_can_tell(emit):
        _another_database(storage, prefix, database, emit)


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


def _another_database(storage: Storage, prefix: str, database: str, emit: events.Emit) -> None:
    backups = catalog.read(storage, prefix).backups
    if not backups:
        return
    newest = backups[-1]
    # Another host is no other source: it changes with every failover.
    other = storage.head(newest.key).metadata.get("database", database)
    if other != database:
        emit(
            events.Warned(
                f"The newest backup under this prefix, {newest.name}, is of the database "
                f'"{unquote(other)}", not of "{unquote(database)}". Give each its own '
                "BACKUP_PREFIX: the retention takes all backups of a prefix for those of one "
                "database, and deletes accordingly"
            )
        )


@contextmanager
def _if_it_can_tell(emit: events.Emit) -> Iterator[None]:
    try:
        yield
    except StorageError as error:
        emit(events.Notice(f"Nobody knows who else writes under this prefix: {error}"))
