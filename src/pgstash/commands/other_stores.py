"""The stores other than S3 and a directory, according to the settings.

Their libraries are extras, and slow to import: each is imported when its store is opened.
"""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import SecretStr

from pgstash import events
from pgstash.errors import ConfigurationError
from pgstash.repository.object_metadata import REQUESTS_AT_A_TIME
from pgstash.settings import Settings
from pgstash.settings.store_url import StoreUrl
from pgstash.storage import part_size
from pgstash.storage.azure import endpoint as azure_endpoint
from pgstash.storage.azure.config import MAX_BLOCKS, AzureConfig
from pgstash.storage.gcs.config import ENDPOINT, MAX_PARTS, PART_SIZE, GcsConfig
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
    attempts = 0 if prompt else settings.retry_attempts
    timeouts = PROMPT if prompt else PATIENT
    if url.scheme == "gs":
        return _google(
            GcsConfig(
                bucket=url.name,
                endpoint=endpoint(settings, url),
                anonymous=settings.storage_emulator_host is not None,
                may_read=not settings.only_writes,
                retry_attempts=attempts,
                retry_delay=settings.retry_delay,
                connections=connections(settings),
                connect_timeout=timeouts.connect,
                read_timeout=timeouts.read,
            ),
            emit,
        )
    return _azure(
        AzureConfig(
            account=url.account,
            container=url.name,
            endpoint=settings.azure_storage_endpoint,
            connection_string=_plain(settings.azure_storage_connection_string),
            key=_plain(settings.azure_storage_key),
            sas_token=_plain(settings.azure_storage_sas_token),
            may_read=not settings.only_writes,
            retry_attempts=attempts,
            retry_delay=settings.retry_delay,
            connections=connections(settings),
            connect_timeout=timeouts.connect,
            read_timeout=timeouts.read,
        ),
        emit,
    )


def _azure(config: AzureConfig, emit: events.Emit) -> Storage:
    try:
        from pgstash.storage.azure.storage import AzureStorage  # noqa: PLC0415 - an extra
    except ModuleNotFoundError as exc:
        raise _not_installed("azure://", "azure", exc) from exc
    return AzureStorage(config, emit)


def _google(config: GcsConfig, emit: events.Emit) -> Storage:
    try:
        from pgstash.storage.gcs.storage import GcsStorage  # noqa: PLC0415 - an extra
    except ModuleNotFoundError as exc:
        raise _not_installed("gs://", "gcs", exc) from exc
    return GcsStorage(config, emit)


def connections(settings: Settings) -> int:
    """Return how many connections to keep.

    That is for the operation that needs most: a restore, a listing with metadata, or an upload. One
    more is for the thread that waits for them.
    """
    return 1 + max(settings.restore_jobs, REQUESTS_AT_A_TIME, part_size.SENDERS)


@dataclass(frozen=True, slots=True)
class Parts:
    """The limits of uploads: ``size`` is in bytes, None if pgstash chooses it."""

    size: int | None
    most: int


def parts(settings: Settings) -> Parts:
    """Return the limits of the configured store."""
    if settings.store is None:
        return Parts(settings.part_size, settings.s3_max_parts)
    if settings.store.scheme == "gs":
        return Parts(PART_SIZE, MAX_PARTS)
    return Parts(None, MAX_BLOCKS)


def endpoint(settings: Settings, url: StoreUrl) -> str:
    """Return the URL that requests go to."""
    if url.scheme == "gs":
        return settings.storage_emulator_host or ENDPOINT
    return azure_endpoint.of(
        url.account,
        settings.azure_storage_endpoint,
        _plain(settings.azure_storage_connection_string),
    )


def endpoint_setting(settings: Settings) -> str:
    """Return the setting in which the user would change the endpoint."""
    if settings.store is None:
        return "S3_ENDPOINT"
    return "AZURE_STORAGE_ENDPOINT" if settings.store.scheme == "azure" else "STORAGE_EMULATOR_HOST"


def _plain(secret: SecretStr | None) -> str | None:
    return secret.get_secret_value() if secret else None


def _not_installed(scheme: str, extra: str, exc: ModuleNotFoundError) -> ConfigurationError:
    problem = (
        f"STORAGE_URL begins with {scheme}, but the library for it is not installed "
        f"({exc.name}). Run: pip install 'pgstash[{extra}]'"
    )
    return ConfigurationError([problem])
