"""How the objects of one backup are encrypted: with the user's passphrase, or a random one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from pgstash.errors import EncryptionError
from pgstash.format import manifest as manifests
from pgstash.format import metadata
from pgstash.pipeline import age, encryption


@dataclass(frozen=True, slots=True)
class Keys:
    """What new backups are encrypted with; with neither a passphrase nor recipients, not at all.

    With ``recipients`` each backup has a random passphrase, wrapped for these. Then ``passphrase``
    and ``rounds``, those of PBKDF2, are not used: a random passphrase cannot be guessed.
    """

    passphrase: str | None = field(repr=False)
    recipients: Sequence[str] = ()
    rounds: int = encryption.ROUNDS

    def __bool__(self) -> bool:
        """Return whether backups are encrypted."""
        return self.passphrase is not None or bool(self.recipients)


@dataclass(frozen=True, slots=True)
class Sealing:
    """The keys of one backup. ``wrapped`` is its passphrase as an age file for its recipients."""

    passphrase: str | None = field(repr=False)
    rounds: int
    wrapped: bytes | None = field(repr=False)
    recipients: Sequence[str]

    def new_key(self, random: Callable[[int], bytes]) -> encryption.Key | None:
        """Derive a key for one object, with a salt of its own; None without a passphrase."""
        if self.passphrase is None:
            return None
        salt = random(encryption.SALT_BYTES)
        return encryption.Key.derive(self.passphrase, salt, self.rounds)

    @property
    def format(self) -> int:
        """The format that manifest and metadata need."""
        new = self.wrapped is not None or self.rounds != encryption.ROUNDS
        return manifests.NEWEST if new else manifests.FORMAT

    @property
    def reader(self) -> str:
        """The oldest pgstash that reads that format."""
        return manifests.READER if self.format == manifests.FORMAT else manifests.NEWEST_READER

    def metadata(self, key: encryption.Key | None) -> dict[str, str]:
        """Return the metadata of an object that identify its key."""
        if key is None:
            return {}
        if self.wrapped is not None:
            return {metadata.WRAPPED: "age"}
        return {metadata.KEY_ID: key.id}


def sealing_of(keys: Keys, random: Callable[[int], bytes]) -> Sealing:
    """Return the keys of a new backup. Raises EncryptionError if they cannot be wrapped."""
    if not keys.recipients:
        return Sealing(keys.passphrase, keys.rounds if keys else encryption.ROUNDS, None, ())
    passphrase = age.new_passphrase(random)
    try:
        wrapped = age.wrap(age.Wrapped(passphrase, keys.recipients))
    except age.UnusableError as error:
        raise EncryptionError(f"BACKUP_ENCRYPTION_RECIPIENTS {error}") from error
    return Sealing(passphrase, encryption.ROUNDS, wrapped, keys.recipients)
