"""A source, a place and fake tools for every test of what goes wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from faults.scene import Bucket, Folder, Place, Scene
from support.fake_tools import FakePgDump
from support.proxy import HttpProxy, TcpProxy

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.postgres import Database, MakeDatabase
    from support.swift import SwiftServer


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


@pytest.fixture(params=[pytest.param("folder", marks=pytest.mark.long), "bucket"])
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
