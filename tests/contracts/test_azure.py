"""What only a container of Azure promises, and what it does when server or network fail."""

# ruff: noqa: PT012 - what must fail is a whole upload

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from azure.storage.blob import ContainerSasPermissions, ContentSettings, generate_container_sas

from pgstash import events
from pgstash.errors import (
    ConfigurationError,
    ObjectExistsError,
    ObjectNotFoundError,
    StorageError,
    StorageRefusedError,
    StorageUnreachableError,
    UploadError,
)
from pgstash.storage.azure.blocks import PLACEHOLDER
from pgstash.storage.interface import archived
from support.azurite import ACCOUNT, KEY, AzuriteServer, operation_of
from support.proxy import PASS, Answer, Behaviour, Change, Cut, Drop, HttpProxy, TcpProxy
from support.tiers import later

if TYPE_CHECKING:
    from pgstash.storage.azure.storage import AzureStorage

MIB = 1024 * 1024
PART = 5 * MIB
DATA = os.urandom(2 * PART + 1000)
BUSY = Answer(503, "ServerBusy")
DENIED = Answer(403, "AuthorizationPermissionMismatch")
# The requests of an upload, in the order of time.
OPERATIONS = ["PutBlock", "GetBlockList", "HeadBlob", "PutBlockList"]

OF_THIS_ACCOUNT = f"AccountName={ACCOUNT};AccountKey={KEY}"

Make = Callable[..., "AzureStorage"]


@pytest.fixture
def http(azurite_server: AzuriteServer) -> Iterator[HttpProxy]:
    with HttpProxy(azurite_server.port, operation_of) as proxy:
        yield proxy


@pytest.fixture
def behind(azure: Make, azurite_server: AzuriteServer, http: HttpProxy) -> Make:
    """The same container, with the HTTP proxy in front of it."""

    def make(emit: events.Emit = events.ignore, **different: Any) -> AzureStorage:
        port = int(http.endpoint.rpartition(":")[2])
        return azure(emit, endpoint=azurite_server.endpoint_at(port), **different)

    return make


@pytest.fixture
def tcp(azurite_server: AzuriteServer) -> Iterator[TcpProxy]:
    with TcpProxy(azurite_server.port) as proxy:
        yield proxy


def upload(storage: AzureStorage, data: bytes = DATA, backup_id: str = "1") -> None:
    with storage.upload("key", metadata={"id": backup_id}, expected_size=1) as begun:
        begun.write(data)
        begun.commit()


def content(storage: AzureStorage) -> bytes:
    with storage.read("key") as chunks:
        return b"".join(chunks)


def visible(storage: AzureStorage) -> list[str]:
    return [found.key for found in storage.list("")]


def assert_nothing_left(storage: AzureStorage) -> None:
    assert visible(storage) == []
    assert list(storage.pending("")) == []


# What the store answers.


def test_what_may_pass_is_tried_again(azure: Make, behind: Make, http: HttpProxy) -> None:
    heard: list[events.Event] = []
    for operation in [*OPERATIONS, "GetBlob", "GetBlobs", "PutBlob", "DeleteBlob"]:
        http.rule(operation, BUSY, times=1)
    storage = behind(heard.append)
    upload(storage)
    assert content(storage) == DATA
    assert visible(storage) == ["key"]
    storage.put("other", b"1", {})
    storage.delete(["key"])
    assert visible(azure()) == ["other"]
    assert len([event for event in heard if isinstance(event, events.Retrying)]) == 8


@pytest.mark.parametrize("operation", OPERATIONS)
def test_when_the_attempts_are_used_up_nothing_is_left(
    azure: Make, behind: Make, http: HttpProxy, operation: str
) -> None:
    http.rule(operation, Answer(500, "InternalError"), times=2)
    with pytest.raises(StorageError) as caught:
        upload(behind(retry_attempts=1))
    assert caught.value.retryable
    assert "S3_" not in caught.value.hint
    if operation == "PutBlockList":  # it may have been committed, and nothing is aborted under it
        assert isinstance(caught.value, UploadError)
        assert visible(azure()) == []
    else:
        assert isinstance(caught.value, StorageUnreachableError)
        assert_nothing_left(azure())


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_refusal_is_not_tried_again(
    azure: Make, behind: Make, http: HttpProxy, operation: str
) -> None:
    heard: list[events.Event] = []
    http.rule(operation, DENIED, times=1)
    with pytest.raises(StorageRefusedError, match="lacks a permission") as caught:
        upload(behind(heard.append), b"small")
    assert "Storage Blob Data Contributor" in caught.value.hint
    assert not [event for event in heard if isinstance(event, events.Retrying)]
    assert_nothing_left(azure())


