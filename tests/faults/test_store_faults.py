"""A store that refuses, breaks or goes away never holds a backup that is not whole."""

from __future__ import annotations

import re
import subprocess
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from faults.scene import (
    NAME,
    Bucket,
    Scene,
    archives_in,
    assert_failed,
    assert_nothing_left,
    assert_succeeds,
    complete_archives,
    wait_until,
)
from support import deviations
from support.fake_tools import MIB, FakePgDump
from support.proxy import (
    PASS,
    REFUSE,
    STALL,
    Answer,
    Behaviour,
    Change,
    Drop,
    HttpProxy,
    TcpProxy,
)
from support.tiers import later

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.proxy import Action

PARTS = 4  # of 5 MiB, that the fake's rows become compressed
LARGE = FakePgDump(size=24 * MIB, noisy=True)

BROKEN = Answer(500, "InternalError")
BUSY = Answer(503, "SlowDown")
DENIED = Answer(403, "AccessDenied")
LOST = Drop(forward=False)
# Each request of a backup that needs no more than one try, in the order of time.
REQUESTS = [
    "ListObjectsV2",
    "CreateMultipartUpload",
    "UploadPart",
    "PutObject",
    "ListParts",
    "HeadObject",
    "CompleteMultipartUpload",
]


# In the first tier those that write stand for all.
READS = ["ListObjectsV2", "CreateMultipartUpload", "ListParts", "HeadObject"]
MOSTLY_WRITES = later(REQUESTS, *READS)


@pytest.fixture
def scene(bucket_scene: Scene) -> Scene:
    """A bucket and a dump of several parts."""
    bucket_scene.fake(LARGE)
    return bucket_scene


@pytest.fixture
def broken(scene: Scene, http: HttpProxy) -> Scene:
    """The same, with the HTTP proxy in front of the bucket."""
    scene.settings["S3_ENDPOINT"] = http.endpoint
    return scene


@pytest.fixture
def cut(scene: Scene, tcp: TcpProxy) -> Scene:
    """The same, with the TCP proxy in front of the bucket."""
    scene.settings["S3_ENDPOINT"] = tcp.endpoint
    return scene


def assert_directly_succeeds(scene: Scene) -> None:
    """Once the store is well, the next run succeeds, of however little."""
    scene.fake(FakePgDump())
    assert_succeeds(scene, S3_ENDPOINT=scene.place.settings["S3_ENDPOINT"])


def test_the_dump_has_several_parts(broken: Scene, http: HttpProxy) -> None:
    """What all the other tests rest on."""
    assert_succeeds(broken)
    assert http.count("UploadPart") == PARTS
    # The last of them is the pruning's, after the backup.
    made = {request.operation for request in http.requests}
    assert made == {*REQUESTS, "ListMultipartUploads"}


# What the store answers.


@pytest.mark.parametrize("request_", MOSTLY_WRITES)
def test_what_may_pass_is_tried_again(request_: str, broken: Scene, http: HttpProxy) -> None:
    http.rule(request_, BUSY, times=1)
    http.rule(request_, BROKEN, times=1)
    said = assert_succeeds(broken)
    assert len(re.findall(r"WARNING .* failed .*; retry \d of 3 in", said)) == 2


@pytest.mark.parametrize(
    ("request_", "fault"),
    [
        *((each, BROKEN) for each in REQUESTS if each not in READS),
        *(pytest.param(each, BROKEN, marks=pytest.mark.long) for each in READS),
        # Of a commit whose every answer is lost another test tells.
        *(pytest.param(each, LOST, marks=pytest.mark.long) for each in REQUESTS[:-1]),
    ],
)
def test_what_does_not_pass(
    request_: str, fault: Answer | Drop, broken: Scene, http: HttpProxy
) -> None:
    rule = http.rule(request_, fault)
    done = broken.once(RETRY_ATTEMPTS="1")
    assert_failed(done, 20, "S3_ENDPOINT", "network", nothing_left=None)
    assert "retry 1 of 1" in done.stderr
    assert rule.applied >= 2
    assert complete_archives(broken.place) == []
    assert broken.place.unfinished() == broken.processes() == []
    if request_ != "HeadObject":  # which tells whether the manifest may go
        assert broken.place.objects() == {}


