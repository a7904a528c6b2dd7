"""The permissions of a key, for the bucket and the prefix of the settings."""

from __future__ import annotations

from typing import Any

from pgstash.errors import ConfigurationError
from pgstash.settings import Settings
from pgstash.storage.s3 import policy
from pgstash.storage.s3.policy import Role


def policy_of(role: Role, settings: Settings) -> dict[str, Any]:
    """Return the policy of IAM for a key of this role; nothing is requested.

    Raises ConfigurationError if the settings name no bucket.
    """
    if settings.storage_url:
        raise ConfigurationError(
            ["STORAGE_URL names no bucket of S3. Only keys of S3 have policies of this form."]
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
