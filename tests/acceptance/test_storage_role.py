"""Backups by a key that can neither read nor delete; other hosts drill and prune with their own."""

from __future__ import annotations

import json
import re
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from support.cli import environment, run_pgstash
from support.policies import PolicyProxy
from support.proxy import Answer, Drop

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.postgres import Database, MakeDatabase
    from support.swift import SwiftServer

PREFIX = "team/shop"
READS_OR_DELETES = ("GetObject", "HeadObject", "DeleteObject", "DeleteObjects")


def printed(role: str, bucket: str, **settings: str) -> dict[str, Any]:
    """Return what `pgstash policy` prints: with no key and no endpoint."""
    env = environment(S3_BUCKET=bucket, BACKUP_PREFIX=PREFIX, **settings)
    done = run_pgstash(["policy", role], env)
    assert (done.returncode, done.stderr) == (0, "")
    policy: dict[str, Any] = json.loads(done.stdout)
    return policy


@contextmanager
def host(server: SwiftServer, bucket: str, role: str) -> Iterator[PolicyProxy]:
    """A way to the store for a key with the printed permissions of this role."""
    with PolicyProxy(server.port, policy=printed(role, bucket)) as proxy:
        yield proxy


def settings(
    proxy: PolicyProxy, server: SwiftServer, bucket: str, database: Database, **more: str
) -> dict[str, str]:
    return environment(
        database.bin_dir,
        **{
            "DATABASE_URL": database.uri,
            "S3_ENDPOINT": proxy.endpoint,
            "S3_BUCKET": bucket,
            "S3_ACCESS_KEY_ID": server.access_key_id,
            "S3_SECRET_ACCESS_KEY": server.secret_access_key,
            "BACKUP_PREFIX": PREFIX,
            "BACKUP_RETENTION_DAYS": "1",
            "RETRY_ATTEMPTS": "0",
            **more,
        },
    )


def keys(server: SwiftServer, bucket: str) -> list[str]:
    listed = server.client.list_objects_v2(Bucket=bucket).get("Contents", [])
    return [each["Key"] for each in listed]


def age(server: SwiftServer, bucket: str) -> list[str]:
    """Copy the stored backup to the name of an old one, and return the keys of the copy."""
    made = []
    for key in keys(server, bucket):
        old = re.sub(r"backup_\d{8}_\d{6}", "backup_20200101_000000", key)
        server.client.copy_object(Bucket=bucket, Key=old, CopySource=f"{bucket}/{key}")
        made.append(old)
    return made


def test_three_hosts_with_a_key_each(
    make_database: MakeDatabase, swift_server: SwiftServer, s3_bucket: str
) -> None:
    database = make_database("mixed")
    with host(swift_server, s3_bucket, "writer") as proxy:
        env = settings(proxy, swift_server, s3_bucket, database, STORAGE_ROLE="writer")
        done = run_pgstash(["once"], env)
        assert done.returncode == 0, done.stderr
        assert "WARN" not in done.stdout + done.stderr
        old = age(swift_server, s3_bucket)
        again = run_pgstash(["once"], env)  # with a backup to be found, and one to be pruned
        assert again.returncode == 0, again.stderr
        assert "WARN" not in again.stdout + again.stderr
        assert set(old) < set(keys(swift_server, s3_bucket))
        healthy = run_pgstash(["healthcheck"], env)
        assert healthy.returncode == 0, healthy.stdout
        assert proxy.refused == []
        assert [proxy.count(each) for each in READS_OR_DELETES] == [0, 0, 0, 0]

        more = dict(env, STORAGE_ROLE="full")
        assert run_pgstash(["cat", old[-1].rpartition("/")[2]], more).returncode == 21
        assert run_pgstash(["prune"], more).returncode == 21
        assert {each.action for each in proxy.refused} == {
            "s3:GetObject",
            "s3:ListBucketMultipartUploads",
        }
        assert set(old) < set(keys(swift_server, s3_bucket))

    before = keys(swift_server, s3_bucket)
    with host(swift_server, s3_bucket, "reader") as proxy:
        env = settings(proxy, swift_server, s3_bucket, database)
        drilled = run_pgstash(["drill"], env)
        assert drilled.returncode == 0, drilled.stderr
        assert proxy.refused == []
        [proof] = set(keys(swift_server, s3_bucket)) - set(before)
        assert ".proof_" in proof
        assert run_pgstash(["prune"], env).returncode == 21
        assert "s3:DeleteObject" in {each.action for each in proxy.refused}
        proxy.refused.clear()
        assert run_pgstash(["once"], env).returncode == 21
        assert proxy.refused[-1].action == "s3:PutObject"
        [record] = set(keys(swift_server, s3_bucket)) - {*before, proof}
        assert record.endswith(".failure.json.gz")

    with host(swift_server, s3_bucket, "pruner") as proxy:
        env = settings(proxy, swift_server, s3_bucket, database)
        pruned = run_pgstash(["prune"], env)
        assert pruned.returncode == 0, pruned.stderr
        assert proxy.refused == []
        assert set(keys(swift_server, s3_bucket)) == {*before, proof, record} - {*old}
        assert run_pgstash(["once"], env).returncode == 21


