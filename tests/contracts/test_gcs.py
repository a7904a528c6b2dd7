"""What only a bucket of Google Cloud Storage promises, and what it does when something fails."""

# ruff: noqa: PT012 - what must fail is a whole upload

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from pgstash import events
from pgstash.errors import (
    ObjectExistsError,
    StorageError,
    StorageRefusedError,
    StorageUnreachableError,
    UploadError,
)
from support.gcs_server import GcsServer, checksum, operation_of
from support.proxy import Answer, Change, Cut, Drop, HttpProxy
from support.tiers import later

if TYPE_CHECKING:
    from pathlib import Path

    from pgstash.storage.gcs.storage import GcsStorage
    from support.fake_gcs import FakeGcsServer

MIB = 1024 * 1024
PART = 5 * MIB
DATA = os.urandom(2 * PART + 300_000)
BUSY = Answer(503, "")
DENIED = Answer(403, "")
# The requests of an upload, in the order of time.
OPERATIONS = ["Begin", "Part", "Head", "Commit"]

Make = Callable[..., "GcsStorage"]


@pytest.fixture
def http(gcs_server: GcsServer) -> Iterator[HttpProxy]:
    with HttpProxy(gcs_server.port, operation_of) as proxy:
        yield proxy


@pytest.fixture
def behind(gcs: Make, http: HttpProxy) -> Make:
    """The same bucket, with the HTTP proxy in front of it."""

    def make(emit: events.Emit = events.ignore, **different: Any) -> GcsStorage:
        return gcs(emit, endpoint=http.endpoint, **different)

    return make


def upload(storage: GcsStorage, data: bytes = DATA) -> None:
    with storage.upload("a/key", metadata={"id": "1"}, expected_size=1) as begun:
        begun.write(data)
        begun.commit()


def content(storage: GcsStorage) -> bytes:
    with storage.read("a/key") as chunks:
        return b"".join(chunks)


def visible(storage: GcsStorage) -> list[str]:
    return [found.key for found in storage.list("")]


# What the store answers.


def test_what_may_pass_is_tried_again(gcs: Make, behind: Make, http: HttpProxy) -> None:
    heard: list[events.Event] = []
    for operation in [*OPERATIONS, "Status", "Read", "List", "Put", "Delete"]:
        http.rule(operation, BUSY, times=1)
    storage = behind(heard.append)
    upload(storage)
    assert content(storage) == DATA
    assert visible(storage) == ["a/key"]
    storage.put("other", b"1", {})
    storage.delete(["a/key"])
    assert visible(gcs()) == ["other"]
    assert len([event for event in heard if isinstance(event, events.Retrying)]) == 9


@pytest.mark.parametrize("operation", OPERATIONS)
def test_when_the_attempts_are_used_up_nothing_is_left(
    gcs: Make, gcs_server: GcsServer, behind: Make, http: HttpProxy, operation: str
) -> None:
    sessions = set(gcs_server.sessions)
    http.rule(operation, BUSY, times=2)
    with pytest.raises(StorageError) as caught:
        upload(behind(retry_attempts=1))
    assert caught.value.retryable
    assert "S3_" not in caught.value.hint
    assert visible(gcs()) == []
    if operation != "Commit":  # it may have been committed, and nothing is aborted under it
        assert isinstance(caught.value, StorageUnreachableError)
        assert set(gcs_server.sessions) == sessions


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_refusal_is_not_tried_again(
    gcs: Make, behind: Make, http: HttpProxy, operation: str
) -> None:
    heard: list[events.Event] = []
    http.rule(operation, DENIED, times=1)
    with pytest.raises(StorageRefusedError, match="denies access") as caught:
        upload(behind(heard.append))
    assert "Storage Object User" in caught.value.hint
    assert not [event for event in heard if isinstance(event, events.Retrying)]
    assert visible(gcs()) == []


@pytest.mark.parametrize("forward", [True, False], ids=["answer", "request"])
def test_a_part_whose_connection_breaks_is_sent_once(
    gcs: Make, behind: Make, http: HttpProxy, *, forward: bool
) -> None:
    """The store is asked what it has: a part that arrived is not sent again."""
    http.rule("Part", Drop(forward=forward), times=1)
    upload(behind())
    assert content(gcs()) == DATA
    assert http.count("Part") == (3 if forward else 4)  # two of 5 MiB, one of 256 KiB


