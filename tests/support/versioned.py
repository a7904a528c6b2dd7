"""A store in memory that keeps versions of objects, as S3 does in a bucket with versioning."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pgstash.errors import ObjectNotFoundError
from pgstash.storage.interface import ObjectVersion
from pgstash.storage.memory import MemoryStorage

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from datetime import datetime

    from pgstash.errors import StorageError
    from pgstash.storage.interface import StoredObject


@dataclass(frozen=True, slots=True)
class _Kept:
    version: ObjectVersion
    stored: StoredObject
    data: bytes


class VersionedMemory(MemoryStorage):
    """Keeps each version until it is deleted by its id.

    Versions of keys in ``locked`` are locked until that time; those of ``refused`` keys cannot be
    deleted.
    """

    def __init__(self) -> None:
        super().__init__()
        self.locked: dict[str, datetime] = {}
        self.refused: dict[str, StorageError] = {}
        self.deletions: list[list[ObjectVersion]] = []
        self._kept: dict[str, list[_Kept]] = {}
        self._ids = itertools.count(1)

    def put(self, key: str, data: bytes, metadata: Mapping[str, str]) -> None:
        super().put(key, data, metadata)
        self._keep(super().head(key), data, is_marker=False)

    def delete(self, keys: Iterable[str]) -> None:
        """Put a marker in front of each, even if there is nothing, as S3 does."""
        for key in keys:
            MemoryStorage.put(self, key, b"", {})
            self._keep(super().head(key), b"", is_marker=True)
            super().delete([key])

    def _keep(self, stored: StoredObject, data: bytes, *, is_marker: bool) -> None:
        version = ObjectVersion(
            stored.key,
            f"v{next(self._ids)}",
            stored.modified,
            stored.size,
            current=True,
            is_marker=is_marker,
        )
        self._kept.setdefault(stored.key, []).append(_Kept(version, stored, data))

    def versions(self, prefix: str) -> Iterator[ObjectVersion]:
        for key, kept in sorted(self._kept.items()):
            if key.startswith(prefix):
                for each in reversed(kept):
                    yield replace(each.version, current=each is kept[-1])

    def head_version(self, version: ObjectVersion) -> StoredObject:
        for each in self._kept.get(version.key, []):
            if each.version.version_id == version.version_id:
                return each.stored
        raise ObjectNotFoundError(f"{version.key} has no such version")

    def delete_versions(self, which: Iterable[ObjectVersion]) -> None:
        versions = list(which)
        self.deletions.append(versions)
        for version in versions:
            if version.key in self.refused:
                raise self.refused[version.key]
            kept = self._kept.get(version.key, [])
            kept[:] = [each for each in kept if each.version.version_id != version.version_id]
            if kept and not kept[-1].version.is_marker:
                MemoryStorage.put(self, version.key, kept[-1].data, kept[-1].stored.metadata)
            else:
                super().delete([version.key])

    def locked_until(self, key: str, _version_id: str | None = None) -> datetime | None:
        return self.locked.get(key)
