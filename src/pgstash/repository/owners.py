"""The sources of the backups under a prefix, according to the metadata of their archives.

The metadata of an archive is read once and remembered, because it never changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, MutableMapping, Sequence
from datetime import datetime
from itertools import islice

from pgstash.errors import SourceUnclearError, StorageError
from pgstash.format import identity
from pgstash.format.identity import Claim, Identity, Origin
from pgstash.format.size_history import MOST
from pgstash.repository import catalog, object_metadata
from pgstash.repository.catalog import Backup
from pgstash.storage.interface import Hosted, Storage

_AT_A_TIME = 16

Key = tuple[Sequence[str], str, int]
"""What identifies an archive: the server that has it, its URL, its size."""

Seen = MutableMapping[Key, Origin]
"""The origins known so far, each of one archive."""


class Owners:
    """Finds the sources of the backups in one store. Every method raises StorageError."""

    def __init__(
        self, storage: Storage, seen: Seen | None = None, *, may_read: bool = True
    ) -> None:
        """Read from this store the metadata of archives that are not in ``seen`` yet.

        Unless this host ``may_read`` them, nothing is requested, and no backup names its source.
        """
        self.may_read = may_read
        self._storage = storage
        self._seen: Seen = {} if seen is None else seen
        self._host = storage.host if isinstance(storage, Hosted) else ()
        self.unreadable: dict[Key, StorageError] = {}

    def origins(self, backups: Sequence[Backup]) -> list[Origin]:
        """Return the origin of each archive; it is empty for one that no longer exists.

        An archive whose metadata cannot be read counts as that of another source. The reason is
        stored in ``unreadable``.
        """
        if not self.may_read:
            return [Origin(Identity(), each.started) for each in backups]
        unseen = [each for each in backups if self._key(each) not in self._seen]
        if unseen:
            found = object_metadata.of_archives(self._storage, unseen)
            for backup, metadata in zip(unseen, found, strict=True):
                if isinstance(metadata, StorageError):
                    self.unreadable[self._key(backup)] = metadata
                else:
                    self._seen[self._key(backup)] = Origin.of(metadata, backup.started)
        return [
            self._seen.get(self._key(each)) or Origin(identity.UNREADABLE, each.started)
            for each in backups
        ]

    def of(self, backups: Sequence[Backup], sources: Sequence[Identity]) -> list[Backup]:
        """Return the backups of these sources, considering all backups under the prefix."""
        origins = self.origins(backups)
        claim = Claim(sources, origins)
        return [
            backup for backup, origin in zip(backups, origins, strict=True) if claim.covers(origin)
        ]

    def first(self, backups: Iterable[Backup], source: Identity) -> tuple[Backup, bool] | None:
        """Return the first backup of a source, and whether it is certainly of that source.

        If none is certain, the first possible one is returned. No more archives are read than
        needed.
        """
        doubtful: Backup | None = None
        for backup, origin in self._asked(backups):
            relation = source.relation(origin.identity)
            if relation == "same":
                return backup, True
            if relation == "unknown":
                doubtful = doubtful or backup
        return (doubtful, False) if doubtful else None

    def newest_first(self, backups: Sequence[Backup], source: Identity) -> Iterator[Backup]:
        """Yield the backups of a source, and older ones that may be of it.

        This is sufficient to compare sizes: not all archives under the prefix are read.
        """
        doubtful: list[Backup] = []
        certain, since = False, None
        for backup, origin in self._asked(reversed(backups)):
            relation = source.relation(origin.identity)
            if relation == "same":
                certain, since = True, origin.since or since
                yield backup
            elif relation == "unknown" and not certain:
                doubtful.append(backup)
            elif relation == "unknown" and (since is None or origin.started < since):
                yield backup
        if not certain:
            yield from doubtful

    def usual_size(self, backups: Sequence[Backup], source: Identity) -> int | None:
        """Return the largest stored size among the latest backups of a source."""
        own = islice(self.newest_first(backups, source), MOST)
        return max((backup.size for backup in own), default=None)

    def back_to_last(self, backups: Sequence[Backup], source: Identity) -> list[Origin]:
        """Return the origins of the newest backups, back to the last that reported others."""
        found = []
        for _, origin in self._asked(reversed(backups)):
            found.append(origin)
            if origin.reported is not None and source.relation(origin.identity) == "same":
                break
        return found

    def last_proven(
        self, backups: Sequence[Backup], source: Identity, until: datetime
    ) -> Backup | None:
        """Return the backup of a source whose drill passed last."""
        found = self.first(catalog.by_proof(backups, until), source)
        return found[0] if found else None

    def successor(self, backups: Sequence[Backup]) -> Identity | None:
        """Return the source whose backups are all newer than those of others, if there is one.

        The database has moved to another server since. Of sources that were backed up at the same
        time, none took the place of the other.
        """
        origins = self.origins(backups)
        known = identity.sources(origins)
        newest = known[0] if known else None
        own = self.of(backups, [newest]) if newest else []
        return newest if own and own == list(backups[-len(own) :]) else None

    def choose(
        self,
        backups: Sequence[Backup],
        *,
        named: Sequence[str] = (),
        settings: Identity | None = None,
        ask: Callable[[], Identity | None] = lambda: None,
    ) -> Sequence[Identity]:
        """Return the selected sources: the ``named`` ones, or else the only one that fits.

        The identity in the ``settings`` may lack the system identifier. If several sources fit,
        ``ask`` gets it from the server. Raises SourceUnclearError.
        """
        if not backups:
            return []
        origins = self.origins(backups)
        known = identity.sources(origins)
        if named:
            left = identity.left_over(known, origins)
            return [self._named(name, known, left, backups) for name in named]
        fitting = known
        if settings is not None:
            fitting = [
                each
                for each in known
                if any(settings.relation(at) != "other" for at in identity.addresses(each, origins))
            ] or [each for each in known if each.database == settings.database]
        if len(fitting) > 1 and (answer := ask()):
            fitting = [each for each in fitting if answer.relation(each) == "same"] or fitting
        if len(fitting) == 1:
            claim = Claim(fitting, origins)
            if settings is not None or all(map(claim.covers, origins)):
                return fitting
        if settings is not None and not fitting:
            what = f'there is no backup of the database "{settings.database}" under this prefix'
            raise self.unclear(f"{what}, only", backups)
        raise self.unclear("there are backups of several sources under this prefix", backups)

    def counted(
        self, backups: Sequence[Backup], sources: Sequence[Identity]
    ) -> list[tuple[str, int, str]]:
        """Return label, number and newest name of the backups of every other source."""
        own = {backup.key for backup in self.of(backups, sources)} if sources else set()
        origins = self.origins(backups)
        claims = [(each, Claim([each], origins)) for each in identity.sources(origins)]
        found: dict[str, list[str]] = {}
        for backup, origin in zip(backups, origins, strict=True):
            if backup.key not in own:
                fitting = (each for each, claim in claims if claim.covers(origin))
                label = next(fitting, origin.identity).label
                found.setdefault(label, []).append(backup.name)
        return [(label, len(names), names[-1]) for label, names in found.items()]

    def doubtful(
        self, backups: Sequence[Backup], sources: Sequence[Identity], until: datetime
    ) -> list[Backup]:
        """Return the backups that may be theirs, from after their last one up to ``until``."""
        origins = self.origins(backups)
        claim = Claim(sources, origins)
        found: list[Backup] = []
        for backup, origin in zip(backups, origins, strict=True):
            if backup.started > until:
                break
            if claim.covers(origin):
                found = []
            elif claim.doubts(origin):
                found.append(backup)
        return found

    def _named(
        self,
        name: str,
        known: Sequence[Identity],
        left: Sequence[Identity],
        backups: Sequence[Backup],
    ) -> Identity:
        found = identity.named(name, known, left)
        if len(found) > 1:
            raise self.unclear(f'several sources have a database "{name}"', backups)
        if not found:
            raise self.unclear(f'there is no source "{name}" under this prefix, only', backups)
        return found[0]

    def unclear(self, what: str, backups: Sequence[Backup]) -> SourceUnclearError:
        """Return the error that names what is unclear and lists the sources."""
        lines = [
            f"  {label}: {number} {'backup' if number == 1 else 'backups'}, the newest is {newest}"
            for label, number, newest in self.counted(backups, [])
        ]
        return SourceUnclearError("\n".join([f"{what}:", *lines]))

    def _asked(self, backups: Iterable[Backup]) -> Iterator[tuple[Backup, Origin]]:
        """Read the first archive alone, which is usually enough, and the others in batches."""
        remaining = iter(backups)
        batch = list(islice(remaining, 1))
        while batch:
            yield from zip(batch, self.origins(batch), strict=True)
            batch = list(islice(remaining, _AT_A_TIME))

    def _key(self, backup: Backup) -> Key:
        return self._host, self._storage.url(backup.key), backup.size