def test_a_session_that_the_store_forgot(gcs: Make, gcs_server: GcsServer) -> None:
    with pytest.raises(UploadError, match="no longer knows"):  # noqa: SIM117 - reads better
        with gcs().upload("a/key", metadata={"id": "1"}, expected_size=1) as begun:
            gcs_server.sessions.clear()
            begun.write(DATA)
            begun.commit()
    assert visible(gcs()) == []


def test_an_upload_that_is_left_cancels_its_session(gcs: Make, gcs_server: GcsServer) -> None:
    before = set(gcs_server.sessions)
    heard: list[events.Event] = []
    with gcs(heard.append).upload("a/key", metadata={"id": "1"}, expected_size=1) as begun:
        begun.write(DATA)
        begun.flush()
        assert len(set(gcs_server.sessions) - before) == 1
        assert visible(gcs()) == []
    assert set(gcs_server.sessions) == before
    assert heard == []


def test_a_cancellation_that_is_refused_is_reported(
    behind: Make, http: HttpProxy, gcs_server: GcsServer
) -> None:
    heard: list[events.Event] = []
    http.rule("Cancel", DENIED)
    with behind(heard.append).upload("a/key", metadata={"id": "1"}, expected_size=1):
        [session] = list(gcs_server.sessions)[-1:]
    (left,) = (event for event in heard if isinstance(event, events.UploadLeftBehind))
    assert "denies access" in left.reason
    assert session not in str(left), "whoever has the session may write"


@pytest.mark.parametrize("after", later([0, 1000], 0))
def test_a_body_that_ends_early_is_read_again(
    gcs: Make, behind: Make, http: HttpProxy, after: int
) -> None:
    upload(gcs())
    http.rule("Read", Cut(after), times=1)
    assert content(behind()) == DATA


def test_a_range_is_never_shorter_than_was_asked(gcs: Make, behind: Make, http: HttpProxy) -> None:
    upload(gcs())
    http.rule("Read", Change(lambda body: body[:-1]))
    with pytest.raises(StorageUnreachableError):
        content(behind(retry_attempts=1))


# The commit.


@pytest.mark.parametrize("size", [0, 1, len(DATA), 2 * PART])
@pytest.mark.parametrize("times", [1, 100], ids=["once", "for ever"])
def test_a_lost_answer_to_the_commit_is_looked_up(
    gcs: Make, behind: Make, http: HttpProxy, times: int, size: int
) -> None:
    rule = http.rule("Commit", Drop(forward=True), times=times)
    upload(behind(), DATA[:size])
    assert rule.applied >= 1
    assert content(gcs()) == DATA[:size]


@pytest.mark.parametrize("fault", [Drop(forward=False), Answer(503, ""), Answer(502, "")], ids=str)
def test_a_commit_of_which_nothing_is_known_is_a_failure_and_left_alone(
    behind: Make, http: HttpProxy, fault: Drop | Answer
) -> None:
    heard: list[events.Event] = []
    http.rule("Commit", fault)
    begun = behind(heard.append, retry_attempts=1).upload(
        "a/key", metadata={"id": "1"}, expected_size=1
    )
    with pytest.raises(UploadError, match="cannot determine"), begun:
        begun.write(b"data")
        begun.commit()
    assert begun.committed is None
    assert http.count("Cancel") == 0
    assert [event for event in heard if isinstance(event, events.UploadLeftBehind)]


def test_a_commit_that_is_interrupted_before_it_arrives_is_sent_again(
    gcs: Make, behind: Make, http: HttpProxy
) -> None:
    http.rule("Commit", Drop(forward=False), times=1)
    upload(behind())
    assert content(gcs()) == DATA


