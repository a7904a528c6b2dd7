"""Pruning with all versions: what is removed for good, and which hidden objects stay."""

from __future__ import annotations

from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, cast

import pytest

from pgstash import events
from pgstash.errors import ObjectNotFoundError, StorageRefusedError
from pgstash.format.identity import Identity
from pgstash.format.metadata import encoded
from pgstash.prune import retention
from pgstash.prune import run as prune
from pgstash.repository.owners import Owners
from pgstash.runtime import Runtime
from pgstash.storage.interface import ObjectVersion, Storage, StoredObject, Versioned
from pgstash.storage.s3.config import S3Config
from pgstash.storage.s3.storage import S3Storage
from support.proxy import Answer, HttpProxy, Reply, Rewrite
from support.versioned import VersionedMemory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from support.seaweedfs import SeaweedServer
    from support.swift import SwiftServer

ID = "0123456789abcdef"
NOW = datetime.now(UTC)
LATER = NOW + timedelta(days=40)
OLDER, OLD, NEW = "backup_20200101_000000", "backup_20200201_000000", "backup_20200301_000000"
YOUNG = (NOW - timedelta(days=1)).strftime("backup_%Y%m%d_%H%M%S")
SHOP = Identity("shop", "7301234567890123456", "db1", "5432")
BLOG = Identity("blog", "7301234567890123456", "db1", "5432")
REMOVED = "Removed for good, with the delete markers: "
STAYS = "Hidden by delete markers although the retention keeps them: "


class AllOfIt(Storage, Versioned):
    """A store with versions."""


def archive(base: str) -> str:
    return f"db/{base}.sql.gz"


def companion(base: str, kind: str = "manifest.json.gz") -> str:
    return f"db/{base}.{ID}.{kind}"


def store(storage: Storage, *bases: str, source: Identity = SHOP) -> None:
    metadata = {"id": ID, **encoded(source.metadata())}
    for base in bases:
        storage.put(companion(base), b"{}", metadata)
        storage.put(archive(base), b"data", metadata)


def run(
    storage: Storage,
    now: datetime = NOW,
    *,
    versions: bool = True,
    dry_run: bool = False,
    last: int | None = None,
) -> list[events.Event]:
    heard: list[events.Event] = []
    plan = prune.Plan(
        "db",
        retention.Policy(days=7, last=last),
        sweep_after_days=7,
        choose=lambda _: [SHOP],
        exclusive=nullcontext,
        dry_run=dry_run,
        versions=versions,
    )
    prune.run(plan, storage, Owners(storage), Runtime(heard.append, now=lambda: now))
    return heard


def lines(heard: list[events.Event]) -> list[str]:
    return [each.message for each in heard if isinstance(each, events.Informed | events.Warned)]


def everything(storage: AllOfIt) -> list[ObjectVersion]:
    return list(storage.versions("db/"))


def data(storage: AllOfIt) -> set[str]:
    """Return the keys that have at least one version."""
    return {each.key for each in everything(storage) if not each.is_marker}


def markers(storage: AllOfIt) -> set[str]:
    return {each.key for each in everything(storage) if each.is_marker}


def of(*bases: str) -> set[str]:
    return {key for base in bases for key in (archive(base), companion(base))}


@pytest.fixture
def swift_versions(
    s3: Callable[..., S3Storage], swift_server: SwiftServer, s3_bucket: str
) -> S3Storage:
    swift_server.client.put_bucket_versioning(
        Bucket=s3_bucket, VersioningConfiguration={"Status": "Enabled"}
    )
    return s3()


@pytest.fixture
def seaweedfs_versions(seaweedfs: S3Storage, seaweedfs_server: SeaweedServer) -> S3Storage:
    seaweedfs_server.client.put_bucket_versioning(
        Bucket=seaweedfs.url().split("/")[2], VersioningConfiguration={"Status": "Enabled"}
    )
    return seaweedfs


@pytest.fixture(
    params=[
        "memory",
        "swift_versions",
        pytest.param("seaweedfs_versions", marks=pytest.mark.long),
    ]
)
def storage(request: pytest.FixtureRequest) -> AllOfIt:
    if request.param == "memory":
        return cast("AllOfIt", VersionedMemory())
    return cast("AllOfIt", request.getfixturevalue(request.param))