REFUSALS = {
    "denied": (DENIED, ["denies access", "S3_ACCESS_KEY_ID"]),
    "quota": (Answer(403, "QuotaExceeded"), ["quota", "shorten the retention"]),
    "full": (Answer(507, "InsufficientStorage"), ["full", "free space"]),
    "too large": (Answer(413, "EntityTooLarge"), ["EntityTooLarge"]),
    "clock": (Answer(403, "RequestTimeTooSkewed"), ["clock", "NTP"]),
}


@pytest.mark.parametrize("refusal", later(REFUSALS, "full", "quota", "too large", "clock"))
def test_a_refusal_is_not_tried_again(refusal: str, broken: Scene, http: HttpProxy) -> None:
    answer, words = REFUSALS[refusal]
    http.rule("UploadPart", answer, skip=1)
    done = broken.once()
    assert_failed(done, 21, *words, nothing_left=broken)
    assert "retry" not in done.stderr
    assert_directly_succeeds(broken)


@pytest.mark.parametrize("request_", MOSTLY_WRITES)
def test_a_denial(request_: str, broken: Scene, http: HttpProxy) -> None:
    http.rule(request_, DENIED)
    done = broken.once()
    assert_failed(done, 21, "denies access", "S3_ACCESS_KEY_ID", nothing_left=None)
    assert complete_archives(broken.place) == []
    assert broken.place.unfinished() == broken.processes() == []
    assert "retry" not in done.stderr


# A store whose errors have an empty Message, as those of Ceph's gateway.


def test_a_wrong_secret_without_a_message(broken: Scene, http: HttpProxy) -> None:
    deviations.REWORDED[0].play(http)
    done = broken.once(S3_SECRET_ACCESS_KEY="wrong-secret")
    assert_failed(done, 21, "SignatureDoesNotMatch", "S3_SECRET_ACCESS_KEY", nothing_left=broken)


def test_an_overload_without_a_message(broken: Scene, http: HttpProxy) -> None:
    rule = http.rule("UploadPart", Answer(503, "SlowDown", message=""), skip=1, times=1)
    said = assert_succeeds(broken)
    assert rule.applied == 1
    assert "retry 1 of 3" in said


def test_parts_that_are_gone_are_not_called_left_behind(broken: Scene, http: HttpProxy) -> None:
    http.rule("UploadPart", DENIED, skip=2)
    [of_ceph, *_] = deviations.GONE
    rule = of_ceph.play(http)
    done = broken.once()
    assert_failed(done, 21, "denies access", nothing_left=broken)
    assert rule.applied == 1
    assert "upload id" not in done.stderr


def test_an_upload_that_somebody_else_aborted(broken: Scene, http: HttpProxy) -> None:
    """As an over-eager lifecycle rule of the bucket does."""
    http.rule("UploadPart", Answer(404, "NoSuchUpload"), skip=2)
    done = broken.once()
    assert_failed(done, 22, "no longer knows the upload", "lifecycle", nothing_left=broken)


def test_an_abort_that_is_refused_is_told(broken: Scene, http: HttpProxy) -> None:
    http.rule("UploadPart", DENIED, skip=2)
    http.rule("AbortMultipartUpload", DENIED)
    done = broken.once()
    assert_failed(done, 21, "denies access", nothing_left=None)
    [left] = broken.place.unfinished()
    assert f"upload id: {left}" in done.stderr
    assert broken.place.objects() == {}


@pytest.mark.parametrize(
    ("settings", "status", "words"),
    [
        ({"S3_SECRET_ACCESS_KEY": "wrong-secret"}, 21, ["S3_SECRET_ACCESS_KEY"]),
        pytest.param(
            {"S3_ACCESS_KEY_ID": "nobody"}, 21, ["S3_ACCESS_KEY_ID"], marks=pytest.mark.long
        ),
        ({"S3_BUCKET": "there-is-no-such"}, 21, ["bucket does not exist", "S3_BUCKET"]),
        ({"S3_ENDPOINT": "http://127.0.0.1:1"}, 20, ["no connection", "S3_ENDPOINT"]),
        pytest.param(
            *({"S3_ENDPOINT": "http://store.invalid"}, 20, ["cannot be resolved", "DNS"]),
            marks=pytest.mark.long,
        ),
    ],
    ids=["secret", "key", "bucket", "down", "name"],
)
def test_what_is_wrong_from_the_start(
    settings: dict[str, str], status: int, words: list[str], scene: Scene
) -> None:
    done = scene.once(**settings)
    assert_failed(done, status, *words, nothing_left=scene)
    assert scene.fake_groups() == [], "pg_dump was started"
    assert "wrong-secret" not in done.stdout + done.stderr


