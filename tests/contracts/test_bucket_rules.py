"""The rules of a bucket, as a store answers them, and as check compares them."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from pgstash.check import bucket_rules as checks
from pgstash.check import storage as check_storage
from pgstash.storage.bucket_rules import BucketRules, LifecycleRule
from pgstash.storage.s3.config import Objects
from support.proxy import Answer, HttpProxy, Reply, Rewrite

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pgstash.storage.s3.storage import S3Storage
    from support.seaweedfs import SeaweedServer
    from support.swift import SwiftServer

LIFECYCLE = "GetBucketLifecycleConfiguration"
VERSIONING = "GetBucketVersioning"
LOCK = "GetObjectLockConfiguration"
XMLNS = 'xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'


def document(root: str, inside: str) -> Rewrite:
    """Answer as AWS does."""
    body = f'<?xml version="1.0" encoding="UTF-8"?><{root} {XMLNS}>{inside}</{root}>'.encode()
    return Rewrite(lambda _reply: Reply(200, [("Content-Type", "application/xml")], body))


def lifecycle(*rules: str) -> Rewrite:
    return document("LifecycleConfiguration", "".join(f"<Rule>{rule}</Rule>" for rule in rules))


def rule(what: str, scope: str = "<Filter/>", status: str = "Enabled") -> str:
    return f"<ID>r</ID>{scope}<Status>{status}</Status>{what}"


@pytest.fixture
def http(swift_server: SwiftServer) -> Iterator[HttpProxy]:
    with HttpProxy(swift_server.port) as proxy:
        yield proxy


@pytest.fixture
def behind(s3: Callable[..., S3Storage], http: HttpProxy) -> S3Storage:
    tags = Objects(tags=(("team", "data"),))
    return s3(endpoint=http.endpoint, prefix="team/db/", retry_attempts=0, objects=tags)


def read(storage: S3Storage) -> LifecycleRule | None:
    """Return the only rule that applies to backups, if there is one."""
    rules = storage.bucket_rules().lifecycle
    assert rules is not None
    assert len(rules) <= 1
    return rules[0] if rules else None


def test_a_real_store_answers_what_it_knows(
    s3: Callable[..., S3Storage], swift_server: SwiftServer, s3_bucket: str
) -> None:
    assert s3().bucket_rules() == BucketRules(versioning="off")  # Swift has no lifecycle rules
    for status, state in (("Enabled", "on"), ("Suspended", "suspended")):
        swift_server.client.put_bucket_versioning(
            Bucket=s3_bucket,
            VersioningConfiguration={"Status": status},  # type: ignore[typeddict-item] # one of both
        )
        assert s3().bucket_rules().versioning == state


@pytest.mark.parametrize(
    "answer",
    [
        Answer(403, "AccessDenied"),
        Answer(501, "NotImplemented"),
        Answer(405, "MethodNotAllowed"),
        Answer(400, "InvalidArgument"),
        Answer(404, "NoSuchKey"),
        Answer(404, ""),
        Answer(503, "SlowDown"),
        document("ListBucketResult", "<Name>bucket</Name>"),
        document("Page", "<Rules/>"),
    ],
)
def test_what_may_not_be_read_is_unknown(
    answer: Answer | Rewrite, behind: S3Storage, http: HttpProxy
) -> None:
    for operation in (LIFECYCLE, LOCK):
        http.rule(operation, answer)
    assert behind.bucket_rules() == BucketRules(versioning="off")
    if isinstance(answer, Answer):
        http.rule(VERSIONING, answer)
        assert behind.bucket_rules() == BucketRules()


def test_a_bucket_without_lifecycle_rules(behind: S3Storage, http: HttpProxy) -> None:
    http.rule(LIFECYCLE, Answer(404, "NoSuchLifecycleConfiguration"))
    assert behind.bucket_rules().lifecycle == ()


@pytest.mark.parametrize(
    ("inside", "days"),
    [
        ("<Mode>GOVERNANCE</Mode><Days>30</Days>", 30),
        ("<Mode>COMPLIANCE</Mode><Years>2</Years>", 730),
    ],
)
def test_a_default_retention(behind: S3Storage, http: HttpProxy, inside: str, days: int) -> None:
    retention = f"<Rule><DefaultRetention>{inside}</DefaultRetention></Rule>"
    enabled = "<ObjectLockEnabled>Enabled</ObjectLockEnabled>"
    http.rule(LOCK, document("ObjectLockConfiguration", enabled + retention))
    assert behind.bucket_rules().lock_days == days
    http.rules.clear()
    http.rule(LOCK, document("ObjectLockConfiguration", enabled))
    assert behind.bucket_rules().lock_days is None


def dated(days: int) -> str:
    moment = datetime.now(UTC) + timedelta(days=days, hours=1)
    return f"<Date>{moment:%Y-%m-%dT00:00:00.000Z}</Date>"


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ("<Expiration><Days>9</Days></Expiration>", LifecycleRule("r", removes=9)),
        (f"<Expiration>{dated(-9)}</Expiration>", LifecycleRule("r", removes=0)),
        (
            "<Expiration><ExpiredObjectDeleteMarker>true</ExpiredObjectDeleteMarker></Expiration>",
            LifecycleRule("r"),
        ),
        (
            (
                "<Transition><Days>1</Days><StorageClass>GLACIER_IR</StorageClass></Transition>"
                "<Transition><Days>90</Days><StorageClass>DEEP_ARCHIVE</StorageClass></Transition>"
                "<Transition><Days>30</Days><StorageClass>GLACIER</StorageClass></Transition>"
            ),
            LifecycleRule("r", archives=30, archive_class="GLACIER"),
        ),
        (
            (
                "<NoncurrentVersionExpiration><NoncurrentDays>3</NoncurrentDays>"
                "</NoncurrentVersionExpiration>"
            ),
            LifecycleRule("r", frees=3),
        ),
        (
            (
                "<NoncurrentVersionExpiration><NoncurrentDays>3</NoncurrentDays>"
                "<NewerNoncurrentVersions>1</NewerNoncurrentVersions></NoncurrentVersionExpiration>"
            ),
            LifecycleRule("r"),
        ),
        (
            (
                "<AbortIncompleteMultipartUpload><DaysAfterInitiation>2</DaysAfterInitiation>"
                "</AbortIncompleteMultipartUpload>"
            ),
            LifecycleRule("r", aborts=2),
        ),
    ],
)
def test_what_a_rule_does(
    behind: S3Storage, http: HttpProxy, what: str, expected: LifecycleRule
) -> None:
    http.rule(LIFECYCLE, lifecycle(rule(what)))
    assert read(behind) == expected
    http.rules.clear()
    http.rule(LIFECYCLE, lifecycle(rule(what, status="Disabled")))
    assert read(behind) is None


TAGGED = "<Tag><Key>team</Key><Value>{}</Value></Tag>"
LARGE = "<ObjectSizeGreaterThan>1000</ObjectSizeGreaterThan>"


@pytest.mark.parametrize(
    ("scope", "complete"),
    [
        ("", True),
        ("<Prefix></Prefix>", True),
        ("<Prefix>team/</Prefix>", True),
        ("<Filter><Prefix>team/db/backup_</Prefix></Filter>", True),
        ("<Filter><Prefix>team/db/backup_2026</Prefix></Filter>", False),
        ("<Filter><Prefix>team/db/other/</Prefix></Filter>", None),
        ("<Filter><Prefix>team/db2/</Prefix></Filter>", None),
        (f"<Filter>{TAGGED.format('data')}</Filter>", True),
        (f"<Filter>{TAGGED.format('web')}</Filter>", None),
        (f"<Filter>{LARGE}</Filter>", False),
        (f"<Filter><And><Prefix>team/</Prefix>{TAGGED.format('data')}</And></Filter>", True),
        (f"<Filter><And><Prefix>team/</Prefix>{TAGGED.format('web')}</And></Filter>", None),
        (f"<Filter><And><Prefix>team/</Prefix>{LARGE}</And></Filter>", False),
        (f"<Filter><And><Prefix>web/</Prefix>{LARGE}</And></Filter>", None),
    ],
)
def test_which_objects_a_rule_applies_to(
    behind: S3Storage,
    http: HttpProxy,
    scope: str,
    complete: bool | None,  # noqa: FBT001 - a parameter
) -> None:
    http.rule(LIFECYCLE, lifecycle(rule("<Expiration><Days>9</Days></Expiration>", scope)))
    found = read(behind)
    assert (found and found.complete) is complete


def test_check_compares_them_with_the_retention(
    s3: Callable[..., S3Storage], http: HttpProxy
) -> None:
    storage = s3(endpoint=http.endpoint, prefix="team/db/", retry_attempts=0)
    http.rule(LIFECYCLE, lifecycle(rule("<Expiration><Days>9</Days></Expiration>")))
    plan = check_storage.Plan(
        "team/db",
        None,
        lambda: datetime.now(UTC),
        os.urandom,
        None,
        10_000,
        rules=checks.Plan(days=7, longest_days=10, locks=False),
    )
    findings = {each.topic: each for each in check_storage.look(plan, storage)}
    assert findings["lifecycle"].state == "warning"
    assert findings["multipart"].state == "ok"
    http.rules.clear()
    http.rule("ListObjectsV2", Answer(403, "AccessDenied"))
    asked = http.count(LIFECYCLE)
    assert "lifecycle" not in {each.topic for each in check_storage.look(plan, storage)}
    assert http.count(LIFECYCLE) == asked


@pytest.mark.long
def test_a_real_store_with_a_lifecycle(
    seaweedfs_server: SeaweedServer, seaweedfs: S3Storage
) -> None:
    client, bucket = seaweedfs_server.client, seaweedfs.url().split("/")[2]
    assert seaweedfs.bucket_rules() == BucketRules("off", None, ())
    client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    client.put_bucket_lifecycle_configuration(
        Bucket=bucket,
        LifecycleConfiguration={
            "Rules": [
                {
                    "ID": "old",
                    "Status": "Enabled",
                    "Filter": {"Prefix": ""},
                    "Expiration": {"Days": 9},
                }
            ]
        },
    )
    rules = [LifecycleRule("old", removes=9)]
    assert seaweedfs.bucket_rules() == BucketRules("on", None, rules)
