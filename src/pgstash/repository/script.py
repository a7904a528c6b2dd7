"""The script in an archive, read from beginning to end and verified.

If there is a manifest, each member is verified before any of its bytes is yielded, so that only
bytes that the backup wrote are ever run. Whether the script is complete is known at its end: until
then, its effects must not be committed.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator

from pgstash.errors import CorruptedError
from pgstash.format.manifest import Manifest, Section
from pgstash.pipeline import decompression, encryption
from pgstash.pipeline.sql_scanner import LONGEST_STATEMENT, load_statement
from pgstash.repository.access import passphrase_for

GZIP_MAGIC = b"\x1f\x8b"
"""The first bytes of gzip: RFC 1952, 2.3.1."""

_PG_RESTORE = "Create an empty database, and restore into it with pg_restore."

# How files that are no plain dump begin, with what they are and what to do. psql would run the
# statements of some, and follow the \\connect in the output of pg_dumpall to other databases.
_OTHERS = {
    b"PGDMP": ("it is in the custom format of pg_dump", _PG_RESTORE),
    b"toc.dat\0": ("it is in the tar format of pg_dump", _PG_RESTORE),
    b"--\n-- PostgreSQL database cluster dump\n": (
        "it is the output of pg_dumpall, for a whole server",
        "Run it with psql in an empty server.",
    ),
    b"\x28\xb5\x2f\xfd": ("it is compressed by zstd", "Use: zstd -dc FILE | pgstash restore - …"),
    b"\xfd7zXZ\0": ("it is compressed by xz", "Use: xz -dc FILE | pgstash restore - …"),
    b"BZh": ("it is compressed by bzip2", "Use: bzip2 -dc FILE | pgstash restore - …"),
    b"age-encryption.org/": ("it is encrypted by age", "Decrypt it with age first."),
}
_START_BYTES = 64  # more than the longest of these

# The end of a plain dump, of any pg_dump.
_CLOSING = re.compile(
    rb"\n--\n-- PostgreSQL database dump complete\n--\n\n?(?:\\unrestrict \w+\n\n?)?\s*\Z"
)
_CLOSING_BYTES = 1024

_RESTRICT = re.compile(rb"^\\restrict (\w+)$", re.MULTILINE)

# pg_dump and pg_restore 17 and newer emit this for any server.
_NEW_SETTING = b"SET transaction_timeout = 0;\n"
KNOWN_FROM = 17
"""The first major whose servers know transaction_timeout."""

# Comments, \restrict and settings, line by line: no line of these can be data.
_SETTINGS = re.compile(rb"(?:(?:(?:--|\\restrict |SET )[^\n]*)?\n)*+")


def take_statement(pieces: deque[bytes]) -> bytes:
    """Take the COPY statement from the pieces of a member. Raises CorruptedError."""
    beginning = b""
    while pieces and len(beginning) < LONGEST_STATEMENT:
        beginning += pieces.popleft()
        if statement := load_statement(beginning):
            pieces.appendleft(beginning[len(statement) :])
            return statement
    raise CorruptedError("the manifest describes a member as rows that has no COPY statement")


def unrestrict_line(header: bytes) -> bytes:
    r"""Return the \unrestrict line that lifts the \restrict of a header; empty if it has none."""
    found = _RESTRICT.search(header)
    return b"\n\\unrestrict " + found[1] + b"\n" if found else b""


def session_only(header: bytes) -> bytes:
    r"""Return a header without \restrict, a command of psql: only statements for a server."""
    return _RESTRICT.sub(b"", header)


def without_settings_unknown_to(major: int, script: Iterator[bytes]) -> Iterator[bytes]:
    """Drop header settings that a server of this major does not know.

    So a dump made by a newer pg_dump can be restored into the server it came from.
    """
    if major < KNOWN_FROM:
        first = next(filter(None, script), b"")
        match = _SETTINGS.match(first)
        header = match[0] if match else b""
        yield header.replace(_NEW_SETTING, b"") + first[len(header) :]
    yield from script


def verified(
    stored: Iterable[bytes],
    manifest: Manifest,
    passphrase: str | None,
    wanted: Callable[[Section | None], bool],
    edit: decompression.Edit | None,
) -> Iterator[bytes]:
    """Yield the script of an archive, verified against its manifest.

    Sections that are not ``wanted`` are left out, and ``edit`` is applied. Raises CorruptedError,
    EncryptionError.
    """
    whole = hashlib.sha256()
    compressed: Iterable[bytes] = _digested(stored, whole.update)
    if manifest.encryption:
        passphrase = passphrase_for(manifest.archive, passphrase)
        compressed = encryption.decrypt(compressed, passphrase, manifest.encryption.rounds)
    yield from decompression.decompress(compressed, manifest.members, wanted, edit)
    if whole.hexdigest() != manifest.sha256:
        raise decompression.damaged("its digest is not the one in the manifest")


def _digested(chunks: Iterable[bytes], update: Callable[[bytes], None]) -> Iterator[bytes]:
    for chunk in chunks:
        update(chunk)
        yield chunk


def unverified(
    stored: Iterable[bytes],
    passphrase: str | None,
    edit: decompression.Edit | None,
    rounds: int = encryption.ROUNDS,
) -> Iterator[bytes]:
    """Yield the script of an archive without manifest, with ``edit`` applied.

    Its first bytes decide whether it is encrypted and compressed. Raises CorruptedError, also for
    what is no plain dump, and EncryptionError.
    """
    start, chunks = _peeked(stored)
    if start.startswith(b"Salted__"):
        passphrase = passphrase_for("the archive", passphrase)
        chunks = encryption.decrypt(chunks, passphrase, rounds)
        start, chunks = _peeked(chunks)
        if not start.startswith(GZIP_MAGIC):
            raise CorruptedError("the archive does not decrypt: a wrong key or damage")
    if start.startswith(GZIP_MAGIC):
        chunks = decompression.gunzip(chunks)
    start, chunks = _peeked(chunks)
    _refuse_others(start)
    yield b""  # the key fits; ``edit`` may still be changed before it gets the first bytes
    tail = b""
    for chunk in chunks:
        tail = (tail + chunk)[-_CLOSING_BYTES:]
        yield edit.feed(chunk) if edit else chunk
    if not _CLOSING.search(tail):
        raise decompression.damaged(
            "it does not end like a dump of pg_dump: it is cut short or not a dump"
        )
    if edit:
        yield edit.rest()


def _refuse_others(start: bytes) -> None:
    for beginning, (what, remedy) in _OTHERS.items():
        if start.startswith(beginning):
            raise CorruptedError(f"this is no plain dump: {what}", hint=remedy)


def _peeked(chunks: Iterable[bytes]) -> tuple[bytes, Iterable[bytes]]:
    """Return the first bytes, and all chunks including them."""
    source = iter(chunks)
    start = b""
    for chunk in source:
        start += chunk
        if len(start) >= _START_BYTES:
            break
    return start, itertools.chain([start], source)