@pytest.mark.parametrize("after", later([0, 1000, PART // 2], 0, 1000))
def test_a_part_that_is_cut_off_is_sent_again(
    azure: Make, azurite_server: AzuriteServer, tcp: TcpProxy, after: int
) -> None:
    storage = azure(endpoint=azurite_server.endpoint_at(tcp.port), retry_attempts=5)
    with storage.upload("key", metadata={"id": "1"}, expected_size=1) as begun:
        tcp.behave(PASS, next_connections=[Behaviour(reset_after=after)])
        begun.write(DATA)
        begun.commit()
    assert content(azure()) == DATA


def test_a_block_that_was_changed_on_the_way_is_refused_by_the_store(
    azure: Make, behind: Make, http: HttpProxy
) -> None:
    """Each block has its MD5, which the store compares."""
    upload(behind())
    sent = [each for each in http.requests if operation_of(each) == "PutBlock"]
    assert len(sent) == 4  # a marker, and three parts
    assert all(each.headers.get("Content-MD5") for each in sent)
    http.rule("PutBlock", Answer(400, "Md5Mismatch"), times=1)
    azure().delete(["key"])
    upload(behind())
    assert content(azure()) == DATA


@pytest.mark.long  # the SDK itself waits before it reads on
def test_a_body_that_ends_early_is_read_again(azure: Make, behind: Make, http: HttpProxy) -> None:
    upload(azure())
    http.rule("GetBlob", Cut(1000), times=1)
    assert content(behind()) == DATA


def test_a_range_is_never_shorter_than_was_asked(
    azure: Make, behind: Make, http: HttpProxy
) -> None:
    upload(azure())
    http.rule("GetBlob", Change(lambda body: body[:-1]), skip=1)
    with pytest.raises(StorageUnreachableError):
        content(behind(retry_attempts=1))


# The commit.


@pytest.mark.parametrize("times", [1, 100], ids=["once", "for ever"])
def test_a_lost_answer_to_the_commit_is_looked_up(
    azure: Make, behind: Make, http: HttpProxy, times: int
) -> None:
    rule = http.rule("PutBlockList", Drop(forward=True), times=times)
    upload(behind())
    assert rule.applied >= 1
    assert content(azure()) == DATA
    assert list(azure().pending("")) == []


@pytest.mark.parametrize(
    "fault", [Drop(forward=False), Answer(500, "OperationTimedOut"), Answer(502, "")], ids=str
)
def test_a_commit_of_which_nothing_is_known_is_a_failure_and_left_alone(
    azure: Make, behind: Make, http: HttpProxy, fault: Drop | Answer
) -> None:
    heard: list[events.Event] = []
    http.rule("PutBlockList", fault)
    storage = behind(heard.append, retry_attempts=1)
    begun = storage.upload("key", metadata={"id": "1"}, expected_size=1)
    with pytest.raises(UploadError, match="cannot determine"), begun:
        begun.write(b"data")
        begun.commit()
    assert begun.committed is None
    assert http.count("PutBlockList") == 2  # no other one, as an abort sends
    (pending,) = azure().pending("")
    (left,) = (event for event in heard if isinstance(event, events.UploadLeftBehind))
    assert left.upload_id == pending.upload_id


def test_another_ones_object_is_not_taken_for_ours(
    azure: Make, behind: Make, http: HttpProxy
) -> None:
    """The name is free when it is checked, and taken by the time of the commit."""
    azure().put("key", DATA, {"id": "theirs"})
    http.rule("HeadBlob", Answer(404, "BlobNotFound"), times=1)
    with pytest.raises(ObjectExistsError):
        upload(behind())
    assert azure().head("key").metadata == {"id": "theirs"}
    assert content(azure()) == DATA


def test_blocks_that_the_store_holds_differently_are_not_committed(
    azure: Make, behind: Make, http: HttpProxy
) -> None:
    shorter = Change(lambda body: body.replace(b"<Size>5242880<", b"<Size>5242879<"))
    http.rule("GetBlockList", shorter, times=1)
    with pytest.raises(UploadError, match=r"does not hold what was sent .*parts: 1, 2"):
        upload(behind())
    assert_nothing_left(azure())


# Staged blocks, and the empty blob that drops them.


def leave_blocks(azure: Make, behind: Make, http: HttpProxy) -> None:
    """Leave an upload that cannot be aborted, as if the process had been killed."""
    rule = http.rule("PutBlockList", DENIED)
    with behind().upload("key", metadata={"id": "1"}, expected_size=1) as begun:
        begun.write(b"data")
        begun.flush()
    http.rules.remove(rule)
    assert visible(azure()) == []
    assert [each.key for each in azure().pending("")] == ["key"]


def test_dropping_blocks_never_removes_a_committed_object(
    azure: Make, behind: Make, http: HttpProxy
) -> None:
    leave_blocks(azure, behind, http)
    (pending,) = azure().pending("")
    azure().put("key", b"whole", {"id": "theirs"})
    azure().abort(pending)
    assert content(azure()) == b"whole"
    assert azure().head("key").metadata == {"id": "theirs"}


def test_an_empty_blob_that_stays_is_no_object_and_goes_with_the_next_sweep(
    azure: Make, behind: Make, http: HttpProxy
) -> None:
    leave_blocks(azure, behind, http)
    (pending,) = azure().pending("")
    rule = http.rule("DeleteBlob", DENIED)
    with pytest.raises(StorageRefusedError):
        behind().abort(pending)
    http.rules.remove(rule)
    container = azure()._container  # noqa: SLF001 - what anyone sees
    [blob] = container.list_blobs()
    assert (blob.size, blob.content_settings.content_type) == (0, PLACEHOLDER)
    assert visible(azure()) == []
    with pytest.raises(ObjectNotFoundError):
        azure().head("key")
    with pytest.raises(ObjectNotFoundError):
        content(azure())
    (left,) = azure().pending("")
    azure().abort(left)
    assert_nothing_left(azure())
    assert list(container.list_blobs()) == []


def test_an_empty_object_of_someone_else_is_an_object(azure: Make) -> None:
    container = azure()._container  # noqa: SLF001 - what anyone can do
    container.upload_blob("empty", b"", content_settings=ContentSettings(content_type="text/plain"))
    assert visible(azure()) == ["empty"]
    assert list(azure().pending("")) == []


def test_blocks_that_another_program_staged_are_left_to_it(azure: Make) -> None:
    container = azure()._container  # noqa: SLF001 - what anyone can do
    container.get_blob_client("theirs").stage_block("block-1", b"theirs")
    assert list(azure().pending("")) == []


@pytest.mark.parametrize(
    "block_id", ["pgstash-no-date-1", "pgstash-zzzzzzzz-0123456789abcdef-000001", "pgstash-0-1-2"]
)
def test_blocks_that_only_look_like_ours_are_left_alone(azure: Make, block_id: str) -> None:
    container = azure()._container  # noqa: SLF001 - what anyone can do
    container.get_blob_client("theirs").stage_block(block_id, b"theirs")
    assert list(azure().pending("")) == []


def test_a_blob_in_the_archive_tier_has_to_be_thawed(azure: Make) -> None:
    azure().put("key", b"data", {"id": "1"})
    [before] = azure().list("")
    assert (before.archived, azure().head("key").archived) == ("", "")
    container = azure()._container  # noqa: SLF001 - what a lifecycle rule does
    container.get_blob_client("key").set_standard_blob_tier("Archive")
    [listed] = azure().list("")
    assert (listed.archived, azure().head("key").archived) == ("Archive", "Archive")
    with pytest.raises(StorageRefusedError, match="archive tier"):
        content(azure())
    hint = archived(azure().url("key"), "Archive").hint
    assert "az storage blob set-tier --account-name pgstashtests" in hint
    assert "--name key --tier Hot" in hint


# Who makes the requests.


def sas(azurite_server: AzuriteServer, container: str, permissions: str) -> str:
    return generate_container_sas(
        azurite_server.account,
        container,
        account_key=azurite_server.key,
        permission=ContainerSasPermissions.from_string(permissions),
        expiry=datetime.now(UTC) + timedelta(hours=1),
    )


def test_a_sas_token_is_enough_and_is_not_shown(
    azure: Make, azurite_server: AzuriteServer, azure_container: str
) -> None:
    token = sas(azurite_server, azure_container, "rcwdl")
    storage = azure(key=None, sas_token=f"?{token}")
    storage.check()
    upload(storage)
    assert content(storage) == DATA
    storage.delete(["key", "other"])
    assert_nothing_left(storage)
    assert "sig" not in storage.url("key") + repr(storage)


def test_a_sas_token_without_a_permission(
    azure: Make, azurite_server: AzuriteServer, azure_container: str
) -> None:
    token = sas(azurite_server, azure_container, "rl")
    storage = azure(key=None, sas_token=token)
    storage.check()
    with pytest.raises(StorageRefusedError) as caught:
        upload(storage)
    assert "SAS token" in caught.value.hint
    assert token not in str(caught.value)


def test_a_connection_string_is_enough(azure: Make, azurite_server: AzuriteServer) -> None:
    storage = azure(
        key=None,
        endpoint=None,
        connection_string=f"DefaultEndpointsProtocol=http;AccountName={azurite_server.account};"
        f"AccountKey={azurite_server.key};BlobEndpoint={azurite_server.endpoint}",
    )
    storage.put("key", b"data", {})
    assert content(azure()) == b"data"


def test_a_password_in_netrc_is_not_sent(behind: Make, http: HttpProxy, netrc: str) -> None:
    behind().check()
    assert [each for each in http.requests if netrc in str(each.headers)] == []


@pytest.mark.parametrize(
    ("different", "words"),
    [
        # Azure itself answers AuthenticationFailed:
        # https://learn.microsoft.com/rest/api/storageservices/common-rest-api-error-codes
        ({"key": "d3Jvbmc="}, ["denies access", "AZURE_STORAGE_KEY"]),
        ({"container": "there-is-no-such"}, ["container does not exist", "STORAGE_URL"]),
        ({"endpoint": "http://127.0.0.1:1/pgstashtests"}, ["no connection", "ENDPOINT"]),
        ({"endpoint": "http://store.invalid/pgstashtests"}, ["cannot be resolved", "DNS"]),
    ],
    ids=["key", "container", "down", "name"],
)
def test_what_is_wrong_from_the_start(
    azure: Make, different: dict[str, str], words: list[str]
) -> None:
    with pytest.raises(StorageError) as caught:
        azure(retry_attempts=0, **different).check()
    for word in words:
        assert word in f"{caught.value.message} {caught.value.hint}"
    assert "d3Jvbmc=" not in str(caught.value)


@pytest.mark.parametrize(
    ("different", "word"),
    [
        ({"account": "another", "connection_string": OF_THIS_ACCOUNT}, "is for pgstashtests"),
        ({"key": None}, "https://"),
        ({"connection_string": "nonsense"}, "AZURE_STORAGE_CONNECTION_STRING"),
        (
            {"connection_string": f"AccountName={ACCOUNT};AccountKey=not base64"},
            "AZURE_STORAGE_CONNECTION_STRING",
        ),
        ({"key": "not base64"}, "AZURE_STORAGE_KEY"),
    ],
    ids=["account", "no TLS", "connection string", "key in it", "key"],
)
def test_what_cannot_be_used_is_a_problem_of_the_configuration(
    azure: Make, different: dict[str, Any], word: str
) -> None:
    with pytest.raises(ConfigurationError, match=word) as caught:
        azure(**different).check()
    assert "not base64" not in str(caught.value)


def test_folders_are_listed_page_by_page(azure: Make) -> None:
    storage = azure()
    container = storage._container  # noqa: SLF001 - the store then returns small pages
    container.walk_blobs = partial(container.walk_blobs, results_per_page=2)  # type: ignore[method-assign]
    for key in ("p/1", "p/a/1", "p/a/2", "p/b/1", "p/c/1", "p/d/1", "p-other/e/1"):
        storage.put(key, b"", {})
    assert storage.folders("p/", complete=True) == ["p/a/", "p/b/", "p/c/", "p/d/"]
    assert len(storage.folders("p/")) < 4
