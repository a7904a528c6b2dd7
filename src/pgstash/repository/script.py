"""The bytes of an archive: its script from end to end, or single members, and every byte checked.

Where there is a manifest a member is compared with it before one byte of it is handed out, so
whoever runs the script runs nothing that was not written by the backup. Whether the script is
whole shows at its end: until then, nothing that was done with it may count.
"""

from __future__ import annotations

import hashlib
import itertools
import re
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Protocol

from pgstash.errors import CorruptedError, EncryptionError
from pgstash.manifest import Manifest, Section
from pgstash.pipeline import decompression, encryption
from pgstash.pipeline.tally import LONGEST_STATEMENT, load_statement

GZIP_MAGIC = b"\x1f\x8b"
"""What gzip begins with: RFC 1952, 2.3.1."""

# How a plain dump ends, whichever pg_dump wrote it.
_CLOSING = re.compile(
    rb"\n--\n-- PostgreSQL database dump complete\n--\n\n?(?:\\unrestrict \w+\n\n?)?\s*\Z"
)
_CLOSING_BYTES = 1024

_RESTRICT = re.compile(rb"^\\restrict (\w+)$", re.MULTILINE)

# pg_dump's header sets it from 17 on, and pg_restore does, whichever server it is.
_NEW_SETTING = b"SET transaction_timeout = 0;\n"
KNOWN_FROM = 17
"""The first major whose servers know transaction_timeout."""

# Comments, a command of psql and settings, line by line: nothing that could be somebody's data.
_SETTINGS = re.compile(rb"(?:(?:(?:--|\\restrict |SET )[^\n]*)?\n)*+")

# What decides on an encrypted archive's ends: its first block, and its last two.
_ENDS = 32


class Read(Protocol):
    """Opens a range of the archive, or all of it, as it is stored."""

    def __call__(  # noqa: D102 - the class says it
        self, *, start: int = 0, length: int | None = None
    ) -> AbstractContextManager[Iterator[bytes]]: ...


