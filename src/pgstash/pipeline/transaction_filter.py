"""Removes the transactions of a plain dump, so that it can be run inside a single one.

pg_dump puts large objects between a BEGIN and a COMMIT of their own (StartRestoreLOs() in
pg_backup_archiver.c), which would end the transaction around them. They are found the way rows are
counted, by reading statements: a line "COMMIT;" in a function or in data stays. They are removed
only in the form in which pg_dump writes them: the data of a script from another program, whose COPY
is not recognised, must not lose a line.
"""

from __future__ import annotations

import re

from pgstash.pipeline.sql_scanner import SqlScanner

_BEGIN = b"BEGIN;\n"
_LARGE_OBJECTS = b"BEGIN;\n\nSELECT pg_catalog.lo_"
_COMMIT = b"COMMIT;\n"
_SPACE = re.compile(rb"\s*+")


class WithoutTransactions(SqlScanner):
    """Replaces BEGIN and COMMIT by spaces in a script that comes bit by bit.

    Text that it cannot decide on is held back.

    Whole COPY blocks of pg_dump contain no transactions, and need not be fed.
    """

    def __init__(self) -> None:
        """Begin at the start of a script."""
        super().__init__()
        self._found: list[tuple[int, int, bytes]] = []
        self._among_large_objects = False

    def feed(self, chunk: bytes) -> bytes:
        """Return the text that is decided by now, and was not returned before."""
        data = self._carry + chunk
        self._found.clear()
        self._read(chunk)
        read = len(data) - len(self._carry)
        if not self._found:
            return data[:read]
        changed = bytearray(data[:read])
        for start, end, statement in reversed(self._found):
            changed[start:end] = statement
        return bytes(changed)

    def rest(self) -> bytes:
        """Return the text that was held back, at the end of the script."""
        rest, self._carry = self._carry, b""
        return rest

    def _count(self, data: bytes, start: int, end: int) -> None:
        """Leave rows uncounted: their number is not needed, and a restore should be fast."""

    def _statement_start(self, data: bytes, position: int) -> int:
        match = _SPACE.match(data, position)
        start = match.end() if match else position
        sought = _COMMIT if self._among_large_objects else _LARGE_OBJECTS
        found = data[start : start + len(sought)]
        if found == sought:
            end = start + len(_COMMIT if self._among_large_objects else _BEGIN)
            self._found.append((start, end, b" " * (end - start - 1) + b"\n"))
            self._among_large_objects = not self._among_large_objects
            return end
        if sought.startswith(found):
            return self._keep(data, start)
        return super()._statement_start(data, position)
