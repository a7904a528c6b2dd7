"""Copies the companions of a backup that the target lacks, and those that may change.

No other one is ever replaced: if they differ, either may be the damaged one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from pgstash.copying.place import Place
from pgstash.errors import CorruptedError, ObjectDamagedError, ObjectNotFoundError
from pgstash.format import kms, metadata
from pgstash.format import manifest as manifests
from pgstash.pipeline import age, decompression
from pgstash.repository.catalog import Companion
from pgstash.storage.interface import StoredObject

_MOST_TRIES = 5

CHANGES = frozenset({"key", "kms"})
"""The only kinds that ever change: a passphrase is wrapped again for other recipients."""


def copied(source: Place, target: Place, found: Iterable[Companion]) -> Iterator[int]:
    """Copy what the target lacks of these companions; yield the number of bytes of each copied.

    Raises CorruptedError if one that can be checked without a key is damaged, ObjectDamagedError
    if the target has another one that must not change, StorageError.
    """
    for companion in found:
        for _ in range(_MOST_TRIES):
            here = source.storage.head(companion.key)
            data = _brought(source, target, companion, here)
            if data is not None:
                yield len(data)
            if companion.kind not in CHANGES or _is_unchanged(source, here):
                break
        else:
            raise CorruptedError(
                f"{source.storage.url(companion.key)} keeps changing while it is copied",
                hint="Copy the backup again when `pgstash keys` has ended.",
            )


def _brought(
    source: Place, target: Place, companion: Companion, here: StoredObject
) -> bytes | None:
    """Store a companion in the target and return its bytes; None if the target has them."""
    refuse_unstorable(source, here)
    name = companion.key.removeprefix(f"{source.prefix}/")
    there = _head(target, f"{target.prefix}/{name}")
    same = there if there and _is_same(here, there) else None
    if there and companion.kind not in CHANGES:
        if not same:
            raise _differs(source, target, here, there)
        return None
    data = _read(source, here)
    if same and data == _read(target, same):
        return None
    _refuse_damaged(source, companion, data)
    target.storage.put(f"{target.prefix}/{name}", data, here.metadata)
    return data


def _is_unchanged(source: Place, here: StoredObject) -> bool:
    """Return whether `pgstash keys` has not replaced an object since its head was read."""
    return source.storage.head(here.key) == here


def refuse_unstorable(source: Place, found: StoredObject) -> None:
    """Raise CorruptedError for metadata that no store takes: it would appear to be broken."""
    if not metadata.fits_headers(found.metadata):
        raise CorruptedError(
            f"the metadata of {source.storage.url(found.key)} has characters that pgstash never "
            "writes there. The backup was not copied",
            hint="Did another program change it? Take a new backup.",
        )


def _head(place: Place, key: str) -> StoredObject | None:
    try:
        return place.storage.head(key)
    except ObjectNotFoundError:
        return None


def _is_same(here: StoredObject, there: StoredObject) -> bool:
    return here.size == there.size and here.metadata.get("id") == there.metadata.get("id")


def _differs(
    source: Place, target: Place, here: StoredObject, there: StoredObject
) -> ObjectDamagedError:
    return ObjectDamagedError(
        f"{target.storage.url(there.key)} has {there.size} bytes, and "
        f"{source.storage.url(here.key)} has {here.size} bytes: one of them is damaged. Nothing "
        "was overwritten",
        hint="Find out which one is intact: `pgstash drill --from` reads the copy. Delete the "
        "damaged one, then copy the backup again.",
    )


def _read(place: Place, found: StoredObject) -> bytes:
    """Return an object of the size that was announced. Companions fit into memory."""
    if found.size > manifests.LARGEST:
        url = place.storage.url(found.key)
        raise CorruptedError(f"{url} is larger than any companion that pgstash writes")
    with place.storage.read(found.key, length=found.size) as chunks:
        return b"".join(chunks)


def _refuse_damaged(source: Place, companion: Companion, data: bytes) -> None:
    """Raise CorruptedError for damage that shows without a key.

    That is by gzip's own checksum, or the form of a wrapped passphrase: a damaged one must not take
    the place of an intact one.
    """
    name = companion.key.removeprefix(f"{source.prefix}/")
    try:
        if companion.kind == "kms":
            kms.load(name, data, companion.id)
        elif companion.kind == "key":
            age.refuse_damaged(data)
        elif name.endswith(".gz"):
            for _ in decompression.gunzip([data]):
                pass
    except CorruptedError as error:
        raise CorruptedError(
            f"{name} is damaged in {source.url}: {error.message}. The backup was not copied",
            hint="Take a new backup. If an earlier copy of this one exists, that may be intact.",
        ) from error
