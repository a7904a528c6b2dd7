"""AWS KMS, according to the settings, and without pgstash."""

from __future__ import annotations

from functools import cache, partial
from pathlib import Path

from pgstash import events
from pgstash.commands import origin
from pgstash.commands.other_stores import PATIENT
from pgstash.commands.storage import open_storage
from pgstash.errors import ObjectNotFoundError
from pgstash.format import kms as stored
from pgstash.format import names
from pgstash.format.manifest import FORMAT, Manifest
from pgstash.kms import wrapping
from pgstash.kms.config import KmsConfig
from pgstash.monitoring import redaction
from pgstash.repository import keys
from pgstash.settings import Settings
from pgstash.storage.directory.storage import DirectoryStorage
from pgstash.storage.interface import Storage
from pgstash.storage.s3.config import Signer


def opened_by_hand(
    settings: Settings, found: Manifest, folder: Path | None
) -> list[tuple[str, str]]:
    """Return which keys of KMS open a backup, in a folder or the store, and how without pgstash.

    Raises CorruptedError, StorageError.
    """
    if found.encryption is None or found.format == FORMAT:
        return []
    if folder is not None:
        return by_hand(DirectoryStorage(folder), "", found)
    read = origin.readable(settings, events.ignore)
    return by_hand(open_storage(read, events.ignore), f"{read.backup_prefix}/", found)


def by_hand(storage: Storage, prefix: str, found: Manifest) -> list[tuple[str, str]]:
    """Return which keys of KMS open a backup, and the commands that do so without pgstash.

    Nothing is returned if none does. Raises CorruptedError, StorageError.
    """
    name = names.kms_name(found.archive.removesuffix(".sql.gz.enc"), found.id)
    try:
        own = keys.Stored(name, {}, None, None, f"{prefix}{name}", found.id)
        wraps = keys.kms_wraps(storage, own)
    except ObjectNotFoundError:
        return []
    region = stored.region_of(wraps[0].key)
    decrypt = (
        f"aws kms decrypt --region {region} --ciphertext-blob fileb://key.bin "
        f"--encryption-context {stored.CONTEXT}={found.id} --query Plaintext --output text"
    )
    ciphertext = f"""sed -n 's/.*"ciphertext": "\\(.*\\)".*/\\1/p' {name} | head -n 1"""
    return [
        *(("kms key", each.key) for each in wraps),
        ("by hand", f"{ciphertext} | base64 -d > key.bin"),
        ("by hand", f"{decrypt} | base64 -d"),
    ]


def opener(settings: Settings, emit: events.Emit) -> wrapping.Open:
    """Return what opens KMS, once, when it is needed.

    Requests are signed as those to the store if that is S3 on AWS. Keys of another store mean
    nothing to AWS: then the identity of the environment signs.
    """

    @cache
    def opened() -> wrapping.Kms:
        # botocore is slow to import, and few need it for this.
        from pgstash.kms.client import KmsClient  # noqa: PLC0415

        access_key = settings.s3_access_key_id if settings.is_on_aws else None
        secret = settings.s3_secret_access_key if settings.is_on_aws else None
        signer = Signer(
            purpose="AWS KMS",
            region=settings.s3_region,
            learn=partial(redaction.learn, origin="KMS"),
            access_key_id=access_key.get_secret_value() if access_key else None,
            secret_access_key=secret.get_secret_value() if secret else None,
            role_arn=settings.s3_role_arn if settings.is_on_aws else None,
            connect_timeout=PATIENT.connect,
            read_timeout=PATIENT.read,
        )
        config = KmsConfig(signer, settings.retry_attempts, settings.retry_delay)
        return KmsClient(config, emit)

    return opened
