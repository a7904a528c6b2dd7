"""Reads the rules of a bucket: versioning, default retention and lifecycle.

https://docs.aws.amazon.com/AmazonS3/latest/userguide/object-lifecycle-mgmt.html
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

from pgstash.errors import StorageError
from pgstash.storage.bucket_rules import BucketRules, LifecycleRule, Versioning
from pgstash.storage.s3.client import Requests
from pgstash.storage.s3.codes import ARCHIVED
from pgstash.storage.s3.errors import answered

T = TypeVar("T")

_BEGINNING = "backup_"
_OF_SIZE = ("ObjectSizeGreaterThan", "ObjectSizeLessThan")
_NO_RULES = "NoSuchLifecycleConfiguration"
_DAYS_OF_A_YEAR = 365
_STATES: Mapping[str | None, Versioning] = {"Enabled": "on", "Suspended": "suspended", None: "off"}


def read(requests: Requests, prefix: str) -> BucketRules:
    """Return the rules for objects of pgstash under ``prefix``, which ends in a slash."""
    no_rules: Sequence[LifecycleRule] = ()
    return BucketRules(
        versioning=_asked(requests, "versioning", lambda: _versioning(requests)),
        lock_days=_asked(requests, "object lock", lambda: _lock_days(requests)),
        lifecycle=_asked(
            requests, "lifecycle rules", lambda: _lifecycle(requests, prefix), no_rules
        ),
    )


def _asked(
    requests: Requests, what: str, request: Callable[[], T | None], none: T | None = None
) -> T | None:
    """Return what a request finds, or None; ``none`` if the store answers that there are none."""
    try:
        return requests.call(f"read the {what} of s3://{requests.bucket}/", request)
    except StorageError as error:
        answer = answered(error)
        return none if answer and answer.code == _NO_RULES else None


def _versioning(requests: Requests) -> Versioning | None:
    """Return whether a deleted object stays as a noncurrent version.

    https://docs.aws.amazon.com/AmazonS3/latest/API/API_GetBucketVersioning.html
    """
    found: Mapping[str, Any] = requests.client.get_bucket_versioning(Bucket=requests.bucket)
    return _STATES.get(found.get("Status"))


def _lock_days(requests: Requests) -> int | None:
    """Return the default retention.

    https://docs.aws.amazon.com/AmazonS3/latest/API/API_DefaultRetention.html
    """
    found: Mapping[str, Any] = requests.client.get_object_lock_configuration(Bucket=requests.bucket)
    rule = found.get("ObjectLockConfiguration", {}).get("Rule", {}).get("DefaultRetention", {})
    days: int = rule.get("Days", 0) + rule.get("Years", 0) * _DAYS_OF_A_YEAR
    return days or None


def _lifecycle(requests: Requests, prefix: str) -> Sequence[LifecycleRule] | None:
    """Return the enabled rules that apply to some objects of pgstash.

    https://docs.aws.amazon.com/AmazonS3/latest/API/API_LifecycleRule.html
    """
    client, now = requests.client, datetime.now(UTC)
    found: Mapping[str, Any] = client.get_bucket_lifecycle_configuration(Bucket=requests.bucket)
    if "Rules" not in found:
        return None  # this is the answer to another request
    chosen = [(each, _Filter(each, f"{prefix}{_BEGINNING}")) for each in found["Rules"]]
    tags = dict(requests.objects.tags)
    return [
        _rule(each, now, complete=scope.is_complete)
        for each, scope in chosen
        if each.get("Status") == "Enabled" and scope.fits(tags)
    ]


class _Filter:
    """Which objects a rule applies to: all of its conditions hold for them."""

    def __init__(self, rule: Mapping[str, Any], beginning: str) -> None:
        """Compare the filter of the rule with objects whose keys have this beginning."""
        given: Mapping[str, Any] = rule.get("Filter", {})
        both: Mapping[str, Any] = given.get("And", {})
        self._tags = [*([given["Tag"]] if "Tag" in given else []), *both.get("Tags", [])]
        prefix = rule.get("Prefix") or given.get("Prefix") or both.get("Prefix") or ""
        self._fits_keys = beginning.startswith(prefix) or prefix.startswith(beginning)
        has_limits = any(each in given or each in both for each in _OF_SIZE)
        self.is_complete = beginning.startswith(prefix) and not has_limits

    def fits(self, tags: Mapping[str, str]) -> bool:
        """Return whether the rule applies to some of the objects, which have these tags."""
        return self._fits_keys and all(tags.get(tag["Key"]) == tag["Value"] for tag in self._tags)


def _rule(rule: Mapping[str, Any], now: datetime, *, complete: bool) -> LifecycleRule:
    archiving = [
        (days, each["StorageClass"])
        for each in rule.get("Transitions", [])
        if each.get("StorageClass") in ARCHIVED
        for days in _days(each, now)
    ]
    archives, archive_class = min(archiving, default=(None, ""))
    noncurrent: Mapping[str, Any] = rule.get("NoncurrentVersionExpiration", {})
    # The newest noncurrent versions may be exempt, and a deleted backup has only one.
    frees = None if noncurrent.get("NewerNoncurrentVersions") else noncurrent.get("NoncurrentDays")
    return LifecycleRule(
        name=rule.get("ID", ""),
        complete=complete,
        removes=next(_days(rule.get("Expiration", {}), now), None),
        archives=archives,
        archive_class=archive_class,
        frees=frees,
        aborts=rule.get("AbortIncompleteMultipartUpload", {}).get("DaysAfterInitiation"),
    )


def _days(action: Mapping[str, Any], now: datetime) -> Iterator[int]:
    """Yield after how many days this happens; a date that is over applies at once."""
    if "Days" in action:
        yield action["Days"]
    if "Date" in action:
        yield max(0, (action["Date"].astimezone(UTC) - now).days)