def test_another_ones_object_is_not_taken_for_ours(
    gcs: Make, behind: Make, http: HttpProxy
) -> None:
    """The name is free when it is checked, and taken by the time of the commit."""
    http.rule("Head", Answer(404, ""), times=1)
    with (
        pytest.raises(ObjectExistsError),
        behind().upload("a/key", metadata={"id": "1"}, expected_size=1) as begun,
    ):
        begun.write(DATA)
        gcs().put("a/key", DATA, {"id": "theirs"})
        begun.commit()
    assert gcs().head("a/key").metadata == {"id": "theirs"}
    assert content(gcs()) == DATA


def test_bytes_that_the_store_lacks_are_not_committed(gcs: Make, gcs_server: GcsServer) -> None:
    before = set(gcs_server.sessions)
    with (
        pytest.raises(StorageError),
        gcs().upload("a/key", metadata={"id": "1"}, expected_size=1) as begun,
    ):
        begun.write(DATA)
        begun.flush()
        [session] = set(gcs_server.sessions) - before
        del gcs_server.sessions[session].data[-PART:]
        begun.commit()
    assert visible(gcs()) == []


def test_a_commit_that_the_store_takes_for_a_part(behind: Make, http: HttpProxy) -> None:
    rule = http.rule("Commit", Answer(308, ""))
    with pytest.raises(UploadError, match="has 0 bytes of the 10785760 sent"):
        upload(behind())
    assert rule.applied == 1


def test_bytes_that_the_store_holds_differently_are_refused_by_its_checksum(
    gcs: Make, gcs_server: GcsServer
) -> None:
    before = set(gcs_server.sessions)
    with (
        pytest.raises(StorageRefusedError),
        gcs().upload("a/key", metadata={"id": "1"}, expected_size=1) as begun,
    ):
        begun.write(DATA)
        begun.flush()
        [session] = set(gcs_server.sessions) - before
        gcs_server.sessions[session].data[7] ^= 1
        begun.commit()
    assert visible(gcs()) == []


def test_an_object_that_is_not_what_was_sent_is_removed(
    gcs: Make, behind: Make, http: HttpProxy
) -> None:
    """A store that ignores the checksum of a request still reports that of the object."""
    other = checksum(b"other").encode()
    mine = checksum(DATA).encode()
    http.rule("Commit", Change(lambda body: body.replace(mine, other)))
    with pytest.raises(UploadError, match="does not hold what was sent"):
        upload(behind())
    assert visible(gcs()) == []


# Who makes the requests.


