"""How the objects of one backup are encrypted: with the user's passphrase, or a random one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from pgstash.errors import EncryptionError
from pgstash.format import kms as stored_kms
from pgstash.format import manifest as manifests
from pgstash.format import metadata
from pgstash.kms import wrapping
from pgstash.pipeline import age, encryption
from pgstash.pipeline import recipients as recipient_lists


@dataclass(frozen=True, slots=True)
class Keys:
    """What new backups are encrypted with; with neither a passphrase nor recipients, not at all.

    With ``recipients`` each backup has a random passphrase, wrapped for these. Then ``passphrase``
    and ``rounds``, those of PBKDF2, are not used: a random passphrase cannot be guessed. ``kms``
    opens AWS KMS, for the recipients that are its keys.
    """

    passphrase: str | None = field(repr=False)
    recipients: Sequence[str] = ()
    rounds: int = encryption.ROUNDS
    kms: wrapping.Open = field(default=wrapping.not_configured, repr=False)

    def __bool__(self) -> bool:
        """Return whether backups are encrypted."""
        return self.passphrase is not None or bool(self.recipients)


@dataclass(frozen=True, slots=True)
class Sealing:
    """The keys of one backup.

    ``wrapped`` is its passphrase as an age file for the public keys among its recipients, ``kms``
    the same by keys of KMS.
    """

    passphrase: str | None = field(repr=False)
    rounds: int
    wrapped: bytes | None = field(repr=False)
    recipients: Sequence[str]
    kms: bytes | None = field(default=None, repr=False)

    @property
    def wraps(self) -> str:
        """How the passphrase is wrapped, for metadata; empty if it is not."""
        kinds = {"age": self.wrapped, "kms": self.kms}
        return " ".join(kind for kind, packed in kinds.items() if packed is not None)

    def new_key(self, random: Callable[[int], bytes]) -> encryption.Key | None:
        """Derive a key for one object, with a salt of its own; None without a passphrase."""
        if self.passphrase is None:
            return None
        salt = random(encryption.SALT_BYTES)
        return encryption.Key.derive(self.passphrase, salt, self.rounds)

    @property
    def format(self) -> int:
        """The format that manifest and metadata need."""
        new = bool(self.wraps) or self.rounds != encryption.ROUNDS
        return manifests.NEWEST if new else manifests.FORMAT

    @property
    def reader(self) -> str:
        """The oldest pgstash that reads that format."""
        return manifests.READER if self.format == manifests.FORMAT else manifests.NEWEST_READER

    def metadata(self, key: encryption.Key | None) -> dict[str, str]:
        """Return the metadata of an object that identify its key."""
        if key is None:
            return {}
        if self.wraps:
            return {metadata.WRAPPED: self.wraps}
        return {metadata.KEY_ID: key.id}


def sealing_of(keys: Keys, random: Callable[[int], bytes], backup_id: str) -> Sealing:
    """Return the keys of a new backup. Raises EncryptionError if they cannot be wrapped."""
    if not keys.recipients:
        return Sealing(keys.passphrase, keys.rounds if keys else encryption.ROUNDS, None, ())
    passphrase = age.new_passphrase(random)
    wrapped = packed = None
    if public := recipient_lists.of_age(keys.recipients):
        try:
            wrapped = age.wrap(age.Wrapped(passphrase, public))
        except age.UnusableError as error:
            raise EncryptionError(f"BACKUP_ENCRYPTION_RECIPIENTS {error}") from error
    if arns := recipient_lists.of_kms(keys.recipients):
        wraps = wrapping.wrap(keys.kms(), passphrase, backup_id, arns)
        packed = stored_kms.dump(backup_id, wraps)
    return Sealing(passphrase, encryption.ROUNDS, wrapped, keys.recipients, packed)
