"""Backups with an identity that AWS provides instead of an access key in the settings."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from support.cli import environment, run_pgstash
from support.identities import ROLE, WEB_TOKEN, Identities, guard
from support.proxy import HttpProxy

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.postgres import MakeDatabase
    from support.swift import SwiftServer


@pytest.fixture
def identities(swift_server: SwiftServer) -> Iterator[Identities]:
    with Identities(swift_server.access_key_id, swift_server.secret_access_key) as service:
        yield service


@pytest.fixture
def http(swift_server: SwiftServer) -> Iterator[HttpProxy]:
    with HttpProxy(swift_server.port) as proxy:
        yield proxy


def test_a_backup_whose_keys_expire_and_its_restore(
    make_database: MakeDatabase,
    http: HttpProxy,
    identities: Identities,
    s3_bucket: str,
    tmp_path: Path,
) -> None:
    guard(http, identities, expire_at_part=1)
    database, target = make_database("mixed"), make_database()
    env = environment(
        database.bin_dir,
        DATABASE_URL=database.uri,
        S3_ENDPOINT=http.endpoint,
        S3_BUCKET=s3_bucket,
        RETRY_ATTEMPTS="0",
        DEBUG="true",
        **identities.variables("web identity", tmp_path),
    )
    done = run_pgstash(["once"], env)
    assert done.returncode == 0, done.stderr
    assert identities.asked == ["AssumeRoleWithWebIdentity"] * 2
    restored = run_pgstash(["restore", "--to", target.uri], env)
    assert restored.returncode == 0, restored.stderr
    output = done.stdout + done.stderr + restored.stdout + restored.stderr
    for secret in (identities.secret_access_key, "planted-session-", WEB_TOKEN):
        assert secret not in output


def test_check_names_the_role_and_who_assumes_it(
    http: HttpProxy, identities: Identities, s3_bucket: str, tmp_path: Path
) -> None:
    guard(http, identities)
    env = environment(
        DATABASE_URL="postgresql://u@127.0.0.1:1/x",
        S3_ENDPOINT=http.endpoint,
        S3_BUCKET=s3_bucket,
        S3_ACCESS_KEY_ID=identities.access_key_id,
        S3_SECRET_ACCESS_KEY=identities.secret_access_key,
        S3_ROLE_ARN=ROLE,
        AWS_ENDPOINT_URL_STS=identities.endpoint,
        HOME=str(tmp_path),
    )
    done = run_pgstash(["check", "storage"], env)
    assert done.returncode == 0, done.stdout
    [line] = re.findall(r"(?m)^ok +identity +(.+)$", done.stdout)
    assert line == (
        f"access key te… of account 123456789012 of {ROLE}, assumed by S3_ACCESS_KEY_ID"
    )
    identities.refusal = (403, "AccessDenied")
    done = run_pgstash(["check", "storage"], env)
    assert done.returncode == 40
    assert f"FAILED   identity            cannot assume {ROLE}" in done.stdout
    assert "Check S3_ROLE_ARN, and that its trust policy" in done.stdout


def test_an_identity_that_is_missing(s3_bucket: str, tmp_path: Path) -> None:
    env = environment(
        DATABASE_URL="postgresql://u@127.0.0.1:1/x",
        S3_REGION="eu-central-1",
        S3_BUCKET=s3_bucket,
        HOME=str(tmp_path),
        AWS_EC2_METADATA_SERVICE_ENDPOINT="http://127.0.0.1:1",
    )
    for command in ("once", "list"):
        done = run_pgstash([command], env)
        assert done.returncode == 1, command
        assert done.stderr.count("were found. S3_ACCESS_KEY_ID is not set, and there are none") == 1
        assert "Set S3_ACCESS_KEY_ID and S3_SECRET_ACCESS_KEY, or give" in done.stderr
    done = run_pgstash(["check", "storage"], env)
    assert done.returncode == 40
    assert re.search(rf"(?m)^FAILED +identity +No credentials for s3://{s3_bucket} ", done.stdout)
    assert re.search(r"(?m)^skipped +bucket ", done.stdout)
