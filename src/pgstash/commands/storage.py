"""The store, according to the settings."""

from __future__ import annotations

from pgstash import events
from pgstash.commands import other_stores
from pgstash.commands.other_stores import PATIENT, PROMPT
from pgstash.errors import ConfigurationError
from pgstash.monitoring import redaction
from pgstash.settings import Settings
from pgstash.storage.directory.storage import DirectoryStorage
from pgstash.storage.interface import Storage
from pgstash.storage.s3.config import Connection, Objects, S3Config


def refuse_if_only_writes(settings: Settings, command: str) -> None:
    """Raise ConfigurationError for a command that a host which only writes cannot run."""
    if settings.only_writes:
        problem = (
            "With STORAGE_ROLE=writer this host neither reads nor deletes backups. Run "
            f"`pgstash {command}` on another host, with a key of its own."
        )
        raise ConfigurationError([problem])


def open_storage(settings: Settings, emit: events.Emit, *, prompt: bool = False) -> Storage:
    """Return the configured store; nothing is sent to it yet.

    With ``prompt``, each request is tried once, with timeouts of a few seconds.
    """
    only_for_s3 = {
        "S3_OBJECT_LOCK_DAYS": settings.s3_object_lock_days,
        "PRUNE_VERSIONS": settings.prune_versions,
    }
    problems = [
        f"{name} is set, but STORAGE_URL names no bucket of S3. Unset one of them."
        for name, value in only_for_s3.items()
        if settings.storage_url and value
    ]
    if problems:
        raise ConfigurationError(problems)
    if settings.storage_folder:
        return DirectoryStorage(settings.storage_folder)
    if settings.store:
        return other_stores.opened(settings, settings.store, emit, prompt=prompt)
    # botocore is slow to import, and a directory does not need it.
    from pgstash.storage.s3.storage import S3Storage  # noqa: PLC0415

    bucket, access_key = settings.s3_bucket, settings.s3_access_key_id
    secret = settings.s3_secret_access_key
    if bucket is None or (access_key is None) != (secret is None):
        raise AssertionError("the settings were checked for this")
    timeouts = PROMPT if prompt else PATIENT
    config = S3Config(
        endpoint=settings.s3_url,
        bucket=bucket,
        region=settings.s3_region,
        access_key_id=access_key.get_secret_value() if access_key else None,
        secret_access_key=secret.get_secret_value() if secret else None,
        role_arn=settings.s3_role_arn,
        objects=Objects(
            storage_class=settings.s3_storage_class,
            encryption=settings.s3_sse,
            kms_key_id=settings.s3_sse_kms_key_id,
            tags=settings.object_tags,
            lock_days=settings.s3_object_lock_days,
            lock_mode=settings.s3_object_lock_mode,
        ),
        connection=Connection(
            settings.s3_addressing, settings.s3_ca_file, proxy=settings.s3_use_proxy
        ),
        prefix=f"{settings.backup_prefix}/",
        may_read=not settings.only_writes,
        learn=redaction.learn,
        retry_attempts=0 if prompt else settings.retry_attempts,
        retry_delay=settings.retry_delay,
        max_parts=settings.s3_max_parts,
        part_size=settings.part_size,
        connections=other_stores.connections(settings),
        connect_timeout=timeouts.connect,
        read_timeout=timeouts.read,
    )
    return S3Storage(config, emit)
