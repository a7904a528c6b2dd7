"""Locks of objects: until when, and whether the bucket has them.

https://docs.aws.amazon.com/AmazonS3/latest/userguide/object-lock.html
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from pgstash.errors import StorageRefusedError
from pgstash.storage.s3.client import Requests
from pgstash.storage.s3.errors import answered

_NO_LOCK = {"ObjectLockConfigurationNotFoundError", "NoSuchObjectLockConfiguration"}
_FOREVER = datetime.max.replace(tzinfo=UTC)


def require(requests: Requests) -> None:
    """Raise StorageRefusedError if the bucket certainly has no object lock.

    A key may lack the permission to ask, and a store may not know the request.
    """
    where = f"s3://{requests.bucket}/"
    try:
        requests.call(
            f"read the object lock configuration of {where}",
            lambda: requests.client.get_object_lock_configuration(Bucket=requests.bucket),
        )
    except StorageRefusedError as error:
        answer = answered(error)
        if answer and answer.code in _NO_LOCK:
            raise StorageRefusedError(
                f"cannot lock backups in {where}: the bucket has no object lock",
                hint="Enable object lock for the bucket (it needs versioning), or unset "
                "S3_OBJECT_LOCK_DAYS.",
            ) from error


def locked_until(requests: Requests, key: str, version_id: str | None = None) -> datetime | None:
    """Return the time until which an object is locked; None if it is not, or may not be asked.

    A legal hold has no end. Raises StorageError.
    """
    which: dict[str, Any] = {"VersionId": version_id} if version_id else {}

    def ask() -> datetime | None:
        found: Mapping[str, object] = requests.client.head_object(
            Bucket=requests.bucket, Key=key, **which
        )
        if found.get("ObjectLockLegalHoldStatus") == "ON":
            return _FOREVER
        until = found.get("ObjectLockRetainUntilDate")
        return until.astimezone(UTC) if isinstance(until, datetime) else None

    return requests.call(f"read the lock of s3://{requests.bucket}/{key}", ask)
