"""Copies the companions of a backup: those that the target lacks, or has as they were before."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from pgstash.copying.place import Place
from pgstash.errors import CorruptedError, ObjectNotFoundError
from pgstash.format import manifest as manifests
from pgstash.pipeline import decompression
from pgstash.repository.catalog import Companion
from pgstash.storage.interface import StoredObject

CHANGES = frozenset({"key", "kms"})
"""The only kinds that ever change: a passphrase is wrapped again for other recipients."""


def copied(source: Place, target: Place, found: Iterable[Companion]) -> Iterator[int]:
    """Copy what the target lacks of these companions; yield the number of bytes of each copied.

    Raises CorruptedError if one that can be checked without a key is damaged, StorageError.
    """
    for companion in found:
        here = source.storage.head(companion.key)
        name = companion.key.removeprefix(f"{source.prefix}/")
        there = _head(target, f"{target.prefix}/{name}")
        same = there if there and _is_same(here, there) else None
        if same and companion.kind not in CHANGES:
            continue
        data = _read(source, here)
        if same and data == _read(target, same):
            continue
        _refuse_damaged(source, name, data)
        target.storage.put(f"{target.prefix}/{name}", data, here.metadata)
        yield len(data)


def _head(place: Place, key: str) -> StoredObject | None:
    try:
        return place.storage.head(key)
    except ObjectNotFoundError:
        return None


def _is_same(here: StoredObject, there: StoredObject) -> bool:
    return here.size == there.size and here.metadata.get("id") == there.metadata.get("id")


def _read(place: Place, found: StoredObject) -> bytes:
    """Return an object of the size that was announced. Companions fit into memory."""
    if found.size > manifests.LARGEST:
        url = place.storage.url(found.key)
        raise CorruptedError(f"{url} is larger than any companion that pgstash writes")
    with place.storage.read(found.key, length=found.size) as chunks:
        return b"".join(chunks)


def _refuse_damaged(source: Place, name: str, data: bytes) -> None:
    """Raise CorruptedError if gzip's own checksum shows damage; encrypted objects have none."""
    if not name.endswith(".gz"):
        return
    try:
        for _ in decompression.gunzip([data]):
            pass
    except CorruptedError as error:
        raise CorruptedError(
            f"{name} is damaged in {source.url}: {error.message}. The backup was not copied",
            hint="Take a new backup. If an earlier copy of this one exists, that may be intact.",
        ) from error
