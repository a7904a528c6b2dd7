"""Compresses a stream into gzip members, each of which decompresses by itself.

Members one after the other are an ordinary gzip file (RFC 1952, 2.2), so ``gunzip`` opens
the whole, and a reader that knows where a member lies opens that member alone.

The levels are gzip's: 1 fastest, 9 smallest. Up to 3 they are made by Intel's ISA-L, which is
about ten times faster than zlib at nearly the same size; from 7 on by zlib-ng, which is denser;
in between, and at 9, by what suits the data at hand.
"""

from __future__ import annotations

import hashlib
import queue
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Protocol

from isal import isal_zlib
from zlib_ng import zlib_ng

from pgstash.errors import PipelineError
from pgstash.manifest import Member, Section
from pgstash.pipeline.opening import Border

MEMBER_BYTES = 16 * 1024 * 1024
"""Uncompressed size at which a member is closed, in bytes."""

_GZIP_FORMAT = 31  # window of 2^15 bytes, plus 16 for a gzip header and trailer (zlib's manual)

# Chunks of the dump that may wait for the compressor, 120 KiB each.
_WAITING = 16

# Behind the levels 4 to 6: an engine by how far ISA-L's fastest level shrinks the first chunk
# of a member. Data that hardly shrinks, as numbers and hashes do, gains nothing from a slower
# level; text does; data that shrinks to a tenth, as JSON documents do, is where zlib-ng is as
# fast as ISA-L and much denser.
# benchmarks/compression.py shows the figures that the borders come from.
_FIRST_BALANCED = 4
_BALANCED = (
    (3.5, "isa-l", 1),
    (7.5, "isa-l", 3),
    (30.0, "zlib-ng", 3),
    (float("inf"), "zlib-ng", 7),
)

_DENSE = {7: 7, 8: 8}

# Which of them is the smallest depends on the data; zlib-ng's own 9 was measured larger than its 8.
_SMALLEST = (("zlib-ng", 8), ("zlib", 9))


class _Compressor(Protocol):
    def compress(self, data: bytes, /) -> bytes: ...

    def flush(self) -> bytes: ...


def _compressor(level: int, first_chunk: bytes) -> _Compressor:
    """Return a compressor for one member, by the level and by what the member begins with."""
    if level in _DENSE:
        return _engine("zlib-ng", _DENSE[level])
    if level > max(_DENSE):
        trials = (_engine(name, its) for name, its in _SMALLEST)
        sizes = [len(trial.compress(first_chunk)) + len(trial.flush()) for trial in trials]
        return _engine(*_SMALLEST[sizes.index(min(sizes))])
    if level < _FIRST_BALANCED:
        return _engine("isa-l", 1)
    shrunk = len(first_chunk) / max(1, len(isal_zlib.compress(first_chunk, 1)))
    return next(_engine(name, its) for most, name, its in _BALANCED if shrunk < most)


def _engine(name: str, level: int) -> _Compressor:
    if name == "isa-l":
        return isal_zlib.compressobj(level, isal_zlib.DEFLATED, _GZIP_FORMAT)
    if name == "zlib":
        return zlib.compressobj(level, zlib.DEFLATED, _GZIP_FORMAT)
    return zlib_ng.compressobj(level, zlib_ng.DEFLATED, _GZIP_FORMAT)


class Packing:
    """One member while it grows; ``raw`` and ``stored`` are its bytes so far."""

    def __init__(self, level: int) -> None:
        """Begin an empty one."""
        self._level = level
        self._compressor: _Compressor | None = None
        self.raw = self.stored = 0
        self._digest = hashlib.sha256()

    def write(self, chunk: bytes) -> bytes:
        """Take what comes next, and return what there is of it compressed.

        The first chunk decides on the engine, so it should be one that is like the rest.
        """
        self.raw += len(chunk)
        if self._compressor is None:
            self._compressor = _compressor(self._level, chunk)
        return self._count(self._compressor.compress(chunk))

    def close(self, section: Section | None) -> tuple[bytes, Member]:
        """End it: the rest of its bytes, and what it is, as if it stood at the very beginning."""
        compressor = self._compressor or _compressor(self._level, b"")
        tail = self._count(compressor.flush())
        return tail, Member(
            offset=0,
            stored=self.stored,
            raw=self.raw,
            sha256=self._digest.hexdigest(),
            section=section,
        )

    def _count(self, compressed: bytes) -> bytes:
        self.stored += len(compressed)
        self._digest.update(compressed)
        return compressed