def test_a_backup_goes_with_all_of_its_versions(storage: AllOfIt) -> None:
    store(storage, OLD, NEW)
    for base in (OLD, NEW):
        storage.put(companion(base, "globals.gz"), b"1", {"id": ID})
        storage.put(companion(base, "globals.gz"), b"2", {"id": ID})
    [line] = lines(run(storage))
    assert line == f"{REMOVED}1 backup ({OLD}.sql.gz), 4 versions"
    assert data(storage) == {*of(NEW), companion(NEW, "globals.gz")}
    assert markers(storage) == set()
    # An earlier version of what stays may be the good one.
    assert len([each for each in everything(storage) if each.key.endswith(".globals.gz")]) == 2
    assert lines(run(storage)) == []


def test_without_the_setting_versions_stay_and_go_when_it_is_set(storage: AllOfIt) -> None:
    store(storage, OLDER, OLD, NEW)
    assert lines(run(storage, versions=False)) == []
    assert data(storage) == of(OLDER, OLD, NEW)
    assert markers(storage) == of(OLDER, OLD)
    [line] = lines(run(storage))
    assert line == f"{REMOVED}2 backups ({OLDER}.sql.gz, {OLD}.sql.gz), 4 versions"
    assert {each.key for each in everything(storage)} == of(NEW)


def test_a_dry_run_removes_nothing_and_reports_the_same(storage: AllOfIt) -> None:
    store(storage, OLDER, OLD, NEW)
    storage.delete([archive(OLDER), companion(OLDER)])
    before = everything(storage)
    [would] = lines(run(storage, dry_run=True))
    assert everything(storage) == before
    [did] = lines(run(storage))
    assert did.replace("Removed", "Would be removed") == would


def test_a_good_backup_behind_a_marker_stays_until_the_rules_would_remove_it(
    storage: AllOfIt,
) -> None:
    store(storage, YOUNG, NEW)
    storage.delete([archive(YOUNG), companion(YOUNG)])
    [warning] = [each for each in run(storage) if isinstance(each, events.Warned)]
    assert warning.message.startswith(f"{STAYS}1 backup ({YOUNG}.sql.gz).")
    assert data(storage) == of(NEW, YOUNG)
    assert markers(storage) == of(YOUNG)
    store(storage, f"{NOW:backup_%Y%m%d_%H%M%S}")
    run(storage, LATER)
    assert data(storage) == of(f"{NOW:backup_%Y%m%d_%H%M%S}")


def test_if_all_are_hidden_the_rules_keep_what_they_would_keep() -> None:
    storage = cast("AllOfIt", VersionedMemory())
    store(storage, OLDER, OLD, NEW)
    storage.delete(sorted(of(OLDER, OLD, NEW)))
    lasting = lines(run(storage, last=2))
    assert lasting[0].startswith(f"{STAYS}2 backups ({OLD}.sql.gz, {NEW}.sql.gz).")
    assert data(storage) == of(OLD, NEW)
    run(storage)
    assert data(storage) == of(NEW)
    run(storage, LATER)
    assert data(storage) == of(NEW)


def test_a_hidden_backup_that_is_proven_stays_until_a_newer_one_is() -> None:
    storage = cast("AllOfIt", VersionedMemory())
    store(storage, OLD, NEW)
    proof = companion(OLD, "proof_20200202_000000.json.gz")
    storage.put(proof, b"{}", {"id": ID})
    storage.delete([*of(OLD), proof])
    run(storage)
    assert data(storage) == {*of(OLD, NEW), proof}
    storage.put(companion(NEW, "proof_20200302_000000.json.gz"), b"{}", {"id": ID})
    run(storage)
    assert data(storage) == {*of(NEW), companion(NEW, "proof_20200302_000000.json.gz")}


def test_what_is_hidden_of_another_source_is_not_touched(storage: AllOfIt) -> None:
    store(storage, OLDER, source=BLOG)
    store(storage, OLD, NEW)
    # Whoever overwrites another's archive does not make it theirs.
    store(storage, "backup_20200115_000000", source=BLOG)
    store(storage, "backup_20200115_000000")
    stray = companion("backup_20191231_000000", "globals.gz")
    storage.put(stray, b"", {"id": ID, **BLOG.metadata()})
    hidden = [*of(OLDER, "backup_20200115_000000"), stray]
    storage.delete(hidden)
    [line] = lines(run(storage))
    assert line.startswith(f"{REMOVED}1 backup ({OLD}.sql.gz)")
    assert lines(run(storage, LATER)) == []
    assert data(storage) == {*hidden, *of(NEW)}
    assert markers(storage) == set(hidden)


FOREIGN = [
    "db/backup_20200101_000000.sql.gz.bak",
    "db/backup_20200230_000000.sql.gz",
    "db/my_backup_20200101_000000.sql.gz",
    "db/other/backup_20200101_000000.sql.gz",
    "db/pgstash-check-0123",
]


