"""Stores that respond differently from AWS are still understood: each known way is tested.

A proxy rewrites the responses of a real store, by the table in ``support/deviations.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from pgstash import events
from pgstash.errors import (
    ObjectExistsError,
    ObjectNotFoundError,
    StorageError,
    StorageRefusedError,
)
from pgstash.storage.s3.config import S3Config
from pgstash.storage.s3.storage import S3Storage
from support import deviations
from support.proxy import Answer, HttpProxy, Reply, Rewrite
from support.tiers import later

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from support.deviations import Deviation
    from support.swift import SwiftServer

DATA = b"what is stored"


@dataclass
class Place:
    """A bucket, reached through the proxy and directly, and the events of its requests."""

    http: HttpProxy
    storage: S3Storage
    real: S3Storage
    heard: list[events.Event]


@pytest.fixture(scope="module")
def shared(swift_server: SwiftServer) -> Iterator[Place]:
    """One for all tests: a client takes longer to make than a test to run."""
    heard: list[events.Event] = []
    bucket = swift_server.create_bucket()

    def opened(endpoint: str) -> S3Storage:
        config = S3Config(
            endpoint=endpoint,
            bucket=bucket,
            region=swift_server.region,
            access_key_id=swift_server.access_key_id,
            secret_access_key=swift_server.secret_access_key,
            retry_delay=0.01,
        )
        return S3Storage(config, heard.append)

    with HttpProxy(swift_server.port) as http:
        yield Place(http, opened(http.endpoint), opened(swift_server.endpoint), heard)


@pytest.fixture
def place(shared: Place) -> Iterator[Place]:
    """The same, empty."""
    yield shared
    shared.http.rules.clear()
    shared.http.requests.clear()
    shared.heard.clear()
    shared.real.delete([found.key for found in shared.real.list("")])
    for pending in shared.real.pending(""):
        shared.real.abort(pending)


def upload(storage: S3Storage, key: str = "key", mark: str = "ours") -> None:
    with storage.upload(key, metadata={"id": mark}, expected_size=1) as begun:
        begun.write(DATA)
        begun.commit()


def content(storage: S3Storage, key: str = "key") -> bytes:
    with storage.read(key) as chunks:
        return b"".join(chunks)


MISTAKES = {
    "S3_SECRET_ACCESS_KEY": {"secret_access_key": "wrong"},
    "S3_ACCESS_KEY_ID": {"access_key_id": "nobody"},
    "S3_BUCKET": {"bucket": "there-is-no-such"},
}


@pytest.mark.parametrize(
    ("deviation", "named"),
    [
        *((deviations.REWORDED[0], named) for named in MISTAKES),
        *((deviation, "S3_SECRET_ACCESS_KEY") for deviation in deviations.REWORDED[1:]),
    ],
    ids=str,
)
def test_a_mistake_is_named_whatever_the_answer_leaves_out(
    s3: Callable[..., S3Storage], place: Place, deviation: Deviation, named: str
) -> None:
    deviation.play(place.http)
    with pytest.raises(StorageRefusedError) as caught:
        s3(endpoint=place.http.endpoint, **MISTAKES[named]).check()
    assert named in caught.value.hint
    assert "None" not in caught.value.message


@pytest.mark.parametrize(("deviation", "word"), deviations.REFUSED, ids=str)
def test_a_refusal_says_what_to_do(place: Place, deviation: Deviation, word: str) -> None:
    place.real.put("key", DATA, {})
    deviation.play(place.http)
    for operation in (place.storage.check, lambda: list(place.storage.list(""))):
        with pytest.raises(StorageRefusedError) as caught:
            operation()
        assert word in caught.value.message + caught.value.hint
        assert caught.value.hint


# Two of three wait, for one function decides on all of them.
LATER = [each for number, each in enumerate(deviations.PASSING) if number % 3]


@pytest.mark.parametrize("deviation", later(deviations.PASSING, *LATER), ids=str)
def test_what_passes_is_tried_again(place: Place, deviation: Deviation) -> None:
    rule = deviation.play(place.http, times=1)
    place.storage.put("small", DATA, {})
    upload(place.storage)
    assert rule.applied == 1
    assert [type(event) for event in place.heard] == [events.Retrying]
    assert content(place.real) == content(place.real, "small") == DATA
    assert list(place.real.pending("")) == []


@pytest.mark.parametrize("deviation", deviations.GONE, ids=str)
def test_an_upload_that_is_gone_is_not_called_left_behind(
    place: Place, deviation: Deviation
) -> None:
    rule = deviation.play(place.http)
    with place.storage.upload("key", metadata={"id": "1"}, expected_size=1) as begun:
        begun.write(DATA)
    assert rule.applied == 1
    assert place.heard == []
    assert list(place.real.pending("")) == []


@pytest.mark.parametrize("code", ["NoSuchUpload", "NoSuchKey", ""])
def test_to_abort_what_is_gone_is_no_error(place: Place, code: str) -> None:
    with place.real.upload("key", metadata={"id": "1"}, expected_size=1) as begun:
        begun.write(DATA)
        (pending,) = place.real.pending("")
    place.http.rule("AbortMultipartUpload", Answer(404, code, message=""))
    place.storage.abort(pending)


@pytest.mark.parametrize("deviation", deviations.HEADERS, ids=str)
def test_the_case_of_headers_is_of_no_account(place: Place, deviation: Deviation) -> None:
    deviation.play(place.http)
    upload(place.storage)
    assert place.storage.head("key").metadata == {"id": "ours"}
    with place.storage.read("key", start=5, length=2) as chunks:
        assert b"".join(chunks) == DATA[5:7]
    with pytest.raises(ObjectExistsError):
        upload(place.storage)


@pytest.mark.parametrize("deviation", deviations.NO_BATCHES, ids=str)
def test_without_batches_objects_are_deleted_one_by_one(place: Place, deviation: Deviation) -> None:
    for key in ("a/1", "a/2", "b"):
        place.real.put(key, b"", {})
    deviation.play(place.http)
    place.storage.delete(["a/1", "missing", "a/2"])
    assert [found.key for found in place.real.list("")] == ["b"]
    assert place.http.count("DeleteObject") == 3


@pytest.mark.parametrize(("deviation", "outcome"), deviations.BATCHES, ids=str)
def test_what_one_key_of_a_batch_met(place: Place, deviation: Deviation, outcome: str) -> None:
    deviation.play(place.http, times=1)
    if outcome in {"fine", "again"}:
        place.storage.delete(["a/1"])
    else:
        with pytest.raises(StorageRefusedError, match=f"a/1.*{outcome}"):
            place.storage.delete(["a/1"])
    assert len(place.heard) == (outcome == "again")


@pytest.mark.parametrize("status_and_code", deviations.WITHOUT_CONDITION.values(), ids=str)
def test_a_taken_name_is_seen_without_conditional_writes(
    place: Place, status_and_code: tuple[int, str]
) -> None:
    """Only the check of the name protects the object of another writer there."""
    rule = place.http.rule("CompleteMultipartUpload", Answer(*status_and_code))
    rule.matches = lambda request: "If-None-Match" in request.headers
    upload(place.storage, "free")
    assert content(place.real, "free") == DATA
    assert rule.applied == 1
    place.real.put("taken", b"theirs", {"id": "theirs"})
    with pytest.raises(ObjectExistsError):
        upload(place.storage, "taken")
    assert content(place.real, "taken") == b"theirs"
    assert place.real.head("taken").metadata == {"id": "theirs"}
    assert list(place.real.pending("")) == []


@pytest.mark.parametrize("status", [304, 412])
def test_a_condition_that_does_not_hold(place: Place, status: int) -> None:
    """MinIO was seen to return 304: https://github.com/minio/minio/issues/19442."""
    place.http.rule("CompleteMultipartUpload", Answer(status, ""))
    with pytest.raises(ObjectExistsError):
        upload(place.storage)
    assert list(place.real.pending("")) == []


