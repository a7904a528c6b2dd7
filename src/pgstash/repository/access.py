"""How backups may be read: with which keys, and whether without verification."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from pgstash.errors import EncryptionError
from pgstash.kms import wrapping
from pgstash.pipeline import encryption


@dataclass(frozen=True, slots=True)
class Access:
    """The passphrase, if there is one, and whether a backup may be read without verification.

    ``unverified`` reads a backup that has no manifest to verify it against. ``only_encrypted``
    requires ``unverified`` for a backup that is not encrypted as well: anyone who can write to the
    store could have written it, with its manifest. ``older`` are passphrases that earlier backups
    were encrypted with, and ``identity`` is what opens wrapped passphrases, as text. ``rounds`` are
    those of PBKDF2, of a backup without metadata. ``only_passphrase`` requires ``unverified`` for a
    backup for recipients: anyone who knows their public keys could have written it. ``kms`` opens
    AWS KMS, which unwraps passphrases too.
    """

    passphrase: str | None = field(repr=False)
    unverified: bool
    only_encrypted: bool
    older: Sequence[str] = field(repr=False, default=())
    identity: str | None = field(repr=False, default=None)
    rounds: int = encryption.ROUNDS
    only_passphrase: bool = False
    kms: wrapping.Open = field(repr=False, default=wrapping.not_configured)

    @property
    def passphrases(self) -> Sequence[str]:
        """All passphrases, the one of today first."""
        return [*([] if self.passphrase is None else [self.passphrase]), *self.older]


def passphrase_for(name: str, passphrase: str | None) -> str:
    """Return the passphrase. Raises EncryptionError if there is none; ``name`` is encrypted."""
    if passphrase is None:
        raise EncryptionError(
            f"{name} is encrypted, and there is no key to read it with",
            hint="Set BACKUP_ENCRYPTION_KEY to the passphrase that it was encrypted with. If it is "
            "for recipients, its object that ends in .key.kms or .key.age must lie next to it.",
        )
    return passphrase