def test_what_is_not_ours_is_not_touched(storage: AllOfIt) -> None:
    for key in FOREIGN:
        storage.put(key, b"precious", {"id": ID})
    storage.delete(FOREIGN)
    store(storage, OLD, NEW)
    run(storage, LATER)
    assert data(storage) == {*FOREIGN, *of(NEW)}
    assert markers(storage) == set(FOREIGN)


def test_a_hidden_part_of_a_visible_backup_stays() -> None:
    storage = cast("AllOfIt", VersionedMemory())
    store(storage, NEW)
    storage.delete([companion(NEW)])
    assert lines(run(storage, LATER)) == []
    assert data(storage) == of(NEW)


def test_hidden_leftovers_go_when_they_are_old(storage: AllOfIt) -> None:
    store(storage, NEW)
    leftover, young = companion(OLD, "globals.gz"), companion(YOUNG, "globals.gz")
    trial = "db/pgstash-check-0123456789abcdef"
    for key in (leftover, young, trial):
        storage.put(key, b"", {"id": ID, **encoded(SHOP.metadata())})
    storage.delete([leftover, young, trial])
    assert lines(run(storage, NOW + timedelta(hours=1))) == []
    [line] = lines(run(storage, NOW + timedelta(days=2)))
    assert line == f"{REMOVED}2 leftovers, 2 versions"
    assert data(storage) == {*of(NEW), young}


def test_locked_versions_stay_with_their_marker() -> None:
    storage = VersionedMemory()
    store(storage, OLD, NEW)
    storage.delete(sorted(of(OLD)))
    storage.locked[archive(OLD)] = NOW + timedelta(days=30)
    [line] = lines(run(storage))
    assert line.startswith("Not removed, because the store has locked 1 expired item: ")
    assert storage.deletions == []
    run(storage, LATER)
    assert {each.key for each in storage.versions("")} == of(NEW)


def test_versions_that_cannot_be_removed_stay_hidden() -> None:
    storage = VersionedMemory()
    store(storage, OLDER, OLD, NEW)
    storage.delete(sorted(of(OLDER, OLD)))
    storage.refused[archive(OLDER)] = StorageRefusedError("no")
    with pytest.raises(StorageRefusedError, match="no"):
        run(storage)
    assert {each.key for each in storage.list("")} == of(NEW)
    assert {each.key for each in storage.versions("")} == {*of(NEW), *of(OLDER)}
    storage.refused.clear()
    run(storage)
    assert {each.key for each in storage.versions("")} == of(NEW)


class Interrupted(VersionedMemory):
    """Removes no marker at first."""

    may_remove_markers = False

    def delete_versions(self, which: Iterable[ObjectVersion]) -> None:
        versions = list(which)
        self.deletions.append(versions)
        if not self.may_remove_markers and any(each.is_marker for each in versions):
            raise StorageRefusedError("no")
        super().delete_versions(versions)


def test_markers_go_after_what_they_hide_and_later_if_they_were_left() -> None:
    storage = Interrupted()
    store(storage, OLD, NEW)
    with pytest.raises(StorageRefusedError):
        run(storage)
    left = list(storage.versions(""))
    assert {each.key for each in left if each.is_marker} == of(OLD)
    assert {each.key for each in left if not each.is_marker} == of(NEW)
    storage.may_remove_markers = True
    run(storage)
    assert {each.key for each in storage.versions("")} == of(NEW)
    # One request for both could remove the marker first.
    assert all(len({each.is_marker for each in request}) == 1 for request in storage.deletions)


class Outdated(VersionedMemory):
    """Lists a newest backup that does not exist any more."""

    def head_version(self, version: ObjectVersion) -> StoredObject:
        if version.key == archive(NEW):
            raise ObjectNotFoundError("gone")
        return super().head_version(version)


def test_no_version_is_removed_for_a_newest_backup_that_is_only_listed() -> None:
    storage = Outdated()
    store(storage, OLD, NEW)
    storage.delete(sorted(of(OLD)))
    with pytest.raises(ObjectNotFoundError, match="no version was removed"):
        run(storage)
    assert storage.deletions == []


# The requests to S3.


@pytest.fixture
def http(swift_server: SwiftServer) -> Iterator[HttpProxy]:
    with HttpProxy(swift_server.port) as proxy:
        yield proxy


def test_a_bucket_without_versioning_is_pruned_as_before(s3: Callable[..., S3Storage]) -> None:
    store(s3(), OLD, NEW)
    assert lines(run(s3(), dry_run=True)) == []
    assert lines(run(s3())) == []
    assert {each.key for each in s3().versions("")} == of(NEW)


DENIED = Answer(403, "AccessDenied")
UNKNOWN = Answer(501, "NotImplemented")


