"""All settings in one model, with what follows from them. Its groups declare each setting once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import PrivateAttr, SecretStr

from pgstash.format import kms
from pgstash.postgres.server import conninfo
from pgstash.settings import copy_to, regions, secret_parts, store_url, tags
from pgstash.settings.backup import (
    BackupSettings,
    ContentsSettings,
    DatabaseSettings,
    HookSettings,
)
from pgstash.settings.copy_to import CopyStore, CopyToSettings
from pgstash.settings.databases import ManyDatabasesSettings
from pgstash.settings.declaration import Variable
from pgstash.settings.encryption import EncryptionSettings
from pgstash.settings.origin import Origin
from pgstash.settings.other_stores import OtherStoreSettings
from pgstash.settings.service import (
    DrillSettings,
    LogSettings,
    RestoreSettings,
    ServiceSettings,
)
from pgstash.settings.storage import RetentionSettings, StorageSettings
from pgstash.settings.store_url import StoreUrl

STRONG_KEY_LENGTH = 32
ODD_VALUE_REMEDY = "Correct it, unless it is meant."
_NOT_SECRET = ("#", "-----")  # the comments and the first line of a file of keys

Need = Literal["source", "storage", "target", "bucket", "copies"]
"""What must be configured for a command.

``bucket`` is a place in a store, without access to it. Without ``copies``, a command that only
reads leaves out copies whose settings are wrong.
"""


# pydantic takes the fields of the last base first: this is the order of the reference, reversed.
class Settings(
    LogSettings,
    DrillSettings,
    RestoreSettings,
    ManyDatabasesSettings,
    ServiceSettings,
    RetentionSettings,
    HookSettings,
    ContentsSettings,
    BackupSettings,
    EncryptionSettings,
    CopyToSettings,
    OtherStoreSettings,
    StorageSettings,
    DatabaseSettings,
):
    """All settings, validated. Its repr shows no secret."""

    _misspelt: list[str] = PrivateAttr(default_factory=list)
    _odd_values: list[str] = PrivateAttr(default_factory=list)
    _left_out: list[str] = PrivateAttr(default_factory=list)
    _notes: list[str] = PrivateAttr(default_factory=list)
    _has_source: bool = PrivateAttr(default=False)
    _identity_secrets: list[str] = PrivateAttr(default_factory=list)
    _source_variables: Mapping[str, str] = PrivateAttr(default_factory=dict)
    _copies: Mapping[str, CopyStore] = PrivateAttr(default_factory=dict)
    _copy_name: str = PrivateAttr(default="")
    _primary: Settings | None = PrivateAttr(default=None)
    _origin: Origin = PrivateAttr(default=Origin())

    @property
    def has_source(self) -> bool:
        """Whether a source database is configured, by ``DATABASE_URL`` or libpq's variables."""
        return self._has_source

    @property
    def source_variables(self) -> Mapping[str, str]:
        """The variables of libpq that locate the source, even if they are hidden from libpq."""
        return self._source_variables

    @property
    def source_url(self) -> str:
        """The connection string of the source; empty if only libpq's variables are set."""
        return _plain(self.database_url)

    @property
    def store(self) -> StoreUrl | None:
        """The store of ``STORAGE_URL``; None for S3."""
        return store_url.parse(self.storage_url) if self.storage_url else None

    @property
    def storage_folder(self) -> Path | None:
        """The directory of ``STORAGE_URL``, if it names one."""
        return Path(self.store.name) if self.store and self.store.scheme == "file" else None

    @property
    def s3_url(self) -> str | None:
        """The URL of the S3 store, on AWS by its region; None for another store."""
        if self.storage_url:
            return None
        return self.s3_endpoint or regions.endpoint_of(self.s3_region)

    @property
    def copy_names(self) -> list[str]:
        """The copies of ``COPY_TO``, in that order; none if these are the settings of a copy."""
        return list(self._copies)

    def of_copy(self, name: str) -> Settings:
        """Return the settings with store, prefix and retention of a copy instead of the primary."""
        store = self._copies[name]
        own = {
            each: getattr(store, each)
            for each in CopyStore.model_fields
            if each in store.model_fields_set or each not in copy_to.INHERITED
        }
        settings = self.model_copy(update=own)
        settings._copies = {}  # noqa: SLF001 - of this class
        settings._copy_name = name  # noqa: SLF001 - of this class
        settings._primary = self  # noqa: SLF001 - of this class
        return settings

    @property
    def copy_name(self) -> str:
        """The name of the copy whose store this is; empty for the primary."""
        return self._copy_name

    @property
    def primary(self) -> Settings | None:
        """The settings of the primary, if these are of a copy."""
        return self._primary

    @property
    def job(self) -> str:
        """The name of the job these are for, if one of several was chosen."""
        return self._origin.job

    @property
    def origin(self) -> Origin:
        """Which job these are for, and the configuration file that they come from, if any."""
        return self._origin

    def as_written(self, message: str) -> str:
        """Return a message about the store with its settings as they are named for this copy."""
        return copy_to.as_written(message, self._copy_name) if self._copy_name else message

    @property
    def is_on_aws(self) -> bool:
        """Whether the store is S3 of AWS itself, so that its identity is one of AWS."""
        return self.s3_url is not None and regions.is_of_aws(self.s3_url)

    @property
    def object_tags(self) -> list[tuple[str, str]]:
        """The tags of stored objects, as pairs of key and value."""
        return tags.parse(self.s3_tags) if self.s3_tags else []

    @property
    def only_writes(self) -> bool:
        """Whether this host may neither read nor delete backups."""
        return self.storage_role == "writer"

    @property
    def part_size(self) -> int | None:
        """The size of a part in bytes, if it is set."""
        return self.s3_part_size * 1024 * 1024 if self.s3_part_size else None

    @property
    def passphrase(self) -> str | None:
        """The passphrase for new backups; None if they are not encrypted with one."""
        return self.reading_passphrase if self.backup_encryption and not self.recipients else None

    @property
    def recipients(self) -> list[str]:
        """The public keys that new backups are encrypted for."""
        return (self.backup_encryption_recipients or "").splitlines()[
            : None if self.backup_encryption else 0
        ]

    @property
    def kms_recipients(self) -> list[str]:
        """The keys of AWS KMS that new backups are, or earlier ones may be, encrypted for."""
        listed = (self.backup_encryption_recipients or "").splitlines()
        return [each for each in listed if kms.is_arn(each)]

    @property
    def target_url(self) -> str:
        """The connection string of the target; empty if none is given."""
        return _plain(self.restore_url)

    @property
    def scratch_url(self) -> str | None:
        """The connection string of the server for drills; None for a throwaway one."""
        return _plain(self.verify_database_url) or None

    @property
    def reading_passphrase(self) -> str | None:
        """The passphrase for reading backups, even if new ones are not encrypted."""
        return _plain(self.backup_encryption_key) or None

    @property
    def old_passphrases(self) -> list[str]:
        """The passphrases that only read."""
        return _plain(self.backup_encryption_old_keys).splitlines()

    @property
    def identity(self) -> str | None:
        """The secret keys of recipients, as text."""
        return _plain(self.backup_decryption_identity) or None

    @property
    def only_reads_with_key(self) -> bool:
        """Whether there is a key, but no setting for making backups: as on a machine for restores.

        Then it is not known whether backups have to be encrypted.
        """
        known = self._has_source or "backup_encryption" in self.model_fields_set
        keys = self.reading_passphrase, self.identity, *self.old_passphrases, *self.kms_recipients
        return any(keys) and not known

    def secrets(self) -> list[str]:
        """Every configured secret, for the scrubber, including those in libpq's variables.

        A connection string without one is not secret: messages show how to write it.
        """
        groups: list[Settings | CopyStore] = [self, *self._copies.values()]
        every = [getattr(group, name) for group in groups for name in type(group).model_fields]
        secret = [value.get_secret_value() for value in every if isinstance(value, SecretStr)]
        servers = (self.source_url, self.target_url, self.scratch_url or "", _plain(self.queue_url))
        public = {url for url in servers if not conninfo.secrets(url)}
        found = [value for value in secret if value not in public] + self._identity_secrets
        lines = (self.identity or "").splitlines()
        found += self.old_passphrases + [each for each in lines if not each.startswith(_NOT_SECRET)]
        webs = [self.webhook_url, self.verify_webhook_url, self.healthcheck_ping_url]
        webs.append(self.metrics_pushgateway)
        found += secret_parts.of_all(map(_plain, webs), self.notify_addresses)
        for url in servers:
            found += conninfo.secrets(url)
        for group in groups:
            azure = (group.azure_storage_connection_string, group.azure_storage_sas_token)
            found += [part for each in azure for part in store_url.secret_parts(_plain(each))]
        return found + (self._primary.secrets() if self._primary else [])

    @property
    def weak_key(self) -> str:
        """A warning about the passphrase; empty if it is strong, or not used."""
        if self.passphrase is None or len(self.passphrase) >= STRONG_KEY_LENGTH:
            return ""
        return (
            f"BACKUP_ENCRYPTION_KEY is shorter than {STRONG_KEY_LENGTH} characters. Anyone who "
            "gets a backup could guess it. Generate a strong one with `openssl rand -hex 32`."
        )

    @property
    def misspelt(self) -> list[str]:
        """Warnings about variables that look like misspelt settings."""
        return self._misspelt

    @property
    def odd_values(self) -> list[str]:
        """Warnings about blanks or quotes around values, as the values are used with them."""
        return self._odd_values

    @property
    def notes(self) -> list[str]:
        """What was ignored in connection strings, because it concerns other programs."""
        return self._notes

    def warnings(self) -> list[str]:
        """Return warnings: a weak passphrase, copies that are left out, misspelt settings, …."""
        return [
            *self._origin.warnings,
            *filter(None, [self.weak_key]),
            *self._left_out,
            *self._misspelt,
            *(f"{each} {ODD_VALUE_REMEDY}" for each in self._odd_values),
        ]


def _plain(secret: SecretStr | None) -> str:
    return secret.get_secret_value() if secret else ""


def is_secret(name: str) -> bool:
    """Return whether a field of Settings holds a secret."""
    return "SecretStr" in repr(Settings.model_fields[name].annotation)


def variable_of(name: str) -> Variable:
    """Return the declaration of a field, without its type."""
    extra = Settings.model_fields[name].json_schema_extra
    variable: object = extra.get("variable") if isinstance(extra, dict) else None
    if not isinstance(variable, Variable):
        raise TypeError(f"{name} is not declared by _setting")
    return variable
