"""A copy goes on with an upload to S3 that was interrupted; what is there is compared first."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest

from contracts.test_copying_inside import LARGE, PART, Scene, contents, copies_part
from pgstash.errors import CorruptedError, PgstashError, StorageRefusedError
from support.proxy import Answer, Drop, HttpProxy, Request

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from pgstash.storage.s3.storage import S3Storage
    from support.swift import SwiftServer

PIECES = {1: LARGE[:PART], 2: LARGE[PART : 2 * PART], 3: LARGE[2 * PART :]}
GOING_ON = "Going on with an interrupted upload to s3://"


@pytest.fixture
def http(swift_server: SwiftServer) -> Iterator[HttpProxy]:
    with HttpProxy(swift_server.port) as proxy:
        yield proxy


class Interrupted(Scene):
    """A scene with unfinished uploads to the key of the copy."""

    def __init__(
        self, http: HttpProxy, made: Callable[..., S3Storage], server: SwiftServer
    ) -> None:
        self.server, self.bucket = server, server.create_bucket()
        super().__init__(http, made, self.bucket)
        self.plain = made(bucket=self.bucket)  # the target without the proxy

    def upload(self, pieces: Mapping[int, bytes]) -> str:
        """Begin an upload as an earlier process did; return its id."""
        client = self.server.client
        place: Any = {"Bucket": self.bucket, "Key": self.made.key}
        metadata = dict(self.source.head(self.made.key).metadata)
        upload = client.create_multipart_upload(**place, Metadata=metadata)["UploadId"]
        for number, data in pieces.items():
            client.upload_part(**place, UploadId=upload, PartNumber=number, Body=data)
        return str(upload)

    def complete(self, upload: str) -> None:
        """Send what an upload lacks, and commit it, as the process that began it does."""
        client = self.server.client
        place: Any = {"Bucket": self.bucket, "Key": self.made.key, "UploadId": upload}
        parts: list[Any] = [
            {
                "PartNumber": number,
                "ETag": client.upload_part(**place, PartNumber=number, Body=data)["ETag"],
            }
            for number, data in PIECES.items()
        ]
        client.complete_multipart_upload(**place, MultipartUpload={"Parts": parts})

    @property
    def pending(self) -> list[str]:
        return [each.upload_id for each in self.target.pending("p/")]

    def sends(self) -> None:
        """Let the store copy nothing itself."""
        self.rule(Answer(501, "NotImplemented"))

    @property
    def sent_sizes(self) -> list[int]:
        return sorted(each.size for each in self.sent)


@pytest.fixture
def scene(http: HttpProxy, s3: Callable[..., S3Storage], swift_server: SwiftServer) -> Interrupted:
    return Interrupted(http, s3, swift_server)


def test_only_what_is_missing_is_sent(scene: Interrupted) -> None:
    scene.upload({1: PIECES[1], 2: PIECES[2]})
    scene.sends()
    done = scene.copy()
    assert scene.sent_sizes == [len(PIECES[3])]
    assert done.sent_bytes == len(PIECES[3]) + len(scene.made.packed_manifest())
    assert (done.verified, done.inside_bytes) == (True, 0)
    assert contents(scene.target) == contents(scene.source)
    assert scene.pending == []
    assert any(each.startswith(GOING_ON) and "2 parts" in each for each in scene.told)


def test_only_what_is_missing_is_copied_inside_the_store(scene: Interrupted) -> None:
    scene.upload({1: PIECES[1], 3: PIECES[3]})
    done = scene.copy()
    assert (scene.sent, done.inside_bytes) == ([], PART)
    assert done.sent_bytes == len(scene.made.packed_manifest())
    assert contents(scene.target) == contents(scene.source)
    assert scene.pending == []


def test_a_damaged_part_is_sent_again(scene: Interrupted) -> None:
    scene.upload({1: PIECES[1], 2: PIECES[2][:-1] + b"?"})
    scene.sends()
    scene.copy()
    assert scene.sent_sizes == [len(PIECES[3]), PART]
    assert contents(scene.target) == contents(scene.source)


@pytest.mark.parametrize(
    "pieces",
    [
        {1: PIECES[1][:-1] + b"?", 2: PIECES[2]},
        {1: LARGE[: PART + 1]},
        {2: PIECES[2]},
        {1: PIECES[1], 4: b"more"},
        {},
    ],
    ids=["other bytes", "other size", "no first part", "more parts", "nothing"],
)
def test_the_upload_of_someone_else_is_not_touched(
    scene: Interrupted, pieces: Mapping[int, bytes]
) -> None:
    other = scene.upload(pieces)
    scene.sends()
    scene.copy()
    assert scene.sent_sizes == [len(PIECES[3]), PART, PART]
    assert contents(scene.target) == contents(scene.source)
    assert scene.pending == [other]
    listed = scene.server.client.list_parts(
        Bucket=scene.bucket, Key=scene.made.key, UploadId=other
    ).get("Parts", [])
    assert {each["PartNumber"]: each["Size"] for each in listed} == {
        number: len(data) for number, data in pieces.items()
    }
    assert scene.http.count("AbortMultipartUpload") == 1  # of the trial
    assert not any(each.startswith(GOING_ON) for each in scene.told)


def test_the_one_with_most_parts_is_gone_on_with(scene: Interrupted) -> None:
    least = scene.upload({1: PIECES[1]})
    scene.upload({1: PIECES[1], 2: PIECES[2]})
    scene.sends()
    scene.copy()
    assert scene.sent_sizes == [len(PIECES[3])]
    assert scene.pending == [least]


def test_a_copy_that_fails_again_leaves_it_for_the_next(scene: Interrupted) -> None:
    earlier = scene.upload({1: PIECES[1], 2: PIECES[2]})
    failing = scene.http.rule("CompleteMultipartUpload", Answer(403, "AccessDenied"))
    with pytest.raises(StorageRefusedError):
        scene.copy()
    assert scene.pending == [earlier]
    scene.http.rules.remove(failing)
    scene.http.requests.clear()
    scene.copy()
    assert (scene.sent, scene.asked, scene.pending) == ([], [], [])
    assert contents(scene.target) == contents(scene.source)


def test_a_damaged_original_is_not_copied_whatever_is_there(scene: Interrupted) -> None:
    scene.upload({1: PIECES[1]})
    damaged = LARGE[:-1] + b"?"
    scene.direct.put(scene.made.key, damaged, scene.source.head(scene.made.key).metadata)
    with pytest.raises(CorruptedError, match="SHA-256"):
        scene.copy()
    assert contents(scene.target) == {}


def test_a_key_that_may_not_list_uploads_begins_anew(scene: Interrupted) -> None:
    earlier = scene.upload({1: PIECES[1], 2: PIECES[2]})
    scene.http.rule("ListMultipartUploads", Answer(403, "AccessDenied"))
    scene.copy()
    assert contents(scene.target) == contents(scene.source)
    scene.http.rules.clear()
    assert scene.pending == [earlier]


def test_two_processes_may_send_the_same_upload(scene: Interrupted) -> None:
    """The one that began it completes it while the other one sends: both have the copy."""
    earlier = scene.upload({1: PIECES[1]})
    scene.sends()

    def completed(request: Request) -> bool:
        if not copies_part(request):
            scene.complete(earlier)
        return not copies_part(request)

    scene.http.rule("UploadPart", Drop(forward=True), times=1).matches = completed
    scene.copy()
    assert scene.pending == []
    assert contents(scene.plain)[scene.made.manifest.archive][0] == LARGE


@pytest.mark.long
def test_random_faults_leave_nothing_half(scene: Interrupted) -> None:
    """Whatever fails, the next copy goes on, and what is visible is whole."""
    chance = random.Random(20261130)  # noqa: S311 - a test, and no secret
    scene.sends()
    actions: list[Any] = [
        Answer(403, "AccessDenied"),
        Answer(500, "InternalError"),
        Drop(forward=True),
        Drop(forward=False),
    ]
    for round_ in range(20):
        prefix, failures = f"round{round_}", 0
        while True:
            scene.http.rules.clear()
            scene.sends()
            scene.http.rule("any operation", chance.choice(actions), skip=chance.randrange(40))
            try:
                scene.copy(prefix=prefix)
            except PgstashError:
                failures += 1
                assert failures < 200
            visible = contents(scene.plain, prefix)
            if scene.made.manifest.archive in visible:
                break
        scene.http.rules.clear()
        assert visible == contents(scene.source)
