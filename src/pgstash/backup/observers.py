"""Observes an archive on its way to the store: its digest, the end of the dump, the progress."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Iterator

from pgstash import events
from pgstash.backup.dump_stream import Stream
from pgstash.throttle import Throttle


class Digest:
    """Counts and digests the bytes of the archive as they are stored."""

    def __init__(self) -> None:
        """Begin before the first byte."""
        self.bytes = 0
        self._sha256 = hashlib.sha256()

    def watch(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """Yield the same chunks."""
        for chunk in chunks:
            self.bytes += len(chunk)
            self._sha256.update(chunk)
            yield chunk

    def hexdigest(self) -> str:
        """Return the SHA-256 of the bytes so far."""
        return self._sha256.hexdigest()


def announce_end(stream: Stream, name: str, began: float, emit: events.Emit) -> Iterator[bytes]:
    """Yield the archive of a dump, and report when the dump has ended without an error.

    ``began`` is when the backup began, by the monotonic clock.
    """
    yield from stream.archive()
    emit(events.DumpFinished(name, time.monotonic() - began, stream.raw_bytes))


def report_progress(
    chunks: Iterable[bytes], name: str, stream: Stream, stored: Digest, emit: events.Emit
) -> Iterator[bytes]:
    """Yield the same chunks, and report progress now and then."""
    throttle = Throttle()
    for chunk in chunks:
        yield chunk
        if throttle.is_due():
            # Another thread may add a table: a tuple is made of them at once.
            rows = sum(tuple(stream.rows.values()))
            emit(events.Progressed(name, stream.raw_bytes, stored.bytes, rows))
