"""Credentials that are not in the settings: where they come from, and what happens as they expire.

The services that hand them out are servers of the tests, with the real protocols; the store is real
and accepts the keys. A proxy before it refuses session tokens that have expired.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pgstash.errors import (
    ConfigurationError,
    PgstashError,
    StorageError,
    StorageRefusedError,
    StorageUnreachableError,
)
from pgstash.storage.s3.storage import S3Storage
from support.identities import ROLE, SOURCES, Identities, guard
from support.proxy import Answer, HttpProxy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from support.swift import SwiftServer

MIB = 1024 * 1024
HURRIED = 40.0
DENIED = Answer(403, "AccessDenied")
UNKNOWN = Answer(403, "InvalidAccessKeyId")

ASKED = {
    "environment": ("environment", "[env]"),
    "profile": ("profile", "[shared-credentials-file]"),
    "metadata": ("metadata", "[iam-role]"),
    "container": ("container", "[container-role]"),
    "web identity": ("AssumeRoleWithWebIdentity", "[assume-role-with-web-identity]"),
}


@pytest.fixture
def http(swift_server: SwiftServer) -> Iterator[HttpProxy]:
    with HttpProxy(swift_server.port) as proxy:
        yield proxy


@pytest.fixture
def identities(swift_server: SwiftServer) -> Iterator[Identities]:
    with Identities(swift_server.access_key_id, swift_server.secret_access_key) as service:
        yield service


@pytest.fixture
def opened(
    s3: Callable[..., S3Storage],
    http: HttpProxy,
    identities: Identities,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> Callable[..., S3Storage]:
    """Return a maker of stores without a key, whose identity comes from one source."""

    def make(source: str, **different: Any) -> S3Storage:
        for name, value in identities.variables(source, tmp_path).items():
            monkeypatch.setenv(name, value)
        keyless: dict[str, Any] = {"access_key_id": None, "secret_access_key": None}
        given = {"endpoint": http.endpoint, "retry_attempts": 1, **keyless, **different}
        return s3(**given)

    return make


def uploaded(storage: S3Storage, parts: int) -> None:
    with storage.upload("key", metadata={"id": "1"}, expected_size=parts * 5 * MIB) as upload:
        for _ in range(parts):
            upload.write(bytes(5 * MIB))
        upload.flush()
        upload.commit()


def read(storage: S3Storage, key: str) -> bytes:
    with storage.read(key) as chunks:
        return b"".join(chunks)


@pytest.mark.parametrize("source", SOURCES)
def test_the_identity_of_each_source(
    opened: Callable[..., S3Storage], http: HttpProxy, identities: Identities, source: str
) -> None:
    guard(http, identities)
    storage = opened(source)
    asked, method = ASKED[source]
    shown = storage.identity()
    assert shown.startswith("access key ")
    assert shown.endswith(method)
    assert identities.access_key_id not in shown
    assert identities.secret_access_key not in shown
    storage.put("key", b"data", {})
    assert read(storage, "key") == b"data"
    assert identities.asked == [asked]


@pytest.mark.parametrize("source", ["static", "container"])
def test_a_role_is_assumed_by_any_identity(
    opened: Callable[..., S3Storage],
    http: HttpProxy,
    identities: Identities,
    monkeypatch: pytest.MonkeyPatch,
    source: str,
) -> None:
    guard(http, identities)
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", identities.endpoint)
    keys = {
        "access_key_id": identities.access_key_id,
        "secret_access_key": identities.secret_access_key,
    }
    storage = opened("container", role_arn=ROLE, **(keys if source == "static" else {}))
    shown = storage.identity()
    assert f"of account 123456789012 of {ROLE}, assumed by " in shown
    assert shown.endswith("S3_ACCESS_KEY_ID" if source == "static" else "[container-role]")
    uploaded(storage, 1)
    assert identities.asked == [*(["container"] if source != "static" else []), "AssumeRole"]


@pytest.mark.parametrize("source", ["container", "role"])
def test_keys_that_expire_during_an_upload_are_renewed_once(
    opened: Callable[..., S3Storage],
    http: HttpProxy,
    identities: Identities,
    monkeypatch: pytest.MonkeyPatch,
    source: str,
) -> None:
    guard(http, identities, expire_at_part=3)
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", identities.endpoint)
    storage = opened("container", role_arn=ROLE if source == "role" else None, retry_attempts=0)
    uploaded(storage, 4)
    assert storage.head("key").size == 20 * MIB
    assert len(identities.tokens) == (1 if source == "container" else 2)
    assert len(identities.asked) == (2 if source == "container" else 4)


def test_threads_share_one_renewal(
    opened: Callable[..., S3Storage], http: HttpProxy, identities: Identities
) -> None:
    guard(http, identities)
    storage = opened("container", retry_attempts=0)
    storage.put("key", b"data", {})
    identities.expire()
    failures: list[StorageError] = []
    ready = threading.Barrier(6)

    def ask() -> None:
        ready.wait()
        try:
            storage.head("key")  # a refusal without a body: only its status
        except StorageError as error:
            failures.append(error)

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert identities.asked == ["container", "container"]


def test_keys_are_renewed_before_they_expire(
    opened: Callable[..., S3Storage], http: HttpProxy, identities: Identities
) -> None:
    refusals = guard(http, identities)
    identities.lifetime = 120.0  # botocore renews what expires within ten minutes
    storage = opened("container")
    storage.check()
    storage.check()
    assert len(identities.asked) > 2
    assert refusals.applied == 0


def test_the_last_keys_are_used_while_there_are_no_new_ones(
    opened: Callable[..., S3Storage],
    http: HttpProxy,
    identities: Identities,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    guard(http, identities)
    identities.lifetime = 120.0
    storage = opened("web identity", retry_attempts=0)
    storage.check()
    identities.refusal = (500, "InternalFailure")
    storage.check()
    identities.expire()
    with pytest.raises(StorageUnreachableError, match="cannot assume the role for s3://"):
        storage.check()
    identities.refusal = None
    storage.check()


def test_a_service_of_credentials_that_does_not_answer(opened: Callable[..., S3Storage]) -> None:
    storage = opened("container", retry_attempts=0)
    Path(os.environ["AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"]).write_text("not that one")
    with pytest.raises(StorageUnreachableError, match="cannot get credentials for s3://") as caught:
        storage.check()
    assert "must be reachable" in caught.value.hint


def test_keys_that_do_not_renew_themselves_are_refused(
    opened: Callable[..., S3Storage], http: HttpProxy, identities: Identities
) -> None:
    guard(http, identities)
    storage = opened("environment")
    storage.check()
    identities.expire()
    with pytest.raises(
        StorageRefusedError, match="session token is not valid, or has exp"
    ) as caught:
        storage.check()
    assert "Replace the temporary credentials" in caught.value.hint


def test_a_profile_that_was_rewritten_is_read_again(
    opened: Callable[..., S3Storage], http: HttpProxy, identities: Identities, tmp_path: Path
) -> None:
    guard(http, identities)
    storage = opened("profile", retry_attempts=0)
    storage.check()
    identities.expire()
    identities.variables("profile", tmp_path)
    storage.check()


def test_new_keys_that_are_refused_too_end_it(
    opened: Callable[..., S3Storage], http: HttpProxy, identities: Identities
) -> None:
    http.rule("ListObjectsV2", Answer(400, "ExpiredToken"))
    with pytest.raises(StorageRefusedError, match="expired"):
        opened("container").check()
    assert http.count("ListObjectsV2") == 3
    assert identities.asked == ["container"] * 3


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ((403, "AccessDenied"), StorageRefusedError),
        ((400, "ExpiredTokenException"), StorageRefusedError),
        ((503, "ServiceUnavailable"), StorageUnreachableError),
        ((400, "IDPCommunicationError"), StorageUnreachableError),
    ],
)
def test_a_role_that_cannot_be_assumed(
    opened: Callable[..., S3Storage],
    identities: Identities,
    monkeypatch: pytest.MonkeyPatch,
    answer: tuple[int, str],
    kind: type[PgstashError],
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", identities.endpoint)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    storage = opened("environment", role_arn=ROLE, retry_attempts=0)
    identities.refusal = answer
    with pytest.raises(kind, match=f"cannot assume {ROLE} for s3://.*{answer[1]}") as caught:
        storage.check()
    refused = kind is StorageRefusedError
    assert ("Check S3_ROLE_ARN, and that its trust policy" in caught.value.hint) == refused


@pytest.mark.parametrize(
    ("variables", "problem"),
    [
        ({}, "No credentials for s3://.* were found"),
        ({"AWS_PROFILE": "missing"}, r"cannot be read: The config profile \(missing\)"),
        ({"AWS_ACCESS_KEY_ID": "x"}, "cannot be read: Partial credentials found in env"),
        (
            {"AWS_WEB_IDENTITY_TOKEN_FILE": "/missing", "AWS_ROLE_ARN": ROLE},
            "No such file or directory: '/missing'",
        ),
        (
            {
                "AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://127.0.0.1:1",
                "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE": "/missing",
            },
            "No such file or directory: '/missing'",
        ),
    ],
    ids=["none", "profile", "half", "web identity", "container"],
)
def test_what_is_missing_at_the_first_request_is_a_problem_of_the_configuration(
    s3: Callable[..., S3Storage],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    variables: dict[str, str],
    problem: str,
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://127.0.0.1:1")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    storage = s3(access_key_id=None, secret_access_key=None)
    with pytest.raises(ConfigurationError, match=problem):
        storage.check()


def test_a_metadata_service_that_is_not_there_is_not_waited_for(
    s3: Callable[..., S3Storage], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """botocore would wait for as long as its timeout, twice."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_METADATA_SERVICE_TIMEOUT", "60")
    with contextlib.ExitStack() as sockets:
        full = sockets.enter_context(socket.socket())
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(4):  # more than it queues: the next connection is not accepted
            waiting = sockets.enter_context(socket.socket())
            waiting.settimeout(0)
            waiting.connect_ex(full.getsockname())
        address = f"http://127.0.0.1:{full.getsockname()[1]}"
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", address)
        began = time.monotonic()
        with pytest.raises(ConfigurationError, match="No credentials"):
            s3(access_key_id=None, secret_access_key=None).check()
        assert time.monotonic() - began < HURRIED


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (DENIED, r"Allow access key .+ \[env\] to list the bucket"),
        (UNKNOWN, r"signed with access key .+ \[env\]\. If the store has access keys of its own"),
        (Answer(418, "Teapot"), r"Check S3_BUCKET, S3_REGION, and the permissions of access key"),
    ],
    ids=["denied", "unknown key", "else"],
)
def test_the_hint_of_a_refusal_names_the_identity(
    opened: Callable[..., S3Storage], http: HttpProxy, answer: Answer, hint: str
) -> None:
    http.rule("ListObjectsV2", answer)
    with pytest.raises(StorageRefusedError) as caught:
        opened("environment").check()
    assert re.search(hint, caught.value.hint)


def test_secrets_are_learnt_before_they_are_used(
    opened: Callable[..., S3Storage], http: HttpProxy, identities: Identities
) -> None:
    guard(http, identities)
    learnt: list[str] = []
    storage = opened("container", learn=learnt.extend)
    storage.check()
    identities.expire()
    storage.check()
    assert learnt[0::2] == [identities.secret_access_key] * 2
    assert learnt[3] == identities.tokens[0] != learnt[1]
