"""The history of one job: what the store knows of its backups, drills and failures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from pgstash import events
from pgstash.commands import stored
from pgstash.commands.storage import open_storage, refuse_if_only_writes
from pgstash.counting import counted
from pgstash.errors import PgstashError
from pgstash.format import failure_record
from pgstash.format.failure_record import Failure
from pgstash.format.identity import Identity
from pgstash.repository import catalog, failures, object_metadata
from pgstash.repository.access import Access
from pgstash.repository.catalog import Backup, FailedRun
from pgstash.settings import Settings
from pgstash.storage.interface import Storage


@dataclass(frozen=True, slots=True)
class Entry:
    """A run, at its start; a drill that passed, at its end. Texts are as the store has them.

    ``backup`` is the backup that was made or drilled, ``known`` the decoded metadata. ``failed`` is
    what the metadata of a failure hold, ``reason`` its record if that could be read.
    """

    at: datetime
    operation: Literal["backup", "drill"]
    backup: str
    known: Mapping[str, str]
    seconds: float | None
    size: int | None = None
    failed: failure_record.Facts | None = None
    reason: Failure | None = None

    @property
    def source(self) -> str | None:
        """The label of the source; None if it is unknown."""
        identity = Identity.of(self.known)
        return identity.label if identity.database else None


def history(settings: Settings, since: datetime, emit: events.Emit) -> list[Entry]:
    """Return the runs since a time, the newest first. Raises StorageError.

    It is a warning if the reasons of failures cannot be read.
    """
    refuse_if_only_writes(settings, "history")
    storage = open_storage(settings, events.ignore)
    found = catalog.read(storage, settings.backup_prefix)
    entries = [
        *_backups(storage, [each for each in found.backups if each.started >= since]),
        *_drills(storage, found.backups, since),
        *_Failures(settings, storage, emit).entries(
            [each for each in found.failures if each.started >= since and each.key]
        ),
    ]
    return sorted(entries, key=lambda each: (each.at, each.operation), reverse=True)


def _backups(storage: Storage, backups: Sequence[Backup]) -> list[Entry]:
    known = object_metadata.of_backups(storage, backups)
    return [
        Entry(
            backup.started,
            "backup",
            backup.name,
            facts,
            failure_record.seconds_of(facts.get("seconds", "")),
            backup.size,
        )
        for backup, facts in zip(backups, known, strict=True)
    ]


def _drills(storage: Storage, backups: Sequence[Backup], since: datetime) -> list[Entry]:
    proofs = [
        (proof.proven, backup.name, proof.key)
        for backup in backups
        if any(each.proven and each.proven >= since for each in backup.companions)
        for proof in object_metadata.with_own_companions(storage, backup).companions
        if proof.proven and proof.proven >= since
    ]
    known = object_metadata.of_objects(storage, [key for _, _, key in proofs])
    return [
        Entry(at, "drill", name, facts, failure_record.seconds_of(facts.get("restore-seconds", "")))
        for (at, name, _), facts in zip(proofs, known, strict=True)
    ]


class _Failures:
    """Reads the records of failures, as far as there is a key for them."""

    def __init__(self, settings: Settings, storage: Storage, emit: events.Emit) -> None:
        self._settings = settings
        self._storage = storage
        self._emit = emit

    def entries(self, runs: Sequence[FailedRun]) -> list[Entry]:
        """Return an entry for each, also if its reason cannot be read."""
        known = object_metadata.of_objects(self._storage, [each.key or "" for each in runs])
        access = stored.access_of(self._settings, self._emit, unverified=True)
        reasons = object_metadata.in_parallel(
            lambda each: self._reason(*each, access), list(zip(runs, known, strict=True))
        )
        if problems := [each for each in reasons if isinstance(each, str)]:
            number = counted(len(problems), "failure")
            self._emit(events.Warned(f"The reason of {number} could not be read: {problems[0]}"))
        return [
            _failed(run, facts, None if isinstance(reason, str) else reason)
            for run, facts, reason in zip(runs, known, reasons, strict=True)
        ]

    def _reason(self, run: FailedRun, known: Mapping[str, str], access: Access) -> Failure | str:
        """Return the record, or why it cannot be read."""
        if run.kms and not run.wrapped and not self._settings.kms_recipients:
            return (
                "they are wrapped by AWS KMS, and BACKUP_ENCRYPTION_RECIPIENTS names no key of it"
            )
        try:
            return failures.read(self._storage, run, known, access)
        except PgstashError as error:
            return error.message


def _failed(run: FailedRun, known: Mapping[str, str], reason: Failure | None) -> Entry:
    facts = failure_record.read_facts(known)
    return Entry(
        run.started,
        facts.operation,
        facts.backup,
        known,
        facts.seconds,
        failed=facts,
        reason=reason,
    )
