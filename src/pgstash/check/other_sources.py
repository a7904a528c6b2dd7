"""The preflight of the prefix: are there backups of other sources."""

from __future__ import annotations

import shlex

from pgstash.check.finding import Finding
from pgstash.errors import ConfigurationError, SourceUnclearError, StorageError
from pgstash.format.identity import Identity
from pgstash.repository import catalog
from pgstash.repository.owners import Owners
from pgstash.storage.interface import Storage

_TOPIC = "other sources"


def look(storage: Storage, prefix: str, source: Identity | None, owners: Owners) -> Finding:
    """Return whether all backups under the prefix are of this source.

    A ``source`` whose server did not answer is identified by the settings alone.
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
    except (ConfigurationError, StorageError) as error:
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
        f"backups under this prefix that do not count as backups of this source: {listed}",
        "Give each database a BACKUP_PREFIX of its own. If they were made by this database before "
        "it was moved, upgraded or renamed, remove the old ones: pgstash prune --dry-run "
        + " ".join([*(f"--source {shlex.quote(each.label)}" for each in sources), named]),
    )
