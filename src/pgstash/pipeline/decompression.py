"""Decompresses gzip members, with or without a manifest to compare them with."""

from __future__ import annotations

import contextlib
import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol, cast

from isal import isal_zlib

from pgstash.errors import CorruptedError
from pgstash.format.manifest import Member, Section
from pgstash.workers import in_order

_GZIP_FORMAT = 31  # window of 2^15 bytes, plus 16 for a gzip header and trailer (zlib's manual)
_CHUNK = 256 * 1024

_IsalError = cast("type[Exception]", isal_zlib.error)  # its stub takes the class for an instance


class Edit(Protocol):
    """Changes statements on their way; see :mod:`pgstash.pipeline.transaction_filter`."""

    def feed(self, chunk: bytes, /) -> bytes:
        """Return the text that is decided by now."""
        ...

    def rest(self) -> bytes:
        """Return the text that was held back."""
        ...


def decompress(
    chunks: Iterable[bytes],
    members: Sequence[Member],
    wanted: Callable[[Section | None], bool] = lambda _section: True,
    edit: Edit | None = None,
) -> Iterator[bytes]:
    """Yield the plain text of the members, each one only after it was compared.

    Sections that are not ``wanted`` are compared too, but not yielded; ``wanted`` is called when it
    is the member's turn. Everything but the rows of tables goes through ``edit``; once the first
    member is compared, a chunk without bytes comes first then. A thread opens
    the next member (it releases the GIL) while the caller works on the pieces of this one; so
    memory holds one plain member, and another a part stored and a part plain. Raises CorruptedError
    if a member is not what was written, or the stream is longer or shorter than all members
    together.
    """
    taker = Taker(chunks)
    stored = (
        (taker.take(member.stored), member, number) for number, member in enumerate(members, 1)
    )
    opened = in_order(_open, stored, ahead=1, eager=False)
    with contextlib.closing(opened):
        for number, (member, plain) in enumerate(opened):
            if edit and not number:
                yield b""  # ``edit`` may still be changed before it gets the first bytes
            if wanted(member.section):
                yield from _edited(plain, member, edit)
    if edit and (rest := edit.rest()):
        yield rest
    if taker.take(1):
        raise damaged("there is data after its end")


def _open(stored: tuple[deque[bytes], Member, int]) -> tuple[Member, deque[bytes]]:
    pieces, member, number = stored
    return member, verified(pieces, member, number)


def _edited(pieces: deque[bytes], member: Member, edit: Edit | None) -> Iterator[bytes]:
    if edit is None:
        yield from _emptied(pieces)
        return
    if member.table is not None:
        # The text held back is the beginning of the next statement: rows come between statements.
        yield from _emptied(pieces)
        return
    for piece in _emptied(pieces):
        if plain := edit.feed(piece):
            yield plain


def _emptied(pieces: deque[bytes]) -> Iterator[bytes]:
    """Yield the pieces without keeping those that were yielded."""
    while pieces:
        yield pieces.popleft()


def gunzip(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the plain bytes of gzip members, in bounded pieces. Raises CorruptedError."""
    inflater = None
    for chunk in chunks:
        data, more = chunk, False
        while data or more:
            inflater = inflater or isal_zlib.decompressobj(_GZIP_FORMAT)
            try:
                plain = inflater.decompress(data, _CHUNK)
            except _IsalError as error:
                raise damaged(f"it does not decompress: {error}") from error
            if plain:
                yield plain
            data, more = inflater.unconsumed_tail, len(plain) == _CHUNK
            if inflater.eof:
                data, more, inflater = inflater.unused_data, False, None
    if inflater is not None:
        raise damaged("it ends within a member of the compressed stream")


def damaged(what: str) -> CorruptedError:
    """Return the error for a damaged archive; ``what`` is the damage."""
    return CorruptedError(
        f"the archive is damaged: {what}", hint="Use another backup; `pgstash list` shows them."
    )


class Taker:
    """Takes any number of bytes at a time from chunks of any size."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        """Begin at the first chunk."""
        self._chunks = iter(chunks)
        self._rest = b""

    def take(self, count: int) -> deque[bytes]:
        """Return ``count`` bytes, or as many as are left, in pieces."""
        parts, missing = deque[bytes](), count
        while missing:
            chunk = self._rest or next(self._chunks, b"")
            if not chunk:
                break
            parts.append(chunk[:missing])
            self._rest = chunk[missing:]
            missing -= len(parts[-1])
        return parts


def verified(stored: deque[bytes], member: Member, number: int) -> deque[bytes]:
    """Return the plain bytes of a member in pieces, after its digest was compared.

    The stored pieces are taken out of ``stored`` meanwhile: memory need not hold all of both.
    Raises CorruptedError if it differs; the message names the member by its ``number``.
    """
    which = f"member {number}, {member.stored} bytes from {member.offset} on,"
    if sum(map(len, stored)) < member.stored:
        raise damaged(f"it ends within {which} of the compressed stream")
    digest = hashlib.sha256()
    for piece in stored:
        digest.update(piece)
    if digest.hexdigest() != member.sha256:
        raise damaged(f"{which} is not what was stored")
    plain: deque[bytes] = deque()
    total = 0
    for piece in gunzip(_emptied(stored)):
        total += len(piece)
        if total > member.raw:
            break
        plain.append(piece)
    # gzip's CRC-32 has already shown that they are the bytes that were compressed.
    if total != member.raw:
        raise damaged(f"{which} does not decompress to what was compressed")
    return plain
