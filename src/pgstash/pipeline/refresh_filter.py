"""Replaces the statements that fill materialized views in a plain dump, and leaves some out.

pg_dump writes one REFRESH for each view, on a line of its own. It is found the way rows are
counted, by reading statements: the same line in a function or in data stays. The same applies to
the statements that are left out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator

from pgstash.pipeline.sql_scanner import LONGEST_STATEMENT, SqlScanner
from pgstash.pipeline.transaction_filter import WithoutTransactions

_REFRESH = b"REFRESH MATERIALIZED VIEW "
_NAME = rb'(?:"(?:[^"]|"")++"|[A-Za-z_\x80-\xff][A-Za-z0-9_$\x80-\xff]*+)'
_STATEMENT = re.compile(_REFRESH + rb"(" + _NAME + rb"(?:\." + _NAME + rb")?);\n")
_SPACE = re.compile(rb"\s*+")


class Refreshes(WithoutTransactions):
    """Edits a script that comes bit by bit; text that it cannot decide on is held back.

    ``views`` are the views that the script fills, by their names in the script.
    """

    def __init__(self, instead: Callable[[bytes], bytes], *, keeps_transactions: bool) -> None:
        """Replace the statement that fills a view by the one that ``instead`` returns for its name.

        Unless it ``keeps_transactions``, the transactions of large objects are removed as well.
        """
        super().__init__()
        self._instead = instead
        self._keeps_transactions = keeps_transactions
        self.views: list[bytes] = []
        self._left_out: tuple[bytes, ...] = ()

    def leave_out(self, statements: Iterable[bytes]) -> None:
        """Leave statements out from now on; each is given as pg_dump writes it, to its line end."""
        self._left_out += tuple(statements)

    def edit(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """Yield a whole script, edited."""
        for chunk in chunks:
            if plain := self.feed(chunk):
                yield plain
        if rest := self.rest():
            yield rest

    def _statement_start(self, data: bytes, position: int) -> int:
        match = _SPACE.match(data, position)
        start = match.end() if match else position
        for statement in self._left_out:
            if data.startswith(statement, start):
                end = start + len(statement)
                # As many lines as before: errors name lines.
                self._found.append((start, end, b"\n" * statement.count(b"\n")))
                return end
            if statement.startswith(data[start : start + len(statement)]):
                return self._keep(data, start)
        found = data[start : start + len(_REFRESH)]
        if refresh := _STATEMENT.match(data, start):
            self.views.append(refresh[1])
            self._found.append((start, refresh.end(), self._instead(refresh[1])))
            return refresh.end()
        if _REFRESH.startswith(found) and len(data) - start < LONGEST_STATEMENT:
            return self._keep(data, start)
        if self._keeps_transactions:
            return SqlScanner._statement_start(self, data, position)  # noqa: SLF001 - its own ancestor
        return super()._statement_start(data, position)