@pytest.mark.parametrize("code", ["NoSuchKey", "NotFound", ""])
def test_an_object_that_is_missing(place: Place, code: str) -> None:
    place.http.rule("GetObject", Answer(404, code, message=""))
    with pytest.raises(ObjectNotFoundError), place.storage.read("key"):
        pass


@pytest.mark.parametrize("code", ["InvalidRange", ""])
def test_a_range_that_begins_after_the_end(place: Place, code: str) -> None:
    place.http.rule("GetObject", Answer(416, code, message=""))
    with (
        pytest.raises(StorageError, match="ends before"),
        place.storage.read("key", start=7),
    ):
        pass


@pytest.mark.parametrize(
    ("operation", "request_"),
    [
        ("CreateMultipartUpload", upload),
        ("HeadObject", lambda storage: storage.head("key")),
        ("GetObject", content),
    ],
    ids=["begin", "head", "get"],
)
def test_an_answer_without_what_it_must_have(
    place: Place,
    operation: str,
    request_: Callable[[S3Storage], object],
) -> None:
    """As from a captive portal: status 200 without any S3 content."""
    place.real.put("key", DATA, {})
    portal = Reply(200, [("Content-Type", "text/html")], b"<html><body>Log in</body></html>")
    place.http.rule(operation, Rewrite(lambda _reply: portal))
    with pytest.raises(StorageRefusedError, match="S3 store"):
        request_(place.storage)
