"""Counts the bytes of a plain dump, and the rows of every COPY block in it.

pg_dump wrote the dump, but names, comments, defaults and function bodies in it are the user's, and
may contain whole COPY blocks. So the statements are read the way PostgreSQL's lexer reads them
(quotes, dollar quotes, comments:
https://www.postgresql.org/docs/current/sql-syntax-lexical.html), and a COPY counts only where a
statement begins. Inside a block only line ends are counted: text-format COPY escapes a newline
within a value, so one line is one row (https://www.postgresql.org/docs/current/sql-copy.html).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

_WORD = rb"[A-Za-z0-9_\x80-\xff][A-Za-z0-9_$\x80-\xff]*+"
_NAME = rb'(?:"(?:[^"]|"")++"|[A-Za-z_\x80-\xff][A-Za-z0-9_$\x80-\xff]*+)'

# A run of SQL that contains nothing to open a quote or a comment, or to end a statement.
_PLAIN = re.compile(rb"(?:[^'\"$;\-A-Za-z0-9_\x80-\xff]++|" + _WORD + rb"|-(?!-))*+")
_CUT_TOKEN = re.compile(rb"(?:[A-Za-z0-9_$\x80-\xff]{1,256}|-)\Z")
_SPACE = re.compile(rb"[\s]*+")
_COPY = re.compile(
    rb"COPY (" + _NAME + rb"(?:\." + _NAME + rb")?)"
    rb" (?:\(" + _NAME + rb"(?:, " + _NAME + rb")*+\))? FROM stdin;\n"
)
_DOLLAR_TAG = re.compile(rb"\$(?:[A-Za-z_\x80-\xff][A-Za-z0-9_\x80-\xff]*+)?\$")
# pg_dump lengthens a tag until the body does not contain it, so the body determines its length.
_CUT_DOLLAR_TAG = re.compile(rb"\$(?:[A-Za-z_\x80-\xff][A-Za-z0-9_\x80-\xff]{0,1048576})?\Z")
_ESCAPED_END = re.compile(rb"(?:[^'\\]|\\.)*+'", re.DOTALL)
_END_OF_ROWS = re.compile(rb"\\\.\n")
_NAME_PART = re.compile(rb'"((?:[^"]|"")++)"|([^."]++)')

_SETVAL = b"SELECT pg_catalog.setval("

LONGEST_STATEMENT = 1 << 20
"""Bytes of a COPY statement: 1,600 columns of 63 quotes fit; pg_dump writes nothing longer."""

# Each state reads from a position and returns the next one. It returns _MORE if it needs the next
# chunk, after it has put the bytes that it could not read yet into the carry.
_MORE = -1
_State = Callable[[bytes, int], int]


@dataclass(frozen=True, slots=True)
class Part:
    """Between two pieces of a dump: the COPY block of a table follows, or other statements.

    ``table`` is the name as the dump writes it, None for other statements, and ``load`` the COPY
    statement; ``sequences`` marks statements that set sequences.
    """

    table: bytes | None
    load: bytes = b""
    sequences: bool = False


class SqlScanner:
    """Observes chunks of one plain dump without changing them.

    ``raw_bytes`` is the number of bytes seen. ``rows`` maps each table's name as the dump writes it
    (quoted if SQL needs it, in the dump's encoding) to its number of rows. If
    ``tells_next_statement`` is set, :meth:`split` cuts once more, where the next statement begins.
    """

    def __init__(self) -> None:
        """Begin at the start of a dump."""
        self.raw_bytes = 0
        self.tells_next_statement = False
        self.rows: dict[bytes, int] = {}
        self._carry = b""
        self._state: _State = self._statement_start
        self._closing = b""
        self._table = b""
        self._at_line_start = False
        self._splits = False
        self._parts: list[tuple[int, Part]] = []
        self._part: Part | None = None
        self._base = 0

    def watch(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """Yield the same chunks, counted."""
        for chunk in chunks:
            self.raw_bytes += len(chunk)
            self._read(chunk)
            yield chunk

    def split(self, chunks: Iterable[bytes]) -> Iterator[bytes | Part]:
        """Yield the same bytes, counted, cut where a table or other statements begin."""
        self._splits = True
        held, position = b"", 0
        for chunk in self.watch(chunks):
            held += chunk
            # The carry may turn out to begin a part.
            end = self.raw_bytes - len(self._carry)
            parts, self._parts = self._parts, []
            for start, part in parts:
                if start > position:
                    yield held[: start - position]
                    held, position = held[start - position :], start
                yield part
            if end > position:
                yield held[: end - position]
                held, position = held[end - position :], end
        if held:
            yield held

    def _begin(self, part: Part, position: int) -> None:
        wanted = self.tells_next_statement
        if self._splits and (wanted or part != self._part or part.table is not None):
            self._part = part
            self.tells_next_statement = False
            self._parts.append((self._base + position, part))

    def _read(self, chunk: bytes) -> None:
        data, self._carry = self._carry + chunk, b""
        position, end = 0, len(data)
        self._base = self.raw_bytes - end
        while 0 <= position < end:
            position = self._state(data, position)

    def _keep(self, data: bytes, position: int) -> int:
        self._carry = data[position:]
        return _MORE

    def _statement_start(self, data: bytes, position: int) -> int:
        match = _SPACE.match(data, position)
        position = match.end() if match else position
        rest = data[position : position + 5]
        known = data[position : position + len(_SETVAL)]
        if rest == b"-" or any(
            len(known) < len(word) and word.startswith(known) for word in (b"COPY ", _SETVAL)
        ):
            return self._keep(data, position)
        if rest[:1] == b"\\" or rest[:2] == b"--":  # a psql command, like a comment, is a line
            self._state = self._comment_at_start
            return position
        if rest == b"COPY ":
            header = _COPY.match(data, position)
            if header:
                self._begin(Part(header[1], header[0]), position)
                self._table = header[1]
                self.rows.setdefault(self._table, 0)
                self._at_line_start = True
                self._state = self._rows
                return header.end()
            if len(data) - position < LONGEST_STATEMENT:
                return self._keep(data, position)
        if rest:
            self._begin(Part(None, sequences=known == _SETVAL), position)
        self._state = self._statement
        return position

    def _comment_at_start(self, data: bytes, position: int) -> int:
        return self._to_line_end(data, position, self._statement_start)

    def _comment(self, data: bytes, position: int) -> int:
        return self._to_line_end(data, position, self._statement)

    def _to_line_end(self, data: bytes, position: int, then: _State) -> int:
        found = data.find(b"\n", position)
        if found < 0:
            return len(data)
        self._state = then
        return found + 1

    def _statement(self, data: bytes, position: int) -> int:
        match = _PLAIN.match(data, position)
        start, position = position, match.end() if match else position
        if position == len(data):
            cut = _CUT_TOKEN.search(data, max(start, position - 257))
            return self._keep(data, cut.start()) if cut else position
        match data[position : position + 1]:
            case b";":
                self._state = self._statement_start
            case b"'":
                self._closing = b"'"
                escaped = _is_escape_prefix(data, position)
                self._state = self._escaped if escaped else self._quoted
            case b'"':
                self._closing = b'"'
                self._state = self._quoted
            case b"-":
                self._state = self._comment
            case _:
                return self._dollar(data, position)
        return position + 1

    def _dollar(self, data: bytes, position: int) -> int:
        tag = _DOLLAR_TAG.match(data, position)
        if tag:
            self._closing = tag[0]
            self._state = self._dollar_quoted
            return tag.end()
        if _CUT_DOLLAR_TAG.match(data, position):
            return self._keep(data, position)
        return position + 1

    def _quoted(self, data: bytes, position: int) -> int:
        # A doubled quote closes and opens again, with the same result.
        found = data.find(self._closing, position)
        if found < 0:
            return len(data)
        self._state = self._statement
        return found + 1

    def _escaped(self, data: bytes, position: int) -> int:
        match = _ESCAPED_END.match(data, position)
        if match:
            if match.end() == len(data):  # the next chunk may double the quote
                return self._keep(data, match.end() - 1)
            if data[match.end() : match.end() + 1] != b"'":
                self._state = self._statement
                return match.end()
            return match.end() + 1
        backslashes = len(data) - len(data.rstrip(b"\\"))
        return self._keep(data, len(data) - 1) if backslashes % 2 else len(data)

    def _dollar_quoted(self, data: bytes, position: int) -> int:
        found = data.find(self._closing, position)
        if found < 0:
            return self._keep(data, max(position, len(data) - len(self._closing) + 1))
        self._state = self._statement
        return found + len(self._closing)

    def _rows(self, data: bytes, position: int) -> int:
        for end in _END_OF_ROWS.finditer(data, position):
            at = end.start()
            line_start = self._at_line_start if at == position else data[at - 1] == ord("\n")
            if line_start:
                self._count(data, position, at)
                self._state = self._statement_start
                return end.end()
        # The last bytes may be the beginning of the end mark.
        keep = max(position, len(data) - 2)
        self._count(data, position, keep)
        if keep > position:
            self._at_line_start = data[keep - 1] == ord("\n")
        return self._keep(data, keep)

    def _count(self, data: bytes, start: int, end: int) -> None:
        self.rows[self._table] += data.count(b"\n", start, end)


def _is_escape_prefix(data: bytes, quote: int) -> bool:
    """Return whether the quote at this position opens an ``E'…'`` string."""
    if data[quote - 1 : quote] not in (b"E", b"e"):
        return False
    before = data[quote - 2 : quote - 1] if quote > 1 else b""
    return not re.match(rb"[A-Za-z0-9_$\x80-\xff]", before)


def load_statement(block: bytes) -> bytes | None:
    """Return the COPY statement that begins a block; None if there is none, or it is cut."""
    match = _COPY.match(block)
    return match[0] if match else None


def split_name(name: bytes) -> tuple[bytes, bytes]:
    """Split a table name as the dump writes it into schema and table, unquoted.

    The schema is empty if the dump names none.
    """
    parts = [
        quoted.replace(b'""', b'"') if quoted else bare for quoted, bare in _NAME_PART.findall(name)
    ]
    return (parts[0], parts[1]) if len(parts) > 1 else (b"", parts[0])
