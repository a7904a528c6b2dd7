"""The preflight of a store: on each of them, and on one that refuses."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from pgstash import events
from pgstash.check import storage as checks
from pgstash.check.finding import Finding
from pgstash.errors import StorageRefusedError
from pgstash.storage.memory import MemoryStorage
from pgstash.storage.s3.storage import S3Storage
from support.proxy import Answer, Change, HttpProxy

if TYPE_CHECKING:
    from pathlib import Path

    from pgstash.storage.interface import Storage
    from support.swift import SwiftServer

DENIED = Answer(403, "AccessDenied")
TOPICS = ["store TLS", "bucket", "write", "read", "list", "store clock", "delete", "multipart"]


def now() -> datetime:
    return datetime.now(UTC)


def look(
    storage: Storage, *, clock: Callable[[], datetime] = now, endpoint: str | None = None
) -> dict[str, Finding]:
    plan = checks.Plan("team/db", endpoint, clock, os.urandom, None, 10_000)
    return {finding.topic: finding for finding in checks.look(plan, storage)}


def wrong(findings: dict[str, Finding]) -> dict[str, str]:
    return {topic: found.state for topic, found in findings.items() if found.state != "ok"}


def left(storage: Storage) -> tuple[list[str], list[str]]:
    return (
        [found.key for found in storage.list("")],
        [upload.key for upload in storage.pending("")],
    )


@pytest.fixture
def http(swift_server: SwiftServer) -> Iterator[HttpProxy]:
    with HttpProxy(swift_server.port) as proxy:
        yield proxy


@pytest.fixture
def behind(s3: Callable[..., S3Storage], http: HttpProxy) -> S3Storage:
    return s3(endpoint=http.endpoint, retry_attempts=0)


def test_a_store_that_works(storage: Storage) -> None:
    storage.put("team/db/backup_20200101_000000.sql.gz", b"theirs", {})
    findings = look(storage)
    topics = [*TOPICS[:1], "identity", *TOPICS[1:]] if isinstance(storage, S3Storage) else TOPICS
    assert list(findings) == topics
    assert wrong(findings) == {}
    assert left(storage) == (["team/db/backup_20200101_000000.sql.gz"], [])


@pytest.mark.parametrize(
    ("operation", "states"),
    [
        (
            "ListObjectsV2",
            {
                "bucket": "failure",
                **dict.fromkeys(
                    ["write", "read", "list", "store clock", "delete", "multipart"], "skipped"
                ),
            },
        ),
        (
            "PutObject",
            {
                "write": "failure",
                **dict.fromkeys(["read", "list", "store clock", "delete"], "skipped"),
            },
        ),
        ("GetObject", {"read": "failure", "multipart": "failure"}),
        pytest.param("CreateMultipartUpload", {"multipart": "failure"}, marks=pytest.mark.long),
        pytest.param("UploadPart", {"multipart": "failure"}, marks=pytest.mark.long),
        ("CompleteMultipartUpload", {"multipart": "failure"}),
        ("ListMultipartUploads", {"abandoned uploads": "warning"}),
    ],
)
def test_what_is_refused_is_named_and_nothing_is_left(
    operation: str,
    states: dict[str, str],
    behind: S3Storage,
    s3: Callable[..., S3Storage],
    http: HttpProxy,
) -> None:
    http.rule(operation, DENIED)
    findings = look(behind)
    assert wrong(findings) == states
    assert all(found.remedy for found in findings.values() if found.state == "failure")
    assert left(s3()) == ([], [])


def test_what_cannot_be_deleted_is_named(
    behind: S3Storage, s3: Callable[..., S3Storage], http: HttpProxy
) -> None:
    http.rule("DeleteObjects", DENIED)
    findings = look(behind)
    assert wrong(findings) == {"delete": "failure"}
    keys, pending = left(s3())
    assert pending == []
    assert all(re.fullmatch(r"team/db/pgstash-check-[0-9a-f]{16}(-upload)?", key) for key in keys)
    assert f"left behind: s3://{s3()._bucket}/{keys[0]}" in findings["delete"].found  # noqa: SLF001


def test_a_lock_of_the_bucket_is_no_failure(behind: S3Storage, http: HttpProxy) -> None:
    for operation in ("DeleteObject", "DeleteObjects"):
        http.rule(operation, Answer(409, "ObjectLockedByBucketPolicy"))
    findings = look(behind)
    assert wrong(findings) == {}
    assert findings["delete"].found == (
        "the store has locked the object; pruning removes it when the lock ends"
    )


def test_parts_that_cannot_be_aborted_are_a_warning(
    s3: Callable[..., S3Storage], http: HttpProxy
) -> None:
    said: list[events.Event] = []
    http.rule("AbortMultipartUpload", DENIED)
    findings = look(s3(endpoint=http.endpoint, retry_attempts=0, emit=said.append))
    assert wrong(findings) == {"abandoned uploads": "warning"}
    assert "s3:AbortMultipartUpload" in findings["abandoned uploads"].remedy
    assert any(isinstance(event, events.UploadLeftBehind) for event in said)


def test_bytes_that_change_on_the_way_are_a_failure(behind: S3Storage, http: HttpProxy) -> None:
    http.rule("GetObject", Change(lambda body: body.upper()))
    assert wrong(look(behind)) == {"read": "failure", "multipart": "failure"}


@pytest.mark.parametrize("minutes", [-10, 10])
def test_a_clock_that_differs_is_a_warning(minutes: int) -> None:
    findings = look(MemoryStorage(), clock=lambda: now() + timedelta(minutes=minutes))
    assert wrong(findings) == {"store clock": "warning"}
    way = "behind" if minutes > 0 else "ahead of"
    assert re.search(rf"(599|600|601) s {way} ours", findings["store clock"].found)


class Forgetful(MemoryStorage):
    """Keeps objects, and deletes none although it says so."""

    def delete(self, keys: object) -> None:
        """Do nothing."""


class Refusing(MemoryStorage):
    """Refuses to be listed for what was stored."""

    def check(self) -> None:
        raise StorageRefusedError("cannot list the bucket", hint="Allow it.")


def test_an_object_that_stays_although_it_was_deleted() -> None:
    assert wrong(look(Forgetful())) == {"delete": "failure"}


def test_a_bucket_that_refuses_keeps_its_remedy() -> None:
    finding = look(Refusing())["bucket"]
    assert (finding.state, finding.remedy) == ("failure", "Allow it.")


@pytest.mark.parametrize(
    ("endpoint", "state"),
    [
        (None, "ok"),
        ("https://s3.example.com", "ok"),
        ("http://127.0.0.1:9000", "ok"),
        ("http://[::1]:9000", "ok"),
        ("http://localhost:9000", "ok"),
        ("http://s3.example.com", "warning"),
        ("http://10.0.0.1:9000", "warning"),
    ],
)
def test_tls_to_the_store(endpoint: str | None, state: str) -> None:
    assert look(MemoryStorage(), endpoint=endpoint)["store TLS"].state == state


GIB = 1024**3


@pytest.mark.parametrize(
    ("size", "wanted", "parts", "state", "words"),
    [
        (GIB, None, 10_000, "ok", "8 MiB, 3 in memory: 24 MiB; one backup may have 78 GiB"),
        (1000 * GIB, None, 10_000, "ok", "128 MiB, 3 in memory: 384 MiB"),
        (100 * GIB, 5 * 1024**2, 10_000, "warning", "5 MiB, 3 in memory: 15 MiB; one backup may"),
    ],
)
def test_part_size_and_memory(
    size: int, wanted: int | None, parts: int, state: str, words: str
) -> None:
    plan = checks.Plan("team/db", None, lambda: datetime.now(UTC), os.urandom, wanted, parts)
    finding = checks.part_size(size, plan, None)
    assert finding.state == state
    assert words in finding.found
    assert ("13 or more" in finding.remedy) is (state == "warning")


def test_an_identity_that_nobody_has(
    s3: Callable[..., S3Storage], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://127.0.0.1:1")
    findings = look(s3(access_key_id=None, secret_access_key=None))
    assert wrong(findings) == {
        "identity": "failure",
        **dict.fromkeys(TOPICS[1:], "skipped"),
    }
    assert "S3_ACCESS_KEY_ID is not set, and there are none in" in findings["identity"].found
