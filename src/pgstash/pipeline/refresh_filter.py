"""Replaces the statements that fill materialized views in a plain dump.

pg_dump writes one REFRESH for each view, on a line of its own. It is found the way rows are
counted, by reading statements: the same line in a function or in data stays.
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
        found = data[start : start + len(_REFRESH)]
        if statement := _STATEMENT.match(data, start):
            self.views.append(statement[1])
            self._found.append((start, statement.end(), self._instead(statement[1])))
            return statement.end()
        if _REFRESH.startswith(found) and len(data) - start < LONGEST_STATEMENT:
            return self._keep(data, start)
        if self._keeps_transactions:
            return SqlScanner._statement_start(self, data, position)  # noqa: SLF001 - its own ancestor
        return super()._statement_start(data, position)
