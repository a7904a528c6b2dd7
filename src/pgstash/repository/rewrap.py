"""Wraps the passphrases of stored backups for other recipients. No archive is read or written.

Each object is replaced whole, and only after what will replace it was checked. So a change that
stops half-way has changed some backups and not the others, and can be run again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from pgstash import events
from pgstash.errors import (
    BackupNotFoundError,
    CorruptedError,
    EncryptionError,
    PgstashError,
    StorageUnreachableError,
)
from pgstash.format import manifest as manifests
from pgstash.format import metadata as stored_metadata
from pgstash.pipeline import age
from pgstash.repository import keys, object_metadata
from pgstash.repository.access import Access
from pgstash.repository.catalog import Backup
from pgstash.runtime import Runtime
from pgstash.storage.interface import Storage

Outcome = Literal["changed", "unchanged", "not wrapped", "failed"]


@dataclass(frozen=True, slots=True)
class Change:
    """A recipient to add or to remove: a public key, or the label of a present one to remove."""

    recipient: str
    removes: bool

    @property
    def label(self) -> str:
        """The short name of the recipient."""
        return self.recipient if ":" in self.recipient else age.label(self.recipient)

    def apply(self, name: str, present: Sequence[str]) -> list[str]:
        """Return the new recipients of a backup. Raises EncryptionError if there would be none."""
        if not self.removes:
            return [*present, *([] if self.recipient in present else [self.recipient])]
        fitting = [each for each in present if self.recipient in (each, age.label(each))]
        left = [each for each in present if each not in fitting]
        if not left:
            raise EncryptionError(
                f"{name} has no other recipient: nobody could read it any more",
                hint="Add another recipient first: `pgstash keys add`.",
            )
        if len(fitting) > 1:
            raise EncryptionError(
                f"several recipients of {name} begin like {self.recipient}",
                hint="Give the whole public key.",
            )
        return left


@dataclass(frozen=True, slots=True)
class Rewrapped:
    """The number of backups of each outcome."""

    outcomes: Sequence[Outcome]

    def number(self, outcome: Outcome) -> int:
        """Return how many backups had this outcome."""
        return self.outcomes.count(outcome)


def run(
    storage: Storage, backups: Iterable[Backup], change: Change, access: Access, runtime: Runtime
) -> Rewrapped:
    """Change the recipients of each backup, and report it.

    What cannot be changed is reported, and the others are changed; then the first error is raised,
    at once if the store cannot be reached. Raises BackupNotFoundError if none of the backups is for
    recipients, and Interrupted between two backups.
    """
    outcomes: list[Outcome] = []
    errors: list[PgstashError] = []
    for backup in backups:
        runtime.interruption.raise_if_interrupted()
        try:
            outcomes.append(_rewrap(storage, backup, change, access))
        except StorageUnreachableError:
            raise
        except PgstashError as error:
            outcomes.append("failed")
            errors.append(error)
            runtime.emit(events.Warned(f"{backup.name} was not changed: {error}"))
        else:
            if outcomes[-1] == "changed":
                did = "removed from" if change.removes else "added to"
                what = f"{change.label} was {did} the recipients of {backup.name}"
                runtime.emit(events.Informed(what))
    if errors:
        raise errors[0]
    if all(outcome == "not wrapped" for outcome in outcomes):
        raise BackupNotFoundError(
            "none of these backups is encrypted for recipients",
            hint="BACKUP_ENCRYPTION_RECIPIENTS encrypts new backups for recipients.",
        )
    return Rewrapped(outcomes)


def _rewrap(storage: Storage, backup: Backup, change: Change, access: Access) -> Outcome:
    metadata = storage.head(backup.key).metadata
    manifests.refuse_newer(backup.name, metadata)
    own = object_metadata.companions_of(backup, metadata)
    wrapped = {each.id: each.key for each in own if each.kind == "key"}
    if not keys.for_recipients(metadata, wrapped=bool(wrapped)):
        return "not wrapped"
    samples = {each.id: each.key for each in own if each.kind == "manifest"}
    # In a copy that lost its metadata there may be those of a failed backup, too.
    ids = wrapped.keys() & samples.keys() or wrapped.keys() or {""}
    outcomes = {
        _rewrap_one(
            storage,
            keys.Stored(backup.name, metadata, wrapped.get(each), samples.get(each, backup.key)),
            change,
            access,
        )
        for each in sorted(ids)
    }
    return "changed" if "changed" in outcomes else "unchanged"


def _rewrap_one(storage: Storage, stored: keys.Stored, change: Change, access: Access) -> Outcome:
    found = keys.open_wrapped(storage, stored, access)
    key = stored.wrapped or ""
    if not found.recipients:
        raise CorruptedError(
            f"{key} does not list its recipients",
            hint="Was it wrapped by hand? Wrap it again for everybody who is to read the backup, "
            "with a line `for RECIPIENT` for each of them after the passphrase.",
        )
    recipients = change.apply(stored.name, found.recipients)
    if recipients == list(found.recipients):
        return "unchanged"
    _refuse_another(storage, stored, found)
    try:
        packed = age.wrap(age.Wrapped(found.passphrase, recipients))
    except age.UnusableError as error:
        raise EncryptionError(f"the recipients cannot be used: {error}") from error
    values = stored_metadata.encoded(keys.recipients_metadata(recipients))
    storage.put(key, packed, dict(storage.head(key).metadata) | values)
    return "changed"


def _refuse_another(storage: Storage, stored: keys.Stored, found: age.Wrapped) -> None:
    """Raise CorruptedError if the passphrase does not decrypt the backup.

    Anyone who can write to the store could have replaced it, and the list of recipients with it.
    """
    with storage.read(stored.sample or "", start=0, length=keys.BEGINNING) as chunks:
        beginning = b"".join(chunks)
    if not keys.opens(beginning, Access(found.passphrase, unverified=False, only_encrypted=True)):
        raise CorruptedError(
            f"the wrapped passphrase of {stored.name} is not the one that it was encrypted with",
            hint="Was it replaced? A copy of the object, or an earlier version, may be right.",
        )
