"""The permissions that `pgstash policy` prints for each role."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pgstash.storage.host_roles import ROLES
from pgstash.storage.s3.policy import Place, policy
from support.kms import ALIAS, KEY
from support.policies import Wanted, allows

PLACE = Place("shop", "team/db", "eu-central-1")
ARCHIVE = "arn:aws:s3:::shop/team/db/backup_20260131_020000.sql.gz.enc"
PROOF = (
    "arn:aws:s3:::shop/team/db/"
    "backup_20260131_020000.0123456789abcdef.proof_20260201_020000.json.gz.enc"
)
FAILURE = "arn:aws:s3:::shop/team/db/backup_20260131_020000.0123456789abcdef.failure.json.gz.enc"
BUCKET = "arn:aws:s3:::shop"


@pytest.mark.parametrize(
    ("role", "action", "resource"),
    [
        ("writer", "s3:GetObject", ARCHIVE),
        ("writer", "s3:DeleteObject", ARCHIVE),
        ("writer", "s3:ListBucketMultipartUploads", BUCKET),
        ("writer", "s3:PutObject", "arn:aws:s3:::shop/team/database/x"),
        ("writer", "s3:PutObject", "arn:aws:s3:::shop2/team/db/x"),
        ("reader", "s3:PutObject", ARCHIVE),
        ("reader", "s3:DeleteObject", PROOF),
        ("pruner", "s3:PutObject", PROOF),
        ("pruner", "s3:DeleteObject", "arn:aws:s3:::shop/other/x"),
    ],
)
def test_what_a_role_may_not_do(role: str, action: str, resource: str) -> None:
    assert not allows(policy(role, PLACE), Wanted(action, resource, "team/db/"))  # type: ignore[arg-type] # roles are text here


@pytest.mark.parametrize(
    ("role", "action", "resource"),
    [
        ("writer", "s3:PutObject", ARCHIVE),
        ("writer", "s3:AbortMultipartUpload", ARCHIVE),
        ("reader", "s3:GetObject", ARCHIVE),
        ("reader", "s3:PutObject", PROOF),
        ("reader", "s3:PutObject", FAILURE),
        ("pruner", "s3:DeleteObject", ARCHIVE),
    ],
)
def test_what_a_role_may_do(role: str, action: str, resource: str) -> None:
    assert allows(policy(role, PLACE), Wanted(action, resource))  # type: ignore[arg-type] # roles are text here


def test_a_reader_of_many_databases_stores_their_proofs() -> None:
    """Each database has its backups in a folder below the prefix."""
    printed = policy("reader", replace(PLACE, folders=True))
    for folder, allowed in (("shop/", True), ("eu/=53hop/", True), ("", False)):
        proof = PROOF.replace("backup_", f"{folder}backup_")
        assert allows(printed, Wanted("s3:PutObject", proof)) == allowed
    archive = ARCHIVE.replace("backup_", "shop/backup_")
    assert allows(printed, Wanted("s3:GetObject", archive))
    assert not allows(printed, Wanted("s3:PutObject", archive))


@pytest.mark.parametrize("role", ROLES)
def test_only_the_prefix_is_listed(role: str) -> None:
    printed = policy(role, PLACE)  # type: ignore[arg-type] # roles are text here
    for prefix, allowed in (("team/db/", True), ("team/db/backup_2026", True), ("team/", False)):
        assert allows(printed, Wanted("s3:ListBucket", BUCKET, prefix)) == allowed
    assert not allows(printed, Wanted("s3:ListBucket", BUCKET, None))


def test_a_prefix_with_the_signs_of_policies_is_taken_literally() -> None:
    printed = policy("writer", Place("shop", "a*b?${c}", "eu-central-1"))
    assert allows(printed, Wanted("s3:PutObject", "arn:aws:s3:::shop/a*b?${c}/x"))
    assert not allows(printed, Wanted("s3:PutObject", "arn:aws:s3:::shop/axxb?${c}/x"))
    assert not allows(printed, Wanted("s3:PutObject", "arn:aws:s3:::shop/a*bx${c}/x"))


@pytest.mark.parametrize(
    ("region", "partition"),
    [("cn-north-1", "aws-cn"), ("us-gov-west-1", "aws-us-gov"), ("us-east-1", "aws")],
)
def test_the_partition_of_the_region(region: str, partition: str) -> None:
    [listing, objects] = policy("writer", Place("shop", "db", region))["Statement"]
    assert listing["Resource"] == f"arn:{partition}:s3:::shop"
    assert objects["Resource"] == f"arn:{partition}:s3:::shop/db/*"


@pytest.mark.parametrize(
    ("key", "resource", "alias"),
    [
        ("arn:aws:kms:eu-central-1:1:key/k", "arn:aws:kms:eu-central-1:1:key/k", None),
        ("k", "arn:aws:kms:eu-central-1:*:key/k", None),
        ("alias/shop", "arn:aws:kms:eu-central-1:*:key/*", "alias/shop"),
        ("arn:aws:kms:eu-central-1:1:alias/s", "arn:aws:kms:eu-central-1:*:key/*", "alias/s"),
    ],
)
def test_the_key_of_kms(key: str, resource: str, alias: str | None) -> None:
    place = Place("shop", "db", "eu-central-1", kms_key=key)
    for role in ("writer", "reader"):
        found = policy(role, place)["Statement"][-1]
        assert found["Action"] == ["kms:GenerateDataKey", "kms:Decrypt"]
        assert found["Resource"] == resource
        condition = found.get("Condition", {}).get("ForAnyValue:StringEquals", {})
        assert condition.get("kms:ResourceAliases") == alias
    assert "kms" not in str(policy("pruner", place))


def test_tags_are_set_by_those_who_store() -> None:
    place = Place("shop", "db", "eu-central-1", tagged=True)
    assert "s3:PutObjectTagging" in str(policy("writer", place))
    assert "s3:PutObjectTagging" in str(policy("reader", place))
    assert "s3:PutObjectTagging" not in str(policy("pruner", place))


def test_what_locks_need_more() -> None:
    place = Place("shop", "db", "eu-central-1", locked=True)
    for role, action in (
        ("writer", "s3:PutObjectRetention"),
        ("writer", "s3:GetBucketObjectLockConfiguration"),
        ("reader", "s3:PutObjectRetention"),
        ("pruner", "s3:GetObjectRetention"),
    ):
        assert action in str(policy(role, place))  # type: ignore[arg-type] # roles are text here
        assert action not in str(policy(role, PLACE))  # type: ignore[arg-type] # roles are text here
    for role in ROLES:
        assert "Bypass" not in str(policy(role, place))


def test_the_pruner_may_read_what_check_compares_with_the_retention() -> None:
    for action in (
        "s3:GetBucketVersioning",
        "s3:GetLifecycleConfiguration",
        "s3:GetBucketObjectLockConfiguration",
    ):
        assert allows(policy("pruner", PLACE), Wanted(action, BUCKET))
        assert not allows(policy("writer", PLACE), Wanted(action, BUCKET))


def test_keys_of_kms_that_backups_are_encrypted_for() -> None:
    place = Place("shop", "db", "us-east-1", recipients=[KEY, ALIAS])
    for role, action in (("writer", "kms:Encrypt"), ("reader", "kms:Decrypt")):
        found = [each for each in policy(role, place)["Statement"] if each["Action"] == [action]]  # type: ignore[arg-type] # roles are text here
        assert [each["Resource"] for each in found] == [KEY, f"{KEY.partition(':key/')[0]}:key/*"]
        condition = {"ForAnyValue:StringEquals": {"kms:ResourceAliases": "alias/backups"}}
        assert [each.get("Condition") for each in found] == [None, condition]
    assert "kms:Decrypt" not in str(policy("writer", place))
    assert "kms:Encrypt" not in str(policy("reader", place))
    assert "kms" not in str(policy("pruner", place))


def test_only_the_pruner_may_remove_versions_and_only_if_it_prunes_them() -> None:
    place = Place("shop", "team/db", "eu-central-1", versions=True)
    for action in ("s3:GetObjectVersion", "s3:DeleteObjectVersion"):
        wanted = Wanted(action, ARCHIVE)
        assert [role for role in ROLES if allows(policy(role, place), wanted)] == ["pruner"]
        assert not allows(policy("pruner", PLACE), wanted)
    for prefix, allowed in (("team/db/backup_", True), ("team/", False)):
        wanted = Wanted("s3:ListBucketVersions", BUCKET, prefix)
        assert allows(policy("pruner", place), wanted) == allowed
        assert not allows(policy("pruner", PLACE), wanted)
