"""A part in memory as the body of a request."""

from __future__ import annotations

from typing import IO, cast


class PartReader:
    """A readable file over bytes in memory, without copying them.

    A plain buffer would be sent by one ``sendall``, and the timeout of the connection would apply
    to the whole part. Read in pieces, the timeout applies to each piece.
    """

    def __init__(self, data: memoryview) -> None:
        """Start at the first byte of ``data``."""
        self._data = data
        self._position = 0

    def __len__(self) -> int:
        return len(self._data)

    def body(self) -> IO[bytes] | bytes:
        """Return a body of a request: an empty file would be sent in chunked encoding."""
        return cast("IO[bytes]", self) if self._data else b""

    def read(self, size: int = -1) -> memoryview:
        """Return the next ``size`` bytes, or all remaining bytes."""
        end = len(self._data) if size < 0 else self._position + size
        piece = self._data[self._position : end]
        self._position += len(piece)
        return piece

    def seek(self, offset: int, whence: int = 0) -> int:
        """Move to ``offset``, as a file does."""
        self._position = offset + (0, self._position, len(self._data))[whence]
        return self._position

    def tell(self) -> int:
        """Return the position."""
        return self._position
