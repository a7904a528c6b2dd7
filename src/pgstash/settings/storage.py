"""Settings of the store: where backups go, and how long they are kept."""

from __future__ import annotations

from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, SecretStr, ValidationInfo, field_validator

from pgstash.settings import validators
from pgstash.settings.declaration import Group, setting
from pgstash.settings.store_url import EXPECTED

# What must be needed for a setting to be required: see :mod:`pgstash.settings.aws`.
_NEEDED_IF = {
    "s3_endpoint": "endpoint",
    "s3_bucket": "storage",
    "s3_access_key_id": "keys",
    "s3_secret_access_key": "keys",
}

_Name = Annotated[str, AfterValidator(validators.bucket)]


class StorageSettings(Group):
    """Where backups are stored."""

    storage_url: Annotated[str, AfterValidator(validators.storage_url)] | None = setting(
        "Storage",
        EXPECTED,
        "The store for backups. For S3, the `S3_…` settings are needed too; without this setting, "
        "they are enough. A directory must exist. A prefix in the URL takes the place of "
        "`BACKUP_PREFIX`.",
        default=None,
    )
    s3_endpoint: Annotated[str, AfterValidator(validators.endpoint)] | None = setting(
        "Storage",
        "a URL without the bucket, such as https://s3.eu-central-1.amazonaws.com",
        "The URL of the S3-compatible store. Required unless `STORAGE_URL` names another store. On "
        "AWS, without an access key, `S3_REGION` or `AWS_REGION` is enough.",
        default=None,
    )
    s3_bucket: _Name | None = setting(
        "Storage",
        "the name of a bucket",
        "The bucket for backups. Required unless `STORAGE_URL` names it, or another store.",
        default=None,
    )
    s3_access_key_id: SecretStr | None = setting(
        "Storage",
        "the ID of an access key",
        "The access key that signs requests. On AWS it may be left out, with its secret: then the "
        "identity of the machine, container or profile signs them. Otherwise required unless "
        "`STORAGE_URL` names another store.",
        default=None,
    )
    s3_secret_access_key: SecretStr | None = setting(
        "Storage",
        "the secret of that access key",
        "The secret that requests are signed with. Required if `S3_ACCESS_KEY_ID` is set.",
        default=None,
    )
    s3_role_arn: str | None = setting(
        "Storage",
        "the ARN of a role, such as arn:aws:iam::123456789012:role/backup",
        "A role to assume before anything is requested from the store. Its credentials are renewed "
        "before they expire.",
        default=None,
        pattern=r"^arn:[\w-]+:iam::\d*:role/[\w+=,.@/-]+$",
    )
    s3_region: str = setting(
        "Storage",
        "a name such as eu-central-1",
        "The region that requests are signed for.",
        default="us-east-1",
        pattern=r"^[A-Za-z0-9_-]+$",
    )
    s3_storage_class: str | None = setting(
        "Storage",
        "a storage class such as STANDARD_IA",
        "The storage class of archives. The small objects next to them stay in the default class. "
        "From GLACIER and DEEP_ARCHIVE, nothing can be restored before it is thawed.",
        default=None,
        pattern=r"^[A-Z][A-Z0-9_-]{0,63}$",
    )
    s3_sse: Literal["AES256", "aws:kms", "aws:kms:dsse"] | None = setting(
        "Storage",
        "AES256, aws:kms or aws:kms:dsse",
        "Encryption of all objects by the store, with keys of S3 or of KMS. By default the bucket "
        "decides.",
        default=None,
    )
    s3_sse_kms_key_id: str | None = setting(
        "Storage",
        "the ID, ARN or alias of a key of KMS",
        "The key for `S3_SSE=aws:kms`. By default it is the key of AWS for S3.",
        default=None,
        pattern=r"^[A-Za-z0-9:/_-]+$",
    )
    s3_tags: Annotated[str, AfterValidator(validators.object_tags)] | None = setting(
        "Storage",
        "up to 10 tags such as team=data,cost=42",
        "Tags of all stored objects, for bills and lifecycle rules.",
        default=None,
    )
    s3_object_lock_days: int | None = setting(
        "Storage",
        "a whole number of days from 1 to 36500",
        "Lock all stored objects for this many days: until then, nobody with the key can delete "
        "them. The bucket must have object lock. Pruning leaves a backup until its lock ends.",
        default=None,
        ge=1,
        le=36_500,
    )
    s3_object_lock_mode: Literal["governance", "compliance"] = setting(
        "Storage",
        "governance or compliance",
        "Who can end a lock earlier: with `governance`, identities that may bypass it; with "
        "`compliance`, nobody.",
        default="governance",
    )
    prune_versions: bool = setting(
        "Storage",
        "true or false",
        "In a bucket of S3 with versioning, remove for good what is pruned: all versions, and the "
        "delete markers. A hidden backup that the retention would keep stays.",
        default=False,
    )
    s3_addressing: Literal["auto", "path", "virtual"] = setting(
        "Storage",
        "auto, path or virtual",
        "Where requests name the bucket: in the path, or as the first part of the host. `auto` "
        "chooses by `S3_ENDPOINT`.",
        default="auto",
    )
    s3_ca_file: Annotated[str, AfterValidator(validators.ca_file)] | None = setting(
        "Storage",
        "a file of certificates in PEM format",
        "The authorities to trust for the store instead of the usual ones, if a private one issued "
        "its certificate. Takes precedence over `AWS_CA_BUNDLE`.",
        default=None,
    )
    s3_use_proxy: bool = setting(
        "Storage",
        "true or false",
        "Whether to reach the store by the proxy in `HTTPS_PROXY` or `HTTP_PROXY`, if one is set.",
        default=True,
    )
    s3_max_parts: int = setting(
        "Storage",
        "a whole number from 2 to 10000",
        "Number of parts that the store allows in one upload. AWS and most others allow 10,000, a "
        "few allow 1,000.",
        default=10_000,
        ge=2,
        le=10_000,
    )
    s3_part_size: int | None = setting(
        "Storage",
        "a whole number of MiB from 5 to 5120",
        "Size of all parts in MiB. By default it is chosen from the size of the last backups, or "
        "of the database, and is at least 8. Three parts are held in memory.",
        default=None,
        ge=5,
        le=5120,
        shown_default="chosen",
    )
    backup_prefix: Annotated[str, AfterValidator(validators.prefix)] = setting(
        "Storage",
        "a path such as postgres-backups or team/database",
        "The keys of backups start with this. Give each database a prefix of its own.",
        default="postgres-backups",
    )
    storage_role: Literal["full", "writer"] = setting(
        "Storage",
        "full or writer",
        "With `writer`, backups are made by a key that can neither read nor delete: nothing is "
        "pruned, drilled or cleaned up here. `pgstash policy` prints the permissions of the key. "
        "`ROLE=writer` has the same effect.",
        default="full",
    )
    retry_attempts: int = setting(
        "Storage",
        "a whole number from 0 to 20",
        "How many times a failed request or part is retried.",
        default=3,
        ge=0,
        le=20,
    )
    retry_delay: float = setting(
        "Storage",
        "a number of seconds from 0.1 to 300",
        "Seconds before the first retry; doubled for each further retry, with a little jitter.",
        default=5,
        ge=0.1,
        le=300,
        allow_inf_nan=False,
    )

    @field_validator("s3_endpoint", "s3_bucket", "s3_access_key_id", "s3_secret_access_key")
    @classmethod
    def _needed_for_s3(cls, value: object, info: ValidationInfo) -> object:
        need = _NEEDED_IF[info.field_name or ""]
        needed = info.context is None or {"storage", need} <= info.context
        if needed and value is None and info.data.get("storage_url", "wrong") is None:
            on_aws = need == "endpoint" and "region" in (info.context or ())
            also = ", and so is S3_REGION, which is enough on AWS" if on_aws else ""
            raise validators.MissingError(f"is missing{also}")
        return value

    @field_validator("s3_sse_kms_key_id")
    @classmethod
    def _only_for_kms(cls, key: str | None, info: ValidationInfo) -> str | None:
        if key and not (info.data.get("s3_sse") or "").startswith("aws:kms"):
            raise validators.ExplainedError("is set, but S3_SSE is not aws:kms. Set both, or none")
        return key

    @field_validator("s3_bucket")
    @classmethod
    def _not_in_endpoint(cls, bucket: str | None, info: ValidationInfo) -> str | None:
        host = urlsplit(info.data.get("s3_endpoint") or "").hostname or ""
        if bucket and host.startswith(f"{bucket.lower()}."):
            raise validators.ExplainedError(
                "contains the bucket name. Give the endpoint without it, for example "
                "https://s3.eu-central-1.amazonaws.com",
                variable="S3_ENDPOINT",
            )
        return bucket


