"""What SeaweedFS does itself and Swift cannot show; the contract suite runs on it too."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pgstash.errors import ObjectExistsError, StorageRefusedError
from pgstash.storage.s3.config import Objects, S3Config
from pgstash.storage.s3.storage import S3Storage
from support.proxy import Answer, HttpProxy

if TYPE_CHECKING:
    from support.seaweedfs import SeaweedServer

pytestmark = pytest.mark.long


def opened(server: SeaweedServer, endpoint: str, bucket: str, secret: str = "") -> S3Storage:
    config = S3Config(
        endpoint=endpoint,
        bucket=bucket,
        region=server.region,
        access_key_id=server.access_key_id,
        secret_access_key=secret or server.secret_access_key,
        retry_delay=0.01,
    )
    return S3Storage(config)


def test_a_name_that_is_taken_after_the_look_is_not_overwritten(
    seaweedfs_server: SeaweedServer,
) -> None:
    """The store refuses to complete the upload: nothing else protects the other's object then."""
    bucket = seaweedfs_server.create_bucket()
    with HttpProxy(seaweedfs_server.port) as http:
        storage = opened(seaweedfs_server, http.endpoint, bucket)
        storage.put("key", b"theirs", {"id": "theirs"})
        looked = http.rule("HeadObject", Answer(404, "NoSuchKey"), times=1)
        with storage.upload("key", metadata={"id": "ours"}, expected_size=1) as upload:
            upload.write(b"ours")
            with pytest.raises(ObjectExistsError):
                upload.commit()
        assert looked.applied == 1
        assert http.count("CompleteMultipartUpload") == 1
        with storage.read("key") as chunks:
            assert b"".join(chunks) == b"theirs"
        assert storage.head("key").metadata == {"id": "theirs"}
        assert list(storage.pending("")) == []


def test_a_wrong_secret_and_a_missing_bucket_are_named(seaweedfs_server: SeaweedServer) -> None:
    endpoint, bucket = seaweedfs_server.endpoint, seaweedfs_server.create_bucket()
    with pytest.raises(StorageRefusedError) as caught:
        opened(seaweedfs_server, endpoint, bucket, secret="wrong").check()
    assert "S3_SECRET_ACCESS_KEY" in caught.value.hint
    with pytest.raises(StorageRefusedError, match="bucket does not exist"):
        opened(seaweedfs_server, endpoint, "there-is-no-such").check()


def test_the_class_of_an_archive_and_the_tags_of_every_object(
    seaweedfs_server: SeaweedServer,
) -> None:
    client, bucket = seaweedfs_server.client, seaweedfs_server.create_bucket()
    kept = Objects(storage_class="STANDARD_IA", tags=(("team", "data & more"), ("cost", "4+2=6")))
    config = S3Config(
        endpoint=seaweedfs_server.endpoint,
        bucket=bucket,
        region=seaweedfs_server.region,
        access_key_id=seaweedfs_server.access_key_id,
        secret_access_key=seaweedfs_server.secret_access_key,
        objects=kept,
    )
    storage = S3Storage(config)
    storage.put("companion", b"data", {})
    with storage.upload("archive", metadata={"id": "1"}, expected_size=1) as upload:
        upload.write(b"data")
        upload.commit()
    with storage.read("archive", start=1, length=2) as chunks:
        assert b"".join(chunks) == b"at"
    listed = client.list_objects_v2(Bucket=bucket)["Contents"]
    assert {each["Key"]: each.get("StorageClass") for each in listed} == {
        "archive": "STANDARD_IA",
        "companion": "STANDARD",
    }
    for key in ("archive", "companion"):
        tags = client.get_object_tagging(Bucket=bucket, Key=key)["TagSet"]
        assert sorted((each["Key"], each["Value"]) for each in tags) == sorted(kept.tags)
