"""Locked objects: how they are stored, and that pruning leaves them until the lock ends."""

from __future__ import annotations

from contextlib import nullcontext
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
from pgstash.storage.memory import MemoryStorage
from pgstash.storage.s3.config import Objects, S3Config
from pgstash.storage.s3.storage import S3Storage
from support.proxy import Answer, HttpProxy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pgstash.storage.interface import Storage
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
@pytest.mark.parametrize("locked", ["sql", "manifest", "globals"])
def test_a_backup_stays_whole_until_its_last_lock_ends(locked: str, dry_run: bool) -> None:  # noqa: FBT001 - a parameter
    ended = NOW - timedelta(days=1)
    storage = Locked(**{"sql": ended, locked: NOW + timedelta(days=30)})
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