# Connections.


def passed(tcp: TcpProxy, size: int) -> Callable[[], bool]:
    """Tell whether so many bytes went to the store."""
    return lambda: tcp.sent_bytes >= size


def test_parts_that_are_cut_off_are_sent_again(cut: Scene, tcp: TcpProxy) -> None:
    tcp.behave(Behaviour(reset_after=7 * MIB))  # one part, and a piece of the next
    said = assert_succeeds(cut)
    assert "retry 1 of 3" in said


def test_parts_that_are_always_cut_off(cut: Scene, tcp: TcpProxy) -> None:
    tcp.behave(Behaviour(reset_after=2 * MIB))
    done = cut.once(RETRY_ATTEMPTS="2")
    assert_failed(done, 20, "send part", "connection broke", "S3_ENDPOINT", nothing_left=cut)
    tcp.behave(PASS)
    assert_succeeds(cut)


@pytest.mark.long
def test_a_part_that_stalls_is_sent_again(cut: Scene, tcp: TcpProxy) -> None:
    # The first connection carries the first part, and perhaps no other.
    tcp.behave(PASS, next_connections=[Behaviour(stall_after=2 * MIB)])
    said = assert_succeeds(cut)
    assert "does not answer in time" in said or "timed out" in said


def left_behind(done: subprocess.CompletedProcess[str], place: Bucket) -> None:
    """The upload is still pending, and the log says which."""
    [upload_id] = place.unfinished()
    assert re.search(rf"WARNING The upload of \S+{NAME} could not be aborted", done.stderr)
    assert f"upload id: {upload_id}" in done.stderr
    assert place.objects() == {}
    place.client.abort_multipart_upload(
        Bucket=place.name, Key=pending_key(place), UploadId=upload_id
    )


def pending_key(place: Bucket) -> str:
    [pending] = place.client.list_multipart_uploads(Bucket=place.name)["Uploads"]
    return pending["Key"]


@pytest.mark.long
@pytest.mark.parametrize("behaviour", [REFUSE, STALL], ids=["refuses", "stalls"])
def test_a_store_that_dies_in_the_middle(
    behaviour: Behaviour, cut: Scene, bucket: Bucket, tcp: TcpProxy
) -> None:
    cut.fake(replace(LARGE, size=4000 * MIB))
    with cut.started(RETRY_ATTEMPTS="1") as process:
        wait_until(passed(tcp, 11 * MIB), "two parts were sent")
        tcp.behave(behaviour)
        out, err = process.communicate(timeout=300)
    done = subprocess.CompletedProcess(process.args, process.returncode, out, err)
    assert_failed(done, 20, "send part", "S3_ENDPOINT", nothing_left=None)
    left_behind(done, bucket)
    assert_nothing_left(cut)
    tcp.behave(PASS)
    cut.fake(LARGE)
    assert_succeeds(cut)


# The commit.


@pytest.mark.parametrize("times", later([1, 100], 100), ids=["once", "for ever"])
def test_a_commit_whose_answer_is_lost_is_a_success(
    times: int, broken: Scene, http: HttpProxy
) -> None:
    http.rule("CompleteMultipartUpload", Drop(forward=True), times=times)
    assert_succeeds(broken, RETRY_ATTEMPTS="2")
    assert len(broken.place.objects()) == 3  # the archive, its manifest and the roles