def test_what_is_refused_names_the_permissions(
    s3: Callable[..., S3Storage], swift_versions: S3Storage, http: HttpProxy
) -> None:
    store(swift_versions, OLD, NEW)
    swift_versions.delete(sorted(of(OLD)))
    for operation, answer, hint in (
        ("ListObjectVersions", DENIED, "s3:ListBucketVersions"),
        ("ListObjectVersions", UNKNOWN, "Unset PRUNE_VERSIONS"),
        ("HeadObject", DENIED, "s3:GetObjectVersion"),
        ("DeleteObjects", DENIED, "s3:DeleteObjectVersion"),
    ):
        rule = http.rule(operation, answer)
        rule.matches = lambda request: request.method != "HEAD" or "versionId" in request.query
        with pytest.raises(StorageRefusedError) as caught:
            run(s3(endpoint=http.endpoint, retry_attempts=0))
        assert hint in caught.value.hint
        assert data(cast("AllOfIt", swift_versions)) == of(OLD, NEW)
        http.rules.clear()


def test_versions_are_listed_page_by_page(s3: Callable[..., S3Storage], http: HttpProxy) -> None:
    def page(inside: str) -> Rewrite:
        body = f"<ListVersionsResult><Name>b</Name>{inside}</ListVersionsResult>".encode()
        return Rewrite(lambda _: Reply(200, [("Content-Type", "application/xml")], body))

    times = "<LastModified>2026-01-31T02:00:00.000Z</LastModified>"
    marker = (
        f"<DeleteMarker><Key>db/1</Key><VersionId>a</VersionId><IsLatest>true</IsLatest>{times}"
    )
    version = f"<Version><Key>db/1</Key><VersionId>b</VersionId><Size>3</Size>{times}"
    more = "<IsTruncated>true</IsTruncated><NextKeyMarker>db/1</NextKeyMarker>"
    after = "<NextVersionIdMarker>a</NextVersionIdMarker>"
    http.rule("ListObjectVersions", page(f"{more}{after}{marker}</DeleteMarker>"), times=1)
    latest = "<IsLatest>false</IsLatest></Version>"
    http.rule("ListObjectVersions", page(f"{more}{version}{latest}"), times=1)
    http.rule("ListObjectVersions", page(f"{version}</Version>"), times=1)
    moment = datetime(2026, 1, 31, 2, tzinfo=UTC)
    assert list(s3(endpoint=http.endpoint).versions("db/")) == [
        ObjectVersion("db/1", "a", moment, 0, current=True, is_marker=True),
        ObjectVersion("db/1", "b", moment, 3, current=False),
        # A store that does not report it may mean the current one.
        ObjectVersion("db/1", "b", moment, 3, current=True),
    ]
    positions = [
        (each.query.get("key-marker"), each.query.get("version-id-marker"))
        for each in http.requests
    ]
    assert positions == [(None, None), (["db/1"], ["a"]), (["db/1"], None)]


def test_a_version_that_is_gone_is_no_error(swift_versions: S3Storage) -> None:
    swift_versions.put("db/1", b"1", {})
    [version] = swift_versions.versions("db/")
    for _ in range(2):
        swift_versions.delete_versions([version])
    with pytest.raises(ObjectNotFoundError):
        swift_versions.head_version(version)


@pytest.mark.long
def test_a_real_store_removes_versions_when_their_lock_has_ended(
    seaweedfs_server: SeaweedServer,
) -> None:
    client, bucket = seaweedfs_server.client, f"versions-{NOW:%H%M%S%f}"
    client.create_bucket(Bucket=bucket, ObjectLockEnabledForBucket=True)
    config = S3Config(
        endpoint=seaweedfs_server.endpoint,
        bucket=bucket,
        region=seaweedfs_server.region,
        access_key_id=seaweedfs_server.access_key_id,
        secret_access_key=seaweedfs_server.secret_access_key,
        retry_delay=0.01,
    )
    storage = cast("AllOfIt", S3Storage(config))
    store(storage, OLD, NEW)
    [version] = [each for each in storage.versions("db/") if each.key == archive(OLD)]
    client.put_object_retention(
        Bucket=bucket,
        Key=archive(OLD),
        VersionId=version.version_id,
        Retention={"Mode": "COMPLIANCE", "RetainUntilDate": NOW + timedelta(days=1)},
    )
    storage.delete(sorted(of(OLD)))
    [line] = lines(run(storage))
    assert line.startswith("Not removed, because the store has locked 1 expired item")
    assert data(storage) == of(OLD, NEW)
    with pytest.raises(StorageRefusedError):
        storage.delete_versions([version])