def pack(text: bytes, level: int, section: Section | None) -> tuple[bytes, Member]:
    """Return a text as one member, placed as if it stood at the very beginning."""
    packing = Packing(level)
    compressed = packing.write(text)
    tail, member = packing.close(section)
    return compressed + tail, member


class _MemberWriter:
    """Compresses chunks into members and measures each."""

    def __init__(self, level: int, member_bytes: int) -> None:
        self._level = level
        self._member_bytes = member_bytes
        self._offset = 0
        self._section: Section | None = None
        self._packing = Packing(level)

    def write(self, chunk: bytes | Border) -> tuple[bytes, Member | None]:
        if isinstance(chunk, Border):
            closed = self.close() if self._packing.raw else (b"", None)
            self._section = chunk.section
            return closed
        if not chunk:  # it would begin a member that holds nothing, and is never ended
            return b"", None
        compressed = self._packing.write(chunk)
        if self._packing.raw < self._member_bytes:
            return compressed, None
        tail, member = self.close()
        return compressed + tail, member

    def close(self) -> tuple[bytes, Member | None]:
        """End the open member; an empty one is written only where it is the first."""
        if self._packing.raw == 0 and self._offset > 0:
            return b"", None
        tail, member = self._packing.close(self._section)
        placed = replace(member, offset=self._offset)
        self._offset += placed.stored
        self._packing = Packing(self._level)
        return tail, placed


def compress(
    chunks: Iterable[bytes | Border],
    *,
    level: int,
    record: Callable[[Member], None],
    member_bytes: int = MEMBER_BYTES,
) -> Iterator[bytes]:
    """Yield the gzip members of a stream; ``record`` hears of each when it is complete.

    A member is closed at ``member_bytes`` and at every border, whose section the next ones have.
    The compressor works in a thread of its own (it releases the GIL), so that the caller
    reads the next chunk and sends the last one meanwhile. Raises PipelineError when it fails.
    """
    # Queues without locks of Python's own: a signal's exception cannot leave one locked.
    room: queue.SimpleQueue[None] = queue.SimpleQueue()
    todo: queue.SimpleQueue[bytes | Border | None] = queue.SimpleQueue()
    done: queue.SimpleQueue[tuple[bytes, Member | None] | Exception | None] = queue.SimpleQueue()
    worker = threading.Thread(
        target=_work, args=(_MemberWriter(level, member_bytes), room, todo, done), daemon=True
    )
    worker.start()
    for _ in range(_WAITING):
        room.put(None)

    def finished(*, wait: bool) -> Iterator[bytes]:
        while wait or not done.empty():
            result = done.get()
            if result is None:
                return
            if isinstance(result, Exception):
                raise PipelineError(f"compression failed: {result}") from result
            compressed, member = result
            if member:
                record(member)
            if compressed:
                yield compressed

    try:
        for chunk in chunks:
            room.get()
            todo.put(chunk)
            yield from finished(wait=False)
        todo.put(None)
        yield from finished(wait=True)
    finally:
        todo.put(None)


def _work(
    writer: _MemberWriter,
    room: queue.SimpleQueue[None],
    todo: queue.SimpleQueue[bytes | Border | None],
    done: queue.SimpleQueue[tuple[bytes, Member | None] | Exception | None],
) -> None:
    try:
        while (chunk := todo.get()) is not None:
            done.put(writer.write(chunk))
            room.put(None)
        done.put(writer.close())
        done.put(None)
    except Exception as error:  # noqa: BLE001 - carried to the caller's thread whole
        done.put(error)
        while todo.get() is not None:
            room.put(None)  # keep the caller moving until it notices
