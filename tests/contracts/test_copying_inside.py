"""Copies inside one store: it copies the bytes itself, and what it copied is compared."""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, Any

import pytest

from pgstash import events
from pgstash.commands.copying import Request as CopyRequest
from pgstash.commands.copying import copy_backups
from pgstash.copying import run as copying
from pgstash.copying.place import Place
from pgstash.errors import ConfigurationError, CorruptedError, StorageRefusedError
from pgstash.format import metadata
from pgstash.repository import catalog
from pgstash.repository.access import Access
from pgstash.runtime import Runtime
from pgstash.settings import load
from pgstash.storage.interface import Original
from pgstash.storage.memory import MemoryStorage
from pgstash.storage.s3.config import S3Config
from support.proxy import Answer, Drop, HttpProxy, Reply, Request, Rewrite, Rule
from support.stored import CLOSING, Made, make
from support.tiers import later

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from pgstash.storage.interface import Storage
    from pgstash.storage.s3.storage import S3Storage
    from support.azurite import AzuriteServer
    from support.swift import SwiftServer

MIB = 1024 * 1024
PART = 5 * MIB
NO_KEY = Access(None, unverified=False, only_encrypted=False)
LARGE = bytes(range(256)) * (2 * PART // 256) + b"the end"
SOURCE = {"source": "shop"}


@pytest.fixture
def http(swift_server: SwiftServer) -> Iterator[HttpProxy]:
    with HttpProxy(swift_server.port) as proxy:
        yield proxy


class Scene:
    """A primary and an empty copy in two buckets of one store, which a proxy stands before."""

    def __init__(self, http: HttpProxy, made: Callable[..., S3Storage], bucket: str) -> None:
        self.http = http
        self.heard: list[events.Event] = []
        self.direct = made()  # the source without the proxy
        self.source = made(endpoint=http.endpoint)
        self.target = made(self.heard.append, endpoint=http.endpoint, bucket=bucket)
        self.made = large(self.source)
        http.requests.clear()

    def copy(self, target: Storage | None = None, prefix: str = "p") -> copying.Copied:
        place = Place(target or self.target, prefix)
        plan = copying.Plan(Place(self.source, "p"), place, NO_KEY, lambda: None)
        backup = catalog.read(self.source, "p").backups[-1]
        return copying.run(plan, backup, Runtime(self.heard.append))

    @property
    def told(self) -> list[str]:
        return [each.message for each in self.heard if isinstance(each, events.Informed)]

    @property
    def asked(self) -> list[Request]:
        """The requests to copy a part."""
        return [each for each in self.http.requests if copies_part(each)]

    @property
    def sent(self) -> list[Request]:
        """The requests that sent a part."""
        found = [each for each in self.http.requests if each.operation == "UploadPart"]
        return [each for each in found if not copies_part(each)]

    def rule(self, action: Any, **more: int) -> Rule:
        found = self.http.rule("UploadPart", action, **more)
        found.matches = copies_part
        return found


def copies_part(request: Request) -> bool:
    return any(name.lower() == "x-amz-copy-source" for name in request.headers)


def header(request: Request, name: str) -> str:
    return {key.lower(): value for key, value in request.headers.items()}.get(name, "")


def large(storage: Storage) -> Made:
    """Store a backup whose archive has three parts."""
    made = make(CLOSING)
    facts = metadata.facts(made.manifest, 1.0)
    facts |= {"stored-bytes": str(len(LARGE)), metadata.SHA256: hashlib.sha256(LARGE).hexdigest()}
    storage.put(made.manifest_key, made.packed_manifest(), facts)
    storage.put(made.key, LARGE, {"id": made.manifest.id} | SOURCE)
    return made


def contents(storage: Storage, prefix: str = "p") -> dict[str, tuple[bytes, Mapping[str, str]]]:
    found = {}
    for each in storage.list(f"{prefix}/"):
        with storage.read(each.key) as chunks:
            data = b"".join(chunks)
        found[each.key.removeprefix(f"{prefix}/")] = (data, storage.head(each.key).metadata)
    return found


@pytest.fixture
def scene(http: HttpProxy, s3: Callable[..., S3Storage], swift_server: SwiftServer) -> Scene:
    return Scene(http, s3, swift_server.create_bucket())


def test_the_bytes_of_an_archive_are_not_sent_to_the_store_they_are_in(scene: Scene) -> None:
    done = scene.copy(prefix="other/place")
    assert contents(scene.target, "other/place") == contents(scene.source)
    companions = len(scene.made.packed_manifest())
    assert (done.sent_bytes, done.inside_bytes, done.verified) == (companions, len(LARGE), True)
    assert sum(each.size for each in scene.http.requests) < companions + 2000
    assert (len(scene.asked), scene.sent, scene.told) == (4, [], [])  # one is the trial
    assert {header(each, "x-amz-copy-source-range") for each in scene.asked} == {
        f"bytes=0-{PART - 1}",
        f"bytes={PART}-{2 * PART - 1}",
        f"bytes={2 * PART}-{len(LARGE) - 1}",
    }
    assert all(header(each, "x-amz-copy-source-if-match") for each in scene.asked)
    commits = [each for each in scene.http.requests if each.operation == "CompleteMultipartUpload"]
    assert [header(each, "if-none-match") for each in commits] == ["*"]


@pytest.mark.long
def test_an_archive_of_one_part_is_sent(scene: Scene) -> None:
    scene.source.put(scene.made.key, scene.made.archive, {"id": scene.made.manifest.id})
    facts = metadata.facts(scene.made.manifest, 1.0)
    scene.source.put(scene.made.manifest_key, scene.made.packed_manifest(), facts)
    assert scene.copy().inside_bytes == 0
    assert (len(scene.sent), scene.asked, scene.told) == (1, [], [])
    assert contents(scene.target) == contents(scene.source)


def test_another_store_gets_the_bytes(scene: Scene, s3: Callable[..., S3Storage]) -> None:
    done = scene.copy(s3(), prefix="elsewhere")  # the same store by another address
    assert (done.inside_bytes, scene.asked, scene.told) == (0, [], [])
    assert contents(s3(), "elsewhere") == contents(scene.source)
    target = MemoryStorage()
    assert scene.copy(target).inside_bytes == 0
    assert contents(target) == contents(scene.source)


REFUSALS = {
    "no permission": (Answer(403, "AccessDenied"), "the store denies access (AccessDenied"),
    "not supported": (Answer(501, "NotImplemented"), "NotImplemented"),
    "not found": (Answer(404, "NoSuchKey"), "there is no such object"),
    "down": (Answer(503, "SlowDown"), "SlowDown"),
    "cut": (Drop(forward=False), "the connection broke"),
}


@pytest.mark.parametrize("kind", later(REFUSALS, "not supported", "not found", "down"))
def test_a_store_that_does_not_copy_gets_the_bytes_and_is_asked_no_more(
    scene: Scene, kind: str
) -> None:
    action, reason = REFUSALS[kind]
    scene.rule(action)
    done = scene.copy()
    assert contents(scene.target) == contents(scene.source)
    assert (done.inside_bytes, done.verified) == (0, True)
    assert done.sent_bytes == len(LARGE) + len(scene.made.packed_manifest())
    [told] = scene.told
    assert told.startswith("Sending the bytes through this host: cannot copy part ")
    assert reason in told
    scene.http.requests.clear()
    scene.copy(prefix="again")
    assert (len(scene.sent), scene.asked, len(scene.told)) == (3, [], 1)


@pytest.mark.parametrize("forward", [pytest.param(False, marks=pytest.mark.long), True])
def test_a_connection_that_breaks_once_is_no_reason_to_send(scene: Scene, *, forward: bool) -> None:
    scene.rule(Drop(forward=forward), skip=2, times=1)
    assert scene.copy().inside_bytes == len(LARGE)
    assert (scene.sent, scene.told) == ([], [])
    assert contents(scene.target) == contents(scene.source)


@pytest.mark.long
def test_a_store_that_knows_no_condition_copies_all_the_same(scene: Scene) -> None:
    rule = scene.rule(Answer(501, "NotImplemented"))
    rule.matches = lambda each: bool(header(each, "x-amz-copy-source-if-match"))
    assert scene.copy().inside_bytes == len(LARGE)
    assert (scene.sent, scene.told) == ([], [])


def other_etag(reply: Reply) -> Reply:
    """Report what is no MD5 of the bytes, as a store does that encrypts them with a key of KMS."""
    other = hashlib.sha256(reply.body).hexdigest()[:32].encode()
    return Reply(reply.status, reply.headers, re.sub(rb"[0-9a-f]{32}", other, reply.body))


def test_a_part_whose_md5_is_not_that_of_the_original_is_sent(scene: Scene) -> None:
    scene.rule(Rewrite(other_etag))
    done = scene.copy()
    assert (done.inside_bytes, len(scene.sent)) == (0, 3)
    assert contents(scene.target) == contents(scene.source)
    [told] = scene.told
    assert "it does not report the MD5 of the original" in told


def test_a_store_that_lists_other_parts_than_it_copied_gets_the_bytes(scene: Scene) -> None:
    scene.http.rule("ListParts", Rewrite(other_etag), times=1)
    done = scene.copy()
    assert (done.inside_bytes, len(scene.asked), len(scene.sent)) == (0, 1, 3)
    assert contents(scene.target) == contents(scene.source)
    [told] = scene.told
    assert "it does not list the part as it reported it" in told


def test_the_trial_leaves_no_upload(scene: Scene) -> None:
    scene.copy()
    assert list(scene.target.pending("p/")) == []
    assert scene.http.count("CreateMultipartUpload") == 2
    scene.http.requests.clear()
    scene.copy(prefix="again")
    assert scene.http.count("CreateMultipartUpload") == 1
    assert len(scene.asked) == 3


@pytest.mark.long
def test_a_trial_that_cannot_be_removed_is_reported(scene: Scene) -> None:
    scene.http.rule("AbortMultipartUpload", Answer(403, "AccessDenied"))
    assert scene.copy().inside_bytes == len(LARGE)
    [left] = [each for each in scene.heard if isinstance(each, events.UploadLeftBehind)]
    assert [each.upload_id for each in scene.target.pending("p/")] == [left.upload_id]


@pytest.mark.parametrize("operation", later(["CreateMultipartUpload", "ListParts"], "ListParts"))
def test_a_trial_that_fails_is_no_failure_of_the_copy(scene: Scene, operation: str) -> None:
    first = 1 if operation == "CreateMultipartUpload" else 0
    scene.http.rule(operation, Answer(403, "AccessDenied"), skip=first, times=1)
    assert scene.copy().inside_bytes == 0
    assert contents(scene.target) == contents(scene.source)
    [told] = scene.told
    assert "the store denies access" in told


def test_a_response_without_a_result_is_no_copy(scene: Scene) -> None:
    scene.rule(Rewrite(lambda reply: Reply(reply.status, reply.headers, b"")))
    assert scene.copy().inside_bytes == 0
    assert contents(scene.target) == contents(scene.source)


@pytest.mark.parametrize("conditional", [True, pytest.param(False, marks=pytest.mark.long)])
def test_other_bytes_than_those_that_were_read_are_never_copied(
    scene: Scene, *, conditional: bool
) -> None:
    """The archive is replaced when its bytes were read, before the store copies the last part."""
    expected = contents(scene.source)
    replaced: list[Request] = []

    def without_condition(request: Request) -> bool:
        is_last = f"-{len(LARGE) - 1}" in header(request, "x-amz-copy-source-range")
        if is_last and not replaced:
            replaced.append(request)
            scene.direct.put(scene.made.key, LARGE[::-1], {"id": scene.made.manifest.id})
        has_condition = bool(header(request, "x-amz-copy-source-if-match"))
        return not conditional and copies_part(request) and has_condition

    scene.http.rule("UploadPart", Answer(501, "NotImplemented")).matches = without_condition
    done = scene.copy()
    assert replaced
    assert done.inside_bytes == 2 * PART
    assert contents(scene.target) == expected
    [told] = scene.told
    assert ("the original was replaced" if conditional else "not report the MD5") in told


def test_a_damaged_archive_is_not_copied_inside_the_store(scene: Scene) -> None:
    scene.source.put(scene.made.key, LARGE[:-1] + b"?", {"id": scene.made.manifest.id})
    with pytest.raises(CorruptedError, match="its bytes do not have the SHA-256"):
        scene.copy()
    assert scene.asked
    assert contents(scene.target) == {}
    assert list(scene.target.pending("p/")) == []


def test_a_copy_inside_the_store_that_is_stopped_leaves_nothing(scene: Scene) -> None:
    scene.http.rule("CompleteMultipartUpload", Answer(403, "AccessDenied"))
    with pytest.raises(StorageRefusedError, match="denies access"):
        scene.copy()
    assert scene.made.key not in [each.key for each in scene.target.list("p/")]
    assert list(scene.target.pending("p/")) == []


@pytest.mark.long
def test_another_real_store_copies_inside_or_gets_the_bytes(seaweedfs: S3Storage) -> None:
    large(seaweedfs)
    inside: list[int] = []
    kept: list[int] = []
    [found] = [each for each in seaweedfs.list("p/") if each.size == len(LARGE)]
    original = Original(seaweedfs, seaweedfs.head(found.key), inside.append, kept.append)
    with seaweedfs.upload_copy("copy", original) as upload:
        upload.write(LARGE)
        upload.commit()
    with seaweedfs.read("copy") as chunks:
        assert b"".join(chunks) == LARGE
    assert seaweedfs.head("copy").metadata == seaweedfs.head(found.key).metadata
    assert sum(inside) in (0, len(LARGE))


@pytest.fixture
def primary(
    swift_server: SwiftServer,
    s3_bucket: str,
    s3: Callable[..., S3Storage],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> str:
    """A bucket with a backup, configured in the environment."""
    large(s3())
    monkeypatch.chdir(tmp_path)
    for name, value in {
        "S3_ENDPOINT": swift_server.endpoint,
        "S3_BUCKET": s3_bucket,
        "S3_ACCESS_KEY_ID": swift_server.access_key_id,
        "S3_SECRET_ACCESS_KEY": swift_server.secret_access_key,
        "S3_PART_SIZE": "5",
        "BACKUP_PREFIX": "p",
    }.items():
        monkeypatch.setenv(name, value)
    return s3_bucket


def copy_to(url: str) -> list[events.CopySucceeded]:
    heard: list[events.Event] = []
    settings = load(needs=["storage"], only_reads=True)
    copy_backups(settings, CopyRequest([url]), Runtime(heard.append))
    return [each for each in heard if isinstance(each, events.CopySucceeded)]


def test_a_url_is_opened_with_the_settings_of_the_primary(
    primary: str, s3: Callable[..., S3Storage], swift_server: SwiftServer
) -> None:
    bucket = swift_server.create_bucket()
    for url, place in ((f"s3://{bucket}", "p"), (f"s3://{bucket}/a/b/", "a/b")):
        [copied] = copy_to(url)
        assert copied.copy == url
        assert copied.inside_bytes == len(LARGE)
        assert contents(s3(bucket=bucket), place) == contents(s3())
    with pytest.raises(ConfigurationError, match="is the place that the backups are in"):
        copy_to(f"s3://{primary}/p")


@pytest.mark.long
def test_a_url_may_name_a_store_of_another_kind(
    primary: str,
    s3: Callable[..., S3Storage],
    azure: Callable[..., Storage],
    azurite_server: AzuriteServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    del primary
    url = f"{azure().url().rstrip('/')}/elsewhere"
    monkeypatch.setenv("AZURE_STORAGE_ENDPOINT", azurite_server.endpoint)
    monkeypatch.setenv("AZURE_STORAGE_KEY", azurite_server.key)
    [copied] = copy_to(url)
    assert copied.inside_bytes == 0
    assert contents(azure(), "elsewhere") == contents(s3())


def test_a_url_whose_store_is_not_configured_is_explained(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STORAGE_URL", tmp_path.as_uri())
    with pytest.raises(ConfigurationError) as caught:
        copy_to("s3://bucket/prefix")
    problems = "\n".join(caught.value.problems)
    assert "S3_ENDPOINT is missing" in problems
    assert "set COPY_<NAME>_STORAGE_URL" in problems
    for wrong, problem in (
        ("s3://key:hunter2@bucket", "must not contain credentials"),
        ("ftp://host/x", "does not begin with file://"),
        ("offsite", "is not in COPY_TO"),
        (str(tmp_path), "is the folder that the backups are in"),
    ):
        with pytest.raises(ConfigurationError, match=f"--to .*{problem}") as caught:
            copy_to(wrong)
        assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("endpoints", "same"),
    [
        (("https://s3.eu-central-1.amazonaws.com", "https://s3.us-east-1.amazonaws.com"), True),
        ((None, "https://s3.us-east-1.amazonaws.com/"), True),
        (("https://s3.cn-north-1.amazonaws.com.cn", "https://s3.us-east-1.amazonaws.com"), False),
        (("https://store.example", "http://store.example:443"), True),
        (("https://store.example", "https://store.example:9000"), False),
        (("https://store.example", "https://amazonaws.com.store.example"), False),
    ],
)
def test_one_store_may_have_several_endpoints(
    endpoints: tuple[str | None, str | None], *, same: bool
) -> None:
    first, second = (S3Config(each, "b", "r", None, None).provider for each in endpoints)
    assert (first == second) == same