class Seeker:
    """Reads single members of an archive, each whole and compared; several threads may."""

    def __init__(
        self,
        manifest: Manifest,
        read: Read,
        passphrase: str | None,
        watch: Callable[[int], None],
    ) -> None:
        """Look at both ends of the archive; raises as :meth:`Archive.seek` does."""
        self._manifest = manifest
        self._read = read
        self._watch = watch
        self._total = 0
        self._lock = threading.Lock()
        self._key: encryption.Key | None = None
        if manifest.encryption:
            passphrase = passphrase_for(manifest.archive, passphrase)
            self._key = encryption.Key.derive(passphrase, bytes.fromhex(manifest.encryption.salt))
            head, tail = self._get(0, _ENDS // 2), self._get(manifest.stored_bytes - _ENDS, _ENDS)
            plain_bytes = sum(member.stored for member in manifest.members)
            if not encryption.is_whole(b"".join(head), b"".join(tail), self._key, plain_bytes):
                raise decompression.damaged("it does not begin and end as it was written")

    def member(self, number: int) -> deque[bytes]:
        """Return the plain bytes of a member, counted from 0, in pieces.

        Raises CorruptedError where it is not what was written, StorageError.
        """
        [pieces] = self.members(range(number, number + 1))
        return pieces

    def members(self, numbers: range) -> Generator[deque[bytes]]:
        """Yield the same of members that follow each other, which one request reads."""
        members = self._manifest.members[numbers.start : numbers.stop]
        offset, length = members[0].offset, sum(member.stored for member in members)
        if self._key:
            start, stored = encryption.stored_range(offset, length)
            chunks = encryption.decrypt_range(self._get(start, stored), self._key, offset, length)
        else:
            chunks = self._get(offset, length)
        taker = decompression.Taker(chunks)
        for number, member in zip(numbers, members, strict=True):
            yield decompression.verified(taker.take(member.stored), member, number + 1)

    def _get(self, start: int, length: int) -> Iterator[bytes]:
        with self._read(start=start, length=length) as chunks:
            for chunk in chunks:
                with self._lock:
                    self._total += len(chunk)
                    self._watch(self._total)
                yield chunk


def take_statement(pieces: deque[bytes]) -> bytes:
    """Take the COPY statement from the pieces of a member. Raises CorruptedError."""
    beginning = b""
    while pieces and len(beginning) < LONGEST_STATEMENT:
        beginning += pieces.popleft()
        if statement := load_statement(beginning):
            pieces.appendleft(beginning[len(statement) :])
            return statement
    raise CorruptedError("the manifest takes for rows what is none")


def footer(header: bytes) -> bytes:
    r"""Return what ends a script that begins with this header: psql obeys no command before it."""
    found = _RESTRICT.search(header)
    return b"\n\\unrestrict " + found[1] + b"\n" if found else b""


def session_only(header: bytes) -> bytes:
    """Return a header without the command of psql in it: statements that a server takes."""
    return _RESTRICT.sub(b"", header)


def known_to(major: int, script: Iterator[bytes]) -> Iterator[bytes]:
    """Yield a script without what its header sets and a server of this major does not know.

    Where a server is dumped by a newer pg_dump, it could not be restored into that server else.
    """
    if major < KNOWN_FROM:
        first = next(script, b"")
        match = _SETTINGS.match(first)
        header = match[0] if match else b""
        yield header.replace(_NEW_SETTING, b"") + first[len(header) :]
    yield from script


def passphrase_for(name: str, passphrase: str | None) -> str:
    """Return the passphrase; raise EncryptionError where there is none."""
    if passphrase is None:
        raise EncryptionError(
            f"{name} is encrypted, and there is no key to read it with",
            hint="Set BACKUP_ENCRYPTION_KEY to the passphrase that it was written with.",
        )
    return passphrase


def verified(
    stored: Iterable[bytes],
    manifest: Manifest,
    passphrase: str | None,
    wanted: Callable[[Section | None], bool],
    edit: decompression.Edit | None,
) -> Iterator[bytes]:
    """Yield the script of an archive whose manifest says what it must be.

    Without the sections that are not ``wanted``, and as ``edit`` makes it. Raises CorruptedError,
    EncryptionError.
    """
    whole = hashlib.sha256()
    compressed: Iterable[bytes] = _digested(stored, whole.update)
    if manifest.encryption:
        passphrase = passphrase_for(manifest.archive, passphrase)
        compressed = encryption.decrypt(compressed, passphrase)
    yield from decompression.decompress(compressed, manifest.members, wanted, edit)
    if whole.hexdigest() != manifest.sha256:
        raise decompression.damaged("its digest is not the one in the manifest")


def _digested(chunks: Iterable[bytes], update: Callable[[bytes], None]) -> Iterator[bytes]:
    for chunk in chunks:
        update(chunk)
        yield chunk


def unverified(
    stored: Iterable[bytes], passphrase: str | None, edit: decompression.Edit | None
) -> Iterator[bytes]:
    """Yield the script of an archive that is told by its first bytes, as ``edit`` makes it.

    Raises CorruptedError, EncryptionError.
    """
    start, chunks = _peeked(stored)
    if start.startswith(b"Salted__"):
        chunks = encryption.decrypt(chunks, passphrase_for("the archive", passphrase))
        start, chunks = _peeked(chunks)
        if not start.startswith(GZIP_MAGIC):
            raise CorruptedError("the archive does not decrypt: a wrong key, or damage")
    if start.startswith(GZIP_MAGIC):
        chunks = decompression.gunzip(chunks)
    tail = b""
    for chunk in chunks:
        tail = (tail + chunk)[-_CLOSING_BYTES:]
        yield edit.feed(chunk) if edit else chunk
    if not _CLOSING.search(tail):
        raise decompression.damaged(
            "it does not end as a dump of pg_dump does: it is cut short, or not one"
        )
    if edit:
        yield edit.rest()


def _peeked(chunks: Iterable[bytes]) -> tuple[bytes, Iterable[bytes]]:
    """Return the first bytes, and all chunks from the beginning."""
    source = iter(chunks)
    start = b""
    for chunk in source:
        start += chunk
        if len(start) >= len(b"Salted__"):
            break
    return start, itertools.chain([start], source)
