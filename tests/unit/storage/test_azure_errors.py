"""Every code of Azure becomes an error that names the cause and the remedy."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from azure.core.exceptions import (
    AzureError,
    ClientAuthenticationError,
    HttpResponseError,
    ServiceRequestError,
)
from hypothesis import given
from hypothesis import strategies as st

from pgstash.errors import (
    ObjectExistsError,
    ObjectNotFoundError,
    StorageError,
    StorageRefusedError,
    StorageUnreachableError,
    UploadError,
)
from pgstash.storage.azure import endpoint, errors, metadata
from pgstash.storage.azure.client import Identity


def answer(status: int, code: str = "") -> HttpResponseError:
    headers = {"x-ms-error-code": code} if code else {}
    response = SimpleNamespace(status_code=status, reason="", headers=headers, text=str)
    return HttpResponseError(response=response)


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (500, "InternalError", StorageUnreachableError),
        (500, "OperationTimedOut", StorageUnreachableError),
        (503, "ServerBusy", StorageUnreachableError),
        (400, "Md5Mismatch", StorageUnreachableError),
        (429, "", StorageUnreachableError),
        (502, "", StorageUnreachableError),
        (409, "BlobAlreadyExists", ObjectExistsError),
        (412, "ConditionNotMet", ObjectExistsError),
        (412, "", ObjectExistsError),
        (404, "BlobNotFound", ObjectNotFoundError),
        (404, "", ObjectNotFoundError),
        (400, "InvalidBlockList", UploadError),
        (404, "ContainerNotFound", StorageRefusedError),
        (403, "AuthenticationFailed", StorageRefusedError),
        (403, "", StorageRefusedError),
        (409, "BlobImmutableDueToPolicy", StorageRefusedError),
        (409, "BlobArchived", StorageRefusedError),
        (412, "LeaseIdMissing", StorageRefusedError),
        (501, "NotImplemented", StorageRefusedError),
        (400, "", StorageRefusedError),
    ],
)
def test_what_a_code_means(status: int, code: str, kind: type[StorageError]) -> None:
    found = errors.translate(answer(status, code), "do it")
    assert type(found) is kind
    assert found.message.startswith("cannot do it: ")
    assert str(status) in found.message or kind is ObjectNotFoundError
    if kind is StorageRefusedError and status != 501:
        assert found.hint


@given(st.integers(100, 599), st.text(max_size=20))
def test_any_answer_is_translated(status: int, code: str) -> None:
    found = errors.translate(answer(status, code), "do it")
    assert found.message.startswith("cannot do it: ")


def test_without_an_answer() -> None:
    refused = ServiceRequestError("x", error=ConnectionRefusedError(111, "Connection refused"))
    assert "no connection" in errors.translate(refused, "do it").message
    nobody = errors.translate(ClientAuthenticationError("no credential"), "do it")
    assert "no identity" in nobody.message
    assert "managed or workload identity" in nobody.hint
    assert isinstance(errors.translate(AzureError("odd"), "do it"), StorageUnreachableError)


class Tokens:
    """A credential whose service for tokens may be down."""

    down = False

    def get_token(self, *scopes: str) -> str:
        if self.down:
            raise ClientAuthenticationError("no credential in this chain provided a token")
        return f"token for {scopes[0]}"

    get_token_info = get_token


@pytest.mark.parametrize("method", ["get_token", "get_token_info"])
def test_an_identity_that_has_worked_is_tried_again(method: str) -> None:
    tokens = Tokens()
    ask = getattr(Identity(tokens), method)
    tokens.down = True
    with pytest.raises(ClientAuthenticationError) as missing:
        ask("scope")
    assert isinstance(errors.translate(missing.value, "do it"), StorageRefusedError)
    tokens.down = False
    assert ask("scope") == "token for scope"
    tokens.down = True
    with pytest.raises(ServiceRequestError) as lost:
        ask("scope")
    found = errors.translate(lost.value, "do it")
    assert isinstance(found, StorageUnreachableError)
    assert found.retryable
    assert "no credential in this chain provided a token" in found.message


def test_names_of_metadata_are_identifiers_and_come_back() -> None:
    """Azure refuses any other name; Azurite takes it."""
    names = ["id", "raw-bytes", "source-since", "a_b", "1st", "x.y", "Server-Version"]
    stored = metadata.encoded(dict.fromkeys(names, "value"))
    assert all(name.isidentifier() and name.isascii() for name in stored)
    assert metadata.decoded(stored) == {name.lower(): "value" for name in names}
    assert metadata.decoded({name.title(): "v" for name in stored}).keys() == {
        name.lower() for name in names
    }
    assert metadata.decoded(None) == {}


@pytest.mark.parametrize(
    ("given_", "connection_string", "where"),
    [
        (None, None, "https://acc.blob.core.windows.net"),
        ("http://127.0.0.1:1/acc", None, "http://127.0.0.1:1/acc"),
        ("http://ignored", "AccountName=acc;AccountKey=a=", "https://acc.blob.core.windows.net"),
        (None, "EndpointSuffix=core.chinacloudapi.cn", "https://acc.blob.core.chinacloudapi.cn"),
        (None, "DefaultEndpointsProtocol=http", "http://acc.blob.core.windows.net"),
        (None, "BlobEndpoint=http://h/acc;AccountKey=a", "http://h/acc"),
    ],
)
def test_where_the_account_is(
    given_: str | None, connection_string: str | None, where: str
) -> None:
    assert endpoint.of("acc", given_, connection_string) == where
