"""What a broken connection means is decided by the types of errors, however they are nested."""

from __future__ import annotations

import socket
import ssl

import pytest

from pgstash.errors import StorageError, StorageRefusedError, StorageUnreachableError
from pgstash.storage.network import unanswered
from pgstash.storage.ranges import chunks, exactly


class OfALibraryError(Exception):
    """An error that holds its reason as those of urllib3 do."""

    def __init__(self, reason: object) -> None:
        super().__init__(reason)
        self.reason = reason


@pytest.mark.parametrize(
    ("cause", "kind", "word"),
    [
        (socket.gaierror(-2, "not known"), StorageUnreachableError, "cannot be resolved"),
        (ConnectionRefusedError(111, "refused"), StorageUnreachableError, "no connection"),
        (ConnectionResetError(104, "reset"), StorageUnreachableError, "connection broke (.*reset"),
        (TimeoutError("timed out"), StorageUnreachableError, "does not answer in time"),
        (ssl.SSLCertVerificationError("bad"), StorageRefusedError, "is not trusted"),
    ],
    ids=["name", "refused", "reset", "timeout", "certificate"],
)
def test_the_innermost_error_decides(cause: Exception, kind: type[StorageError], word: str) -> None:
    nested = OfALibraryError(OfALibraryError(cause))
    found = unanswered(nested, "cannot do it", "THE_ENDPOINT")
    assert type(found) is kind
    assert found.message.startswith("cannot do it: ")
    assert word.partition("(")[0].strip() in found.message
    assert "THE_ENDPOINT" in found.hint or "in time" in word


def test_errors_that_refer_to_each_other_end() -> None:
    first, second = OfALibraryError(None), OfALibraryError(None)
    first.reason, second.reason = second, first
    assert "connection broke" in unanswered(first, "cannot do it", "X").message


def test_ranges_make_up_the_whole() -> None:
    data = bytes(range(256)) * 40_000
    asked: list[tuple[int, int]] = []

    def fetch(start: int, length: int) -> bytes:
        asked.append((start, length))
        return data[start : start + length]

    assert b"".join(chunks(fetch, 7, len(data) - 3)) == data[7:-3]
    assert len(asked) == 3
    assert list(chunks(fetch, 5, 5)) == []
    with pytest.raises(StorageUnreachableError, match="3 bytes instead of 4"):
        exactly(b"123", 4, "do it")
