"""Pruning with all versions: what is removed for good, and which hidden objects stay."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, cast

import pytest

from pgstash import events
from pgstash.errors import (
    ObjectNotFoundError,
    StorageError,
    StorageRefusedError,
    StorageUnreachableError,
)
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
    from collections.abc import Callable, Iterable, Iterator, Sequence

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
    sources: Sequence[Identity] = (SHOP,),
    heard: list[events.Event] | None = None,
) -> list[events.Event]:
    heard = [] if heard is None else heard
    plan = prune.Plan(
        "db",
        retention.Policy(days=7, last=last),
        sweep_after_days=7,
        choose=lambda _: sources,
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


def test_the_record_of_a_failure_is_removed_for_good(storage: AllOfIt) -> None:
    """Its source may have lacked the identifier: the server did not answer."""
    store(storage, OLD, NEW)
    record = companion(OLDER, "failure.json.gz")
    young, foreign = companion(YOUNG, "failure.json.gz"), companion(OLD, "failure.json.gz")
    nameless = {"database": "shop", "host": "db1", "port": "5432"}
    for key, source in ((record, nameless), (young, nameless), (foreign, BLOG.metadata())):
        storage.put(key, b"{}", {"id": ID, **source})
    storage.delete([young, foreign])
    run(storage, NOW + timedelta(days=2))
    assert data(storage) == {*of(NEW), young, foreign}
    assert markers(storage) == {young, foreign}


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


PROOF = "proof_20200202_000000.json.gz"


def test_a_stray_companion_does_not_take_the_proof_of_a_hidden_backup() -> None:
    storage = cast("AllOfIt", VersionedMemory())
    store(storage, OLD, NEW)
    storage.put(companion(OLD, PROOF), b"{}", {"id": ID})
    stray = f"db/{OLD}.{'f' * 16}.manifest.json.gz"
    storage.put(stray, b"", {"id": "f" * 16})
    hidden = {*of(OLD), companion(OLD, PROOF), stray}
    storage.delete(sorted(hidden))
    assert [line.split(" (")[0] for line in lines(run(storage))] == [f"{STAYS}1 backup"]
    assert data(storage) == {*hidden, *of(NEW)}


def test_an_overwritten_hidden_backup_is_as_proven_as_its_earlier_version() -> None:
    storage = cast("AllOfIt", VersionedMemory())
    store(storage, OLD, NEW)
    storage.put(companion(OLD, PROOF), b"{}", {"id": ID})
    storage.put(archive(OLD), b"bad", {"id": "f" * 16, **encoded(SHOP.metadata())})
    storage.put(f"db/{OLD}.{'f' * 16}.globals.gz", b"", {"id": "f" * 16})
    storage.delete([*of(OLD), companion(OLD, PROOF)])
    run(storage)
    assert data(storage) >= {*of(OLD, NEW), companion(OLD, PROOF)}


def test_a_proof_of_another_backup_of_that_name_does_not_replace_a_hidden_proven_one() -> None:
    storage = cast("AllOfIt", VersionedMemory())
    store(storage, OLD, NEW)
    storage.put(companion(OLD, PROOF), b"{}", {"id": ID})
    storage.delete([*of(OLD), companion(OLD, PROOF)])
    # Its manifest is hidden, and the proof is that of a backup that failed to take the name.
    storage.put(f"db/{NEW}.{'f' * 16}.{PROOF}", b"{}", {"id": "f" * 16})
    storage.delete([companion(NEW)])
    run(storage)
    assert data(storage) >= {*of(OLD, NEW), companion(OLD, PROOF)}


def test_a_companion_of_another_backup_of_that_name_is_not_removed_with_it() -> None:
    storage = cast("AllOfIt", VersionedMemory())
    store(storage, OLD, NEW)
    other = f"db/{OLD}.{'f' * 16}.globals.gz"
    storage.put(other, b"", {"id": "f" * 16, **encoded(BLOG.metadata())})
    storage.delete([*of(OLD), other])
    run(storage)
    run(storage, LATER)
    assert data(storage) == {*of(NEW), other}


def test_a_hidden_backup_stays_if_the_newest_one_was_overwritten_by_nothing() -> None:
    storage = cast("AllOfIt", VersionedMemory())
    store(storage, OLDER, OLD, NEW)
    storage.put(archive(NEW), b"", {"id": ID, **encoded(SHOP.metadata())})
    storage.delete(sorted(of(OLDER, OLD)))
    run(storage)
    assert data(storage) == of(OLD, NEW)


def test_if_no_backup_is_visible_that_is_reported() -> None:
    storage = cast("AllOfIt", VersionedMemory())
    store(storage, OLDER, OLD, NEW)
    storage.delete(sorted(of(OLDER, OLD, NEW)))
    [warning] = lines(run(storage, LATER, sources=()))
    assert warning.startswith("No backup is visible. Hidden by delete markers: 3 backups (")
    assert data(storage) == of(OLDER, OLD, NEW)


class Incomplete(VersionedMemory):
    """Lists only the versions that ``may_list`` selects, as if the listing ended too early."""

    def may_list(self, version: ObjectVersion) -> bool:
        return version.key < archive(NEW)

    def versions(self, prefix: str) -> Iterator[ObjectVersion]:
        return filter(self.may_list, super().versions(prefix))


class WithoutCurrent(Incomplete):
    """Does not list what is visible of one archive."""

    def may_list(self, version: ObjectVersion) -> bool:
        return version.key != archive(OLDER) or not version.current


class Unversioned(Incomplete):
    """Returns the listing of objects to a request for versions, which holds no version."""

    def may_list(self, version: ObjectVersion) -> bool:
        return not version.key


class WithoutPrefix(VersionedMemory):
    """Lists the whole bucket."""

    def versions(self, prefix: str) -> Iterator[ObjectVersion]:
        del prefix
        return super().versions("")


@pytest.mark.parametrize("kind", [Incomplete, Unversioned])
def test_a_listing_of_versions_without_the_newest_backup_removes_nothing(
    kind: type[Incomplete],
) -> None:
    storage = kind()
    store(storage, OLD, NEW)
    storage.delete(sorted(of(OLD)))
    with pytest.raises(StorageRefusedError, match=f"lacks {NEW}.sql.gz: no version was removed"):
        run(storage)
    assert storage.deletions == []


def test_what_no_listed_marker_hides_stays() -> None:
    storage = WithoutCurrent()
    store(storage, OLDER, OLD, NEW)
    storage.put(archive(OLDER), b"bad", {"id": ID, **encoded(SHOP.metadata())})
    storage.delete(sorted(of(OLD)))
    # The rules see OLDER and NEW, and keep both; with OLD, they would not keep OLDER.
    run(storage, last=2)
    assert storage.deletions == []


def test_an_object_outside_of_the_prefix_is_not_touched() -> None:
    storage = WithoutPrefix()
    store(storage, NEW)
    outside = f"{OLD}.sql.gz"
    storage.put(outside, b"data", {"id": ID, **encoded(SHOP.metadata())})
    storage.delete([outside])
    run(storage)
    assert storage.deletions == []


class Suspended(VersionedMemory):
    """Gives markers no id of their own, as a bucket does while its versioning is suspended."""

    def versions(self, prefix: str) -> Iterator[ObjectVersion]:
        for each in super().versions(prefix):
            yield replace(each, version_id="null") if each.is_marker else each


def test_a_marker_whose_id_may_become_that_of_an_object_stays() -> None:
    storage = Suspended()
    store(storage, OLD, NEW)
    storage.delete([*of(OLD), archive(OLDER)])
    [line] = lines(run(storage))
    assert line.startswith(f"{REMOVED}1 backup")
    assert not any(each.version_id == "null" for request in storage.deletions for each in request)


class Ignorant(VersionedMemory):
    """Deletes the current object, whatever version is meant."""

    def delete_versions(self, which: Iterable[ObjectVersion]) -> None:
        self.delete([each.key for each in which])


def test_a_store_that_ignores_the_version_loses_nothing_and_is_noticed() -> None:
    storage = Ignorant()
    store(storage, OLD, NEW)
    with pytest.raises(StorageRefusedError, match=f"version of {archive(OLD)} still exists"):
        run(storage)
    assert data(cast("AllOfIt", storage)) == of(OLD, NEW)
    assert {each.key for each in storage.list("")} == of(NEW)


class Breaking(VersionedMemory):
    """Breaks when it removes the first marker."""

    def delete_versions(self, which: Iterable[ObjectVersion]) -> None:
        versions = list(which)
        if any(each.is_marker for each in versions):
            raise StorageUnreachableError("gone")
        super().delete_versions(versions)


def test_what_was_removed_is_reported_even_if_the_store_goes_away() -> None:
    storage = Breaking()
    store(storage, OLD, NEW)
    heard: list[events.Event] = []
    with pytest.raises(StorageUnreachableError):
        run(storage, heard=heard)
    assert lines(heard) == [f"{REMOVED}1 backup ({OLD}.sql.gz), 2 versions"]


class LockedVersion(VersionedMemory):
    """Has a lock on the first version of an archive alone."""

    def locked_until(self, key: str, version_id: str | None = None) -> datetime | None:
        return LATER if (key, version_id) == (archive(OLD), "v2") else None


def test_a_lock_of_an_earlier_version_of_the_archive_keeps_all_of_them() -> None:
    storage = LockedVersion()
    store(storage, OLD, NEW)
    storage.put(archive(OLD), b"bad", {"id": ID, **encoded(SHOP.metadata())})
    storage.delete(sorted(of(OLD)))
    [line] = lines(run(storage))
    assert line.startswith("Not removed, because the store has locked 1 expired item: ")
    assert storage.deletions == []


class ProofGone(VersionedMemory):
    """Lists a proof that does not exist any more."""

    def head_version(self, version: ObjectVersion) -> StoredObject:
        if version.key == companion(NEW, PROOF):
            raise ObjectNotFoundError("gone")
        return super().head_version(version)


def test_no_version_is_removed_for_a_proof_that_is_only_listed() -> None:
    storage = ProofGone()
    store(storage, OLD, NEW)
    storage.put(companion(NEW, PROOF), b"{}", {"id": ID})
    storage.delete(sorted(of(OLD)))
    with pytest.raises(ObjectNotFoundError, match=rf"{PROOF} is listed but does not exist"):
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


@pytest.mark.parametrize(
    ("version_id", "truncated"), [("a", "true"), ("", "false")], ids=["same page", "no id"]
)
def test_a_listing_that_repeats_itself_or_lacks_ids_is_refused(
    s3: Callable[..., S3Storage], http: HttpProxy, version_id: str, truncated: str
) -> None:
    body = (
        "<ListVersionsResult><Name>b</Name><NextKeyMarker>db/1</NextKeyMarker>"
        f"<IsTruncated>{truncated}</IsTruncated><Version><Key>db/1</Key>"
        f"<VersionId>{version_id}</VersionId>"
        "<LastModified>2026-01-31T02:00:00.000Z</LastModified></Version></ListVersionsResult>"
    ).encode()
    answer = Rewrite(lambda _: Reply(200, [("Content-Type", "application/xml")], body))
    http.rule("ListObjectVersions", answer)
    with pytest.raises(StorageError, match="the response cannot be read"):
        list(s3(endpoint=http.endpoint, retry_attempts=0).versions("db/"))
    assert len(http.requests) <= 2


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
