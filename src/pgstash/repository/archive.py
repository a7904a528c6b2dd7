"""A stored backup that can be read: its archive, its manifest and their companions.

:mod:`pgstash.repository.script` and :mod:`pgstash.repository.members` verify what is read from it.
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

from pgstash.errors import CorruptedError
from pgstash.format import manifest as manifests
from pgstash.format import names
from pgstash.format.manifest import Manifest, Section
from pgstash.format.names import Kind
from pgstash.pipeline import decompression, encryption
from pgstash.repository import keys, object_metadata, script, stored_manifest
from pgstash.repository.access import Access
from pgstash.repository.catalog import Backup
from pgstash.repository.members import Read, Seeker
from pgstash.storage.directory.errors import read_error
from pgstash.storage.directory.storage import DirectoryStorage
from pgstash.storage.interface import Storage, archived

_CHUNK = 256 * 1024


@dataclass(frozen=True, slots=True)
class Archive:
    """A backup that can be read. ``size`` is in bytes as stored; None if it is unknown.

    ``manifest`` is None for a backup without one, which is read unverified.
    """

    name: str
    manifest: Manifest | None
    size: int | None
    _read: Read = field(repr=False)
    _passphrase: str | None = field(repr=False)
    _rounds: int = encryption.ROUNDS
    _companions: Mapping[names.Kind, Callable[[], bytes]] = field(repr=False, default_factory=dict)
    archived: str = ""
    """The storage class, if it has to be thawed before anything but its companions is read."""

    @property
    def is_seekable(self) -> bool:
        """Whether single members can be read, and their content is known."""
        return (
            self.manifest is not None
            and self.manifest.schema_sha256 is not None
            and "schema" in self._companions
        )

    def schema(self) -> bytes:
        """Return the stored schema: pg_dump's table of contents.

        Raises CorruptedError if its digest is not the one in the manifest, StorageError.
        """
        digest = self.manifest.schema_sha256 if self.manifest else None
        head = self._companions["schema"]()
        if hashlib.sha256(head).hexdigest() != digest:
            raise CorruptedError(
                f"the schema of {self.name} is not the one that was stored",
                hint="A restore of single tables needs it. A restore of everything with "
                "RESTORE_JOBS=1 does not: the archive is verified on its own.",
            )
        return head

    def seek(self, watch: Callable[[int], None] = lambda _count: None) -> Seeker:
        """Return a reader of single members; ``watch`` receives the bytes read so far.

        Raises CorruptedError if an encrypted archive does not begin and end as it should,
        EncryptionError, StorageError.
        """
        if self.manifest is None:
            raise AssertionError("without a manifest no member is known")
        return Seeker(self.manifest, self._read, self._passphrase, watch)

    def shown(self, watch: Callable[[Iterable[bytes]], Iterator[bytes]]) -> Archive:
        """Return the same archive, which passes its bytes through ``watch`` when read whole."""

        @contextmanager
        def read(*, start: int = 0, length: int | None = None) -> Iterator[Iterator[bytes]]:
            with self._read(start=start, length=length) as chunks:
                yield chunks if start or length is not None else watch(chunks)

        return replace(self, _read=read)

    @property
    def passphrase(self) -> str | None:
        """The passphrase of an encrypted backup; None of any other, or if there is none."""
        return self._passphrase if self.manifest and self.manifest.encryption else None

    def new_key(self, salt: bytes) -> encryption.Key | None:
        """Derive a key for another companion; None if the backup is not encrypted."""
        if self.manifest is None or not self.manifest.encryption or self._passphrase is None:
            return None
        return encryption.Key.derive(self._passphrase, salt, self.manifest.encryption.rounds)

    def globals(self) -> bytes | None:
        """Return the stored roles as SQL; None if there are none.

        Raises CorruptedError if their digest is not the one in the manifest, StorageError.
        """
        digest = self.manifest.globals_sha256 if self.manifest else None
        return self._companion("globals", digest, "roles")

    def privileges(self) -> bytes | None:
        """Return the stored owners and privileges as a script for psql; None if there are none.

        Raises CorruptedError if their digest is not the one in the manifest, StorageError.
        """
        digest = self.manifest.privileges_sha256 if self.manifest else None
        return self._companion("privileges", digest, "owners and privileges")

    def statistics(self) -> bytes | None:
        """Return the statistics for the planner as a script for psql; None if none are stored.

        Raises CorruptedError if their digest is not the one in the manifest, StorageError.
        """
        digest = self.manifest.statistics_sha256 if self.manifest else None
        return self._companion("statistics", digest, "statistics")

    def _companion(self, kind: Kind, digest: str | None, what: str) -> bytes | None:
        if digest is None or kind not in self._companions:
            return None
        text = self._companions[kind]()
        if hashlib.sha256(text).hexdigest() != digest:
            raise CorruptedError(f"the {what} of {self.name} are not those that were stored")
        return text

    @contextmanager
    def script(
        self,
        watch: Callable[[int], None] = lambda _count: None,
        wanted: Callable[[Section | None], bool] = lambda _section: True,
        edit: decompression.Edit | None = None,
    ) -> Iterator[Iterator[bytes]]:
        """Open the plain SQL as chunks of bytes; ``watch`` receives the bytes read so far.

        Sections that are not ``wanted`` are left out, if the manifest distinguishes them. ``edit``
        may change everything but rows.

        The iteration ends only if everything agrees with the manifest, and raises CorruptedError
        otherwise. The first chunk is read when the block is entered, so a wrong key fails there.
        Raises StorageError.
        """
        with self._read() as stored:
            watched = _watched(stored, watch)
            if self.manifest:
                chunks = script.verified(watched, self.manifest, self._passphrase, wanted, edit)
            else:
                chunks = script.unverified(watched, self._passphrase, edit, self._rounds)
            first = next(chunks, b"")
            yield itertools.chain([first], chunks)


def open_stored(
    storage: Storage, backup: Backup, access: Access, *, to_read: bool = True
) -> Archive:
    """Open a backup of the catalog.

    One that has to be thawed is opened only if no more than its companions is ``to_read``;
    otherwise StorageRefusedError is raised. Raises NewerFormatError if a newer pgstash is required,
    UnverifiedError if it cannot be verified and ``access`` requires that, CorruptedError if its
    manifest does not match, EncryptionError if there is no key for it, StorageError.
    """
    head = storage.head(backup.key)
    if head.archived and to_read:
        raise archived(storage.url(backup.key), head.archived)
    metadata = head.metadata
    own = object_metadata.companions_of(backup, metadata)
    companions = [(each.key, each.kind, each.id) for each in own]
    described = _Described(storage, backup.name, backup.key, backup.size, metadata, companions)
    return replace(_open(described, access, strict=True), archived=head.archived)


@dataclass(frozen=True, slots=True)
class _Described:
    """An archive that was not read yet: key, kind and id of each companion that may be its own."""

    storage: Storage
    name: str
    key: str
    size: int
    metadata: Mapping[str, str]
    companions: Sequence[tuple[str, Kind, str]]

    def of(self, kind: Kind, backup_id: str | None = None) -> list[tuple[str, str]]:
        """Return key and id of the companions of a kind, and of one id if it is given."""
        return [
            (key, own)
            for key, each, own in self.companions
            if each == kind and backup_id in (None, own)
        ]


def _open(found: _Described, access: Access, *, strict: bool) -> Archive:
    """Open an archive; if ``strict``, a manifest of another id than in its name is an error."""
    # First: other objects of a later format may have any form.
    manifests.refuse_newer(found.name, found.metadata)
    read: list[Manifest] = []
    accesses: dict[str, Access] = {}
    for key, own in found.of("manifest"):
        settled = _access_for(found, own, key, access)
        manifest = stored_manifest.read(found.storage, key, settled)
        if strict and manifest.id != own:
            raise stored_manifest.of_another(found.name, manifest)
        read.append(manifest)
        accesses[manifest.id] = settled
    chosen = stored_manifest.choose(found.name, found.size, read, access)
    final = accesses[chosen.id] if chosen else _access_for(found, None, found.key, access)
    companions = [(kind, key) for key, kind, own in found.companions if chosen and own == chosen.id]
    return Archive(
        name=found.name,
        manifest=chosen,
        size=found.size,
        _read=partial(found.storage.read, found.key),
        _passphrase=final.passphrase,
        _rounds=final.rounds,
        _companions=stored_manifest.readers(found.storage, companions, final),
    )


def _access_for(found: _Described, backup_id: str | None, sample: str, access: Access) -> Access:
    """Return how to read what was encrypted with the key of one id."""
    if not found.name.endswith(".enc"):
        return access
    wrapped, kms = (found.of(kind, backup_id) for kind in ("key", "kms"))
    stored = keys.Stored(
        found.name,
        found.metadata,
        wrapped[0][0] if len(wrapped) == 1 else None,
        sample,
        kms[0][0] if len(kms) == 1 else None,
        kms[0][1] if len(kms) == 1 else "",
    )
    return keys.settled(found.storage, stored, access)


def open_file(path: Path, access: Access) -> Archive:
    """Open an archive in a folder, with its manifest if that is in the same folder.

    Raises what :func:`open_stored` raises.
    """
    folder = DirectoryStorage(path.absolute().parent)
    stored = folder.head(path.name)
    companions: list[tuple[str, Kind, str]] = []
    if match := names.ARCHIVE_NAME.fullmatch(path.name):
        companions = [
            (other.key, named.kind, named.id)
            for other in folder.list(f"{match[1]}.")
            if (named := names.companion_of(other.key)) and named.archive == path.name
        ]
    described = _Described(folder, path.name, path.name, stored.size, stored.metadata, companions)
    return _open(described, access, strict=False)


def open_stdin(access: Access) -> Archive:
    """Open an archive from stdin, which has no manifest. Raises UnverifiedError."""

    @contextmanager
    def read(*, start: int = 0, length: int | None = None) -> Iterator[Iterator[bytes]]:
        if start or length is not None:
            raise AssertionError("an archive from stdin has no manifest and no members")
        yield _chunks_of(sys.stdin.buffer)

    return Archive(
        name="stdin",
        manifest=stored_manifest.choose("stdin", None, [], access),
        size=None,
        _read=read,
        _passphrase=access.passphrase,
        _rounds=access.rounds,
    )


def _chunks_of(file: BinaryIO) -> Iterator[bytes]:
    try:
        # BinaryIO lacks read1 in the stubs; the buffer of stdin has it.
        while chunk := file.read1(_CHUNK):  # type: ignore[attr-defined]
            yield chunk
    except OSError as error:
        raise read_error(error, "read stdin") from error


def _watched(chunks: Iterable[bytes], watch: Callable[[int], None]) -> Iterator[bytes]:
    total = 0
    for chunk in chunks:
        total += len(chunk)
        watch(total)
        yield chunk
