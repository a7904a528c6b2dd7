"""A source, a place and fake tools for every test of what goes wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from faults import other_places
from faults.other_places import Container, GoogleBucket, OtherStore
from faults.scene import Bucket, Folder, Place, Scene
from support.fake_tools import FakePgDump
from support.proxy import HttpProxy, TcpProxy
from support.tiers import later

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.azurite import AzuriteServer
    from support.gcs_server import GcsServer
    from support.postgres import Database, MakeDatabase
    from support.swift import SwiftServer


# Of these the first tier has the first, which costs a third of the second. What a bucket adds is in
# test_store_faults.py and, with ``bucket_scene``, in the others.
PLACES = ["folder", "bucket", "container", "google_bucket"]

# A fake one knows no table of contents: it would be asked twice.
ONE_PG_DUMP = {"DUMP_JOBS": "1"}


@pytest.fixture
def database(make_database: MakeDatabase) -> Database:
    """A real source for the login; what is dumped of it comes from a fake pg_dump."""
    return make_database()


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    root = tmp_path / "storage"
    root.mkdir()
    return Folder(root, {"STORAGE_URL": root.as_uri()})


@pytest.fixture
def bucket(swift_server: SwiftServer, s3_bucket: str) -> Bucket:
    settings = {
        "S3_ENDPOINT": swift_server.endpoint,
        "S3_BUCKET": s3_bucket,
        "S3_ACCESS_KEY_ID": swift_server.access_key_id,
        "S3_SECRET_ACCESS_KEY": swift_server.secret_access_key,
        "S3_PART_SIZE": "5",
        "RETRY_DELAY": "0.1",
    }
    return Bucket(swift_server.client, s3_bucket, settings)


@pytest.fixture
def container(azurite_server: AzuriteServer, azure_container: str) -> Container:
    settings = azurite_server.settings(azure_container) | {"RETRY_DELAY": "0.1"}
    return Container(azurite_server.client.get_container_client(azure_container), settings)


@pytest.fixture
def google_bucket(gcs_server: GcsServer, gcs_bucket: str) -> GoogleBucket:
    settings = gcs_server.settings(gcs_bucket) | {"RETRY_DELAY": "0.1"}
    return GoogleBucket(gcs_server, gcs_bucket, settings)


@pytest.fixture(params=later(PLACES, *PLACES[1:]))
def place(request: pytest.FixtureRequest) -> Place:
    chosen: Place = request.getfixturevalue(request.param)
    return chosen


@pytest.fixture
def fake_tools(tmp_path: Path) -> Path:
    return tmp_path / "bin"


@pytest.fixture
def scene(database: Database, place: Place, fake_tools: Path) -> Iterator[Scene]:
    """A source, a directory or a bucket, and a fake pg_dump that behaves well until told."""
    scene = Scene(database, place, fake_tools, dict(ONE_PG_DUMP))
    scene.fake(FakePgDump())
    yield scene
    scene.kill_processes()


@pytest.fixture
def bucket_scene(database: Database, bucket: Bucket, fake_tools: Path) -> Iterator[Scene]:
    """The same with a bucket alone."""
    scene = Scene(database, bucket, fake_tools, dict(ONE_PG_DUMP))
    scene.fake(FakePgDump())
    yield scene
    scene.kill_processes()


@pytest.fixture
def http(swift_server: SwiftServer) -> Iterator[HttpProxy]:
    """Stands before the store and breaks requests."""
    with HttpProxy(swift_server.port) as proxy:
        yield proxy


@pytest.fixture
def tcp(swift_server: SwiftServer) -> Iterator[TcpProxy]:
    """Stands before the store and breaks connections."""
    with TcpProxy(swift_server.port) as proxy:
        yield proxy


@pytest.fixture(params=["azure", "google"])
def other(request: pytest.FixtureRequest) -> Iterator[OtherStore]:
    """A store other than S3, behind a proxy that breaks requests."""
    name = "container" if request.param == "azure" else "google_bucket"
    server = "azurite_server" if request.param == "azure" else "gcs_server"
    kind = other_places.azure() if request.param == "azure" else other_places.google()
    port = request.getfixturevalue(server).port
    with HttpProxy(port, kind.operation_of) as proxy:
        yield OtherStore(kind, request.getfixturevalue(name), proxy)


@pytest.fixture
def other_scene(database: Database, other: OtherStore, fake_tools: Path) -> Iterator[Scene]:
    """A source, and the way to that store through its proxy."""
    through = other.kind.through(other.http)
    scene = Scene(database, other.place, fake_tools, {**ONE_PG_DUMP, **through})
    scene.fake(FakePgDump())
    yield scene
    scene.kill_processes()
