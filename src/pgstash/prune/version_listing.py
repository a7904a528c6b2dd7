"""All versions under a prefix, by the objects of pgstash that they belong to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pgstash.format import names, trial_objects
from pgstash.format.names import CompanionName
from pgstash.storage.interface import ObjectVersion, Versioned

# Of an object or a marker in a bucket without versioning, or while that is suspended.
_ONLY_VERSION = "null"


@dataclass(frozen=True, slots=True)
class Stored:
    """All that is stored under one key: ``data`` are the versions of it, the current one first.

    It ``is_hidden`` if a delete marker is in front of them. ``markers`` are those that can be
    removed. One without an id of its own cannot: by then its id may be that of a newer object.
    """

    key: str
    name: str
    data: Sequence[ObjectVersion]
    markers: Sequence[ObjectVersion]
    is_hidden: bool

    @property
    def is_clear(self) -> bool:
        """Whether it is hidden or visible. With neither, the listing is incomplete."""
        return self.is_hidden or self.data[0].current


class VersionListing:
    """Archives by key, companions by the key of their archive, failed runs, and trial objects.

    Only keys with versions are included. If a key has nothing but ``lone_markers``, these are.
    """

    def __init__(self, storage: Versioned, prefix: str, gone: frozenset[str]) -> None:
        """List all versions; keys in ``gone`` count as hidden. Raises StorageError."""
        self.archives: dict[str, Stored] = {}
        self.companions: dict[str, list[tuple[Stored, CompanionName]]] = {}
        self.failures: list[Stored] = []
        self.trials: list[Stored] = []
        self.lone_markers: list[ObjectVersion] = []
        for stored in _each(storage, prefix, gone):
            archive = names.ARCHIVE_NAME.fullmatch(stored.name)
            companion = names.companion_of(stored.name)
            failure = names.failure_of(stored.name)
            is_archive = archive is not None and names.started_of(archive[1]) is not None
            is_trial = trial_objects.NAME.fullmatch(stored.name)
            if not (is_archive or companion or failure or is_trial):
                continue
            if not stored.data:
                self.lone_markers += stored.markers
            elif is_archive:
                self.archives[stored.key] = stored
            elif companion:
                of = f"{prefix}/{companion.archive}"
                self.companions.setdefault(of, []).append((stored, companion))
            elif failure:
                self.failures.append(stored)
            else:
                self.trials.append(stored)


def _each(storage: Versioned, prefix: str, gone: frozenset[str]) -> Iterator[Stored]:
    found: dict[str, list[ObjectVersion]] = {}
    for beginning in ("backup_", trial_objects.PREFIX):
        for version in storage.versions(f"{prefix}/{beginning}"):
            if version.key.startswith(f"{prefix}/"):
                found.setdefault(version.key, []).append(version)
    for key, versions in found.items():
        data = sorted(
            (each for each in versions if not each.is_marker),
            key=lambda each: (each.current, each.modified),
            reverse=True,
        )
        markers = [each for each in versions if each.is_marker]
        is_gone = key in gone and any(each.version_id != _ONLY_VERSION for each in data)
        is_marked = any(each.current for each in markers)
        is_hidden = is_gone or (is_marked and not any(each.current for each in data))
        removable = [each for each in markers if each.version_id != _ONLY_VERSION]
        yield Stored(key, key.removeprefix(f"{prefix}/"), data, removable, is_hidden)
