"""How the last run of a job ended, as its store knows it: for a message when that changes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import Literal

from pgstash import events
from pgstash.commands.source import configured_source
from pgstash.commands.storage import open_storage
from pgstash.errors import PgstashError
from pgstash.format import failure_record
from pgstash.format.identity import Identity
from pgstash.repository import catalog, object_metadata
from pgstash.repository.catalog import Backup
from pgstash.settings import Settings

_MOST_RUNS = 20
"""How many runs are read: a failing drill may lie before many failing backups."""


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
    ours = configured_source(settings) or Identity()
    try:
        storage = open_storage(settings, events.ignore, prompt=True)
        found = catalog.read(storage, settings.backup_prefix)
        runs = [
            _Run(each.started, each.key, is_success=False) for each in found.failures if each.key
        ]
        runs += _successes(found.backups, operation)
        runs = [each for each in runs if each.at < began]
        runs.sort(key=lambda each: each.at, reverse=True)
        for each in islice(runs, _MOST_RUNS):
            [known] = object_metadata.of_objects(storage, [each.key])
            # Several databases may share a prefix. What names none may be of any.
            if Identity.of(known).relation(ours) == "other":
                continue
            if each.is_success:
                return ""
            facts = failure_record.read_facts(known)
            if facts.operation == operation:
                return facts.error
    except PgstashError:
        return None
    return ""


@dataclass(frozen=True, slots=True)
class _Run:
    """When a run began, or a proof was stored, and whose metadata name its source."""

    at: datetime
    key: str
    is_success: bool


def _successes(backups: Sequence[Backup], operation: Literal["backup", "drill"]) -> Iterator[_Run]:
    for each in backups:
        if operation == "backup":
            yield _Run(each.started, each.key, is_success=True)
        else:
            for proof in each.companions:
                if proof.proven:
                    yield _Run(proof.proven, each.key, is_success=True)
