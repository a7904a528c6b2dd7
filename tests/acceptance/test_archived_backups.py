"""Backups in a storage class that cannot be read at once: each command names it before it works."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from support.cli import environment, run_pgstash
from support.deviations import edited, error
from support.proxy import HttpProxy, Reply, Request, Rewrite

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.postgres import MakeDatabase
    from support.swift import SwiftServer

NAME = r"backup_\d{8}_\d{6}\.sql\.gz"


@pytest.fixture
def http(swift_server: SwiftServer) -> Iterator[HttpProxy]:
    with HttpProxy(swift_server.port) as proxy:
        yield proxy


def freeze(http: HttpProxy) -> None:
    """Answer for archives as AWS does if they are in the class GLACIER."""

    def is_archive(request: Request) -> bool:
        return re.search(rf"/{NAME}$", request.path) is not None

    def with_class(reply: Reply) -> Reply:
        return replace(reply, headers=[*reply.headers, ("x-amz-storage-class", "GLACIER")])

    frozen = error(403, "<Code>InvalidObjectState</Code><StorageClass>GLACIER</StorageClass>")
    http.rule("HeadObject", Rewrite(with_class)).matches = is_archive
    http.rule("GetObject", Rewrite(frozen)).matches = is_archive
    listed = rf"(<Key>[^<]*/{NAME}</Key>(?:(?!</Contents>).)*<StorageClass>)STANDARD<"
    http.rule("ListObjectsV2", Rewrite(edited(listed.encode(), rb"\1GLACIER<")))


def test_a_backup_that_has_to_be_thawed(
    make_database: MakeDatabase, swift_server: SwiftServer, http: HttpProxy, s3_bucket: str
) -> None:
    database, target = make_database("mixed"), make_database()
    env = environment(
        database.bin_dir,
        DATABASE_URL=database.uri,
        S3_ENDPOINT=http.endpoint,
        S3_BUCKET=s3_bucket,
        S3_ACCESS_KEY_ID=swift_server.access_key_id,
        S3_SECRET_ACCESS_KEY=swift_server.secret_access_key,
        RETRY_ATTEMPTS="0",
    )
    assert run_pgstash(["once"], env).returncode == 0
    freeze(http)

    done = run_pgstash(["list"], env)
    assert done.returncode == 0, done.stderr
    assert "Storage class GLACIER: 1 of 1 backup. Such a backup has to be thawed" in done.stderr
    done = run_pgstash(["list", "--json"], env)
    assert [each["archived"] for each in json.loads(done.stdout)] == ["GLACIER"]

    done = run_pgstash(["show"], env)
    assert (done.returncode, "database" in done.stdout) == (0, True)
    assert re.search(rf"{NAME} is in the storage class GLACIER\. It has to be thawed", done.stderr)

    for command in (["restore", "--to", target.uri], ["drill"], ["cat"]):
        done = run_pgstash(command, env)
        assert done.returncode == 21, done.stdout + done.stderr
        assert re.search(rf"cannot read s3://\S+/{NAME} yet: it is in the .+ GLACIER", done.stderr)
        assert f"aws s3api restore-object --bucket {s3_bucket} --key postgres-b" in done.stderr
    counted = "SELECT 'tables', count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace"
    assert "tables|0" in target.run_sql(counted)


@pytest.mark.long
def test_check_tells_what_a_class_means(swift_server: SwiftServer, s3_bucket: str) -> None:
    env = environment(
        DATABASE_URL="postgresql://u@127.0.0.1:1/x",
        S3_ENDPOINT=swift_server.endpoint,
        S3_BUCKET=s3_bucket,
        S3_ACCESS_KEY_ID=swift_server.access_key_id,
        S3_SECRET_ACCESS_KEY=swift_server.secret_access_key,
    )
    done = run_pgstash(["check", "storage"], env | {"S3_STORAGE_CLASS": "DEEP_ARCHIVE"})
    assert re.search(
        r"(?m)^warning +storage class +DEEP_ARCHIVE: .* no drill can prove", done.stdout
    )
    # Swift has no other class than this, and says so.
    assert re.search(r"(?m)^FAILED +multipart .*does not know the storage class", done.stdout)
    done = run_pgstash(["check", "storage"], env | {"S3_STORAGE_CLASS": "STANDARD"})
    assert done.returncode == 0, done.stdout
    assert re.search(r"(?m)^ok +storage class +STANDARD$", done.stdout)
