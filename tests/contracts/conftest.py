"""The stores that the contract tests run against, each empty."""

from __future__ import annotations

import base64
import os
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import pytest

from pgstash import events
from pgstash.kms.client import KmsClient
from pgstash.kms.config import KmsConfig
from pgstash.storage.azure.config import AzureConfig
from pgstash.storage.azure.storage import AzureStorage
from pgstash.storage.directory.storage import DirectoryStorage
from pgstash.storage.gcs.config import GcsConfig
from pgstash.storage.gcs.storage import GcsStorage
from pgstash.storage.memory import MemoryStorage
from pgstash.storage.s3.config import S3Config, Signer
from pgstash.storage.s3.storage import S3Storage
from support.kms import Kms

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from pgstash.storage.interface import Storage
    from support.azurite import AzuriteServer
    from support.gcs_server import GcsServer
    from support.seaweedfs import SeaweedServer
    from support.swift import SwiftServer

MIB = 1024 * 1024


@pytest.fixture
def s3(swift_server: SwiftServer, s3_bucket: str) -> Callable[..., S3Storage]:
    """Return a maker of stores on a fresh bucket, with short waits.

    Any value of the config may differ, and ``emit``. The one that differs in nothing is made once,
    because a client takes a while to make.
    """
    made: list[S3Storage] = []

    usual = S3Config(
        endpoint=swift_server.endpoint,
        bucket=s3_bucket,
        region=swift_server.region,
        access_key_id=swift_server.access_key_id,
        secret_access_key=swift_server.secret_access_key,
        retry_delay=0.01,
        part_size=5 * MIB,
    )

    def make(emit: events.Emit = events.ignore, **different: Any) -> S3Storage:
        if emit is not events.ignore or different:
            return S3Storage(replace(usual, **different), emit)
        if not made:
            made.append(S3Storage(usual))
        return made[0]

    return make


@pytest.fixture
def seaweedfs(seaweedfs_server: SeaweedServer) -> S3Storage:
    """A fresh bucket of another real store than Swift."""
    config = S3Config(
        endpoint=seaweedfs_server.endpoint,
        bucket=seaweedfs_server.create_bucket(),
        region=seaweedfs_server.region,
        access_key_id=seaweedfs_server.access_key_id,
        secret_access_key=seaweedfs_server.secret_access_key,
        retry_delay=0.01,
        part_size=5 * MIB,
    )
    return S3Storage(config)


@pytest.fixture
def azure(azurite_server: AzuriteServer, azure_container: str) -> Callable[..., AzureStorage]:
    """Return a maker of stores on a fresh container, with short waits.

    Any value of the config may differ, and ``emit``.
    """
    usual = AzureConfig(
        account=azurite_server.account,
        container=azure_container,
        endpoint=azurite_server.endpoint,
        key=azurite_server.key,
        retry_delay=0.01,
        part_size=5 * MIB,
    )

    def make(emit: events.Emit = events.ignore, **different: Any) -> AzureStorage:
        return AzureStorage(replace(usual, **different), emit)

    return make


@pytest.fixture
def gcs(gcs_server: GcsServer, gcs_bucket: str) -> Callable[..., GcsStorage]:
    """Return a maker of stores on a fresh bucket, with short waits.

    Any value of the config may differ, and ``emit``.
    """
    usual = GcsConfig(
        bucket=gcs_bucket,
        endpoint=gcs_server.endpoint,
        anonymous=True,
        retry_delay=0.01,
        part_size=5 * MIB,
    )

    def make(emit: events.Emit = events.ignore, **different: Any) -> GcsStorage:
        return GcsStorage(replace(usual, **different), emit)

    return make


@pytest.fixture(
    params=[
        "memory",
        "directory",
        "s3",
        pytest.param("seaweedfs", marks=pytest.mark.long),
        "azure",
        "gcs",
    ]
)
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "memory":
        return MemoryStorage()
    if request.param == "directory":
        root = tmp_path / "root"
        root.mkdir()
        return DirectoryStorage(root)
    made: Storage = request.getfixturevalue(request.param)
    return made() if callable(made) else made


@pytest.fixture
def uploads_are_listed(storage: Storage) -> None:
    """Skip the test for a store that lists no unfinished uploads.

    https://cloud.google.com/storage/docs/resumable-uploads
    """
    if isinstance(storage, GcsStorage):
        pytest.skip("Google Cloud Storage lists no unfinished uploads, and drops them itself")


@pytest.fixture
def netrc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A password for any host, in a file that requests reads."""
    file = tmp_path / "netrc"
    file.write_text("default login someone password of-another-host\n")
    monkeypatch.setenv("NETRC", str(file))
    return base64.b64encode(b"someone:of-another-host").decode()


@dataclass
class UsualKms:
    """A service of KMS for all tests, and its one client, which takes a while to make."""

    service: Kms
    client: KmsClient | None = None
    said: list[events.Event] = field(default_factory=list)
    """What the client reports, in the present test."""

    def report(self, event: events.Event) -> None:
        self.said.append(event)


@pytest.fixture(scope="session")
def usual_kms() -> Iterator[UsualKms]:
    with Kms() as service:
        yield UsualKms(service)


@pytest.fixture
def kms(usual_kms: UsualKms, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Kms]:
    """Return AWS KMS, which this process reaches with an identity of its environment."""
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, value in usual_kms.service.variables.items():
        monkeypatch.setenv(name, value)
    yield usual_kms.service
    usual_kms.service.reset()


@pytest.fixture
def open_kms(usual_kms: UsualKms, kms: Kms) -> Callable[..., KmsClient]:
    """Return a maker of clients of KMS with short waits; its arguments are those of Signer.

    Without any, the one client of all tests is returned.
    """
    del kms  # it sets the environment

    def make(said: list[events.Event] | None = None, **signer: Any) -> KmsClient:
        given = {"purpose": "AWS KMS", "region": "us-east-1", "connect_timeout": 5.0, **signer}
        config = KmsConfig(Signer(**given), 2, 0.01)
        usual_kms.said = [] if said is None else said
        if signer:
            return KmsClient(config, usual_kms.report)
        if usual_kms.client is None:
            usual_kms.client = KmsClient(config, usual_kms.report)
        return usual_kms.client

    return make
