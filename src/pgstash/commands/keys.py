"""Show with which keys stored backups are read, and change their recipients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pgstash import events
from pgstash.commands import stored
from pgstash.commands.storage import open_storage
from pgstash.errors import EncryptionError
from pgstash.format import metadata as stored_metadata
from pgstash.pipeline import recipients
from pgstash.repository import catalog, empty_prefix, keys, object_metadata, rewrap
from pgstash.runtime import Runtime
from pgstash.settings import Settings

NOT_ENCRYPTED = "none"
FOR_RECIPIENTS = "recipients"
LOST = "recipients, but the wrapped passphrase is missing"
UNKNOWN = "a passphrase"
ANOTHER = "another passphrase"


@dataclass(frozen=True, slots=True)
class KeyOf:
    """With what a backup is read, according to its metadata.

    ``key`` is one of the constants above, or the setting that holds the passphrase. ``recipients``
    are labels, and may be fewer than ``recipient_count``: metadata have little room.
    """

    name: str
    key: str
    recipients: Sequence[str]
    recipient_count: int


def list_keys(settings: Settings, *, newest: int | None) -> list[KeyOf]:
    """Return the keys of the stored backups, newest first. Raises StorageError."""
    storage = open_storage(settings, events.ignore)
    backups = catalog.read(storage, settings.backup_prefix).backups[::-1][:newest]
    known = object_metadata.of_keys(storage, backups)
    return [_key_of(each, found, settings) for each, found in zip(backups, known, strict=True)]


def _key_of(backup: catalog.Backup, found: Mapping[str, str], settings: Settings) -> KeyOf:
    if not backup.encrypted:
        return KeyOf(backup.name, NOT_ENCRYPTED, (), 0)
    own = object_metadata.companions_of(backup, found)
    wrapped = any(each.kind in ("key", "kms") for each in own)
    if keys.for_recipients(found, wrapped=wrapped):
        if not wrapped:
            return KeyOf(backup.name, LOST, (), 0)
        labels = [each for each in found.get(stored_metadata.RECIPIENTS, "").split(", ") if each]
        count = found.get(stored_metadata.RECIPIENT_COUNT, "")
        number = int(count[:9]) if count.isascii() and count.isdecimal() else len(labels)
        # The last one may be cut.
        return KeyOf(backup.name, FOR_RECIPIENTS, labels, number)
    key_id = found.get(stored_metadata.KEY_ID)
    if key_id is None:
        return KeyOf(backup.name, UNKNOWN, (), 0)
    recorded = found.get("encryption", "")
    passphrases = {
        "BACKUP_ENCRYPTION_KEY": settings.reading_passphrase,
        **{
            f"BACKUP_ENCRYPTION_OLD_KEYS, line {number}": each
            for number, each in enumerate(settings.old_passphrases, 1)
        },
    }
    fitting = (
        variable
        for variable, each in passphrases.items()
        if each is not None and keys.fits(key_id, recorded, each)
    )
    return KeyOf(backup.name, next(fitting, ANOTHER), (), 0)


def change_recipients(
    settings: Settings,
    change: rewrap.Change,
    runtime: Runtime,
    *,
    backup: str | None,
    source: str | None,
) -> rewrap.Rewrapped:
    """Change the recipients of one backup, or of all of a source. Raises what rewrap.run raises.

    Warns if BACKUP_ENCRYPTION_RECIPIENTS differs, because new backups follow that.
    """
    storage = open_storage(settings, runtime.emit)
    access = stored.access_of(settings, runtime.emit, unverified=False)
    if backup is not None:
        search = stored.Search(settings, storage, runtime.emit, runtime.now, may_guess=False)
        backups: Sequence[catalog.Backup] = [search.find(stored.Wanted(backup)).backup]
    else:
        found = catalog.read(storage, settings.backup_prefix)
        if not found.backups:
            raise empty_prefix.error(storage, settings.backup_prefix)
        backups = stored.of_one_source(settings, storage, found, source).backups
    by_kms = any(each.kind == "kms" for backup in backups for each in backup.companions)
    if settings.identity is None and not by_kms:
        raise EncryptionError(
            "there is no identity to open the wrapped passphrases with",
            hint="Set BACKUP_DECRYPTION_IDENTITY to the secret key of a present recipient, or to "
            "the path of its file.",
        )
    changed = rewrap.run(storage, backups, change, access, runtime)
    _compare_with_settings(settings, change, runtime.emit)
    return changed


def _compare_with_settings(settings: Settings, change: rewrap.Change, emit: events.Emit) -> None:
    configured = [
        each for each in settings.recipients if change.recipient in (each, recipients.label(each))
    ]
    label = change.label
    if change.removes and configured:
        emit(
            events.Warned(
                f"New backups are still encrypted for {label}: remove it from "
                "BACKUP_ENCRYPTION_RECIPIENTS"
            )
        )
    elif settings.recipients and not change.removes and not configured:
        emit(
            events.Warned(
                f"New backups are not encrypted for {label}: add it to BACKUP_ENCRYPTION_RECIPIENTS"
            )
        )
