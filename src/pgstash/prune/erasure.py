"""Removes versions of objects for good, and their delete markers after them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice

from pgstash import events
from pgstash.counting import counted
from pgstash.errors import (
    ObjectNotFoundError,
    StorageError,
    StorageRefusedError,
    StorageUnreachableError,
)
from pgstash.prune.journal import Journal
from pgstash.prune.version_listing import Stored
from pgstash.storage.interface import ObjectVersion, Versioned

_MOST_NAMED = 5
_BATCH = 100


@dataclass(frozen=True, slots=True)
class Group:
    """Objects that are removed together. If they are a backup, its archive is the first."""

    name: str
    objects: Sequence[Stored]
    is_backup: bool = False

    @property
    def data(self) -> list[ObjectVersion]:
        """All versions of all objects."""
        return [version for each in self.objects for version in each.data]

    @property
    def markers(self) -> list[ObjectVersion]:
        """The delete markers in front of them, and between them."""
        return [version for each in self.objects for version in each.markers]


class Erasure:
    """Removes groups from one store. What cannot be removed is recorded in the journal."""

    def __init__(self, storage: Versioned, journal: Journal) -> None:
        """Prepare; nothing is requested yet."""
        self._storage = storage
        self._journal = journal

    def erase(self, groups: Iterable[Group], lone_markers: Sequence[ObjectVersion]) -> None:
        """Remove the groups, and report those that are gone, even if an error ends this.

        An earlier run may have left ``lone_markers``, which hide nothing. Raises StorageError.
        """
        removed: list[Group] = []
        try:
            if lone_markers:
                with self._journal.keep_going():
                    self._storage.delete_versions(lone_markers)
            removed.extend(self._erased(groups))
        finally:
            self.report(removed, "Removed")

    def _erased(self, groups: Iterable[Group]) -> Iterator[Group]:
        """Remove the groups, and yield those whose versions are gone.

        A marker is removed after all the versions that it hides: until then, they stay hidden.
        """
        remaining = iter(groups)
        while batch := list(islice(remaining, _BATCH)):
            gone = self._without_versions(batch)
            if not gone:
                return  # a key without permission would be refused each time
            yield from gone
            with self._journal.keep_going():
                self._storage.delete_versions([each for group in gone for each in group.markers])

    def _without_versions(self, groups: Sequence[Group]) -> list[Group]:
        """Remove the versions of the groups, and return those whose versions are all gone."""
        delete = self._storage.delete_versions
        try:
            delete([version for group in groups for version in group.data])
        except StorageUnreachableError:
            raise
        except StorageError:
            return [each for each in groups if self._journal.succeeds(partial(delete, each.data))]
        self._require_gone(groups[0].data[0])
        return list(groups)

    def _require_gone(self, version: ObjectVersion) -> None:
        """Raise StorageRefusedError if a version exists: some stores may ignore which is meant."""
        try:
            self._storage.head_version(version)
        except (ObjectNotFoundError, StorageRefusedError):
            return  # a key that may not list everything gets a refusal instead
        raise StorageRefusedError(
            f"a version of {version.key} still exists, although the store answered that it was "
            "removed",
            hint="The store does not remove versions of objects. Unset PRUNE_VERSIONS.",
        )

    def report(self, groups: Sequence[Group], did: str) -> None:
        """Report the groups by number, and the first backups among them by name."""
        if not groups:
            return
        versions = sum(len(group.data) for group in groups)
        backups = [group.name for group in groups if group.is_backup]
        others = len(groups) - len(backups)
        parts = [
            *([f"{counted(len(backups), 'backup')} ({named(backups)})"] if backups else []),
            *([counted(others, "leftover")] if others else []),
        ]
        what = f"{' and '.join(parts)}, {counted(versions, 'version')}"
        self._journal.emit(events.Informed(f"{did} for good, with the delete markers: {what}"))


def named(backups: Sequence[str]) -> str:
    """Return the first names, and the number of the others."""
    more = [f"and {len(backups) - _MOST_NAMED} more"] if len(backups) > _MOST_NAMED else []
    return ", ".join([*backups[:_MOST_NAMED], *more])
