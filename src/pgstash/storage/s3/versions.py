"""Lists the versions of objects, and the delete markers that hide them.

https://docs.aws.amazon.com/AmazonS3/latest/API/API_ListObjectVersions.html
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC
from typing import Any

from pgstash.errors import StorageRefusedError
from pgstash.storage.interface import ObjectVersion
from pgstash.storage.s3.client import Requests
from pgstash.storage.s3.codes import FORBIDDEN, REFUSALS
from pgstash.storage.s3.errors import answered, is_unknown_request, unreadable

_DENIED = REFUSALS["AccessDenied"]


@contextmanager
def explained() -> Iterator[None]:
    """Give a refusal in the block the hint that concerns versions."""
    try:
        yield
    except StorageRefusedError as error:
        answer = answered(error)
        if is_unknown_request(error):
            error.hint = "The store does not list versions of objects. Unset PRUNE_VERSIONS."
        elif answer and (answer.status == FORBIDDEN or REFUSALS.get(answer.code) == _DENIED):
            error.hint = (
                "PRUNE_VERSIONS needs s3:ListBucketVersions, s3:GetObjectVersion and "
                "s3:DeleteObjectVersion. `pgstash policy pruner` prints them."
            )
        raise


def listed(requests: Requests, prefix: str) -> Iterator[ObjectVersion]:
    """Yield all versions of the keys that start with ``prefix``. Raises StorageError."""
    position: dict[str, Any] | None = {}
    while position is not None:
        with explained():
            found, position = requests.call(
                f"list the versions under s3://{requests.bucket}/{prefix}",
                lambda position=position: _page(requests, prefix, position),  # type: ignore[misc]
            )
        yield from found


def _page(
    requests: Requests, prefix: str, position: Mapping[str, Any]
) -> tuple[Sequence[ObjectVersion], dict[str, Any] | None]:
    """Return one page, and where the next one begins."""
    page: Mapping[str, Any] = requests.client.list_object_versions(
        Bucket=requests.bucket, Prefix=prefix, **position
    )
    found = [
        ObjectVersion(
            each["Key"],
            each["VersionId"],
            each["LastModified"].astimezone(UTC),
            each.get("Size", 0),
            # What a store does not mark as replaced counts as visible: it is not removed.
            current=each.get("IsLatest", True),
            is_marker=is_marker,
        )
        for kind, is_marker in (("Versions", False), ("DeleteMarkers", True))
        for each in page.get(kind, [])
    ]
    if not all(each.version_id for each in found):
        raise unreadable(f"list the versions under s3://{requests.bucket}/{prefix}")
    if not page.get("IsTruncated"):
        return found, None
    # The version is missing if the page ends with the last version of a key.
    after = {"KeyMarker": page["NextKeyMarker"]}
    if version_id := page.get("NextVersionIdMarker"):
        after["VersionIdMarker"] = version_id
    if after == position:  # the store would return this page for ever
        raise unreadable(f"list the versions under s3://{requests.bucket}/{prefix}")
    return found, after
