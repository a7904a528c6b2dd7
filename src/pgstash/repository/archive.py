"""A stored backup that can be read: its archive, its manifest and their companions.

:mod:`pgstash.repository.script` and :mod:`pgstash.repository.members` verify what is read from it.
"""

from __future__ import annotations

import hashlib
import itertools
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
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
from pgstash.pipeline import decompression
from pgstash.repository import object_metadata, script, stored_manifest
from pgstash.repository.access import Access
from pgstash.repository.catalog import Backup
from pgstash.repository.members import Read, Seeker
from pgstash.storage.directory.errors import read_error
from pgstash.storage.directory.storage import DirectoryStorage
from pgstash.storage.interface import Storage

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
    _companions: Mapping[names.Kind, Callable[[], bytes]] = field(repr=False, default_factory=dict)

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
                chunks = script.unverified(watched, self._passphrase, edit)
            first = next(chunks, b"")
            yield itertools.chain([first], chunks)


def open_stored(storage: Storage, backup: Backup, access: Access) -> Archive:
    """Open a backup of the catalog.

    Raises NewerFormatError if a newer pgstash is required, UnverifiedError if it cannot be verified
    and ``access`` requires that, CorruptedError if its manifest does not match, EncryptionError if
    there is no key for it, StorageError.
    """
    found = []
    metadata = storage.head(backup.key).metadata
    # First: other objects of a later format may have any form.
    manifests.refuse_newer(backup.name, metadata)
    own = object_metadata.companions_of(backup, metadata)
    for companion in own:
        if companion.kind == "manifest":
            manifest = stored_manifest.read(storage, companion.key, access)
            if manifest.id != companion.id:
                raise stored_manifest.of_another(backup.name, manifest)
            found.append(manifest)
    chosen = stored_manifest.choose(backup.name, backup.size, found, access)
    companions = [(each.kind, each.key) for each in own if chosen and each.id == chosen.id]
    return Archive(
        name=backup.name,
        manifest=chosen,
        size=backup.size,
        _read=partial(storage.read, backup.key),
        _passphrase=access.passphrase,
        _companions=_readers(storage, companions, access),
    )


def open_file(path: Path, access: Access) -> Archive:
    """Open an archive in a folder, with its manifest if that is in the same folder.

    Raises what :func:`open_stored` raises.
    """
    folder = DirectoryStorage(path.absolute().parent)
    stored = folder.head(path.name)
    size = stored.size
    manifests.refuse_newer(path.name, stored.metadata)
    companions: dict[str, names.CompanionName] = {}
    if match := names.ARCHIVE_NAME.fullmatch(path.name):
        keys = [other.key for other in folder.list(f"{match[1]}.")]
        companions = {
            name: named
            for name in keys
            if (named := names.companion_of(name)) and named.archive == path.name
        }
    found = [
        stored_manifest.read(folder, name, access)
        for name, named in companions.items()
        if named.kind == "manifest"
    ]
    chosen = stored_manifest.choose(path.name, size, found, access)
    own = [
        (named.kind, name) for name, named in companions.items() if chosen and named.id == chosen.id
    ]
    return Archive(
        name=path.name,
        manifest=chosen,
        size=size,
        _read=partial(folder.read, path.name),
        _passphrase=access.passphrase,
        _companions=_readers(folder, own, access),
    )


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
    )


def _chunks_of(file: BinaryIO) -> Iterator[bytes]:
    try:
        # BinaryIO lacks read1 in the stubs; the buffer of stdin has it.
        while chunk := file.read1(_CHUNK):  # type: ignore[attr-defined]
            yield chunk
    except OSError as error:
        raise read_error(error, "read stdin") from error


def _readers(
    storage: Storage, companions: Iterable[tuple[names.Kind, str]], access: Access
) -> Mapping[names.Kind, Callable[[], bytes]]:
    """Return a reader for each kind that has exactly one object."""
    keys: dict[names.Kind, list[str]] = {}
    for kind, key in companions:
        keys.setdefault(kind, []).append(key)
    return {
        kind: partial(stored_manifest.read_text, storage, found[0], access)
        for kind, found in keys.items()
        if len(found) == 1
    }


def _watched(chunks: Iterable[bytes], watch: Callable[[int], None]) -> Iterator[bytes]:
    total = 0
    for chunk in chunks:
        total += len(chunk)
        watch(total)
        yield chunk