def versions(server: SwiftServer, bucket: str) -> set[str]:
    """Return the keys that have versions or delete markers."""
    listed = server.client.list_object_versions(Bucket=bucket)
    return {each["Key"] for each in (*listed.get("Versions", ()), *listed.get("DeleteMarkers", ()))}


@pytest.mark.long
def test_a_pruner_removes_versions_for_good(
    make_database: MakeDatabase, swift_server: SwiftServer, s3_bucket: str
) -> None:
    database = make_database()
    swift_server.client.put_bucket_versioning(
        Bucket=s3_bucket, VersioningConfiguration={"Status": "Enabled"}
    )
    with PolicyProxy(swift_server.port, policy=printed("writer", s3_bucket)) as proxy:
        env = settings(proxy, swift_server, s3_bucket, database, STORAGE_ROLE="writer")
        assert run_pgstash(["once"], env).returncode == 0
    kept = set(keys(swift_server, s3_bucket))
    old = set(age(swift_server, s3_bucket))
    with host(swift_server, s3_bucket, "pruner") as proxy:
        env = settings(proxy, swift_server, s3_bucket, database)
        assert run_pgstash(["prune"], env).returncode == 0
        assert versions(swift_server, s3_bucket) == kept | old
        refused = run_pgstash(["prune"], env | {"PRUNE_VERSIONS": "true"})
        assert refused.returncode == 21
        assert "`pgstash policy pruner` prints them" in refused.stderr
        assert {each.action for each in proxy.refused} == {"s3:ListBucketVersions"}
    more = {"PRUNE_VERSIONS": "true"}
    with PolicyProxy(swift_server.port, policy=printed("pruner", s3_bucket, **more)) as proxy:
        env = settings(proxy, swift_server, s3_bucket, database, **more)
        would = run_pgstash(["prune", "--dry-run"], env)
        assert "Would be removed for good, with the delete markers: 1 backup (" in would.stdout
        pruned = run_pgstash(["prune"], env)
        assert pruned.returncode == 0, pruned.stderr
        assert "Removed for good, with the delete markers: 1 backup (" in pruned.stdout
        assert proxy.refused == []
    assert versions(swift_server, s3_bucket) == kept

    done = run_pgstash(["prune"], environment(STORAGE_URL="file:///nonexistent", **more))
    assert done.returncode == 1
    assert "PRUNE_VERSIONS is set, but STORAGE_URL names no bucket" in done.stderr


def test_check_by_a_writer_finds_nothing_wrong(
    make_database: MakeDatabase, swift_server: SwiftServer, s3_bucket: str
) -> None:
    database = make_database()
    with host(swift_server, s3_bucket, "writer") as proxy:
        env = settings(proxy, swift_server, s3_bucket, database, ROLE="writer")
        done = run_pgstash(["check", "--json"], env)
        assert done.returncode == 0, done.stdout
        findings = {each["topic"]: each for each in json.loads(done.stdout)["findings"]}
        wrong = {each for each, found in findings.items() if found["state"] == "failure"}
        assert wrong == set()
        for topic in ("read", "delete", "other sources"):
            assert findings[topic]["state"] == "skipped"
            assert findings[topic]["found"] == "not with STORAGE_ROLE=writer"
        for topic in ("write", "list", "store clock", "multipart"):
            assert findings[topic]["state"] == "ok", findings[topic]
        assert "abandoned uploads" not in findings
        assert proxy.refused == []


