"""Locked objects: how they are stored, and that pruning leaves them until the lock ends."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from botocore.exceptions import ClientError

from pgstash import events
from pgstash.errors import StorageRefusedError
from pgstash.prune import retention
from pgstash.prune import run as prune
from pgstash.repository.owners import Owners
from pgstash.runtime import Runtime
from pgstash.storage.interface import locked
from pgstash.storage.memory import MemoryStorage
from pgstash.storage.s3.config import Objects, S3Config
from pgstash.storage.s3.storage import S3Storage
from support.azurite import operation_of
from support.proxy import Answer, HttpProxy, Rewrite

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from pgstash.storage.azure.storage import AzureStorage
    from pgstash.storage.gcs.storage import GcsStorage
    from pgstash.storage.interface import Storage
    from support.azurite import AzuriteServer
    from support.gcs_server import GcsServer
    from support.proxy import Reply
    from support.seaweedfs import SeaweedServer
    from support.swift import SwiftServer

ID = "0123456789abcdef"
OLD, NEW = "backup_20200101_000000", "backup_20200201_000000"
NOW = datetime.now(UTC)
LATER = NOW + timedelta(days=40)
MIDNIGHT = datetime(2026, 2, 8, tzinfo=UTC)


class Locked(MemoryStorage):
    """A store whose objects are locked until these times."""

    def __init__(self, **until: datetime) -> None:
        super().__init__()
        self.until = until
        self.asked: list[str] = []

    def locked_until(self, key: str) -> datetime | None:
        self.asked.append(key)
        self.head(key)
        return next((until for name, until in self.until.items() if f".{name}." in key), None)


def archive(base: str) -> str:
    return f"db/{base}.sql.gz"


def companion(base: str, kind: str) -> str:
    return f"db/{base}.{ID}.{kind}.gz"


def store(storage: Storage) -> None:
    for base in (OLD, NEW):
        storage.put(companion(base, "manifest.json"), b"{}", {"id": ID})
        storage.put(companion(base, "globals"), b"", {"id": ID})
        storage.put(archive(base), b"data", {"id": ID})


def run(storage: Storage, now: datetime = NOW, *, dry_run: bool = False) -> list[events.Event]:
    heard: list[events.Event] = []
    owners = Owners(storage)
    plan = prune.Plan(
        "db",
        retention.Policy(days=7),
        sweep_after_days=7,
        choose=owners.choose,
        exclusive=nullcontext,
        dry_run=dry_run,
    )
    prune.run(plan, storage, owners, Runtime(heard.append, now=lambda: now))
    return heard


def reported(heard: list[events.Event]) -> list[str]:
    return [each.message for each in heard if isinstance(each, events.Informed)]


@pytest.mark.parametrize("dry_run", [False, True])
@pytest.mark.parametrize("kind", ["sql", "manifest", "globals"])
def test_a_backup_stays_whole_until_its_last_lock_ends(kind: str, dry_run: bool) -> None:  # noqa: FBT001 - a parameter
    ended = NOW - timedelta(days=1)
    storage = Locked(**{"sql": ended, kind: NOW + timedelta(days=30)})
    store(storage)
    before = [found.key for found in storage.list("")]
    for _ in range(2):
        [line] = reported(heard := run(storage, dry_run=dry_run))
        assert line.startswith("Not removed, because the store has locked 1 expired item: ")
        assert f"{OLD}.sql.gz until " in line
        assert not any(isinstance(each, events.Warned) for each in heard)
        finished = heard[-1]
        assert isinstance(finished, events.PruneFinished)
        assert (finished.kept, finished.removed) == (1, 0)
        assert [found.key for found in storage.list("")] == before
    assert reported(run(storage, LATER)) == []
    assert [found.key for found in storage.list("")] == [key for key in before if NEW in key]


def test_only_expired_backups_are_asked_for_their_locks() -> None:
    storage = Locked()
    store(storage)
    run(storage)
    assert storage.asked == [archive(OLD)]


def test_a_locked_leftover_stays_too() -> None:
    storage = Locked(globals=LATER)
    store(storage)
    storage.delete([archive(OLD)])
    [line] = reported(run(storage, NOW + timedelta(days=2)))
    assert f"{OLD}.{ID}.globals.gz until" in line
    assert companion(OLD, "globals") in [found.key for found in storage.list("")]
    assert companion(OLD, "manifest.json") not in [found.key for found in storage.list("")]
    run(storage, LATER)
    assert [found.key for found in storage.list("")] == [
        companion(NEW, "globals"),
        companion(NEW, "manifest.json"),
        archive(NEW),
    ]


# Stores that show a lock only when they refuse a deletion.


class Refusing(MemoryStorage):
    """A store that refuses to delete what is named so, for a lock or for another reason."""

    def __init__(self, part: str, refusal: StorageRefusedError) -> None:
        super().__init__()
        self.part = part
        self.refusal = refusal

    def delete(self, keys: Iterable[str]) -> None:
        wanted = list(keys)
        if any(self.part in key for key in wanted):
            raise self.refusal
        super().delete(wanted)


@pytest.mark.parametrize(
    ("part", "named"),
    [
        (f"{OLD}.sql.gz", f"{OLD}.sql.gz"),
        (".globals.", f"{OLD}.{ID}.globals.gz"),
        ("pgstash-check-", f"pgstash-check-{ID}"),
    ],
)
def test_a_lock_that_shows_when_it_refuses_a_deletion_is_no_failure(part: str, named: str) -> None:
    storage = Refusing(part, locked("a rule of the bucket has locked the object"))
    store(storage)
    storage.put(f"db/pgstash-check-{ID}", b"", {"id": ID})
    heard = run(storage, NOW + timedelta(days=2))
    [line] = reported(heard)
    assert line == (
        f"Not removed, because the store has locked 1 expired item: {named} until an unknown time"
    )
    assert not any(isinstance(each, events.Warned) for each in heard)
    left = [found.key for found in storage.list("")]
    assert f"db/{named}" in left
    if named.endswith(".sql.gz"):  # then its companions stay, too
        assert companion(OLD, "manifest.json") in left


def test_a_refusal_for_another_reason_stays_a_failure() -> None:
    storage = Refusing(OLD, StorageRefusedError("the store denies access"))
    store(storage)
    with pytest.raises(StorageRefusedError, match="denies access"):
        run(storage)
    assert archive(OLD) in [found.key for found in storage.list("")]


R2_LOCK = Answer(409, "ObjectLockedByBucketPolicy", "The object is locked by the bucket policy.")


def test_a_bucket_lock_of_r2(http: HttpProxy, s3: Callable[..., S3Storage]) -> None:
    storage = s3(endpoint=http.endpoint, retry_attempts=0)
    store(storage)
    http.rule("DeleteObjects", R2_LOCK)
    http.rule("DeleteObject", R2_LOCK)
    [line] = reported(run(storage))
    assert f"locked 1 expired item: {OLD}.sql.gz until an unknown time" in line
    assert archive(OLD) in [found.key for found in s3().list("")]


@pytest.mark.parametrize("code", ["BlobImmutableDueToPolicy", "BlobImmutableDueToLegalHold"])
def test_a_policy_of_a_container(
    azure: Callable[..., AzureStorage], azurite_server: AzuriteServer, code: str
) -> None:
    with HttpProxy(azurite_server.port, operation_of) as proxy:
        port = int(proxy.endpoint.rpartition(":")[2])
        storage = azure(endpoint=azurite_server.endpoint_at(port), retry_attempts=0)
        store(storage)
        proxy.rule("DeleteBlob", Answer(409, code))
        [line] = reported(run(storage))
    assert f"locked 1 expired item: {OLD}.sql.gz until an unknown time" in line
    assert archive(OLD) in [found.key for found in azure().list("")]


@pytest.mark.parametrize("hold", [False, True])
def test_a_policy_of_azure_for_one_blob(
    azure: Callable[..., AzureStorage],
    azurite_server: AzuriteServer,
    hold: bool,  # noqa: FBT001 - a parameter
) -> None:
    def protected(reply: Reply) -> Reply:
        lock = ("x-ms-immutability-policy-until-date", "Fri, 02 Jan 2099 03:04:05 GMT")
        return replace(
            reply, headers=[*reply.headers, ("x-ms-legal-hold", "true") if hold else lock]
        )

    with HttpProxy(azurite_server.port, operation_of) as proxy:
        port = int(proxy.endpoint.rpartition(":")[2])
        storage = azure(endpoint=azurite_server.endpoint_at(port), retry_attempts=0)
        store(storage)
        assert storage.locked_until(archive(OLD)) is None
        proxy.rule("HeadBlob", Rewrite(protected))
        [line] = reported(run(storage))
    until = "an unknown time" if hold else "2099-01-02 03:04 UTC"
    assert f"locked 1 expired item: {OLD}.sql.gz until {until}" in line
    assert archive(OLD) in [found.key for found in azure().list("")]


@pytest.mark.parametrize(
    ("kept", "until"),
    [
        ({"retentionExpirationTime": "2099-01-02T03:04:05.123Z"}, "2099-01-02 03:04 UTC"),
        ({"temporaryHold": True}, "an unknown time"),
        ({"eventBasedHold": True}, "an unknown time"),
    ],
    ids=str,
)
def test_a_retention_policy_of_google(
    gcs: Callable[..., GcsStorage],
    gcs_server: GcsServer,
    gcs_bucket: str,
    kept: dict[str, Any],
    until: str,
) -> None:
    storage = gcs()
    store(storage)
    assert storage.locked_until(archive(OLD)) is None
    for stored in gcs_server.objects(gcs_bucket).values():
        stored.kept = kept
    with pytest.raises(StorageRefusedError, match="protects the object") as caught:
        storage.delete([archive(OLD)])
    assert caught.value.locked
    before = [found.key for found in storage.list("")]
    [line] = reported(run(storage))
    assert f"locked 1 expired item: {OLD}.sql.gz until {until}" in line
    assert [found.key for found in storage.list("")] == before
    for stored in gcs_server.objects(gcs_bucket).values():
        stored.kept = {"retentionExpirationTime": "2020-01-02T03:04:05Z"}
    assert reported(run(storage)) == []
    assert archive(OLD) not in [found.key for found in storage.list("")]


def test_all_objects_of_a_backup_are_locked_until_the_same_midnight() -> None:
    objects = Objects(lock_days=7, lock_mode="compliance")
    for moment in (datetime(2026, 1, 31, tzinfo=UTC), datetime(2026, 1, 31, 23, 59, tzinfo=UTC)):
        assert objects.lock("db/key", moment) == {
            "ObjectLockMode": "COMPLIANCE",
            "ObjectLockRetainUntilDate": MIDNIGHT,
        }
    assert objects.lock("db/pgstash-check-0123456789abcdef-upload", NOW) == {}
    assert Objects().lock("db/key", NOW) == {}


@pytest.fixture
def http(swift_server: SwiftServer) -> Iterator[HttpProxy]:
    with HttpProxy(swift_server.port) as proxy:
        yield proxy


@pytest.fixture
def locking(http: HttpProxy, s3: Callable[..., S3Storage]) -> S3Storage:
    return s3(endpoint=http.endpoint, objects=Objects(lock_days=7), retry_attempts=0)


def test_a_bucket_without_object_lock_is_found_before_anything_is_stored(
    locking: S3Storage, http: HttpProxy
) -> None:
    http.rule("GetObjectLockConfiguration", Answer(404, "ObjectLockConfigurationNotFoundError"))
    with pytest.raises(StorageRefusedError, match="the bucket has no object lock") as caught:
        locking.check()
    assert "S3_OBJECT_LOCK_DAYS" in caught.value.hint


@pytest.mark.parametrize(("status", "code"), [(403, "AccessDenied"), (501, "NotImplemented")])
def test_a_lock_that_may_not_be_asked_for_is_unknown(
    locking: S3Storage, http: HttpProxy, status: int, code: str
) -> None:
    http.rule("GetObjectLockConfiguration", Answer(status, code))
    locking.check()


def test_everything_but_a_trial_is_stored_with_a_lock(locking: S3Storage, http: HttpProxy) -> None:
    refusal = Answer(400, "InvalidRequest")  # Swift has no locks
    http.rule("PutObject", refusal)
    http.rule("CreateMultipartUpload", refusal)
    for key in ("db/key", "db/pgstash-check-0123456789abcdef"):
        with pytest.raises(StorageRefusedError):
            locking.put(key, b"", {})
        with (
            pytest.raises(StorageRefusedError),
            locking.upload(key, metadata={"id": "x"}, expected_size=1),
        ):
            pass
    sent = [{name.lower(): v for name, v in each.headers.items()} for each in http.requests]
    modes = [each.get("x-amz-object-lock-mode") for each in sent]
    assert modes == ["GOVERNANCE", "GOVERNANCE", None, None]
    assert ["x-amz-object-lock-retain-until-date" in each for each in sent] == [
        mode is not None for mode in modes
    ]
    assert "content-md5" in sent[0]


@pytest.mark.long
def test_a_real_store_locks_what_is_stored_and_pruning_leaves_it(
    seaweedfs_server: SeaweedServer,
) -> None:
    client, bucket = seaweedfs_server.client, f"lock-{NOW:%H%M%S%f}"
    client.create_bucket(Bucket=bucket, ObjectLockEnabledForBucket=True)
    config: dict[str, Any] = {
        "endpoint": seaweedfs_server.endpoint,
        "region": seaweedfs_server.region,
        "access_key_id": seaweedfs_server.access_key_id,
        "secret_access_key": seaweedfs_server.secret_access_key,
        "retry_delay": 0.01,
    }
    objects = Objects(lock_days=1, lock_mode="compliance")
    storage = S3Storage(S3Config(bucket=bucket, objects=objects, **config))
    storage.check()
    with storage.upload(archive(OLD), metadata={"id": ID}, expected_size=4) as upload:
        upload.write(b"data")
        upload.commit()
    storage.put(companion(OLD, "manifest.json"), b"{}", {"id": ID})
    storage.put(archive(NEW), b"data", {"id": "another"})
    for key in (archive(OLD), companion(OLD, "manifest.json")):
        until = storage.locked_until(key)
        assert until is not None
        assert NOW + timedelta(days=1) < until <= NOW + timedelta(days=2)
        version = client.head_object(Bucket=bucket, Key=key)["VersionId"]
        with pytest.raises(ClientError):
            client.delete_object(Bucket=bucket, Key=key, VersionId=version)
    before = [found.key for found in storage.list("")]
    [line] = reported(run(storage))
    assert f"{OLD}.sql.gz until " in line
    assert [found.key for found in storage.list("")] == before
    assert "DeleteMarkers" not in client.list_object_versions(Bucket=bucket)
    run(storage, LATER)
    assert [found.key for found in storage.list("")] == [archive(NEW)]

    bare = S3Storage(S3Config(bucket=seaweedfs_server.create_bucket(), objects=objects, **config))
    with pytest.raises(StorageRefusedError, match="the bucket has no object lock"):
        bare.check()
    storage = S3Storage(S3Config(bucket=bare.url().split("/")[2], **config))
    storage.put("key", b"", {})
    assert storage.locked_until("key") is None
