"""Finds out whether two places are one: a store may have several URLs, such as two host names."""

from __future__ import annotations

from collections.abc import Callable

from pgstash.copying.place import Place
from pgstash.errors import ObjectNotFoundError
from pgstash.format import trial_objects
from pgstash.repository import catalog

_RANDOM_BYTES = 8


def is_one(source: Place, target: Place, random: Callable[[int], bytes]) -> bool:
    """Return whether an object that is stored in the target appears in the source.

    That is tried only if both have a newest backup of the target that was stored at the same time:
    a copy is stored later than the original. Raises StorageError.
    """
    stored = catalog.read(target.storage, target.prefix).backups
    if not stored or not _has(source, target, stored[-1].name):
        return False
    name = trial_objects.name(random(_RANDOM_BYTES).hex())
    key = f"{target.prefix}/{name}"
    target.storage.put(key, b"", {})
    try:
        return _has(source, target, name)
    finally:
        target.storage.delete([key])


def _has(source: Place, target: Place, name: str) -> bool:
    """Return whether the source has an object of the target, stored at the same time."""
    try:
        ours = source.storage.head(f"{source.prefix}/{name}")
        theirs = target.storage.head(f"{target.prefix}/{name}")
    except ObjectNotFoundError:
        return False
    return ours.modified == theirs.modified
