"""A retry keeps nothing of the request that failed."""

from __future__ import annotations

import contextlib
import gc
import weakref
from collections.abc import Iterator

import pytest

from pgstash.errors import ObjectNotFoundError, StorageError, StorageUnreachableError
from pgstash.storage.retry import Retry


class Client:
    """Holds connections, as a client of a store does."""

    def __init__(self, error: type[StorageError]) -> None:
        self._error = error

    def ask(self) -> None:
        raise self._error("no answer")


@pytest.fixture
def no_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collection")
@pytest.mark.parametrize("error", [ObjectNotFoundError, StorageUnreachableError])
def test_a_client_is_freed_when_its_last_request_has_failed(error: type[StorageError]) -> None:
    client = Client(error)
    freed = weakref.ref(client)
    with contextlib.suppress(error):
        Retry(attempts=1, delay=0.0)("ask", client.ask)
    del client
    assert freed() is None
