"""A stored backup: which objects it is made of, and whether they fit each other.

What is handed out of it is checked by :mod:`pgstash.unpacking`.
"""

from __future__ import annotations

import hashlib
import itertools
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import BinaryIO

from pgstash import catalog, unpacking
from pgstash import manifest as manifests
from pgstash.catalog import Backup
from pgstash.errors import (
    CorruptedError,
    UnverifiedError,
)
from pgstash.manifest import Manifest, Section
from pgstash.pipeline import decompression, encryption
from pgstash.storage.directory import DirectoryStorage
from pgstash.storage.directory_errors import read_error
from pgstash.storage.interface import Storage
from pgstash.unpacking import GZIP_MAGIC, passphrase_for

_CHUNK = 256 * 1024

# A member is held in memory twice, stored and plain. What pgstash writes has 16 MiB.
_LARGEST_MEMBER = 48 * 1024 * 1024

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
    _read: unpacking.Read = field(repr=False)
    _passphrase: str | None = field(repr=False)
    _beside: Mapping[manifests.Kind, Callable[[], bytes]] = field(repr=False, default_factory=dict)

    @property
    def is_seekable(self) -> bool:
        """Whether single members can be read, and it is known what they are for."""
        return (
            self.manifest is not None
            and self.manifest.schema_sha256 is not None
            and "schema" in self._beside
        )

    def schema(self) -> bytes:
        """Return pg_dump's table of contents, which is stored beside it.

        Raises CorruptedError where it is not what the manifest says, StorageError.
        """
        digest = self.manifest.schema_sha256 if self.manifest else None
        head = self._beside["schema"]()
        if hashlib.sha256(head).hexdigest() != digest:
            raise CorruptedError(
                f"the schema beside {self.name} is not the one that was stored",
                hint="Single tables need it. A restore of everything does not with RESTORE_JOBS=1: "
                "the archive is checked by itself.",
            )
        return head

    def seek(self, watch: Callable[[int], None] = lambda _count: None) -> unpacking.Seeker:
        """Return what reads single members; ``watch`` hears of the bytes read from the store.

        Raises CorruptedError where an encrypted archive does not begin and end as it should,
        EncryptionError, StorageError.
        """
        if self.manifest is None:
            raise AssertionError("without a manifest no member is known")
        return unpacking.Seeker(self.manifest, self._read, self._passphrase, watch)

    def shown(self, watch: Callable[[Iterable[bytes]], Iterator[bytes]]) -> Archive:
        """Return the same, whose stored bytes go by way of ``watch`` where all of them are read."""

        @contextmanager
        def read(*, start: int = 0, length: int | None = None) -> Iterator[Iterator[bytes]]:
            with self._read(start=start, length=length) as chunks:
                yield chunks if start or length is not None else watch(chunks)

        return replace(self, _read=read)

    def globals(self) -> bytes | None:
        """Return the roles that are stored beside it, as SQL; None where there are none.

        Raises CorruptedError where they are not what the manifest says, StorageError.
        """
        digest = self.manifest.globals_sha256 if self.manifest else None
        if digest is None or "globals" not in self._beside:
            return None
        script = self._beside["globals"]()
        if hashlib.sha256(script).hexdigest() != digest:
            raise CorruptedError(f"the roles beside {self.name} are not those that were stored")
        return script

    @contextmanager
    def script(
        self,
        watch: Callable[[int], None] = lambda _count: None,
        wanted: Callable[[Section | None], bool] = lambda _section: True,
        edit: decompression.Edit | None = None,
    ) -> Iterator[Iterator[bytes]]:
        """Open the plain SQL as chunks of bytes; ``watch`` hears of the bytes read from the store.

        Without the sections that are not ``wanted``, where the manifest tells them apart; ``edit``
        may change what is no rows.

        The iteration ends only where everything was as the manifest says, and raises
        CorruptedError otherwise. The first chunk is there when the block is entered: a wrong
        key has shown by then. Raises StorageError.
        """
        with self._read() as stored:
            watched = _watched(stored, watch)
            if self.manifest:
                chunks = unpacking.verified(watched, self.manifest, self._passphrase, wanted, edit)
            else:
                chunks = unpacking.unverified(watched, self._passphrase, edit)
            first = next(chunks, b"")
            yield itertools.chain([first], chunks)


