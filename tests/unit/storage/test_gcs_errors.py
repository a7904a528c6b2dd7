"""Every status of Google Cloud Storage becomes an error that names the cause and the remedy."""

from __future__ import annotations

from typing import Any

import pytest
from google.auth.exceptions import (
    DefaultCredentialsError,
    GoogleAuthError,
    RefreshError,
    TransportError,
)
from hypothesis import given
from hypothesis import strategies as st
from requests import ConnectionError as RequestsConnectionError

from pgstash.errors import (
    ObjectExistsError,
    ObjectNotFoundError,
    StorageError,
    StorageRefusedError,
    StorageUnreachableError,
)
from pgstash.storage.gcs.errors import ResponseError, translate


@pytest.mark.parametrize(
    ("status", "reason", "kind", "word"),
    [
        (500, "backendError", StorageUnreachableError, "500"),
        (503, "", StorageUnreachableError, "503"),
        (429, "rateLimitExceeded", StorageUnreachableError, "429"),
        (403, "userRateLimitExceeded", StorageUnreachableError, "403"),
        (412, "conditionNotMet", ObjectExistsError, "name is taken"),
        (404, "notFound", ObjectNotFoundError, "no such object"),
        (401, "required", StorageRefusedError, "wants credentials"),
        (403, "forbidden", StorageRefusedError, "denies access"),
        (403, "retentionPolicyNotMet", StorageRefusedError, "retention policy"),
        (403, "quotaExceeded", StorageRefusedError, "quota"),
        (501, "", StorageRefusedError, "501"),
        (400, "invalid", StorageRefusedError, "400"),
    ],
)
def test_what_a_status_means(status: int, reason: str, kind: type[StorageError], word: str) -> None:
    found = translate(ResponseError(status, reason, of_object=True), "do it")
    assert type(found) is kind
    assert found.message.startswith("cannot do it: ")
    assert word in found.message
    assert found.hint or kind is not StorageRefusedError


def test_what_is_missing_is_the_bucket_if_no_object_was_requested() -> None:
    found = translate(ResponseError(404, "notFound", of_object=False), "list")
    assert "bucket does not exist" in found.message


@given(st.integers(100, 599), st.text(max_size=20))
def test_any_answer_is_translated(status: int, reason: str) -> None:
    found = translate(ResponseError(status, reason, of_object=True), "do it")
    assert found.message.startswith("cannot do it: ")


def made(kind: type[Any], **more: Any) -> GoogleAuthError:
    """Make an error of google.auth, which has no types."""
    error: GoogleAuthError = kind("in other words", **more)
    return error


def test_without_an_answer() -> None:
    refused = RequestsConnectionError(ConnectionRefusedError(111, "Connection refused"))
    assert "no connection" in translate(refused, "do it").message
    assert "no identity" in translate(made(DefaultCredentialsError), "do it").message
    assert isinstance(translate(made(RefreshError), "do it"), StorageRefusedError)
    busy = made(TransportError, retryable=True)
    assert isinstance(translate(busy, "do it"), StorageUnreachableError)
