"""Settings of encryption: the keys that write and read backups."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, SecretStr, ValidationInfo, field_validator

from pgstash.settings import validators
from pgstash.settings.declaration import Group, setting

_Recipients = Annotated[str, AfterValidator(validators.recipients)]
_Identity = Annotated[SecretStr, AfterValidator(validators.identity)]
_Key = Annotated[SecretStr, AfterValidator(validators.encryption_key)]
_Keys = Annotated[SecretStr, AfterValidator(validators.encryption_keys)]


class EncryptionSettings(Group):
    """Whether backups are encrypted, with which key, and what reads them."""

    backup_encryption: bool = setting(
        "Backup",
        "true or false",
        "Encrypt with AES-256-CBC, as `openssl enc -aes-256-cbc -pbkdf2` does.",
        default=False,
    )
    backup_encryption_recipients: _Recipients | None = setting(
        "Backup",
        "public keys age1…, ssh-ed25519 … or ssh-rsa …, or ARNs of keys of AWS KMS, separated by "
        "commas or line breaks",
        "Encrypt each backup with a random passphrase of its own, and store that passphrase next "
        "to the backup, encrypted for these recipients of age, and by these keys of KMS. Then this "
        "machine cannot read its backups, unless KMS lets it decrypt; whoever holds one of the "
        "secret keys can. New backups are encrypted for recipients even if "
        "`BACKUP_ENCRYPTION_KEY` is set, which reads older backups. Public keys require "
        "`pip install 'pgstash[age]'`.",
        default=None,
    )
    backup_encryption_key: _Key | None = setting(
        "Backup",
        "a passphrase of 32 characters or more",
        "The passphrase that backups are encrypted with. Required if `BACKUP_ENCRYPTION` is true "
        "without `BACKUP_ENCRYPTION_RECIPIENTS`, refused if `BACKUP_ENCRYPTION` is not set at all. "
        "Without the passphrase, backups cannot be restored: keep a copy in another place.",
        default=None,
    )
    backup_encryption_old_keys: _Keys | None = setting(
        "Backup",
        "passphrases, one on each line",
        "Passphrases that earlier backups were encrypted with. They only read: each backup is read "
        "with the key that it was encrypted with. A comma is part of a passphrase.",
        default=None,
    )
    backup_encryption_iterations: int = setting(
        "Backup",
        "a whole number from 10000 to 10000000",
        "Rounds of PBKDF2 for new backups. With more than 10,000, guessing a passphrase costs "
        "more, and `openssl enc` needs `-iter N` to decrypt. Recorded with each backup, and "
        "ignored with `BACKUP_ENCRYPTION_RECIPIENTS`.",
        default=10_000,
        ge=10_000,
        le=10_000_000,
    )
    backup_decryption_identity: _Identity | None = setting(
        "Backup",
        "the content or path of a file of age-keygen, or of an OpenSSH key without passphrase",
        "The secret key that reads backups made for `BACKUP_ENCRYPTION_RECIPIENTS`. Needed where "
        "backups are read, unless AWS KMS may decrypt them there: restores, drills, `show`. Leave "
        "it out on a machine that only makes backups.",
        default=None,
    )

    @field_validator("backup_encryption_key")
    @classmethod
    def _needed_for_encryption(
        cls, key: SecretStr | None, info: ValidationInfo
    ) -> SecretStr | None:
        writes = info.context is None or "source" in info.context
        # What is wrong with the recipients is a problem of its own.
        without = info.data.get("backup_encryption_recipients", "wrong") is None
        if writes and without and key is None and info.data.get("backup_encryption"):
            raise validators.MissingError("is missing, but BACKUP_ENCRYPTION is true")
        return key
