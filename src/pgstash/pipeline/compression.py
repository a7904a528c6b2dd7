"""Compresses a stream into gzip members, each of which decompresses by itself.

Members one after another are an ordinary gzip file (RFC 1952, 2.2), so ``gunzip`` opens the
whole, and a reader that knows the position of a member opens that member alone.

The levels are gzip's: 1 is the fastest, 9 the smallest. Levels 1 to 3 use Intel's ISA-L, which is
about ten times faster than zlib at nearly the same size. Levels 7 and 8 use zlib-ng, which is
denser. Levels 4 to 6, and 9, use what suits the data at hand.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Protocol

from isal import isal_zlib
from zlib_ng import zlib_ng

from pgstash.errors import PipelineError
from pgstash.format.manifest import Member, Section
from pgstash.pipeline.sections import Border
from pgstash.workers import in_order

MEMBER_BYTES = 16 * 1024 * 1024
"""Uncompressed size at which a member is closed, in bytes."""

_GZIP_FORMAT = 31  # window of 2^15 bytes, plus 16 for a gzip header and trailer (zlib's manual)

# Chunks of the dump that may wait for the compressor, 120 KiB each.
_WAITING = 16

# Levels 4 to 6 choose an engine by how far ISA-L's fastest level shrinks the first chunk of a
# member. Data that hardly shrinks, such as numbers and hashes, gains nothing from a slower level;
# text does. On data that shrinks to a tenth, such as JSON documents, zlib-ng is as fast as ISA-L
# and much denser. benchmarks/compression.py prints the figures that these borders come from.
_FIRST_BALANCED = 4
_BALANCED = (
    (3.5, "isa-l", 1),
    (7.5, "isa-l", 3),
    (30.0, "zlib-ng", 3),
    (float("inf"), "zlib-ng", 7),
)

_DENSE = {7: 7, 8: 8}

# Which one is smaller depends on the data; zlib-ng's own 9 was measured larger than its 8.
_SMALLEST = (("zlib-ng", 8), ("zlib", 9))


class _Compressor(Protocol):
    def compress(self, data: bytes, /) -> bytes: ...

    def flush(self) -> bytes: ...


def _compressor(level: int, first_chunk: bytes) -> _Compressor:
    """Return a compressor for one member, by the level and the first chunk of the member."""
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
    """One member while it grows; ``raw`` and ``stored`` count its bytes so far."""

    def __init__(self, level: int) -> None:
        """Begin an empty one."""
        self._level = level
        self._compressor: _Compressor | None = None
        self.raw = self.stored = 0
        self._digest = hashlib.sha256()

    def write(self, chunk: bytes) -> bytes:
        """Take the next chunk, and return the compressed bytes that are ready.

        The first chunk decides on the engine, so it should be like the rest.
        """
        self.raw += len(chunk)
        if self._compressor is None:
            self._compressor = _compressor(self._level, chunk)
        return self._count(self._compressor.compress(chunk))

    def close(self, section: Section | None) -> tuple[bytes, Member]:
        """End the member; return the rest of its bytes, and its entry with offset 0."""
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
    """Return a text as one member, and its entry with offset 0."""
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
        if not chunk:  # it would begin an empty member that is never ended
            return b"", None
        compressed = self._packing.write(chunk)
        if self._packing.raw < self._member_bytes:
            return compressed, None
        tail, member = self.close()
        return compressed + tail, member

    def close(self) -> tuple[bytes, Member | None]:
        """End the open member; an empty one is written only if it is the first."""
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
    """Yield the gzip members of a stream; ``record`` is called with each when it is complete.

    A member is closed at ``member_bytes`` and at every border, whose section the next ones have.
    The compressor works in a thread of its own (it releases the GIL), so that the caller reads the
    next chunk and sends the last one meanwhile. Raises PipelineError if it fails.
    """
    writer = _MemberWriter(level, member_bytes)

    def work(chunk: bytes | Border | None) -> tuple[bytes, Member | None]:
        try:
            return writer.close() if chunk is None else writer.write(chunk)
        except Exception as error:  # the compressors raise errors of no common class
            raise PipelineError(f"compression failed: {error}") from error

    compressed = in_order(work, itertools.chain(chunks, [None]), ahead=_WAITING)
    with contextlib.closing(compressed):
        for data, member in compressed:
            if member:
                record(member)
            if data:
                yield data
