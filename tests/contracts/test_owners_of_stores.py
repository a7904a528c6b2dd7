"""Two stores may have the same URL, each on a server of its own: they are two places."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pgstash import events
from pgstash.commands.source import owners_of
from pgstash.commands.storage import open_storage
from pgstash.format.identity import Identity
from pgstash.repository import catalog
from pgstash.settings import sources
from support.gcs_server import GcsServer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from support.azurite import AzuriteServer
    from support.seaweedfs import SeaweedServer
    from support.swift import SwiftServer

KEY = "backups/backup_20260131_020000.sql.gz"


def store(settings: Mapping[str, str], database: str) -> str:
    """Store a backup of a database in the store of these settings; return its source.

    That is what a process remembers that has read it.
    """
    storage = open_storage(
        sources.load({"BACKUP_PREFIX": "backups", **settings}, needs={"storage"}), events.ignore
    )
    metadata = Identity(database, "7301", "db.internal", "5432").metadata()
    storage.put(KEY, b"data", metadata)
    found = catalog.read(storage, "backups").backups
    owners_of(storage).origins(found)
    # As the next run of a service does: another client, the same process.
    [origin] = owners_of(storage).origins(found)
    return origin.identity.database or ""


def test_each_server_has_its_own_backups(gcs_server: GcsServer) -> None:
    with GcsServer() as other:
        bucket = gcs_server.create_bucket()
        other.buckets[bucket] = {}
        for server, database in ((gcs_server, "shop"), (other, "blog")):
            assert store(server.settings(bucket), database) == database
        del gcs_server.buckets[bucket]


def test_a_backup_is_read_once_in_a_process(
    azurite_server: AzuriteServer, azure_container: str
) -> None:
    settings = azurite_server.settings(azure_container)
    assert store(settings, "shop") == "shop"
    # A client of the same place knows it, whatever is stored there now.
    assert store(settings, "blog") == "shop"


@pytest.mark.long
def test_two_stores_of_s3_may_have_buckets_of_the_same_name(
    swift_server: SwiftServer, seaweedfs_server: SeaweedServer
) -> None:
    bucket = swift_server.create_bucket()
    seaweedfs_server.client.create_bucket(Bucket=bucket)
    for server, database in ((swift_server, "shop"), (seaweedfs_server, "blog")):
        settings = {
            "S3_ENDPOINT": server.endpoint,
            "S3_BUCKET": bucket,
            "S3_ACCESS_KEY_ID": server.access_key_id,
            "S3_SECRET_ACCESS_KEY": server.secret_access_key,
        }
        assert store(settings, database) == database