def open_stored(storage: Storage, backup: Backup, access: Access) -> Archive:
    """Open a backup of the catalog.

    Raises NewerFormatError where a newer pgstash is needed, UnverifiedError where nothing vouches
    for it and the reader did not say that it shall be read all the same, CorruptedError where its
    manifest does not fit, EncryptionError where there is no key for it, StorageError.
    """
    found = []
    metadata = storage.head(backup.key).metadata
    # Before anything else of a later format, which may look in any way, is read.
    manifests.refuse_newer(backup.name, metadata)
    own = catalog.companions_of(backup, metadata)
    for companion in own:
        if companion.kind == "manifest":
            manifest = _stored_manifest(storage, companion.key, access)
            if manifest.id != companion.id:
                raise _of_another(backup.name, manifest)
            found.append(manifest)
    fitting = _fitting(backup.name, backup.size, found, access)
    beside = [(each.kind, each.key) for each in own if fitting and each.id == fitting.id]
    return Archive(
        name=backup.name,
        manifest=fitting,
        size=backup.size,
        _read=partial(storage.read, backup.key),
        _passphrase=access.passphrase,
        _beside=_readers(storage, beside, access),
    )


def open_file(path: Path, access: Access) -> Archive:
    """Open an archive that lies in a folder, with its manifest if that lies beside it.

    Raises what :func:`open_stored` raises.
    """
    folder = DirectoryStorage(path.absolute().parent)
    stored = folder.head(path.name)
    size = stored.size
    manifests.refuse_newer(path.name, stored.metadata)
    beside: dict[str, manifests.CompanionName] = {}
    if match := manifests.ARCHIVE_NAME.fullmatch(path.name):
        names = [other.key for other in folder.list(f"{match[1]}.")]
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
    own = [
        (named.kind, name) for name, named in beside.items() if fitting and named.id == fitting.id
    ]
    return Archive(
        name=path.name,
        manifest=fitting,
        size=size,
        _read=partial(folder.read, path.name),
        _passphrase=access.passphrase,
        _beside=_readers(folder, own, access),
    )


def open_stdin(access: Access) -> Archive:
    """Open an archive that comes in at stdin, which has no manifest. Raises UnverifiedError."""

    @contextmanager
    def read(*, start: int = 0, length: int | None = None) -> Iterator[Iterator[bytes]]:
        if start or length is not None:
            raise AssertionError("what comes in at stdin has no manifest, and no members")
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
        raise read_error(error, "read stdin") from error


def _readers(
    storage: Storage, beside: Iterable[tuple[manifests.Kind, str]], access: Access
) -> Mapping[manifests.Kind, Callable[[], bytes]]:
    """Return what reads the one object of each kind; of which there are several, none is meant."""
    keys: dict[manifests.Kind, list[str]] = {}
    for kind, key in beside:
        keys.setdefault(kind, []).append(key)
    return {
        kind: partial(_small, storage, found[0], access)
        for kind, found in keys.items()
        if len(found) == 1
    }


def _small(storage: Storage, key: str, access: Access) -> bytes:
    return _unsealed(storage, key, access)[0]


def _stored_manifest(storage: Storage, key: str, access: Access) -> Manifest:
    return manifests.load(*_unsealed(storage, key, access))


def _unsealed(
    storage: Storage, key: str, access: Access
) -> tuple[bytes, Callable[[bytes], str] | None]:
    """Return the plain text of a small object, and what authenticates it where it is encrypted."""
    with storage.read(key) as chunks:
        packed = b"".join(_limited(chunks, manifests.LARGEST))
    authenticate = None
    if key.endswith(".enc"):
        passphrase = passphrase_for(key, access.passphrase)
        # The salt stands where openssl puts it; decrypt() says so where it does not.
        salt = packed[8 : 8 + encryption.SALT_BYTES]
        packed = b"".join(encryption.decrypt([packed], passphrase))
        authenticate = encryption.Key.derive(passphrase, salt).authenticate
        if not packed.startswith(GZIP_MAGIC):
            raise CorruptedError("the manifest does not decrypt: a wrong key, or damage")
    text = b"".join(_limited(decompression.gunzip([packed]), manifests.LARGEST))
    return text, authenticate


def _limited(chunks: Iterable[bytes], limit: int) -> Iterator[bytes]:
    total = 0
    for chunk in chunks:
        total += len(chunk)
        if total > limit:
            raise CorruptedError("what lies beside the archive is too large to be pgstash's")
        yield chunk


def _fitting(
    name: str, size: int | None, found: Sequence[Manifest], access: Access
) -> Manifest | None:
    """Return the manifest of this archive; None where there is none, and need not be.

    Where several might be meant (a copy that lost its metadata does not say), size decides.
    """
    if access.only_encrypted and not access.unverified and _is_plain(name):
        raise UnverifiedError(
            f"{name} is not encrypted, and BACKUP_ENCRYPTION is on, or backups beside it are "
            "encrypted: whoever can write to the store may have put it there",
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
    tables = range(len(manifest.tables))
    for member in manifest.members:
        if member.table is not None and member.table not in tables:
            raise CorruptedError("the manifest has a member of a table that is not in it")
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
