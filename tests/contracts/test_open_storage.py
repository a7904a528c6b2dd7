"""The store that the settings name is opened, with the limits and the address of that store."""

from __future__ import annotations

import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from pgstash import events
from pgstash.commands import other_stores
from pgstash.commands.storage import open_storage
from pgstash.errors import StorageUnreachableError
from pgstash.settings import Settings, sources

if TYPE_CHECKING:
    from pgstash.storage.interface import Storage
    from support.azurite import AzuriteServer
    from support.gcs_server import GcsServer

MIB = 1024 * 1024
SESSIONS = 40


def load(values: dict[str, str]) -> Settings:
    return sources.load(dict(values), needs={"storage"})


def assert_works(settings: Settings, url: str) -> None:
    for prompt in (False, True):
        storage = open_storage(settings, events.ignore, prompt=prompt)
        storage.put("key", b"data", {"id": "1"})
        with storage.read("key") as chunks:
            assert b"".join(chunks) == b"data"
        assert storage.url("key") == url
        storage.delete(["key"])


def test_a_container_of_azure(azurite_server: AzuriteServer, azure_container: str) -> None:
    settings = load(azurite_server.settings(azure_container))
    assert_works(settings, f"azure://{azurite_server.account}/{azure_container}/key")
    assert settings.store
    assert other_stores.endpoint(settings, settings.store) == azurite_server.endpoint
    assert other_stores.endpoint_setting(settings) == "AZURE_STORAGE_ENDPOINT"
    assert other_stores.parts(settings) == other_stores.Parts(None, 50_000)


def test_a_bucket_of_google(gcs_server: GcsServer, gcs_bucket: str) -> None:
    settings = load(gcs_server.settings(gcs_bucket))
    assert_works(settings, f"gs://{gcs_bucket}/key")
    assert settings.store
    assert other_stores.endpoint(settings, settings.store) == gcs_server.endpoint
    assert other_stores.endpoint_setting(settings) == "STORAGE_EMULATOR_HOST"
    limits = other_stores.parts(settings)
    assert limits.size == 16 * MIB
    assert limits.size * limits.most == 5 * 1024**4


def test_a_connection_is_kept_for_each_session_of_a_restore(
    azurite_server: AzuriteServer,
    azure_container: str,
    gcs_server: GcsServer,
    gcs_bucket: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Otherwise urllib3 closes those beyond its limit, and warns each time."""
    for given in (azurite_server.settings(azure_container), gcs_server.settings(gcs_bucket)):
        settings = load(given | {"RESTORE_JOBS": str(SESSIONS)})
        storage = open_storage(settings, events.ignore)
        storage.put("key", b"data", {})
        start = threading.Barrier(SESSIONS)

        def ask(storage: Storage = storage, start: threading.Barrier = start) -> None:
            start.wait()
            storage.head("key")

        with ThreadPoolExecutor(SESSIONS) as pool:
            for asked in [pool.submit(ask) for _ in range(SESSIONS)]:
                asked.result()
    assert [each for each in caplog.records if each.levelno >= logging.WARNING] == []


def test_the_addresses_without_a_setting() -> None:
    for url, where in (
        ("gs://bucket", "https://storage.googleapis.com"),
        ("azure://account/container", "https://account.blob.core.windows.net"),
    ):
        settings = load({"STORAGE_URL": url})
        assert settings.store
        assert other_stores.endpoint(settings, settings.store) == where


@pytest.mark.parametrize(
    "values",
    [
        {"STORAGE_URL": "gs://bucket", "STORAGE_EMULATOR_HOST": "http://127.0.0.1:1"},
        {
            "STORAGE_URL": "azure://account/container",
            "AZURE_STORAGE_ENDPOINT": "http://127.0.0.1:1/account",
            "AZURE_STORAGE_KEY": "c2VjcmV0",
        },
    ],
    ids=["google", "azure"],
)
def test_a_request_in_a_hurry_is_tried_once(values: dict[str, str]) -> None:
    heard: list[events.Event] = []
    with pytest.raises(StorageUnreachableError):
        open_storage(load(values), heard.append, prompt=True).check()
    assert heard == []