@pytest.mark.long
def test_a_failed_backup_of_a_writer_is_left_to_the_pruner(
    make_database: MakeDatabase, swift_server: SwiftServer, s3_bucket: str
) -> None:
    database = make_database()
    with host(swift_server, s3_bucket, "writer") as proxy:
        env = settings(proxy, swift_server, s3_bucket, database, STORAGE_ROLE="writer")
        proxy.rule("CompleteMultipartUpload", Answer(403, "AccessDenied"), times=1)
        assert run_pgstash(["once"], env).returncode == 21
        left = keys(swift_server, s3_bucket)
        assert any(".manifest." in key for key in left)
        assert not any(re.fullmatch(rf"{PREFIX}/backup_\d+_\d+\.sql\.gz", key) for key in left)
        assert proxy.refused == []
        assert proxy.count("AbortMultipartUpload") == 1

        # The response to a commit is lost: the object is found in the listing, by its ETag.
        proxy.rule("CompleteMultipartUpload", Drop(forward=True), times=1)
        done = run_pgstash(["once"], env)
        assert done.returncode == 0, done.stderr
        made = re.compile(rf"{PREFIX}/backup_\d+_\d+\.sql\.gz")
        assert any(made.fullmatch(key) for key in keys(swift_server, s3_bucket))
        assert proxy.count("HeadObject") == 0


@pytest.mark.parametrize("command", ["prune", "drill"])
def test_a_writer_leaves_prune_and_drill_to_others(command: str) -> None:
    env = environment(
        DATABASE_URL="postgresql://u@127.0.0.1:1/x",
        STORAGE_URL="file:///nonexistent",
        STORAGE_ROLE="writer",
    )
    done = run_pgstash([command], env)
    assert done.returncode == 1
    assert f"Run `pgstash {command}` on another host, with a key of its own." in done.stderr


def test_a_policy_needs_a_bucket() -> None:
    done = run_pgstash(["policy", "writer"], environment())
    assert done.returncode == 1
    assert "S3_BUCKET is missing" in done.stderr
    done = run_pgstash(["policy", "writer"], environment(STORAGE_URL="file:///nonexistent"))
    assert done.returncode == 1
    assert "no identity has permissions of this form there" in done.stderr
    assert run_pgstash(["policy", "admin"], environment(S3_BUCKET="b")).returncode == 2


def test_a_bucket_without_locks_fails_before_the_dump(
    make_database: MakeDatabase, swift_server: SwiftServer, s3_bucket: str
) -> None:
    lock = {"S3_OBJECT_LOCK_DAYS": "30"}
    with PolicyProxy(swift_server.port, policy=printed("writer", s3_bucket, **lock)) as proxy:
        env = settings(
            proxy, swift_server, s3_bucket, make_database(), STORAGE_ROLE="writer", **lock
        )
        proxy.rule(
            "GetObjectLockConfiguration", Answer(404, "ObjectLockConfigurationNotFoundError")
        )
        for command, status in ((["once"], 21), (["check", "storage"], 40)):
            done = run_pgstash(command, env)
            assert done.returncode == status
            assert "the bucket has no object lock" in done.stdout + done.stderr
        assert proxy.refused == []
        [record] = keys(swift_server, s3_bucket)
        assert record.endswith(".failure.json.gz")
        del env["S3_ENDPOINT"], env["S3_BUCKET"]
        done = run_pgstash(["once"], env | {"STORAGE_URL": "file:///nonexistent"})
        assert done.returncode == 1
        assert "S3_OBJECT_LOCK_DAYS is set, but STORAGE_URL names no bucket" in done.stderr
