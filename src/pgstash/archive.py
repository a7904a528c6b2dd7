"""A stored backup read back: its manifest, and its script, of which every byte is checked.

Where there is a manifest a member is compared with it before one byte of it is handed out, so
whoever runs the script runs nothing that was not written by the backup. Whether the script is
whole shows at its end: until then, nothing that was done with it may count.
"""

from __future__ import annotations

import hashlib
import itertools
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from pgstash import catalog
from pgstash import manifest as manifests
from pgstash.catalog import Backup
from pgstash.errors import (
    CorruptedError,
    EncryptionError,
    StorageError,
    UnverifiedError,
)
from pgstash.manifest import Manifest, Section
from pgstash.pipeline import decompression, encryption
from pgstash.storage.directory import DirectoryStorage
from pgstash.storage.interface import Storage

_GZIP_MAGIC = b"\x1f\x8b"
_CHUNK = 256 * 1024

# A member is held in memory twice, stored and plain. What pgstash writes has 16 MiB.
_LARGEST_MEMBER = 48 * 1024 * 1024
# Ten thousand tables and members take two megabytes.
_LARGEST_MANIFEST = 128 * 1024 * 1024

# How a plain dump ends, whichever pg_dump wrote it.
_CLOSING = re.compile(
    rb"\n--\n-- PostgreSQL database dump complete\n--\n\n?(?:\\unrestrict \w+\n\n?)?\s*\Z"
)
_CLOSING_BYTES = 1024

_NO_MANIFEST_HINT = (
    "Was its manifest deleted, or is it a backup of another tool? `pgstash restore` and `cat` read "
    "it with --unverified: only gzip's own checksums and the dump's last line are checked then."
)


@dataclass(frozen=True, slots=True)
class Access:
    """How to read: the passphrase if there is one, and what to do without a manifest.

    ``unverified`` reads a backup that nothing vouches for. With ``only_encrypted`` that is also
    one that is not encrypted: whoever can write to the store can write such a manifest too.
    """

    passphrase: str | None = field(repr=False)
    unverified: bool
    only_encrypted: bool


@dataclass(frozen=True, slots=True)
class Archive:
    """A backup that can be read. ``size`` is in bytes as stored, None where nobody knows.

    ``manifest`` is None where there is none, and the reader asked for it unverified.
    """

    name: str
    manifest: Manifest | None
    size: int | None
    _read: Callable[[], AbstractContextManager[Iterator[bytes]]] = field(repr=False)
    _passphrase: str | None = field(repr=False)
    _globals: Callable[[], bytes] | None = field(repr=False, default=None)

    def globals(self) -> bytes | None:
        """Return the roles that are stored beside it, as SQL; None where there are none.

        Raises CorruptedError where they are not what the manifest says, StorageError.
        """
        digest = self.manifest.globals_sha256 if self.manifest else None
        if digest is None or self._globals is None:
            return None
        script = self._globals()
        if hashlib.sha256(script).hexdigest() != digest:
            raise CorruptedError(f"the roles beside {self.name} are not those that were stored")
        return script

    @contextmanager
    def script(
        self,
        watch: Callable[[int], None] = lambda _count: None,
        wanted: Callable[[Section | None], bool] = lambda _section: True,
    ) -> Iterator[Iterator[bytes]]:
        """Open the plain SQL as chunks of bytes; ``watch`` hears of the bytes read from the store.

        Without the sections that are not ``wanted``, where the manifest tells them apart.

        The iteration ends only where everything was as the manifest says, and raises
        CorruptedError otherwise. The first chunk is there when the block is entered: a wrong
        key has shown by then. Raises StorageError.
        """
        with self._read() as stored:
            watched = _watched(stored, watch)
            if self.manifest:
                chunks = _verified(watched, self.manifest, self._passphrase, wanted)
            else:
                chunks = _unverified(watched, self._passphrase)
            first = next(chunks, b"")
            yield itertools.chain([first], chunks)


def open_stored(storage: Storage, backup: Backup, access: Access) -> Archive:
    """Open a backup of the catalog.

    Raises UnverifiedError where nothing vouches for it and the reader did not say that it shall
    be read all the same, CorruptedError where its manifest does not fit, EncryptionError where
    there is no key for it, StorageError.
    """
    found = []
    own = catalog.own_companions(storage, backup)
    for companion in own:
        if companion.kind == "manifest":
            manifest = _stored_manifest(storage, companion.key, access)
            if manifest.id != companion.id:
                raise _of_another(backup.name, manifest)
            found.append(manifest)
    fitting = _fitting(backup.name, backup.size, found, access)
    roles = [
        each.key for each in own if each.kind == "globals" and fitting and each.id == fitting.id
    ]
    return Archive(
        name=backup.name,
        manifest=fitting,
        size=backup.size,
        _read=lambda: storage.read(backup.key),
        _passphrase=access.passphrase,
        _globals=_reader(storage, roles, access),
    )


