"""Deletes objects and versions of them, in batches if the store supports that."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

from botocore.exceptions import ClientError

from pgstash.errors import StorageError
from pgstash.storage.s3.client import Requests
from pgstash.storage.s3.errors import is_missing, is_unknown_request, translate

DELETE_BATCH = 1000

Target = Mapping[str, str]
"""The ``Key`` of an object, and the ``VersionId`` of one of its versions, if that is deleted."""


def delete(requests: Requests, targets: Iterable[Target]) -> None:
    """Delete up to 1,000 per request. A missing one is not an error. Raises StorageError.

    https://docs.aws.amazon.com/AmazonS3/latest/API/API_DeleteObjects.html
    """
    remaining = iter(targets)
    while batch := [*islice(remaining, DELETE_BATCH)]:
        try:
            # mypy infers no type for a lambda with a default.
            requests.call(
                f"delete objects of s3://{requests.bucket}/",
                lambda batch=batch: _delete_batch(requests, batch),  # type: ignore[misc]
            )
        except StorageError as exc:
            if not is_unknown_request(exc):
                raise
            for target in batch:
                _delete_one(requests, target)


def _delete_batch(requests: Requests, targets: Sequence[Target]) -> None:
    which: Any = {"Objects": targets, "Quiet": True}
    answer = requests.client.delete_objects(Bucket=requests.bucket, Delete=which)
    for error in answer.get("Errors", []):
        failed = ClientError({"Error": error}, "DeleteObjects")
        if not is_missing(failed):
            key = error.get("Key", "")
            raise translate(failed, f"remove s3://{requests.bucket}/{key}") from failed


def _delete_one(requests: Requests, target: Target) -> None:
    """Delete one object: Google's store and others lack batch deletion, or did for long."""

    def ask() -> None:
        which: dict[str, Any] = dict(target)
        try:
            requests.client.delete_object(Bucket=requests.bucket, **which)
        except ClientError as exc:
            if not is_missing(exc):
                raise

    requests.call(f"remove s3://{requests.bucket}/{target['Key']}", ask)
