"""How backups may be read: with which passphrase, and whether without verification."""

from __future__ import annotations

from dataclasses import dataclass, field

from pgstash.errors import EncryptionError


@dataclass(frozen=True, slots=True)
class Access:
    """The passphrase, if there is one, and whether a backup may be read without verification.

    ``unverified`` reads a backup that has no manifest to verify it against. ``only_encrypted``
    requires ``unverified`` for a backup that is not encrypted as well: anyone who can write to the
    store could have written it, with its manifest.
    """

    passphrase: str | None = field(repr=False)
    unverified: bool
    only_encrypted: bool


def passphrase_for(name: str, passphrase: str | None) -> str:
    """Return the passphrase. Raises EncryptionError if there is none; ``name`` is encrypted."""
    if passphrase is None:
        raise EncryptionError(
            f"{name} is encrypted, and there is no key to read it with",
            hint="Set BACKUP_ENCRYPTION_KEY to the passphrase that it was encrypted with.",
        )
    return passphrase
