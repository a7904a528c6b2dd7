"""How the last run of a job ended, as its store knows it: for a message when that changes."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from itertools import islice
from typing import Literal

from pgstash import events
from pgstash.commands.storage import open_storage
from pgstash.errors import PgstashError
from pgstash.format import failure_record
from pgstash.repository import catalog, object_metadata
from pgstash.repository.catalog import Backup
from pgstash.settings import Settings

_MOST_RECORDS = 20
"""How many records of failures are read: a failing drill may lie before many failing backups."""


def error_before(
    settings: Settings, operation: Literal["backup", "drill"], began: datetime
) -> str | None:
    """Return the name of the error of the last run that began before a time.

    An empty text if it succeeded, or there was none; None if the store does not answer, or may not
    be read.
    """
    if settings.only_writes:
        return None
    began = began.replace(microsecond=0)  # as in names: what this run stores did not begin before
    try:
        storage = open_storage(settings, events.ignore, prompt=True)
        found = catalog.read(storage, settings.backup_prefix)
        succeeded = _last_success(found.backups, operation, began)
        failed = [
            each
            for each in found.failures
            if each.key and each.started < began and (not succeeded or each.started > succeeded)
        ]
        failed.sort(key=lambda each: each.started, reverse=True)
        for each in islice(failed, _MOST_RECORDS):
            [known] = object_metadata.of_objects(storage, [each.key or ""])
            facts = failure_record.read_facts(known)
            if facts.operation == operation:
                return facts.error
    except PgstashError:
        return None
    return ""


def _last_success(
    backups: Sequence[Backup], operation: Literal["backup", "drill"], began: datetime
) -> datetime | None:
    if operation == "backup":
        ends = [each.started for each in backups]
    else:
        ends = [proof.proven for each in backups for proof in each.companions if proof.proven]
    return max((each for each in ends if each < began), default=None)