def test_a_commit_of_which_nothing_is_known_is_told_and_left_alone(
    broken: Scene, http: HttpProxy
) -> None:
    """The store may still be at it: an abort that meets it may damage what becomes visible."""
    rule = http.rule("CompleteMultipartUpload", LOST)
    done = broken.once(RETRY_ATTEMPTS="1")
    assert_failed(
        done, 22, "cannot determine whether", "if it is there it is complete", nothing_left=None
    )
    assert "retry 1 of 1" in done.stderr
    assert rule.applied == 2
    assert http.count("AbortMultipartUpload") == 0
    [left] = broken.place.unfinished()
    assert f"upload id: {left}" in done.stderr
    assert complete_archives(broken.place) == broken.processes() == []
    # Without its manifest an archive that becomes visible yet could not be read.
    [manifest] = [key for key in broken.place.objects() if ".manifest." in key]
    http.rules.clear()
    assert broken.once().returncode == 0
    assert len(complete_archives(broken.place)) == 1
    assert broken.place.unfinished() == [left]  # until the sweep: another run leaves it be
    assert manifest in broken.place.objects()


def test_what_became_visible_unseen_keeps_its_manifest(broken: Scene, http: HttpProxy) -> None:
    """The answer to the commit was lost, and so is that of each look at what came of it."""
    http.rule("CompleteMultipartUpload", Drop(forward=True))
    http.rule("HeadObject", BROKEN, skip=1)  # the first one asks whether the name is free
    done = broken.once(RETRY_ATTEMPTS="1")
    assert_failed(
        done, 22, "cannot determine whether", "if it is there it is complete", nothing_left=None
    )
    assert len(complete_archives(broken.place)) == 1


BESIDE: dict[str, Action] = {"answer lost": Drop(forward=True), "denied": DENIED, "lost": LOST}


@pytest.mark.parametrize(
    ("before", "what"), [pytest.param(0, "globals", marks=pytest.mark.long), (1, "manifest")]
)
@pytest.mark.parametrize("fault", later(BESIDE, "denied"))
def test_without_what_belongs_beside_it_there_is_no_archive(
    fault: str, before: int, what: str, broken: Scene, http: HttpProxy
) -> None:
    action = BESIDE[fault]
    http.rule("PutObject", action, skip=before)
    done = broken.once(RETRY_ATTEMPTS="1")
    status = 21 if action == DENIED else 20
    assert_failed(done, status, what, nothing_left=None)
    assert complete_archives(broken.place) == []
    assert archives_in(broken.place.objects()) == []
    assert broken.place.unfinished() == []
    assert broken.processes() == []
    assert http.count("CompleteMultipartUpload") == 0
    assert_directly_succeeds(broken)


@pytest.mark.parametrize("moment", ["ListParts", "HeadObject"])
def test_a_name_that_is_taken_meanwhile(
    moment: str, broken: Scene, bucket: Bucket, http: HttpProxy
) -> None:
    """Somebody else stores an archive of that name just before it is looked at, or just after."""

    def take(body: bytes) -> bytes:
        bucket.put(pending_key(bucket), b"somebody else's")
        return body

    rule = http.rule(moment, Change(take), times=1)
    done = broken.once()
    assert_failed(done, 23, "taken" if moment == "HeadObject" else "already exists",
                  "BACKUP_PREFIX", nothing_left=None)  # fmt: skip
    assert rule.applied == 1
    assert [*broken.place.objects().values()] == [b"somebody else's"]
    assert broken.place.unfinished() == []
    assert broken.processes() == []


def test_parts_that_the_store_holds_differently(broken: Scene, http: HttpProxy) -> None:
    http.rule(
        "ListParts",
        Change(lambda body: body.replace(b"<PartNumber>2<", b"<PartNumber>9<")),
        times=1,
    )
    done = broken.once()
    assert_failed(done, 22, "does not hold what was sent", "2, 9", nothing_left=broken)
    assert http.count("CompleteMultipartUpload") == 0
    assert_directly_succeeds(broken)


def test_a_database_that_outgrows_its_parts(broken: Scene, http: HttpProxy) -> None:
    done = broken.once(S3_MAX_PARTS=str(PARTS - 1))
    assert_failed(done, 22, "does not fit", "S3_PART_SIZE", nothing_left=broken)
    assert http.count("UploadPart") <= PARTS - 1