@pytest.fixture
def service_account(
    gcs_server: GcsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """The file of a service account, whose tokens the server gives out and requires."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    file = tmp_path / "account.json"
    account = {
        "type": "service_account",
        "client_email": "backup@project.example.com",
        "private_key": pem.decode(),
        "private_key_id": "1",
        "token_uri": f"{gcs_server.endpoint}/token",
    }
    file.write_text(json.dumps(account))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(file))
    gcs_server.wants_token = True
    yield file
    gcs_server.wants_token = False


@pytest.mark.usefixtures("service_account")
def test_application_default_credentials_are_enough(gcs: Make, gcs_server: GcsServer) -> None:
    given = gcs_server.tokens_given
    storage = gcs(anonymous=False)
    upload(storage)
    assert content(storage) == DATA
    assert gcs_server.tokens_given == given + 1


@pytest.mark.usefixtures("service_account")
@pytest.mark.parametrize("operation", [*OPERATIONS, "Put", "Read"])
def test_a_token_that_is_no_longer_valid_is_replaced(
    gcs_server: GcsServer, behind: Make, http: HttpProxy, operation: str
) -> None:
    """The whole body is sent again, with the next token."""
    given = gcs_server.tokens_given
    http.rule(operation, Answer(401, ""), times=1)
    heard: list[events.Event] = []
    storage = behind(heard.append, anonymous=False)
    upload(storage)
    assert content(storage) == DATA
    storage.put("a/small", b"small", {})
    assert storage.head("a/small").size == len(b"small")
    assert gcs_server.tokens_given == given + 2
    assert heard == []


@pytest.mark.usefixtures("service_account")
def test_a_token_that_is_refused_again_is_an_error(
    gcs_server: GcsServer, behind: Make, http: HttpProxy
) -> None:
    given = gcs_server.tokens_given
    http.rule("List", Answer(401, ""))
    with pytest.raises(StorageRefusedError, match="wants credentials"):
        behind(anonymous=False).check()
    assert http.count("List") == 2
    assert gcs_server.tokens_given == given + 2


def test_a_service_for_tokens_that_does_not_answer_is_asked_again(
    gcs: Make, service_account: Path
) -> None:
    account = json.loads(service_account.read_text())
    service_account.write_text(json.dumps(account | {"token_uri": "http://127.0.0.1:1/token"}))
    heard: list[events.Event] = []
    with pytest.raises(StorageUnreachableError, match="tokens does not answer"):
        gcs(heard.append, anonymous=False, retry_attempts=2).check()
    assert len(heard) == 2


@pytest.mark.usefixtures("service_account")
def test_a_password_in_netrc_is_not_sent(behind: Make, http: HttpProxy, netrc: str) -> None:
    behind(anonymous=False).check()
    assert [each for each in http.requests if netrc in str(each.headers)] == []


@pytest.mark.usefixtures("service_account")
def test_without_credentials_the_store_refuses(gcs: Make) -> None:
    with pytest.raises(StorageRefusedError, match="no identity") as caught:
        gcs().check()
    assert "GOOGLE_APPLICATION_CREDENTIALS" in caught.value.hint


def test_a_file_of_credentials_that_is_none(gcs: Make, service_account: Path) -> None:
    service_account.write_text('{"type": "service_account", "private_key": "a-secret-of-it"}')
    with pytest.raises(StorageRefusedError, match="no identity") as caught:
        gcs(anonymous=False).check()
    assert "a-secret-of-it" not in f"{caught.value.message} {caught.value.hint}"


@pytest.mark.parametrize(
    ("different", "words"),
    [
        ({"bucket": "there-is-no-such"}, ["bucket does not exist", "STORAGE_URL"]),
        ({"endpoint": "http://127.0.0.1:1"}, ["no connection", "STORAGE_EMULATOR_HOST"]),
        ({"endpoint": "http://store.invalid"}, ["cannot be resolved", "DNS"]),
    ],
    ids=["bucket", "down", "name"],
)
def test_what_is_wrong_from_the_start(
    gcs: Make, different: dict[str, str], words: list[str]
) -> None:
    with pytest.raises(StorageError) as caught:
        gcs(retry_attempts=0, **different).check()
    for word in words:
        assert word in f"{caught.value.message} {caught.value.hint}"


def test_another_program_understands_the_requests(
    gcs: Make, fake_gcs_server: FakeGcsServer
) -> None:
    storage = gcs(endpoint=fake_gcs_server.endpoint, bucket=fake_gcs_server.create_bucket())
    storage.check()
    upload(storage)
    storage.put("a/ä b?#%", b"small", {"id": "2", "raw-bytes": "5"})
    storage.put("z", b"", {})
    assert content(storage) == DATA
    assert visible(storage) == ["a/key", "a/ä b?#%", "z"]
    assert [found.key for found in storage.list("a/", start_after="a/key")] == ["a/ä b?#%"]
    assert list(storage.folders()) == ["a/"]
    assert storage.head("a/key").size == len(DATA)
    assert storage.head("a/key").metadata == {"id": "1"}
    assert storage.head("a/ä b?#%").metadata == {"id": "2", "raw-bytes": "5"}
    with storage.read("a/key", start=7, length=9) as chunks:
        assert b"".join(chunks) == DATA[7:16]
    with pytest.raises(ObjectExistsError):
        upload(storage)
    storage.delete(["a/key", "missing", "z", "a/ä b?#%"])
    assert visible(storage) == []


def test_folders_are_listed_page_by_page(gcs: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("support.gcs_server.PAGE", 2)
    storage = gcs()
    for key in ("p/1", "p/a/1", "p/a/2", "p/b/1", "p/c/1", "p/d/1", "p-other/e/1"):
        storage.put(key, b"", {})
    assert storage.folders("p/", complete=True) == ["p/a/", "p/b/", "p/c/", "p/d/"]
    assert storage.folders("p/") == ["p/a/"]