class RetentionSettings(Group):
    """How long backups are kept."""

    backup_retention_days: int = setting(
        "Retention",
        "a whole number of days, 1 or more",
        "Days to keep a backup, by the date in its name. Older backups are deleted after the next "
        "successful backup, or by `pgstash prune`. The newest backup is never deleted, nor the "
        "newest that is proven to restore.",
        default=7,
        ge=1,
    )
    retention_keep_last: int | None = setting(
        "Retention",
        "a whole number, 1 or more",
        "In addition, keep the N newest backups regardless of age.",
        default=None,
        ge=1,
    )
    retention_keep_daily: int | None = setting(
        "Retention",
        "a whole number of days, 1 or more",
        "Keep the newest backup of each of the last N days (UTC) that have one.",
        default=None,
        ge=1,
    )
    retention_keep_weekly: int | None = setting(
        "Retention",
        "a whole number of weeks, 1 or more",
        "The same for weeks, Monday to Sunday.",
        default=None,
        ge=1,
    )
    retention_keep_monthly: int | None = setting(
        "Retention",
        "a whole number of months, 1 or more",
        "The same for months.",
        default=None,
        ge=1,
    )
    retention_keep_yearly: int | None = setting(
        "Retention",
        "a whole number of years, 1 or more",
        "The same for years.",
        default=None,
        ge=1,
    )
    sweep_after_days: int = setting(
        "Retention",
        "a whole number of days, 1 or more",
        "Days after which an unfinished upload is considered abandoned and removed. Must be longer "
        "than the longest backup from a standby, or of another source, under the same prefix: "
        "otherwise its upload is removed while it is running.",
        default=7,
        ge=1,
    )
