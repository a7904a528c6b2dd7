"""There are as many connections to the store as requests at once, and they are kept."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from pgstash import events, settings
from pgstash.commands.storage import open_storage
from pgstash.storage.interface import Storage
from support.proxy import HttpProxy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from pgstash.storage.s3.storage import S3Storage
    from support.swift import SwiftServer

SESSIONS = 64  # the most that RESTORE_JOBS may be
MEMBER = 1000


@pytest.fixture
def http(swift_server: SwiftServer) -> Iterator[HttpProxy]:
    with HttpProxy(swift_server.port) as proxy:
        yield proxy


def read_side_by_side(storage: Storage, count: int) -> None:
    """Read ranges so that all are open before the first one is read to its end."""
    with ExitStack() as stack:
        opened = [
            stack.enter_context(storage.read("key", start=number * MEMBER, length=MEMBER))
            for number in range(count)
        ]
        for number, chunks in enumerate(opened):
            assert b"".join(chunks) == bytes([number]) * MEMBER


@pytest.fixture
def storage(swift_server: SwiftServer, s3_bucket: str, http: HttpProxy, tmp_path: Path) -> Storage:
    """Return the store as a command opens it, for the largest of restores."""
    given = {
        "S3_ENDPOINT": http.endpoint,
        "S3_BUCKET": s3_bucket,
        "S3_ACCESS_KEY_ID": swift_server.access_key_id,
        "S3_SECRET_ACCESS_KEY": swift_server.secret_access_key,
        "BACKUP_ENCRYPTION": "false",
        "RESTORE_JOBS": str(SESSIONS),
    }
    return open_storage(settings.load(given, tmp_path / ".env", needs=()), events.ignore)


@pytest.mark.long
def test_each_session_of_a_restore_keeps_a_connection(
    s3: Callable[..., S3Storage],
    storage: Storage,
    http: HttpProxy,
    caplog: pytest.LogCaptureFixture,
) -> None:
    s3().put("key", b"".join(bytes([number]) * MEMBER for number in range(SESSIONS)), {})
    with caplog.at_level(logging.WARNING, "urllib3"):
        read_side_by_side(storage, SESSIONS)
        assert http.connections == SESSIONS
        read_side_by_side(storage, SESSIONS)
    assert http.connections == SESSIONS, "connections were thrown away, and made anew"
    assert caplog.records == []
