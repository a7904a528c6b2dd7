"""An identity of Azure or Google that can neither read nor delete stores backups.

Azurite itself enforces the permissions of a SAS token. Proxies enforce those of custom roles.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from azure.storage.blob import generate_container_sas

from contracts.test_writer import PLAN, upload
from pgstash.check import storage as check
from pgstash.errors import ObjectExistsError, StorageRefusedError, UploadError
from pgstash.storage.azure import policy as azure_policy
from pgstash.storage.gcs import policy as google_policy
from pgstash.storage.host_roles import ROLES
from pgstash.storage.interface import PendingUpload, Storage
from support import azurite
from support.policies import AzureRoleProxy, GoogleRoleProxy
from support.proxy import Drop, HttpProxy, Request

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from support.azurite import AzuriteServer
    from support.gcs_server import GcsServer

MIB = 1024 * 1024
RIGHTS_OF_A_WRITER = "clw"


@dataclass
class Writer:
    """A store as a writer opens it, the way there, and the same store with all permissions."""

    storage: Storage
    proxy: HttpProxy
    owner: Storage
    commit: str
    """The request that makes an object visible."""
    refused: list[str]


def sas(server: AzuriteServer, container: str, rights: str) -> str:
    return generate_container_sas(
        server.account,
        container,
        account_key=server.key,
        permission=rights,
        expiry=datetime.now(UTC) + timedelta(hours=1),
    )


@pytest.fixture(params=["SAS token", "role of Azure", "role of Google"])
def writer(request: pytest.FixtureRequest) -> Iterator[Writer]:
    given = request.getfixturevalue
    with ExitStack() as stack:
        if request.param == "role of Google":
            bucket, gcs = given("gcs_bucket"), given("gcs")
            google: GcsServer = given("gcs_server")
            role = google_policy.policy("writer", bucket)
            http = stack.enter_context(GoogleRoleProxy(google.port, role=role))
            storage = gcs(endpoint=http.endpoint, may_read=False, retry_attempts=0)
            yield Writer(storage, http, gcs(), "Commit", http.refused)
            return
        server: AzuriteServer = given("azurite_server")
        container, azure = given("azure_container"), given("azure")
        own: dict[str, Any] = {"may_read": False, "retry_attempts": 0}
        refused: list[str] = []
        proxy: HttpProxy
        if request.param == "SAS token":
            proxy = HttpProxy(server.port, azurite.operation_of)
            own |= {"key": None, "sas_token": sas(server, container, RIGHTS_OF_A_WRITER)}
        else:
            role = azure_policy.policy("writer", server.account, container)
            proxy = AzureRoleProxy(server.port, role=role, lists_only=True, refused=refused)
        stack.enter_context(proxy)
        storage = azure(endpoint=server.endpoint_at(int(proxy.endpoint.rpartition(":")[2])), **own)
        yield Writer(storage, proxy, azure(), "PutBlockList", refused)


def test_an_upload_needs_no_permission_to_read(writer: Writer) -> None:
    writer.storage.check()
    upload(writer.storage, "db/key2")
    upload(writer.storage, "db/key", bytes(6 * MIB))
    with pytest.raises(ObjectExistsError):
        upload(writer.storage, "db/key", b"other")
    assert writer.owner.head("db/key").size == 6 * MIB
    assert writer.owner.head("db/key").metadata == {"id": "ours"}
    with pytest.raises(StorageRefusedError), writer.storage.read("db/key") as chunks:
        b"".join(chunks)
    with pytest.raises(StorageRefusedError):
        writer.storage.delete(["db/key"])
    # What a role does not allow was asked for only here, but the list of blocks.
    assert {*writer.refused} - {"GetBlockList"} <= {
        *("HeadBlob", "DeleteBlob"),
        *("storage.objects.get", "storage.objects.delete"),
    }


def test_an_upload_whose_commit_was_not_answered_is_found_in_the_listing(writer: Writer) -> None:
    writer.proxy.rule(writer.commit, Drop(forward=True), times=1)
    upload(writer.storage, "db/key", bytes(6 * MIB))
    assert [found.size for found in writer.owner.list("db/key")] == [6 * MIB]
    assert writer.proxy.count(writer.commit) == 1


def test_another_object_of_the_same_size_is_not_taken_for_it(writer: Writer) -> None:
    def someone_else_was_first(_request: Request) -> bool:
        with writer.owner.upload("db/key", metadata={"id": "theirs"}, expected_size=4) as theirs:
            theirs.write(b"DATA")
            theirs.commit()
        return True

    lost = writer.proxy.rule(writer.commit, Drop(forward=True), times=1)
    lost.matches = someone_else_was_first
    with pytest.raises(UploadError, match="cannot determine whether"):
        upload(writer.storage, "db/key")
    assert writer.owner.head("db/key").metadata == {"id": "theirs"}


def test_check_tries_what_a_writer_does_and_nothing_else(writer: Writer) -> None:
    found = {each.topic: each for each in check.look(PLAN, writer.storage)}
    assert {topic for topic, each in found.items() if each.state == "skipped"} == {"read", "delete"}
    assert {topic for topic, each in found.items() if each.state not in ("ok", "skipped")} == set()
    assert {*writer.refused} <= {"GetBlockList"}
    assert len(list(writer.owner.list("db/"))) == 2


def test_a_failed_upload_is_left_to_the_pruner(writer: Writer) -> None:
    """On Azure its blocks stay; a session of Google is cancelled."""
    with writer.storage.upload("db/key", metadata={"id": "x"}, expected_size=4) as sending:
        sending.write(b"data")
        sending.flush()
    assert not list(writer.owner.list("db/"))
    left: list[PendingUpload] = list(writer.owner.pending("db/"))
    assert len(left) == (0 if writer.commit == "Commit" else 1)
    for each in left:
        writer.owner.abort(each)
    assert not list(writer.owner.pending("db/"))


def test_a_block_that_is_lost_fails_the_commit(
    azurite_server: AzuriteServer, azure_container: str, azure: Callable[..., Storage]
) -> None:
    """Also if the identity may not list the blocks."""
    role = azure_policy.policy("writer", azurite_server.account, azure_container)
    with AzureRoleProxy(azurite_server.port, role=role, lists_only=True) as proxy:
        port = int(proxy.endpoint.rpartition(":")[2])
        storage = azure(endpoint=azurite_server.endpoint_at(port), may_read=False, retry_attempts=0)
        with storage.upload("db/key", metadata={"id": "x"}, expected_size=4) as sending:
            sending.write(b"data")
            sending.flush()
            [begun] = azure().pending("db/")
            azure().abort(begun)
            with pytest.raises(UploadError, match="no longer has all blocks"):
                sending.commit()
    assert not list(azure().list("db/"))


@pytest.mark.parametrize("role", ROLES)
def test_no_role_has_more_than_its_tasks_need(role: Any) -> None:
    actions = azure_policy.policy(role, "account", "container")["DataActions"]
    permissions = google_policy.policy(role, "bucket")["includedPermissions"]
    assert any(each.endswith("/delete") for each in actions) == (role == "pruner")
    assert ("storage.objects.delete" in permissions) == (role == "pruner")
    assert ("storage.objects.get" in permissions) == (role != "writer")
