"""Wraps the passphrases of stored backups for other recipients. No archive is read or written.

Each object is replaced whole, and only after what will replace it was checked. So a change that
stops half-way has changed some backups and not the others, and can be run again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from pgstash import events
from pgstash.errors import (
    BackupNotFoundError,
    CorruptedError,
    EncryptionError,
    PgstashError,
    StorageUnreachableError,
)
from pgstash.format import kms as stored_kms
from pgstash.format import manifest as manifests
from pgstash.format import metadata as stored_metadata
from pgstash.format import names
from pgstash.kms import wrapping
from pgstash.pipeline import age
from pgstash.pipeline import recipients as recipient_lists
from pgstash.repository import keys, object_metadata
from pgstash.repository.access import Access
from pgstash.repository.catalog import Backup
from pgstash.runtime import Runtime
from pgstash.storage.interface import Storage

Outcome = Literal["changed", "unchanged", "not wrapped", "failed"]


@dataclass(frozen=True, slots=True)
class Change:
    """A recipient to add or to remove: a public key, or the label of a present one to remove.

    Or a key of KMS, by its ARN or that of an alias.
    """

    recipient: str
    removes: bool

    @property
    def label(self) -> str:
        """The short name of the recipient."""
        return self.recipient if ":" in self.recipient else recipient_lists.label(self.recipient)

    def apply(self, name: str, present: Sequence[str], *, others: bool = False) -> list[str]:
        """Return the new recipients of one object, of the ``present`` ones.

        Raises EncryptionError if there would be none, unless the backup has ``others``.
        """
        if not self.removes:
            return [*present, *([] if self.recipient in present else [self.recipient])]
        fitting = [each for each in present if self.recipient in (each, age.label(each))]
        left = [each for each in present if each not in fitting]
        if not left and not others:
            raise _no_other(name)
        if len(fitting) > 1:
            raise EncryptionError(
                f"several recipients of {name} begin like {self.recipient}",
                hint="Give the whole public key.",
            )
        return left


def _no_other(name: str) -> EncryptionError:
    return EncryptionError(
        f"{name} has no other recipient: nobody could read it any more",
        hint="Add another recipient first: `pgstash keys add`.",
    )


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
    at once if the store or KMS cannot be reached. Raises BackupNotFoundError if none of the backups
    is for recipients, and Interrupted between two backups.
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
            if isinstance(error, EncryptionError) and error.retryable:  # KMS does not answer
                raise
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
    by_kms = {each.id: each.key for each in own if each.kind == "kms"}
    either = wrapped.keys() | by_kms.keys()
    if not keys.for_recipients(metadata, wrapped=bool(either)):
        return "not wrapped"
    samples = {each.id: each.key for each in own if each.kind == "manifest"}
    # In a copy that lost its metadata there may be those of a failed backup, too.
    ids = either & samples.keys() or either or {""}
    change_one = _change_kms if stored_kms.is_arn(change.recipient) else _change_age
    outcomes = {
        change_one(
            storage,
            keys.Stored(
                backup.name,
                metadata,
                wrapped.get(each),
                samples.get(each, backup.key),
                by_kms.get(each),
                each,
            ),
            change,
            access,
        )
        for each in sorted(ids)
    }
    return "changed" if "changed" in outcomes else "unchanged"


def _change_age(storage: Storage, stored: keys.Stored, change: Change, access: Access) -> Outcome:
    """Change the public keys of a backup. Only an identity reads who the present ones are."""
    if stored.wrapped is None and stored.kms is not None:
        return _first_public_key(storage, stored, change, access)
    found = keys.open_wrapped(storage, stored, access)
    key = stored.wrapped or ""
    if not found.recipients:
        raise CorruptedError(
            f"{key} does not list its recipients",
            hint="Was it wrapped by hand? Wrap it again for everybody who is to read the backup, "
            "with a line `for RECIPIENT` for each of them after the passphrase.",
        )
    others = stored.kms is not None
    recipients = change.apply(stored.name, found.recipients, others=others)
    if recipients == list(found.recipients):
        return "unchanged"
    # What is left must open it: anyone who can write to the store could have added a key of KMS.
    passphrase = (
        found.passphrase
        if recipients
        else keys.unwrapped(storage, replace(stored, wrapped=None), access)
    )
    _refuse_another(storage, stored, passphrase)
    packed = _wrapped(passphrase, recipients) if recipients else b""
    _replace(storage, key, packed, recipients, key)
    return "changed"


def _first_public_key(
    storage: Storage, stored: keys.Stored, change: Change, access: Access
) -> Outcome:
    """Add the first public key of a backup that only keys of KMS open."""
    if change.removes or stored.kms is None:
        return "unchanged"
    passphrase = keys.unwrapped(storage, stored, access)
    _refuse_another(storage, stored, passphrase)
    key = stored.kms.removesuffix(names.KMS_ENDING) + names.AGE_ENDING
    recipients = [change.recipient]
    _replace(storage, key, _wrapped(passphrase, recipients), recipients, stored.kms)
    return "changed"


def _wrapped(passphrase: str, recipients: Sequence[str]) -> bytes:
    try:
        return age.wrap(age.Wrapped(passphrase, recipients))
    except age.UnusableError as error:
        raise EncryptionError(f"the recipients cannot be used: {error}") from error


def _change_kms(storage: Storage, stored: keys.Stored, change: Change, access: Access) -> Outcome:
    """Change the keys of KMS of a backup, whose list everyone can read."""
    wraps = keys.kms_wraps(storage, stored)
    fitting = [each for each in wraps if change.recipient in (each.recipient, each.key)]
    # An alias may lead to another key now, and the user may be about to delete the former one.
    may_have_moved = not change.removes and stored_kms.is_alias(change.recipient)
    if stored.is_wrapped and change.removes != bool(fitting) and not may_have_moved:
        return "unchanged"
    left = [each for each in wraps if each not in fitting]
    if change.removes and not left and stored.kms is not None and stored.wrapped is None:
        raise _no_other(stored.name)
    # As above: only an identity shows that a public key is left that opens it.
    only_public = change.removes and not left
    passphrase = (
        keys.open_wrapped(storage, stored, access).passphrase
        if only_public
        else keys.unwrapped(storage, stored, access)
    )
    _refuse_another(storage, stored, passphrase)
    if not change.removes:
        [made] = wrapping.wrap(access.kms(), passphrase, stored.id, [change.recipient])
        if any(each.key == made.key for each in fitting):
            return "unchanged"
        left += [*(replace(each, recipient=each.key) for each in fitting), made]
    packed = stored_kms.dump(stored.id, left) if left else b""
    neighbour = stored.kms or stored.wrapped or ""
    key = stored.kms or neighbour.removesuffix(names.AGE_ENDING) + names.KMS_ENDING
    _replace(storage, key, packed, [each.recipient for each in left], neighbour)
    return "changed"


def _replace(
    storage: Storage, key: str, packed: bytes, recipients: Sequence[str], neighbour: str
) -> None:
    """Replace a wrapped passphrase, or delete it if it is for nobody any more.

    The metadata of ``neighbour``, which name the backup and its source, are kept.
    """
    if not recipients:
        storage.delete([key])
        return
    values = stored_metadata.encoded(keys.recipients_metadata(recipients))
    storage.put(key, packed, dict(storage.head(neighbour).metadata) | values)


def _refuse_another(storage: Storage, stored: keys.Stored, passphrase: str) -> None:
    """Raise CorruptedError if the passphrase does not decrypt the backup.

    Anyone who can write to the store could have replaced it, and the list of recipients with it.
    """
    with storage.read(stored.sample or "", start=0, length=keys.BEGINNING) as chunks:
        beginning = b"".join(chunks)
    if not keys.opens(beginning, Access(passphrase, unverified=False, only_encrypted=True)):
        raise CorruptedError(
            f"the wrapped passphrase of {stored.name} is not the one that it was encrypted with",
            hint="Was it replaced? A copy of the object, or an earlier version, may be right.",
        )
