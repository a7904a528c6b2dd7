"""Reads an object in ranges, each of which is one request that may be retried."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from pgstash.errors import StorageUnreachableError

# Bytes of one request. It is held in memory, and read again as a whole if it breaks.
RANGE = 4 * 1024 * 1024
CHUNK = 256 * 1024


def chunks(fetch: Callable[[int, int], bytes], start: int, end: int) -> Iterator[bytes]:
    """Yield the bytes from ``start`` up to ``end``; ``fetch`` returns a range by start and length.

    Raises StorageError.
    """
    for at in range(start, end, RANGE):
        data = memoryview(fetch(at, min(RANGE, end - at)))
        yield from (bytes(data[each : each + CHUNK]) for each in range(0, len(data), CHUNK))


def exactly(data: bytes, length: int, doing: str) -> bytes:
    """Return the bytes of a response. Raises StorageUnreachableError unless they are ``length``."""
    if len(data) != length:
        raise StorageUnreachableError(
            f"cannot {doing}: the response has {len(data)} bytes instead of {length}",
            hint="Something between pgstash and the store may cut off responses. Try again.",
        )
    return data
