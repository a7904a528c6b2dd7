"""Reads companions: which manifest belongs to an archive, and whether the two match."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial

from pgstash.errors import CorruptedError, UnverifiedError
from pgstash.format import failure_record
from pgstash.format import manifest as manifests
from pgstash.format.authenticated_json import Authenticate
from pgstash.format.failure_record import Failure
from pgstash.format.manifest import Manifest
from pgstash.format.names import Kind
from pgstash.pipeline import decompression, encryption
from pgstash.repository.access import Access, passphrase_for
from pgstash.repository.script import GZIP_MAGIC
from pgstash.storage.interface import Storage

# A member is held in memory twice, compressed and plain. pgstash writes members of 16 MiB.
_LARGEST_MEMBER = 48 * 1024 * 1024

_NO_MANIFEST_HINT = (
    "Was its manifest deleted, or is it a backup of another tool? `pgstash restore` and `cat` read "
    "it with --unverified: only gzip's own checksums and the dump's last line are checked then."
)


def read(storage: Storage, key: str, access: Access) -> Manifest:
    """Read a manifest. Raises CorruptedError, EncryptionError, NewerFormatError, StorageError."""
    return manifests.load(*_unsealed(storage, key, access))


def _unsealed(storage: Storage, key: str, access: Access) -> tuple[bytes, Authenticate | None]:
    """Return the plain text of a companion, and what authenticates it if it is encrypted."""
    with storage.read(key) as chunks:
        packed = b"".join(_limited(chunks, manifests.LARGEST))
    authenticate = None
    if key.endswith(".enc"):
        passphrase = passphrase_for(key, access.passphrase)
        # The salt is where openssl puts it. If it is not, decrypt() raises.
        salt = packed[8 : 8 + encryption.SALT_BYTES]
        packed = b"".join(encryption.decrypt([packed], passphrase, access.rounds))
        authenticate = encryption.Key.derive(passphrase, salt, access.rounds).authenticate
        if not packed.startswith(GZIP_MAGIC):
            raise CorruptedError(f"{key} does not decrypt: a wrong key or damage")
    text = b"".join(_limited(decompression.gunzip([packed]), manifests.LARGEST))
    return text, authenticate


def read_text(storage: Storage, key: str, access: Access) -> bytes:
    """Return the plain text of a companion. Raises what :func:`read` raises."""
    return _unsealed(storage, key, access)[0]


def read_failure(storage: Storage, key: str, access: Access) -> Failure:
    """Read the record of a failed run. Raises CorruptedError, EncryptionError, StorageError."""
    text, authenticate = _unsealed(storage, key, access)
    return failure_record.load(key, text, authenticate)


def readers(
    storage: Storage, companions: Iterable[tuple[Kind, str]], access: Access
) -> Mapping[Kind, Callable[[], bytes]]:
    """Return a reader for each kind that has exactly one object."""
    keys: dict[Kind, list[str]] = {}
    for kind, key in companions:
        keys.setdefault(kind, []).append(key)
    return {
        kind: partial(read_text, storage, found[0], access)
        for kind, found in keys.items()
        if len(found) == 1
    }


def _limited(chunks: Iterable[bytes], limit: int) -> Iterator[bytes]:
    total = 0
    for chunk in chunks:
        total += len(chunk)
        if total > limit:
            raise CorruptedError("a companion is larger than any that pgstash writes")
        yield chunk


def choose(
    name: str, size: int | None, found: Sequence[Manifest], access: Access
) -> Manifest | None:
    """Return the manifest, of those ``found``, that matches the archive ``name``.

    If several may be its own, as in a copy that lost its metadata, the size decides. None is
    returned if there is none and ``access`` does not require one. Raises UnverifiedError,
    CorruptedError.
    """
    if access.only_encrypted and not access.unverified and _is_plain(name):
        raise UnverifiedError(
            f"{name} is not encrypted, and BACKUP_ENCRYPTION is on or other backups in the store "
            "are encrypted. Anyone who can write to the store may have put it there",
            hint="If it is from before encryption was turned on, read it with --unverified. Its "
            "digests are still checked.",
        )
    if not found:
        if access.unverified:
            return None
        raise UnverifiedError(
            f"{name} has no manifest, so it cannot be verified",
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
        raise of_another(name, first)
    raise CorruptedError(
        f"{name} has {size} bytes, but {first.stored_bytes} according to its manifest",
        hint="It was cut short or replaced. Use another backup, and take a new one.",
    )


def of_another(name: str, manifest: Manifest) -> CorruptedError:
    """Return the error for an archive ``name`` whose manifest is that of another backup."""
    return CorruptedError(
        f"the manifest of {name} is that of another backup: {manifest.archive}, id {manifest.id}",
        hint="Was one of them renamed or copied? Give them their original names.",
    )


def _is_plain(name: str) -> bool:
    return not name.endswith(".enc")


def _refuse_impossible(manifest: Manifest) -> None:
    """Raise CorruptedError for members that leave a gap or would not fit into memory."""
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
