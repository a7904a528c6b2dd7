"""The preflight of the prefix: whose backups are under it."""

from __future__ import annotations

import shlex

from pgstash import catalog
from pgstash.check.finding import Finding
from pgstash.errors import SourceUnclearError, StorageError
from pgstash.identity import Identity
from pgstash.owners import Owners
from pgstash.storage.interface import Storage

_TOPIC = "other sources"


def look(storage: Storage, prefix: str, source: Identity | None, owners: Owners) -> Finding:
    """Tell whether all backups under the prefix are of this source.

    A ``source`` whose server did not answer is known by what the settings tell of it.
    """
    try:
        backups = catalog.read(storage, prefix).backups
        sources = [source] if source else []
        if source is None or source.system is None:
            try:
                sources = list(owners.choose(backups, settings=source))
            except SourceUnclearError:
                sources = []
        others = owners.counted(backups, sources)
    except StorageError as error:
        return Finding(_TOPIC, "skipped", f"the backups could not be read: {error.message}")
    if not others:
        return Finding(_TOPIC, "ok", "all backups under this prefix are of one source")
    listed = ", ".join(
        f"{label} ({number}, the newest is {newest})" for label, number, newest in others
    )
    named = " ".join(f"--source {shlex.quote(label)}" for label, *_ in others)
    return Finding(
        _TOPIC,
        "warning",
        f"backups under this prefix that are not counted as this source's: {listed}",
        "Give each database a BACKUP_PREFIX of its own. If they are of this database before it "
        "was moved, upgraded or renamed, remove the old ones: pgstash prune --dry-run "
        + " ".join([*(f"--source {shlex.quote(each.label)}" for each in sources), named]),
    )