def open_file(path: Path, access: Access) -> Archive:
    """Open an archive that lies in a folder, with its manifest if that lies beside it.

    Raises what :func:`open_stored` raises.
    """
    folder = DirectoryStorage(path.absolute().parent)
    size = folder.head(path.name).size
    beside: dict[str, manifests.CompanionName] = {}
    if match := manifests.ARCHIVE_NAME.fullmatch(path.name):
        names = [other.name for other in path.absolute().parent.glob(f"{match[1]}.*")]
        beside = {
            name: named
            for name in names
            if (named := manifests.companion_of(name)) and named.archive == path.name
        }
    found = [
        _stored_manifest(folder, name, access)
        for name, named in beside.items()
        if named.kind == "manifest"
    ]
    fitting = _fitting(path.name, size, found, access)
    roles = [
        name
        for name, named in beside.items()
        if named.kind == "globals" and fitting and named.id == fitting.id
    ]
    return Archive(
        name=path.name,
        manifest=fitting,
        size=size,
        _read=lambda: folder.read(path.name),
        _passphrase=access.passphrase,
        _globals=_reader(folder, roles, access),
    )


def open_stdin(access: Access) -> Archive:
    """Open an archive that comes in at stdin, which has no manifest. Raises UnverifiedError."""

    @contextmanager
    def read() -> Iterator[Iterator[bytes]]:
        yield _chunks_of(sys.stdin.buffer)

    return Archive(
        name="stdin",
        manifest=_fitting("stdin", None, [], access),
        size=None,
        _read=read,
        _passphrase=access.passphrase,
    )


def _chunks_of(file: BinaryIO) -> Iterator[bytes]:
    try:
        while chunk := file.read1(_CHUNK):  # type: ignore[attr-defined]
            yield chunk
    except OSError as error:
        raise StorageError(f"stdin cannot be read: {error.strerror}") from error


def _reader(storage: Storage, keys: Sequence[str], access: Access) -> Callable[[], bytes] | None:
    """Return what reads the one object of these keys; None where there is none."""
    if len(keys) != 1:
        return None
    return lambda: _unsealed(storage, keys[0], access)[0]


def _stored_manifest(storage: Storage, key: str, access: Access) -> Manifest:
    return manifests.load(*_unsealed(storage, key, access))


def _unsealed(
    storage: Storage, key: str, access: Access
) -> tuple[bytes, Callable[[bytes], str] | None]:
    """Return the plain text of a small object, and what authenticates it where it is encrypted."""
    with storage.read(key) as chunks:
        packed = b"".join(_limited(chunks, _LARGEST_MANIFEST))
    authenticate = None
    if key.endswith(".enc"):
        passphrase = _passphrase_for(key, access.passphrase)
        # The salt stands where openssl puts it; decrypt() says so where it does not.
        salt = packed[8 : 8 + encryption.SALT_BYTES]
        packed = b"".join(encryption.decrypt([packed], passphrase))
        authenticate = encryption.Key.derive(passphrase, salt).authenticate
        if not packed.startswith(_GZIP_MAGIC):
            raise CorruptedError("the manifest does not decrypt: a wrong key, or damage")
    text = b"".join(_limited(decompression.gunzip([packed]), _LARGEST_MANIFEST))
    return text, authenticate


def _limited(chunks: Iterable[bytes], limit: int) -> Iterator[bytes]:
    total = 0
    for chunk in chunks:
        total += len(chunk)
        if total > limit:
            raise CorruptedError("what lies beside the archive is too large to be pgstash's")
        yield chunk


def _passphrase_for(name: str, passphrase: str | None) -> str:
    if passphrase is None:
        raise EncryptionError(
            f"{name} is encrypted, and there is no key to read it with",
            hint="Set BACKUP_ENCRYPTION_KEY to the passphrase that it was written with.",
        )
    return passphrase


