"""The permissions of an identity, for the store and the prefix of the settings."""

from __future__ import annotations

from typing import Any

from pgstash.errors import ConfigurationError
from pgstash.settings import Settings
from pgstash.storage.azure import policy as azure
from pgstash.storage.gcs import policy as google
from pgstash.storage.host_roles import Role
from pgstash.storage.s3 import policy


def policy_of(role: Role, settings: Settings) -> dict[str, Any]:
    """Return the policy for a host of this role, in the form of its store; nothing is requested.

    Raises ConfigurationError if the settings name no bucket or container.
    """
    store = settings.store
    if store and store.scheme == "azure":
        return azure.policy(role, store.account, store.name)
    if store and store.scheme == "gs":
        return google.policy(role, store.name)
    if store:
        raise ConfigurationError(
            ["STORAGE_URL names a directory, and no identity has permissions of this form there."]
        )
    if settings.s3_bucket is None:
        raise ConfigurationError(
            ["S3_BUCKET is missing. Expected: the name of a bucket. Or set STORAGE_URL instead."]
        )
    place = policy.Place(
        settings.s3_bucket,
        settings.backup_prefix,
        settings.s3_region,
        kms_key=settings.s3_sse_kms_key_id,
        tagged=bool(settings.object_tags),
        locked=settings.s3_object_lock_days is not None,
        recipients=settings.kms_recipients,
        versions=settings.prune_versions,
        folders=bool(settings.databases) and not settings.job,
    )
    return policy.policy(role, place)
