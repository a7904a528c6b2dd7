"""Three hosts with an identity each, in Azure and in Google Cloud Storage.

See ``contracts/test_writer_elsewhere.py`` for who enforces their permissions.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from azure.storage.blob import generate_container_sas

from acceptance.other_stores import OLD, opened, store_an_old_copy
from support.cli import environment, run_pgstash
from support.policies import AzureRoleProxy, GoogleRoleProxy
from support.tiers import later

if TYPE_CHECKING:
    from pgstash.storage.host_roles import Role
    from pgstash.storage.interface import Storage
    from support.azurite import AzuriteServer
    from support.gcs_server import GcsServer
    from support.postgres import MakeDatabase

Host = Callable[["Role"], AbstractContextManager[dict[str, str]]]

# As docs/how-to/protect-from-deletion.md names them.
RIGHTS = {"writer": "clw", "pruner": "dlrw", "reader": "clr"}


def printed(role: Role, url: str) -> dict[str, Any]:
    """Return what `pgstash policy` prints: with no key and no endpoint."""
    done = run_pgstash(["policy", role], environment(STORAGE_URL=url))
    assert (done.returncode, done.stderr) == (0, "")
    policy: dict[str, Any] = json.loads(done.stdout)
    return policy


def by_sas(server: AzuriteServer, container: str) -> Host:
    @contextmanager
    def host(role: Role) -> Iterator[dict[str, str]]:
        settings = server.settings(container)
        del settings["AZURE_STORAGE_KEY"]
        token = generate_container_sas(
            server.account,
            container,
            account_key=server.key,
            permission=RIGHTS[role],
            expiry=datetime.now(UTC) + timedelta(hours=1),
        )
        yield settings | {"AZURE_STORAGE_SAS_TOKEN": token}

    return host


def by_role_of_azure(server: AzuriteServer, container: str) -> Host:
    @contextmanager
    def host(role: Role) -> Iterator[dict[str, str]]:
        settings = server.settings(container)
        only = role == "writer"
        allowed = printed(role, settings["STORAGE_URL"])
        with AzureRoleProxy(server.port, role=allowed, lists_only=only) as proxy:
            port = int(proxy.endpoint.rpartition(":")[2])
            yield settings | {"AZURE_STORAGE_ENDPOINT": server.endpoint_at(port)}

    return host


def by_role_of_google(server: GcsServer, bucket: str) -> Host:
    @contextmanager
    def host(role: Role) -> Iterator[dict[str, str]]:
        settings = server.settings(bucket)
        with GoogleRoleProxy(server.port, role=printed(role, settings["STORAGE_URL"])) as proxy:
            yield settings | {"STORAGE_EMULATOR_HOST": proxy.endpoint}

    return host


@pytest.fixture(params=later(["SAS token", "role of Azure", "role of Google"], "role of Azure"))
def place(request: pytest.FixtureRequest) -> tuple[Host, Storage]:
    """Return the ways of the hosts to a store, and the store with all permissions."""
    given = request.getfixturevalue
    if request.param == "role of Google":
        google, bucket = given("gcs_server"), given("gcs_bucket")
        return by_role_of_google(google, bucket), opened(environment(**google.settings(bucket)))
    server, container = given("azurite_server"), given("azure_container")
    make = by_sas if request.param == "SAS token" else by_role_of_azure
    return make(server, container), opened(environment(**server.settings(container)))


def test_the_writer_backs_up_the_reader_drills_and_the_pruner_prunes(
    make_database: MakeDatabase, place: tuple[Host, Storage]
) -> None:
    host, store = place
    source = make_database("mixed")
    base = environment(
        source.bin_dir,
        DATABASE_URL=source.uri,
        BACKUP_PREFIX="team/shop",
        BACKUP_RETENTION_DAYS="1",
        RETRY_ATTEMPTS="0",
        VERIFY_DATABASE_URL=source.cluster.maintenance.uri,
    )

    def keys() -> set[str]:
        return {each.key for each in store.list("")}

    def run(env: dict[str, str], *arguments: str, status: int = 0) -> str:
        done = run_pgstash(arguments, env)
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout + done.stderr

    with host("writer") as settings:
        writer = base | settings | {"STORAGE_ROLE": "writer"}
        assert "WARN" not in run(writer, "once")
        old = set(store_an_old_copy(store))
        assert "WARN" not in run(writer, "once")  # with a backup to be found, and one to be pruned
        assert old < keys()
        run(writer, "healthcheck")
        before = keys()
        found = json.loads(run_pgstash(["check", "--json"], writer).stdout)["findings"]
        wrong = [each for each in found if each["state"] in ("failure", "warning")]
        assert [each for each in wrong if each["topic"] != "encryption"] == []
        assert {each["topic"] for each in found if each["state"] == "skipped"} >= {"read", "delete"}
        more = writer | {"STORAGE_ROLE": "full"}
        newest = max(key for key in before if re.search(r"/backup_\d+_\d+\.sql\.gz$", key))
        run(more, "cat", newest.rpartition("/")[2], status=21)
        run(more, "prune", status=21)
        assert before < keys()
        store.delete(keys() - before)  # what check left

    with host("reader") as settings:
        reader = base | settings
        run(reader, "drill")
        [proof] = keys() - before
        assert ".proof_" in proof
        run(reader, "prune", status=21)
        assert keys() == {*before, proof}

    with host("pruner") as settings:
        run(base | settings, "prune")
        assert keys() == {*before, proof} - old
        assert not any(OLD in key for key in keys())


def test_a_directory_has_no_roles() -> None:
    done = run_pgstash(["policy", "writer"], environment(STORAGE_URL="file:///nonexistent"))
    assert done.returncode == 1
    assert "no identity has permissions of this form there" in done.stderr
