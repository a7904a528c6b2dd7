"""The stores other than S3 and a directory, according to the settings.

Their libraries are extras, and slow to import: each is imported when its store is opened.
"""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import SecretStr

from pgstash import events
from pgstash.errors import ConfigurationError
from pgstash.settings import Settings
from pgstash.settings.store_url import StoreUrl
from pgstash.storage.azure import endpoint as azure_endpoint
from pgstash.storage.azure.config import MAX_BLOCKS, AzureConfig
from pgstash.storage.interface import Storage


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds for a connection, and for each piece of a response."""

    connect: float
    read: float


PATIENT = Timeouts(10.0, 60.0)
PROMPT = Timeouts(5.0, 5.0)


def opened(settings: Settings, url: StoreUrl, emit: events.Emit, *, prompt: bool) -> Storage:
    """Return the store; nothing is sent to it yet.

    Raises ConfigurationError if its library is not installed, or refuses the settings.
    """
    try:
        from pgstash.storage.azure.storage import AzureStorage  # noqa: PLC0415
    except ModuleNotFoundError as exc:
        raise _not_installed("azure", exc) from exc
    timeouts = PROMPT if prompt else PATIENT
    config = AzureConfig(
        account=url.account,
        container=url.name,
        endpoint=settings.azure_storage_endpoint,
        connection_string=_plain(settings.azure_storage_connection_string),
        key=_plain(settings.azure_storage_key),
        sas_token=_plain(settings.azure_storage_sas_token),
        retry_attempts=0 if prompt else settings.retry_attempts,
        retry_delay=settings.retry_delay,
        connect_timeout=timeouts.connect,
        read_timeout=timeouts.read,
    )
    return AzureStorage(config, emit)


def endpoint(settings: Settings, url: StoreUrl) -> str:
    """Return the URL that requests go to."""
    return azure_endpoint.of(
        url.account,
        settings.azure_storage_endpoint,
        _plain(settings.azure_storage_connection_string),
    )


def max_parts(settings: Settings) -> int:
    """Return how many parts the store allows in one upload."""
    return MAX_BLOCKS if settings.store else settings.s3_max_parts


def _plain(secret: SecretStr | None) -> str | None:
    return secret.get_secret_value() if secret else None


def _not_installed(extra: str, exc: ModuleNotFoundError) -> ConfigurationError:
    problem = (
        f"STORAGE_URL begins with {extra}://, but the library for it is not installed "
        f"({exc.name}). Run: pip install 'pgstash[{extra}]'"
    )
    return ConfigurationError([problem])
