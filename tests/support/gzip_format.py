"""What the format of gzip lets every reader ignore, whoever the reader is."""

from __future__ import annotations

import zlib

# RFC 1952, 2.3: the header has 10 bytes if no flag asks for more. FTEXT is a hint; MTIME, XFL and
# OS say where the file comes from. Of the reserved flags gunzip complains, ISA-L does not, and to
# both they say nothing.
_FLAGS, _FTEXT, _RESERVED = 3, 0, (5, 6, 7)
_HINTS = range(4, 10)
_TRAILER = 8  # CRC32 and ISIZE


def ignored_bits(packed: bytes) -> set[tuple[int, int]]:
    """Return the bits of a gzip file for which :func:`holds_nothing` is true: byte and bit."""
    bits = ((at, bit) for at in range(len(packed)) for bit in range(8))
    return {(at, bit) for at, bit in bits if holds_nothing(packed, at, bit)}


def holds_nothing(packed: bytes, at: int, bit: int) -> bool:
    """Return whether a gzip file of one member without flags says the same without this bit.

    Such bits are hints of the header, what fills up the last byte of the deflate stream (RFC 1951,
    3.1.1), and where one bit makes a match of another place that holds the same text (3.2.5).
    """
    if packed[:4] != b"\x1f\x8b\x08\x00":
        raise ValueError("it is not gzip, or its header has more fields")
    if at < _HINTS.stop:
        return at in _HINTS or (at == _FLAGS and bit in (_FTEXT, *_RESERVED))
    end = len(packed) - _TRAILER
    if at >= end:
        return False
    deflated = bytearray(packed[_HINTS.stop : end])
    text = _inflated(deflated)
    deflated[at - _HINTS.stop] ^= 1 << bit
    return _inflated(deflated) == text


def _inflated(deflated: bytes | bytearray) -> bytes | None:
    """Return what zlib reads, None where it is not a whole stream and nothing else."""
    stream = zlib.decompressobj(wbits=-zlib.MAX_WBITS)
    try:
        text = stream.decompress(deflated)
    except zlib.error:
        return None
    return text if stream.eof and not stream.unused_data else None
