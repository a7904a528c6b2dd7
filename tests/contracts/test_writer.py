"""A key of S3 that can neither read nor delete stores backups, and pruning cleans up after it."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from pgstash import events
from pgstash.check import storage as check
from pgstash.errors import ObjectExistsError, UploadError
from pgstash.prune import retention
from pgstash.prune import run as prune
from pgstash.repository import catalog
from pgstash.repository.owners import Owners
from pgstash.runtime import Runtime, utc_now
from pgstash.storage.memory import MemoryStorage
from pgstash.storage.s3.policy import Place, policy
from pgstash.storage.s3.storage import S3Storage
from support.policies import PolicyProxy
from support.proxy import Change, Drop

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pgstash.storage.interface import Storage
    from support.swift import SwiftServer

MIB = 1024 * 1024
PLAN = check.Plan(
    prefix="db",
    endpoint="http://127.0.0.1",
    now=utc_now,
    random=bytes,
    part_size=None,
    max_parts=10_000,
    only_writes=True,
)


@pytest.fixture
def proxy(swift_server: SwiftServer, s3_bucket: str) -> Iterator[PolicyProxy]:
    allowed = policy("writer", Place(s3_bucket, "db", "us-east-1"))
    with PolicyProxy(swift_server.port, policy=allowed) as http:
        yield http


@pytest.fixture
def writer(proxy: PolicyProxy, s3: Callable[..., S3Storage]) -> S3Storage:
    return s3(endpoint=proxy.endpoint, prefix="db/", may_read=False, retry_attempts=0)


def upload(storage: Storage, key: str, data: bytes = b"data") -> None:
    with storage.upload(key, metadata={"id": "ours"}, expected_size=len(data)) as sending:
        sending.write(data)
        sending.commit()


def test_an_upload_needs_no_permission_to_read(
    writer: S3Storage, proxy: PolicyProxy, s3: Callable[..., S3Storage]
) -> None:
    writer.check()
    upload(writer, "db/key2")
    upload(writer, "db/key")
    with pytest.raises(ObjectExistsError):
        upload(writer, "db/key", b"other")
    with s3().read("db/key") as chunks:
        assert b"".join(chunks) == b"data"
    assert proxy.refused == []
    assert proxy.count("HeadObject") == 0


def test_an_upload_whose_commit_was_not_answered_is_found_by_its_etag(
    writer: S3Storage, proxy: PolicyProxy
) -> None:
    proxy.rule("CompleteMultipartUpload", Drop(forward=True), times=1)
    upload(writer, "db/key", bytes(6 * MIB))
    assert [found.size for found in writer.list("db/key")] == [6 * MIB]
    assert proxy.count("CompleteMultipartUpload") == 1


@pytest.mark.parametrize("etag", [b"00000000000000000000000000000000-1", b"-1"])
def test_another_object_of_the_same_size_is_not_taken_for_it(
    writer: S3Storage, proxy: PolicyProxy, etag: bytes
) -> None:
    def changed(body: bytes) -> bytes:
        before, _, after = body.partition(b"<ETag>")
        return before + b"<ETag>" + etag + after[after.index(b"</ETag>") :] if after else body

    proxy.rule("ListObjectsV2", Change(changed))
    proxy.rule("CompleteMultipartUpload", Drop(forward=True), times=1)
    with pytest.raises(UploadError, match="cannot determine whether"):
        upload(writer, "db/key")


def test_check_tries_what_a_writer_does_and_nothing_else(
    writer: S3Storage, proxy: PolicyProxy
) -> None:
    found = {each.topic: each for each in check.look(PLAN, writer)}
    assert {topic for topic, each in found.items() if each.state == "skipped"} == {"read", "delete"}
    assert {topic for topic, each in found.items() if each.state not in ("ok", "skipped")} == set()
    assert proxy.refused == []
    assert len(list(writer.list("db/"))) == 2


def run(storage: Storage, heard: list[Any], **changes: Any) -> prune.Pruned:
    plan = prune.Plan(
        "db",
        retention.Policy(days=7),
        sweep_after_days=7,
        choose=lambda _backups: [],
        exclusive=nullcontext,
    )
    now = changes.pop("now", utc_now())
    runtime = Runtime(heard.append, now=lambda: now)
    return prune.run(replace(plan, **changes), storage, Owners(storage), runtime)


def test_what_check_left_is_swept_after_a_day() -> None:
    storage = MemoryStorage()
    for _ in check.look(PLAN, storage):
        pass
    left = [found.key for found in storage.list("")]
    assert len(left) == 2
    for other in ("db/pgstash-check-notes", "db/deeper/pgstash-check-0000000000000000"):
        storage.put(other, b"", {})
    heard: list[events.Event] = []
    assert run(storage, heard).swept == []
    tomorrow = utc_now() + timedelta(days=1)
    assert run(storage, heard, now=tomorrow, dry_run=True).swept == left
    assert len(list(storage.list("db/"))) == 4
    assert run(storage, heard, now=tomorrow).swept == left
    assert [found.key for found in storage.list("")] == [
        "db/deeper/pgstash-check-0000000000000000",
        "db/pgstash-check-notes",
    ]


def test_no_backup_is_asked_for_its_source() -> None:
    storage = MemoryStorage()
    storage.put("db/backup_20260101_000000.sql.gz", b"x", {"database": "shop"})
    owners = Owners(storage, may_read=False)
    [origin] = owners.origins(catalog.read(storage, "db").backups)
    assert origin.identity.database is None
