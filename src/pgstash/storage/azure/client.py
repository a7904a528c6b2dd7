"""The boundary to Azure's SDK: one client, whose requests are retried and errors translated."""

from __future__ import annotations

import base64
import re
import threading
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from azure.core.exceptions import AzureError, ClientAuthenticationError, ServiceRequestError
from azure.core.pipeline.transport import RequestsTransport
from azure.storage.blob import BlobServiceClient

from pgstash import events
from pgstash.errors import ConfigurationError
from pgstash.storage.azure import endpoint
from pgstash.storage.azure.config import AzureConfig
from pgstash.storage.azure.errors import translate
from pgstash.storage.network import ignore_netrc
from pgstash.storage.retry import Retry

if TYPE_CHECKING:
    from azure.storage.blob import BlobClient, ContainerClient

T = TypeVar("T")

_ACCOUNT_KEY = re.compile(r"(?:^|;)\s*AccountKey=([^;]*)", re.IGNORECASE)


class Requests:
    """A client of one container, whose requests raise only errors of pgstash."""

    def __init__(self, config: AzureConfig, emit: events.Emit) -> None:
        """Create the client. Raises ConfigurationError if that is not possible."""
        self.where = f"azure://{config.account}/{config.container}"
        self._retry = Retry(config.retry_attempts, config.retry_delay, emit)
        try:
            service = _service(config)
        except ValueError as exc:
            raise ConfigurationError([_unusable(config, exc)]) from exc
        if service.account_name not in (None, "", config.account):
            problem = (
                f"STORAGE_URL names the account {config.account}, but "
                f"AZURE_STORAGE_CONNECTION_STRING is for {service.account_name}. Use one account."
            )
            raise ConfigurationError([problem])
        self.container: ContainerClient = service.get_container_client(config.container)

    def blob(self, key: str) -> BlobClient:
        """Return the client of one blob."""
        return self.container.get_blob_client(key)

    def call(
        self,
        doing: str,
        request: Callable[[], T],
        *,
        retry: Retry | None = None,
        abandoned: threading.Event | None = None,
    ) -> T:
        """Return the result of ``request``; ``doing`` completes the sentence "cannot …".

        Setting ``abandoned`` ends a wait for the next attempt. Raises StorageError.
        """

        def once() -> T:
            try:
                return request()
            except AzureError as exc:
                raise translate(exc, doing) from exc

        return (retry or self._retry)(doing, once, abandoned)


class Identity:
    """A credential of the SDK. Once it has worked, it fails as a store that does not answer.

    The SDK reports a service for tokens that is down like an identity that does not exist.
    """

    def __init__(self, credential: Any) -> None:  # noqa: ANN401 - any class of azure-identity
        """Ask nothing yet."""
        self._credential = credential
        self._worked = False

    def get_token(self, *scopes: str, **options: Any) -> Any:  # noqa: ANN401 - as in the SDK
        """Return a token. Raises AzureError."""
        return self._asked(partial(self._credential.get_token, *scopes, **options))

    def get_token_info(self, *scopes: str, **options: Any) -> Any:  # noqa: ANN401 - as in the SDK
        """Return a token with more about it. Raises AzureError."""
        return self._asked(partial(self._credential.get_token_info, *scopes, **options))

    def close(self) -> None:
        """Close the connections of the credential."""
        self._credential.close()

    def _asked(self, ask: Callable[[], T]) -> T:
        try:
            token = ask()
        except ClientAuthenticationError as exc:
            if not self._worked:
                raise
            reason = "the identity of Azure, which has worked before, gets no token"
            raise ServiceRequestError(reason, error=exc) from exc
        self._worked = True
        return token


def _service(config: AzureConfig) -> BlobServiceClient:
    options: dict[str, Any] = {
        "transport": _transport(config),
        # pgstash retries. The SDK would, without a word, and a commit twice.
        "retry_total": 0,
    }
    if config.connection_string:
        for key in _ACCOUNT_KEY.findall(config.connection_string):
            base64.b64decode(key, validate=True)
        return BlobServiceClient.from_connection_string(config.connection_string, **options)
    where = endpoint.of(config.account, config.endpoint, None)
    if config.key:
        base64.b64decode(config.key, validate=True)
        credential: Any = {"account_name": config.account, "account_key": config.key}
    elif config.sas_token:
        credential = config.sas_token.lstrip("?")
    else:
        # It takes a while to import, and keys do not need it.
        from azure.identity import DefaultAzureCredential  # noqa: PLC0415 - as above

        credential = Identity(DefaultAzureCredential())
    return BlobServiceClient(where, credential=credential, **options)


def _transport(config: AzureConfig) -> RequestsTransport:
    """Return what sends the requests; the SDK's own keeps ten connections."""
    transport = RequestsTransport(
        connection_timeout=config.connect_timeout, read_timeout=config.read_timeout
    )
    transport.open()
    session: Any = transport.session
    session.auth = ignore_netrc
    for adapter in session.adapters.values():
        adapter.init_poolmanager(config.connections, config.connections)
    return transport


def _unusable(config: AzureConfig, exc: ValueError) -> str:
    if config.connection_string:
        return (
            "AZURE_STORAGE_CONNECTION_STRING cannot be used. Copy it from the access keys of the "
            "storage account."
        )
    if not config.key and not config.sas_token:
        return (
            "AZURE_STORAGE_ENDPOINT must start with https://, unless AZURE_STORAGE_KEY or "
            "AZURE_STORAGE_SAS_TOKEN is set."
        )
    return f"AZURE_STORAGE_KEY or AZURE_STORAGE_ENDPOINT cannot be used: {exc}."
