"""What is specific to S3: failed requests, lost responses, a store that stalls."""

# ruff: noqa: PT012 - what must fail is a whole upload

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from botocore.response import StreamingBody
from urllib3.exceptions import SSLError

from pgstash import events
from pgstash.errors import (
    ConfigurationError,
    Interrupted,
    ObjectExistsError,
    StorageError,
    StorageRefusedError,
    StorageUnreachableError,
    UploadError,
)
from pgstash.storage.s3.storage import S3Storage
from support.proxy import (
    PASS,
    REFUSE,
    STALL,
    Answer,
    Behaviour,
    Change,
    Cut,
    Drop,
    Hang,
    HttpProxy,
    Reply,
    Rewrite,
    TcpProxy,
)
from support.tiers import later

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from support.swift import SwiftServer

MIB = 1024 * 1024
PART = 5 * MIB
# The waits that must be cut short take a minute. Less than that shows that they are, even on a
# machine so busy that a process takes ten seconds to start.
HURRIED = 40.0

DATA = bytes(range(256)) * (2 * PART // 256) + b"the end"
BROKEN = Answer(500, "InternalError")
BUSY = Answer(503, "SlowDown")
DAMAGED = Answer(400, "BadDigest")
DENIED = Answer(403, "AccessDenied")


@pytest.fixture
def http(swift_server: SwiftServer) -> Iterator[HttpProxy]:
    with HttpProxy(swift_server.port) as proxy:
        yield proxy


@pytest.fixture
def tcp(swift_server: SwiftServer) -> Iterator[TcpProxy]:
    with TcpProxy(swift_server.port) as proxy:
        yield proxy


def upload(storage: S3Storage, key: str = "key", data: bytes = DATA, mark: str = "ours") -> None:
    with storage.upload(key, metadata={"id": mark}, expected_size=len(data)) as begun:
        begun.write(data)
        begun.commit()


def content(storage: S3Storage, key: str = "key") -> bytes:
    with storage.read(key) as chunks:
        return b"".join(chunks)


def assert_nothing_left(storage: S3Storage) -> None:
    assert list(storage.list("")) == []
    assert list(storage.pending("")) == []


OPERATIONS = [
    "CreateMultipartUpload",
    "UploadPart",
    "ListParts",
    "HeadObject",
    "CompleteMultipartUpload",
]


PASSING = [
    (operation, fault)
    for operation in OPERATIONS
    for fault in (BROKEN, BUSY, DAMAGED, Drop(forward=False))
    # A response to HEAD has no body, and so no code that names the damage.
    if (operation, fault) != ("HeadObject", DAMAGED)
]


# In the first tier each fault once, and each operation once.
@pytest.mark.parametrize(
    ("operation", "fault"),
    later(PASSING, *(each for each in PASSING if each[0] != "UploadPart" and each[1] != BUSY)),
    ids=str,
)
def test_what_may_pass_is_tried_again(
    s3: Callable[..., S3Storage],
    http: HttpProxy,
    operation: str,
    fault: Answer | Drop,
) -> None:
    heard: list[events.Event] = []
    rule = http.rule(operation, fault, times=2)
    storage = s3(endpoint=http.endpoint, emit=heard.append)
    upload(storage)
    assert rule.applied == 2
    assert content(storage) == DATA
    assert len(heard) == 2
    assert all(isinstance(event, events.Retrying) and event.attempts == 3 for event in heard)


@pytest.mark.parametrize(
    "status", later([408, 425, 429, 499, 500, 502, 503, 504], 408, 425, 499, 500, 502)
)
def test_a_bare_status_is_tried_again(
    s3: Callable[..., S3Storage], http: HttpProxy, status: int
) -> None:
    """As from a gateway, which knows no S3 codes."""
    heard: list[events.Event] = []
    http.rule("UploadPart", Answer(status, ""), times=1)
    upload(s3(endpoint=http.endpoint, emit=heard.append))
    assert content(s3()) == DATA
    [retrying] = heard
    assert isinstance(retrying, events.Retrying)


@pytest.mark.parametrize("operation", later(OPERATIONS, "ListParts", "HeadObject"))
def test_when_the_attempts_are_used_up_nothing_is_left(
    s3: Callable[..., S3Storage], http: HttpProxy, operation: str
) -> None:
    http.rule(operation, BUSY)
    with pytest.raises(StorageUnreachableError) as caught:
        upload(s3(endpoint=http.endpoint))
    assert caught.value.retryable
    assert_nothing_left(s3())


REFUSALS = [
    (operation, fault)
    for operation in OPERATIONS
    for fault in (DENIED, Answer(403, "RequestTimeTooSkewed"), Answer(507, "QuotaExceeded"))
]


@pytest.mark.parametrize(
    ("operation", "fault"),
    later(REFUSALS, *(each for each in REFUSALS if each[0] != "UploadPart" and each[1] != DENIED)),
    ids=str,
)
def test_a_refusal_is_not_tried_again(
    s3: Callable[..., S3Storage], http: HttpProxy, operation: str, fault: Answer
) -> None:
    heard: list[events.Event] = []
    http.rule(operation, fault, times=2)
    with pytest.raises(StorageRefusedError) as caught:
        upload(s3(endpoint=http.endpoint, emit=heard.append), data=b"small")
    assert caught.value.hint
    assert not [event for event in heard if isinstance(event, events.Retrying)]
    assert list(s3().list("")) == []


def test_a_used_up_quota_is_called_by_its_name(
    s3: Callable[..., S3Storage], http: HttpProxy
) -> None:
    http.rule("UploadPart", Answer(403, "QuotaExceeded"))
    with pytest.raises(StorageRefusedError, match="quota"):
        upload(s3(endpoint=http.endpoint))
    assert_nothing_left(s3())


@pytest.mark.parametrize("after", [0, 1000, PART // 2])
def test_a_part_that_is_cut_off_is_sent_again(
    s3: Callable[..., S3Storage], tcp: TcpProxy, after: int
) -> None:
    storage = s3(endpoint=tcp.endpoint, retry_attempts=5)
    with storage.upload("key", metadata={"id": "1"}, expected_size=1) as begun:
        tcp.behave(PASS, next_connections=[Behaviour(reset_after=after)])
        begun.write(DATA)
        begun.commit()
    assert content(s3()) == DATA


def test_a_stalled_part_is_sent_again(s3: Callable[..., S3Storage], tcp: TcpProxy) -> None:
    heard: list[events.Event] = []
    storage = s3(endpoint=tcp.endpoint, connect_timeout=0.5, read_timeout=0.5, emit=heard.append)
    with storage.upload("key", metadata={"id": "1"}, expected_size=1) as begun:
        tcp.behave(PASS, next_connections=[Behaviour(stall_after=MIB)])
        begun.write(DATA)
        begun.commit()
    assert [event for event in heard if isinstance(event, events.Retrying)]
    assert content(s3()) == DATA


def test_a_slow_line_is_not_taken_for_a_stalled_one(
    s3: Callable[..., S3Storage], tcp: TcpProxy
) -> None:
    """A part may take longer than any time limit, as long as bytes keep moving."""
    heard: list[events.Event] = []
    tcp.behave(Behaviour(rate=2 * MIB))
    storage = s3(endpoint=tcp.endpoint, connect_timeout=0.6, read_timeout=5.0, emit=heard.append)
    upload(storage, data=DATA[:PART])
    assert heard == []


def test_a_lost_answer_to_the_commit_is_looked_up(
    s3: Callable[..., S3Storage], http: HttpProxy
) -> None:
    rule = http.rule("CompleteMultipartUpload", Drop(forward=True), times=1)
    upload(s3(endpoint=http.endpoint))
    assert rule.applied == 1
    assert [found.key for found in s3().list("")] == ["key"]
    assert list(s3().pending("")) == []
    assert content(s3()) == DATA


def test_a_commit_is_looked_up_when_all_its_answers_are_lost(
    s3: Callable[..., S3Storage], http: HttpProxy
) -> None:
    http.rule("CompleteMultipartUpload", Drop(forward=True))
    upload(s3(endpoint=http.endpoint))
    assert content(s3()) == DATA


@pytest.mark.parametrize(
    "fault",
    later(
        [
            Drop(forward=False),
            Answer(504, "GatewayTimeout"),
            *(Answer(status, "") for status in (503, 520, 524)),
        ],
        *(Answer(status, "") for status in (503, 520)),
    ),
    ids=str,
)
def test_a_commit_of_which_nothing_is_known_is_a_failure_and_left_alone(
    s3: Callable[..., S3Storage], http: HttpProxy, fault: Answer | Drop
) -> None:
    """The store may still be processing the commit, and an abort might collide with it."""
    heard: list[events.Event] = []
    http.rule("CompleteMultipartUpload", fault)
    with pytest.raises(UploadError, match="cannot determine"):
        upload(s3(endpoint=http.endpoint, emit=heard.append))
    assert http.count("AbortMultipartUpload") == 0
    assert list(s3().list("")) == []
    (pending,) = s3().pending("")
    (left,) = (event for event in heard if isinstance(event, events.UploadLeftBehind))
    assert left.upload_id == pending.upload_id


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # cut connections
@pytest.mark.parametrize("attempts", later([10, 30], 30))
def test_a_commit_that_is_cut_off_never_leaves_a_damaged_object(
    attempts: int, s3: Callable[..., S3Storage], alarm: Callable[[float], None]
) -> None:
    """The real store goes on completing while we leave; what is visible must be whole.

    The alarm finds the moment itself: later after each commit that it prevented, else earlier.
    """
    outcomes: set[bool | None] = set()
    seconds = 0.01
    for attempt in range(30):
        if attempt >= attempts and len(outcomes) > 1:
            break
        key = f"key-{attempt}"
        storage = s3()
        begun = storage.upload(key, metadata={"id": key}, expected_size=1)
        with contextlib.suppress(Interrupted):
            with begun:
                begun.write(DATA)
                begun.flush()
                alarm(seconds)
                begun.commit()
                alarm(0)
            alarm(0)
        outcomes.add(begun.committed)
        seconds *= 0.7 if begun.committed else 1.5
        visible = bool(list(s3().list(key)))
        assert visible or begun.committed is not True
        if visible:
            assert content(s3(), key) == DATA
    assert len(outcomes) > 1, "the alarm never met the commit"


def test_another_ones_object_is_not_taken_for_ours(
    s3: Callable[..., S3Storage], http: HttpProxy
) -> None:
    """The name is free when it is checked, and taken by the time of the commit."""
    http.rule("HeadObject", Answer(404, "NoSuchKey"), times=1)
    s3().put("key", DATA, {"id": "theirs"})
    with pytest.raises(ObjectExistsError):
        upload(s3(endpoint=http.endpoint))
    assert s3().head("key").metadata == {"id": "theirs"}
    assert list(s3().pending("")) == []


def test_a_taken_name_is_found_in_a_store_without_conditions(
    s3: Callable[..., S3Storage], http: HttpProxy
) -> None:
    """Only the check before the commit keeps it from replacing an existing object."""
    s3().put("key", b"theirs", {"id": "theirs"})
    http.rule("CompleteMultipartUpload", Answer(501, "NotImplemented"), times=1)
    with pytest.raises(ObjectExistsError):
        upload(s3(endpoint=http.endpoint))
    assert http.count("CompleteMultipartUpload") == 0
    assert content(s3()) == b"theirs"
    assert list(s3().pending("")) == []


@pytest.mark.parametrize(
    "answer", [Answer(501, "NotImplemented"), Answer(400, "InvalidArgument")], ids=str
)
def test_a_store_that_knows_no_condition_is_asked_without(
    s3: Callable[..., S3Storage], http: HttpProxy, answer: Answer
) -> None:
    http.rule("CompleteMultipartUpload", answer, times=1)
    upload(s3(endpoint=http.endpoint))
    assert http.count("CompleteMultipartUpload") == 2
    assert content(s3()) == DATA
    with_condition, without = [
        request for request in http.requests if request.operation == "CompleteMultipartUpload"
    ]
    assert "If-None-Match" in with_condition.headers
    assert "If-None-Match" not in without.headers


def test_parts_that_the_store_holds_differently_are_not_committed(
    s3: Callable[..., S3Storage], http: HttpProxy
) -> None:
    http.rule(
        "ListParts",
        Change(lambda body: body.replace(b"<PartNumber>2<", b"<PartNumber>4<")),
        times=1,
    )
    with pytest.raises(UploadError, match="does not hold what was sent"):
        upload(s3(endpoint=http.endpoint))
    assert http.count("CompleteMultipartUpload") == 0
    assert_nothing_left(s3())


def test_a_part_with_another_etag_is_not_committed(
    s3: Callable[..., S3Storage], http: HttpProxy
) -> None:
    other = Change(lambda body: body.replace(b"<ETag>", b"<ETag>0").replace(b"&quot;", b""))
    http.rule("ListParts", other, times=1)
    with pytest.raises(UploadError, match=r"differing parts: 1, 2, 3"):
        upload(s3(endpoint=http.endpoint))
    assert_nothing_left(s3())


def test_running_out_of_part_numbers_names_the_setting(s3: Callable[..., S3Storage]) -> None:
    with pytest.raises(UploadError) as caught:
        upload(s3(max_parts=2))
    assert "S3_PART_SIZE" in caught.value.hint
    assert not caught.value.retryable
    assert_nothing_left(s3())
    upload(s3(max_parts=3))


@pytest.mark.parametrize(
    ("expected", "max_parts", "wanted"),
    [
        (0, 10_000, 8 * MIB),
        (64_000 * MIB, 10_000, 8 * MIB),
        (64_001 * MIB, 10_000, 9 * MIB),
        (64_000 * MIB, 1000, 80 * MIB),
        (10**15, 10_000, 5 * 1024 * MIB),
    ],
)
def test_the_part_size_fits_what_is_expected(
    s3: Callable[..., S3Storage], expected: int, max_parts: int, wanted: int
) -> None:
    storage = s3(part_size=None, max_parts=max_parts)
    assert storage.upload("key", metadata={}, expected_size=expected).part_size == wanted


def test_parts_grow_before_they_run_out(s3: Callable[..., S3Storage], http: HttpProxy) -> None:
    """The backup has become ten times as large as earlier ones."""
    storage = s3(endpoint=http.endpoint, part_size=None, max_parts=4)
    data = os.urandom(MIB) * 35
    with storage.upload(
        "key", metadata={"id": "1"}, expected_size=40 * MIB, usual_size=3 * MIB
    ) as upload:
        for start in range(0, len(data), 3 * MIB):
            upload.write(data[start : start + 3 * MIB])
        upload.commit()
    sent = [each.size // MIB for each in http.requests if each.operation == "UploadPart"]
    assert sorted(sent) == [3, 8, 8, 16]
    with s3().read("key") as chunks:
        assert b"".join(chunks) == data


@pytest.mark.parametrize("size", [PART - 1, 5 * 1024 * MIB + 1])
def test_a_part_size_that_no_store_takes_is_refused(
    s3: Callable[..., S3Storage], size: int
) -> None:
    with pytest.raises(ConfigurationError):
        s3(part_size=size)


def test_a_failed_part_stops_the_writer_at_once(
    s3: Callable[..., S3Storage], http: HttpProxy
) -> None:
    http.rule("UploadPart", DENIED)
    written = 0
    with (
        pytest.raises(StorageRefusedError),
        s3(endpoint=http.endpoint).upload("key", metadata={"id": "1"}, expected_size=1) as begun,
    ):
        for _ in range(100):
            begun.write(bytes(PART))
            written += 1
    assert written <= 4
    assert_nothing_left(s3())


def test_the_error_in_the_block_is_not_masked_by_a_failing_abort(
    s3: Callable[..., S3Storage], http: HttpProxy
) -> None:
    heard: list[events.Event] = []
    http.rule("AbortMultipartUpload", DENIED)
    with (
        pytest.raises(ValueError, match="of the caller"),
        s3(endpoint=http.endpoint, emit=heard.append).upload(
            "key", metadata={"id": "1"}, expected_size=1
        ) as begun,
    ):
        begun.write(DATA)
        raise ValueError("of the caller")
    (left,) = [event for event in heard if isinstance(event, events.UploadLeftBehind)]
    (pending,) = s3().pending("")
    assert (left.key, left.upload_id) == ("key", pending.upload_id)
    assert "denies" in left.reason
    s3().abort(pending)
    assert_nothing_left(s3())


def interrupt(signum: int, _frame: object) -> None:
    raise Interrupted(signum)


@pytest.fixture
def alarm() -> Iterator[Callable[[float], None]]:
    """Interrupt the main thread after some seconds, as SIGTERM does."""
    before = signal.signal(signal.SIGALRM, interrupt)

    def set_alarm(seconds: float) -> None:
        signal.setitimer(signal.ITIMER_REAL, seconds)

    yield set_alarm
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def test_an_interrupt_while_a_part_hangs_removes_the_upload(
    s3: Callable[..., S3Storage], http: HttpProxy, alarm: Callable[[float], None]
) -> None:
    heard: list[events.Event] = []
    http.rule("UploadPart", Hang(), skip=2)
    storage = s3(endpoint=http.endpoint, emit=heard.append)
    with (
        pytest.raises(Interrupted),
        storage.upload("key", metadata={"id": "1"}, expected_size=1) as begun,
    ):
        alarm(0.8)
        begun.write(DATA)
        begun.write(DATA)
        begun.commit()
    assert heard == []
    assert_nothing_left(s3())


def test_an_interrupt_while_the_store_is_dead_leaves_in_time_and_tells(
    s3: Callable[..., S3Storage], tcp: TcpProxy, alarm: Callable[[float], None]
) -> None:
    heard: list[events.Event] = []
    storage = s3(endpoint=tcp.endpoint, emit=heard.append)
    interrupted = 0.0
    with (
        pytest.raises(Interrupted),
        storage.upload("key", metadata={"id": "1"}, expected_size=1) as begun,
    ):
        tcp.behave(STALL)
        alarm(0.5)
        try:
            for _ in range(10):
                begun.write(DATA)
        finally:
            interrupted = time.monotonic()
    assert time.monotonic() - interrupted < HURRIED
    (left,) = heard
    assert isinstance(left, events.UploadLeftBehind)
    (pending,) = s3().pending("")
    assert left.upload_id == pending.upload_id


def test_an_interrupt_ends_a_wait_for_the_next_attempt(
    s3: Callable[..., S3Storage], http: HttpProxy, alarm: Callable[[float], None]
) -> None:
    http.rule("UploadPart", BUSY)
    storage = s3(endpoint=http.endpoint, retry_delay=60)
    interrupted = 0.0
    with (
        pytest.raises(Interrupted),
        storage.upload("key", metadata={"id": "1"}, expected_size=1) as begun,
    ):
        alarm(0.5)
        try:
            begun.write(DATA)
            begun.commit()
        finally:
            interrupted = time.monotonic()
    assert time.monotonic() - interrupted < HURRIED
    assert not [thread for thread in threading.enumerate() if "part-sender" in thread.name]
    assert_nothing_left(s3())


STALLED = """
import sys
from pgstash.storage.s3.config import S3Config
from pgstash.storage.s3.storage import S3Storage
endpoint, bucket, key, secret = sys.argv[1:]
storage = S3Storage(S3Config(endpoint, bucket, "us-east-1", key, secret))
with storage.upload("key", metadata={"id": "1"}, expected_size=1) as upload:
    upload.write(bytes(20_000_000))
    raise KeyboardInterrupt
"""


def test_a_stalled_store_does_not_keep_the_process_alive(
    s3_bucket: str, swift_server: SwiftServer, http: HttpProxy
) -> None:
    for operation in ("UploadPart", "AbortMultipartUpload"):
        http.rule(operation, Hang())
    began = time.monotonic()
    subprocess.run(
        [
            *(sys.executable, "-c", STALLED, http.endpoint, s3_bucket),
            *(swift_server.access_key_id, swift_server.secret_access_key),
        ],
        check=False,
        stderr=subprocess.DEVNULL,
        timeout=55,
    )
    assert http.count("AbortMultipartUpload") == 1
    assert time.monotonic() - began < HURRIED


@pytest.mark.parametrize("extent", [{}, {"start": 1_000_000}, {"start": 7, "length": 3_000_000}])
def test_a_body_that_ends_early_is_read_on(
    extent: dict[str, int], s3: Callable[..., S3Storage], http: HttpProxy
) -> None:
    """Also if that happens more often than one request is retried."""
    s3().put("key", DATA, {})
    http.rule("GetObject", Cut(after=MIB))
    with s3(endpoint=http.endpoint, retry_attempts=1).read("key", **extent) as chunks:
        received = b"".join(chunks)
    start = extent.get("start", 0)
    assert received == DATA[start : start + extent.get("length", len(DATA))]
    assert http.count("GetObject") > 2


def test_a_body_that_stays_away_is_an_error(s3: Callable[..., S3Storage], http: HttpProxy) -> None:
    s3().put("key", DATA, {})
    http.rule("GetObject", Cut(after=MIB), times=1)
    http.rule("GetObject", Cut(after=0))
    received = 0
    with (
        pytest.raises(StorageUnreachableError),
        s3(endpoint=http.endpoint).read("key") as chunks,
    ):
        for chunk in chunks:
            received += len(chunk)
    assert received <= MIB
    assert http.count("GetObject") == 4


def shortened(by: int) -> Callable[[Reply], Reply]:
    """Respond with a range that ends earlier than the requested one, and announce it."""

    def shorten(reply: Reply) -> Reply:
        kept = reply.body[: len(reply.body) - by]
        headers = [
            (name, re.sub(r"-(\d+)/", lambda found: f"-{int(found[1]) - by}/", value))
            if name.lower() == "content-range"
            else (name, value)
            for name, value in reply.headers
        ]
        return Reply(reply.status, headers, kept)

    return shorten


def test_a_range_that_is_answered_with_fewer_bytes_is_read_on(
    s3: Callable[..., S3Storage], http: HttpProxy
) -> None:
    s3().put("key", DATA, {})
    http.rule("GetObject", Rewrite(shortened(MIB)), times=2)
    with s3(endpoint=http.endpoint).read("key", start=7, length=3 * MIB) as chunks:
        assert b"".join(chunks) == DATA[7 : 7 + 3 * MIB]
    assert http.count("GetObject") == 3


def test_a_download_that_is_resumed_with_nothing_ends(
    s3: Callable[..., S3Storage], http: HttpProxy
) -> None:
    """Each response to the rest is complete by its own length, and has no byte."""
    s3().put("key", DATA, {})
    http.rule("GetObject", Cut(after=MIB), times=1)
    http.rule("GetObject", Rewrite(lambda reply: replace(reply, body=b"")))
    received = 0
    with (
        pytest.raises(StorageUnreachableError, match="bytes early"),
        s3(endpoint=http.endpoint).read("key") as chunks,
    ):
        for chunk in chunks:
            received += len(chunk)
    assert received <= MIB
    assert http.count("GetObject") == 4


def test_a_resumed_download_never_gets_more_than_it_lacks(
    s3: Callable[..., S3Storage], http: HttpProxy
) -> None:
    s3().put("key", DATA, {})
    http.rule("GetObject", Cut(after=MIB), times=1)
    http.rule("GetObject", Rewrite(lambda reply: replace(reply, body=reply.body + bytes(MIB))))
    with s3(endpoint=http.endpoint).read("key", length=3 * MIB) as chunks:
        assert b"".join(chunks) == DATA[: 3 * MIB]


def test_a_resumed_download_of_what_was_cut_short_meanwhile_is_an_error(
    s3: Callable[..., S3Storage], http: HttpProxy
) -> None:
    """Also if the store does not support the condition, and gives both the same ETag."""
    s3().put("key", DATA, {})
    http.rule("GetObject", Cut(after=2 * MIB), times=1)
    http.rule("GetObject", Answer(416, "InvalidRange"))
    with (
        pytest.raises(StorageError, match="InvalidRange"),
        s3(endpoint=http.endpoint).read("key") as chunks,
    ):
        b"".join(chunks)


def test_another_range_than_the_one_that_was_asked_for_is_an_error(
    s3: Callable[..., S3Storage], http: HttpProxy
) -> None:
    s3().put("key", DATA, {})

    def shifted(reply: Reply) -> Reply:
        headers = [(name, value.replace("bytes 7-", "bytes 8-")) for name, value in reply.headers]
        return replace(reply, headers=headers)

    http.rule("GetObject", Rewrite(shifted))
    with (
        pytest.raises(StorageRefusedError, match="bytes 8-"),
        s3(endpoint=http.endpoint).read("key", start=7, length=5),
    ):
        pass


def test_the_rest_of_another_object_is_not_read(
    s3: Callable[..., S3Storage], http: HttpProxy
) -> None:
    s3().put("key", DATA, {})
    http.rule("GetObject", Cut(after=MIB))
    with (
        pytest.raises(StorageRefusedError, match="was replaced while it was read"),
        s3(endpoint=http.endpoint).read("key") as chunks,
    ):
        for _ in chunks:
            s3().put("key", DATA[::-1], {})


def test_a_batch_of_deletions_reports_what_was_not_deleted(
    s3: Callable[..., S3Storage], http: HttpProxy
) -> None:
    failed = (
        b"<?xml version='1.0'?><DeleteResult><Error><Key>key</Key><Code>AccessDenied</Code>"
        b"<Message>no</Message></Error></DeleteResult>"
    )
    http.rule("DeleteObjects", Change(lambda _body: failed))
    with pytest.raises(StorageRefusedError, match="key"):
        s3(endpoint=http.endpoint).delete(["other", "key"])


@pytest.mark.long  # Swift takes its time to begin a thousand uploads
def test_pending_uploads_are_listed_in_pages(
    s3: Callable[..., S3Storage], swift_server: SwiftServer, s3_bucket: str
) -> None:
    begun = [
        swift_server.client.create_multipart_upload(Bucket=s3_bucket, Key=f"a/{number:04}")
        for number in range(1001)
    ]
    found = [(pending.key, pending.upload_id) for pending in s3().pending("a/")]
    assert sorted(found) == [(upload["Key"], upload["UploadId"]) for upload in begun]


# The errors of check().


def test_check_tells_a_wrong_secret(s3: Callable[..., S3Storage]) -> None:
    with pytest.raises(StorageRefusedError) as caught:
        s3(secret_access_key="wrong").check()
    assert "S3_SECRET_ACCESS_KEY" in caught.value.hint
    assert "wrong" not in caught.value.message


def test_check_tells_an_unknown_key(s3: Callable[..., S3Storage]) -> None:
    with pytest.raises(StorageRefusedError) as caught:
        s3(access_key_id="nobody").check()
    assert "S3_ACCESS_KEY_ID" in caught.value.hint


def test_check_tells_a_missing_bucket(s3: Callable[..., S3Storage]) -> None:
    with pytest.raises(StorageRefusedError, match="bucket does not exist") as caught:
        s3(bucket="there-is-no-such").check()
    assert "S3_BUCKET" in caught.value.hint


def test_check_tells_that_nobody_answers(s3: Callable[..., S3Storage], tcp: TcpProxy) -> None:
    heard: list[events.Event] = []
    tcp.behave(REFUSE)
    with pytest.raises(StorageUnreachableError):
        s3(endpoint=tcp.endpoint, retry_attempts=2, emit=heard.append).check()
    assert len(heard) == 2
    assert tcp.accepted == 3


def test_check_tells_an_unknown_host(s3: Callable[..., S3Storage]) -> None:
    with pytest.raises(StorageUnreachableError, match="cannot be resolved") as caught:
        s3(endpoint="http://store.invalid", retry_attempts=0).check()
    assert "S3_ENDPOINT" in caught.value.hint


def test_check_tells_a_store_without_tls(
    s3: Callable[..., S3Storage], swift_server: SwiftServer
) -> None:
    with pytest.raises(StorageRefusedError, match="TLS") as caught:
        s3(endpoint=f"https://127.0.0.1:{swift_server.port}").check()
    assert "http://" in caught.value.hint


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [
        (Answer(403, "AccessDenied"), "denies access"),
        (Answer(403, "RequestTimeTooSkewed"), "clocks"),
        (Answer(301, "PermanentRedirect"), "somewhere else"),
        (Answer(400, "AuthorizationHeaderMalformed"), "somewhere else"),
    ],
    ids=str,
)
def test_check_tells_refusals_apart(
    s3: Callable[..., S3Storage], http: HttpProxy, answer: Answer, wanted: str
) -> None:
    http.rule("ListObjectsV2", answer)
    with pytest.raises(StorageRefusedError, match=wanted):
        s3(endpoint=http.endpoint).check()


def test_check_tells_that_something_else_answers(
    s3: Callable[..., S3Storage], http: HttpProxy
) -> None:
    http.rule("ListObjectsV2", Answer(404, "404", "Not Found"))
    with pytest.raises(StorageRefusedError, match="is that an S3 store"):
        s3(endpoint=http.endpoint).check()


@pytest.mark.parametrize("endpoint", ["not a url", "localhost:9000", "ftp//x"])
def test_an_endpoint_that_is_no_url_is_a_configuration_error(
    s3: Callable[..., S3Storage], endpoint: str
) -> None:
    with pytest.raises(ConfigurationError, match="S3_ENDPOINT"):
        s3(endpoint=endpoint)


def test_the_environment_of_the_user_has_no_say(
    s3: Callable[..., S3Storage], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = tmp_path / "config"
    config.write_text("[profile other]\nregion = nowhere\ns3 =\n  addressing_style = virtual\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    monkeypatch.setenv("AWS_PROFILE", "missing")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "7")
    monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_supported")
    monkeypatch.setenv("AWS_CA_BUNDLE", "/missing")
    storage = s3()
    storage.check()
    upload(storage)


def test_no_representation_shows_the_secret(s3: Callable[..., S3Storage]) -> None:
    storage = s3(secret_access_key="planted-secret")
    begun = storage.upload("key", metadata={}, expected_size=1)
    assert "planted-secret" not in repr(storage) + repr(begun) + repr(vars(storage))


def test_only_the_s3_store_loads_boto3() -> None:
    code = (
        "import sys, pgstash.storage.memory, pgstash.storage.directory.storage;"
        "sys.exit('boto3' in sys.modules or 'botocore' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=dict(os.environ))


def test_a_download_goes_on_after_a_broken_tls_record(
    s3: Callable[..., S3Storage], monkeypatch: pytest.MonkeyPatch
) -> None:
    """botocore passes the error of urllib3 on unchanged."""
    upload(s3())
    read = StreamingBody.read
    broken = iter([False, True])

    def meets_one(body: StreamingBody, size: int | None = None) -> bytes:
        if next(broken, False):
            raise SSLError("[SSL: DECRYPTION_FAILED_OR_BAD_RECORD_MAC] bad record mac")
        return read(body, size)

    monkeypatch.setattr(StreamingBody, "read", meets_one)
    assert content(s3()) == DATA
    assert next(broken, None) is None


@pytest.mark.parametrize("operation", ["UploadPart", "PutObject"])
def test_a_bucket_that_asks_for_content_md5_gets_it(
    s3: Callable[..., S3Storage], http: HttpProxy, operation: str
) -> None:
    """As AWS does with object lock. The store itself checks that the value is right."""
    said = "Content-MD5 OR x-amz-checksum- HTTP header is required for Put Part requests"
    rule = http.rule(operation, Answer(400, "InvalidRequest", said))
    rule.matches = lambda request: "Content-MD5" not in request.headers
    storage = s3(endpoint=http.endpoint)
    upload(storage)
    storage.put("small", b"a few bytes", {})
    storage.put("empty", b"", {})
    assert content(storage) == DATA
    assert content(storage, "small") == b"a few bytes"
    assert 1 <= rule.applied <= 2  # parts are sent side by side


def test_a_content_md5_that_is_refused_is_sent_once(
    s3: Callable[..., S3Storage], http: HttpProxy
) -> None:
    rule = http.rule("PutObject", Answer(400, "InvalidDigest", "The Content-MD5 is not valid"))
    with pytest.raises(StorageRefusedError, match="The Content-MD5 is not valid"):
        s3(endpoint=http.endpoint).put("small", b"a few bytes", {})
    assert rule.applied == 2


def test_folders_are_listed_page_by_page(s3: Callable[..., S3Storage]) -> None:
    def limit(params: dict[str, object], **_: object) -> None:
        params["MaxKeys"] = 2

    storage = s3()
    client = storage._client  # noqa: SLF001 - the store then returns small pages
    client.meta.events.register("provide-client-params.s3.ListObjectsV2", limit)
    for key in ("p/1", "p/a/1", "p/a/2", "p/b/1", "p/c/1", "p/d/1", "p-other/e/1"):
        storage.put(key, b"", {})
    assert storage.folders("p/", complete=True) == ["p/a/", "p/b/", "p/c/", "p/d/"]
    assert storage.folders("p/") == ["p/a/"]