def _fitting(
    name: str, size: int | None, found: Sequence[Manifest], access: Access
) -> Manifest | None:
    """Return the manifest of this archive; None where there is none, and need not be.

    Where several might be meant (a copy that lost its metadata does not say), size decides.
    """
    if access.only_encrypted and not access.unverified and _is_plain(name):
        raise UnverifiedError(
            f"{name} is not encrypted, and BACKUP_ENCRYPTION is on: whoever can write to the store "
            "may have put it there",
            hint="If it is from before encryption was turned on, read it with --unverified; its "
            "digests are checked all the same.",
        )
    if not found:
        if access.unverified:
            return None
        raise UnverifiedError(
            f"{name} has no manifest, so nothing tells whether it is whole",
            hint=_NO_MANIFEST_HINT,
        )
    fitting = [
        each
        for each in found
        if each.archive == name
        and each.stored_bytes == size
        and _is_plain(name) != bool(each.encryption)
    ]
    if len(fitting) == 1:
        _refuse_impossible(fitting[0])
        return fitting[0]
    [first, *_] = found
    if first.archive != name:
        raise _of_another(name, first)
    raise CorruptedError(
        f"{name} has {size} bytes, and its manifest says {first.stored_bytes}",
        hint="It was cut short or replaced; take another backup.",
    )


def _of_another(name: str, manifest: Manifest) -> CorruptedError:
    return CorruptedError(
        f"the manifest beside {name} is that of another backup: {manifest.archive}, "
        f"id {manifest.id}",
        hint="Was one of them renamed or copied? Give them the names that they were made with.",
    )


def _is_plain(name: str) -> bool:
    return not name.endswith(".enc")


def _refuse_impossible(manifest: Manifest) -> None:
    """Refuse members that leave a gap, or that would not fit into memory."""
    position = 0
    for member in manifest.members:
        largest = max(member.stored, member.raw)
        if member.offset != position or not 0 <= min(member.stored, member.raw) <= largest:
            raise CorruptedError("the manifest's members do not follow each other")
        if largest > _LARGEST_MEMBER:
            raise CorruptedError("the manifest has a member larger than any that pgstash writes")
        position += member.stored
    if sum(member.raw for member in manifest.members) != manifest.raw_bytes:
        raise CorruptedError("the manifest's members do not add up to the script")


def _watched(chunks: Iterable[bytes], watch: Callable[[int], None]) -> Iterator[bytes]:
    total = 0
    for chunk in chunks:
        total += len(chunk)
        watch(total)
        yield chunk


def _verified(
    stored: Iterable[bytes],
    manifest: Manifest,
    passphrase: str | None,
    wanted: Callable[[Section | None], bool],
) -> Iterator[bytes]:
    whole = hashlib.sha256()
    compressed: Iterable[bytes] = _digested(stored, whole.update)
    if manifest.encryption:
        passphrase = _passphrase_for(manifest.archive, passphrase)
        compressed = encryption.decrypt(compressed, passphrase)
    yield from decompression.decompress(compressed, manifest.members, wanted)
    if whole.hexdigest() != manifest.sha256:
        raise decompression.damaged("its digest is not the one in the manifest")


def _digested(chunks: Iterable[bytes], update: Callable[[bytes], None]) -> Iterator[bytes]:
    for chunk in chunks:
        update(chunk)
        yield chunk


def _unverified(stored: Iterable[bytes], passphrase: str | None) -> Iterator[bytes]:
    """Yield the script of an archive that is told by its first bytes."""
    start, chunks = _peeked(stored)
    if start.startswith(b"Salted__"):
        chunks = encryption.decrypt(chunks, _passphrase_for("the archive", passphrase))
        start, chunks = _peeked(chunks)
        if not start.startswith(_GZIP_MAGIC):
            raise CorruptedError("the archive does not decrypt: a wrong key, or damage")
    if start.startswith(_GZIP_MAGIC):
        chunks = decompression.gunzip(chunks)
    tail = b""
    for chunk in chunks:
        tail = (tail + chunk)[-_CLOSING_BYTES:]
        yield chunk
    if not _CLOSING.search(tail):
        raise decompression.damaged(
            "it does not end as a dump of pg_dump does: it is cut short, or not one"
        )


def _peeked(chunks: Iterable[bytes]) -> tuple[bytes, Iterable[bytes]]:
    """Return the first bytes, and all chunks from the beginning."""
    source = iter(chunks)
    start = b""
    for chunk in source:
        start += chunk
        if len(start) >= len(b"Salted__"):
            break
    return start, itertools.chain([start], source)
