"""Single members of an archive: each is read whole and verified before any of it is used."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager
from typing import Protocol

from pgstash.format.manifest import Manifest
from pgstash.pipeline import decompression, encryption
from pgstash.repository.access import passphrase_for

# Bytes that decide whether an encrypted archive is whole: its first block, and its last two.
_ENDS = 32


class Read(Protocol):
    """Opens a range of the archive, or all of it, as stored."""

    def __call__(  # noqa: D102 - see the class
        self, *, start: int = 0, length: int | None = None
    ) -> AbstractContextManager[Iterator[bytes]]: ...


class Seeker:
    """Reads single members of an archive and verifies each; several threads may use it."""

    def __init__(
        self,
        manifest: Manifest,
        read: Read,
        passphrase: str | None,
        watch: Callable[[int], None],
    ) -> None:
        """Check both ends of the archive. Raises what :meth:`Archive.seek` raises."""
        self._manifest = manifest
        self._read = read
        self._watch = watch
        self._total = 0
        self._lock = threading.Lock()
        self._key: encryption.Key | None = None
        if manifest.encryption:
            passphrase = passphrase_for(manifest.archive, passphrase)
            salt = bytes.fromhex(manifest.encryption.salt)
            self._key = encryption.Key.derive(passphrase, salt, manifest.encryption.rounds)
            head, tail = self._get(0, _ENDS // 2), self._get(manifest.stored_bytes - _ENDS, _ENDS)
            plain_bytes = sum(member.stored for member in manifest.members)
            if not encryption.is_whole(b"".join(head), b"".join(tail), self._key, plain_bytes):
                raise decompression.damaged("it does not begin and end as it was written")

    def member(self, number: int) -> deque[bytes]:
        """Return the plain bytes of a member, counted from 0, in pieces.

        Raises CorruptedError if they are not what was written, StorageError.
        """
        [pieces] = self.members(range(number, number + 1))
        return pieces

    def members(self, numbers: range) -> Generator[deque[bytes]]:
        """Yield the plain bytes of consecutive members, read with one request."""
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
