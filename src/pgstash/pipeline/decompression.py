"""Decompresses gzip members, with or without a manifest that says what they must be."""

from __future__ import annotations

import hashlib
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol, cast

from isal import isal_zlib

from pgstash.errors import CorruptedError
from pgstash.manifest import Member, Section

_GZIP_FORMAT = 31  # window of 2^15 bytes, plus 16 for a gzip header and trailer (zlib's manual)
_CHUNK = 256 * 1024

_IsalError = cast("type[Exception]", isal_zlib.error)  # its stub takes the class for an instance


class Edit(Protocol):
    """Changes statements on their way; see :mod:`pgstash.pipeline.transactions`."""

    def feed(self, chunk: bytes, /) -> bytes:
        """Return what can be told by now."""
        ...

    def rest(self) -> bytes:
        """Return what was held back."""
        ...


def decompress(
    chunks: Iterable[bytes],
    members: Sequence[Member],
    wanted: Callable[[Section | None], bool] = lambda _section: True,
    edit: Edit | None = None,
) -> Iterator[bytes]:
    """Yield what the members hold, each of them only after it was compared.

    Of sections that are not ``wanted`` nothing is yielded, and all is compared. That is asked
    when the member's turn comes. All but the rows of tables goes through ``edit``. A thread opens
    the next member (what it calls releases the GIL) while the caller is at work on the pieces of
    this one; so one member is held in memory plain, and one stored and plain. Raises CorruptedError
    where one is not what was written, and where the stream is longer or shorter than all of them.
    """
    # Queues without locks of Python's own: a signal's exception cannot leave one locked.
    todo: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
    done: queue.SimpleQueue[deque[bytes] | Exception] = queue.SimpleQueue()
    threading.Thread(target=_work, args=(todo, done), daemon=True).start()
    taker = Taker(chunks)
    try:
        before: Member | None = None
        plain: deque[bytes] = deque()
        for number, member in enumerate(members, start=1):
            todo.put((taker.take(member.stored), member, number))
            if before and wanted(before.section):
                yield from _edited(plain, before, edit)
            before, plain = member, _result(done)
        if before and wanted(before.section):
            yield from _edited(plain, before, edit)
        if edit and (rest := edit.rest()):
            yield rest
    finally:
        todo.put(None)
    if taker.take(1):
        raise damaged("it goes on where it should end")


_Task = tuple[list[bytes], Member, int]


def _work(
    todo: queue.SimpleQueue[_Task | None], done: queue.SimpleQueue[deque[bytes] | Exception]
) -> None:
    while task := todo.get():
        try:
            done.put(verified(*task))
        except Exception as error:  # noqa: BLE001 - carried to the caller's thread whole
            done.put(error)
        del task  # it holds a member, and the next one may be long in coming


def _result(done: queue.SimpleQueue[deque[bytes] | Exception]) -> deque[bytes]:
    result = done.get()
    if isinstance(result, Exception):
        raise result
    return result


def _edited(pieces: deque[bytes], member: Member, edit: Edit | None) -> Iterator[bytes]:
    if edit is None:
        yield from _emptied(pieces)
        return
    if member.table is not None:
        # What is held back is the beginning of the next statement: rows come between statements.
        yield from _emptied(pieces)
        return
    for piece in _emptied(pieces):
        if plain := edit.feed(piece):
            yield plain


def _emptied(pieces: deque[bytes]) -> Iterator[bytes]:
    """Yield the pieces, and hold none that was yielded."""
    while pieces:
        yield pieces.popleft()


def gunzip(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield what gzip members hold, a bounded piece at a time. Raises CorruptedError."""
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
    """Return the error that says what is wrong with an archive."""
    return CorruptedError(
        f"the archive is damaged: {what}", hint="Take another backup; `pgstash list` shows them."
    )


class Taker:
    """Takes so many bytes at a time from chunks of any size."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        """Begin before the first of them."""
        self._chunks = iter(chunks)
        self._rest = b""

    def take(self, count: int) -> list[bytes]:
        """Return so many bytes, or what is left, in pieces."""
        parts, missing = [], count
        while missing:
            chunk = self._rest or next(self._chunks, b"")
            if not chunk:
                break
            parts.append(chunk[:missing])
            self._rest = chunk[missing:]
            missing -= len(parts[-1])
        return parts


def verified(stored: Sequence[bytes], member: Member, number: int) -> deque[bytes]:
    """Return the plain bytes of a member in pieces, after its digest was compared.

    ``number`` is what it is called where that differs, which raises CorruptedError.
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
    for piece in gunzip(stored):
        total += len(piece)
        if total > member.raw:
            break
        plain.append(piece)
    # That they are the bytes that were compressed gzip's CRC-32 told on the way.
    if total != member.raw:
        raise damaged(f"{which} does not decompress to what was compressed")
    return plain
