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
    """Return the bits of a gzip file of one member that hold nothing: byte and bit, from 0.

    Those are hints of the header, and what fills up the last byte of the deflate stream (RFC 1951,
    3.1.1). The file has no flags, and no blocks that are stored as they are.
    """
    if packed[:4] != b"\x1f\x8b\x08\x00":
        raise ValueError("it is not gzip, or its header has more fields")
    found = {(at, bit) for at in _HINTS for bit in range(8)}
    found |= {(_FLAGS, bit) for bit in (_FTEXT, *_RESERVED)}
    last = len(packed) - _TRAILER - 1
    deflated = packed[_HINTS.stop : last + 1]
    text = _inflated(deflated)
    for bit in reversed(range(8)):
        if _inflated(deflated[:-1] + bytes([deflated[-1] ^ (1 << bit)])) != text:
            break
        found.add((last, bit))
    return found


def _inflated(deflated: bytes) -> bytes | None:
    """Return what zlib reads, None where it is not a whole stream and nothing else."""
    stream = zlib.decompressobj(wbits=-zlib.MAX_WBITS)
    try:
        text = stream.decompress(deflated)
    except zlib.error:
        return None
    return text if stream.eof and not stream.unused_data else None
