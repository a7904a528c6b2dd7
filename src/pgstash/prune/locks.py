"""Finds the backups that the store has locked, which is a normal state: a later run removes them.

A request to delete such an object would only hide it, in front of a version that stays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from pgstash import events
from pgstash.counting import counted
from pgstash.errors import ObjectNotFoundError, StorageRefusedError
from pgstash.prune.journal import Journal
from pgstash.storage.interface import Locking, ObjectVersion, Storage

_MOST_NAMED = 5
_UNKNOWN = datetime.max.replace(tzinfo=UTC)


class Locks:
    """The locks that one run of pruning met."""

    def __init__(self, storage: Storage, now: datetime) -> None:
        """Ask nothing yet. A lock that ends up to ``now`` is none."""
        self._storage = storage
        self.now = now
        self._found: dict[str, datetime] = {}

    def hold(self, name: str, keys: Sequence[str]) -> bool:
        """Return whether one of these objects is locked; ``name`` is what is reported.

        The others are requested only if the first has, or had, a lock. Raises StorageError.
        """
        return self._hold(name, [(key,) for key in keys])

    def hold_versions(self, name: str, versions: Sequence[ObjectVersion]) -> bool:
        """Return the same as :meth:`hold` for versions: all those of the first key count as first.

        Raises StorageError.
        """
        first = sum(each.key == versions[0].key for each in versions)
        return self._hold(name, [(each.key, each.version_id) for each in versions], first)

    def _hold(
        self, name: str, which: Sequence[tuple[str] | tuple[str, str]], first: int = 1
    ) -> bool:
        found = [*filter(None, map(self._until, which[:first]))]
        if not found:
            return False
        until = max([*found, *filter(None, map(self._until, which[first:]))])
        if until <= self.now:
            return False
        self._found[name] = until
        return True

    def _until(self, which: tuple[str] | tuple[str, str]) -> datetime | None:
        if not isinstance(self._storage, Locking):
            return None
        try:
            return self._storage.locked_until(*which)
        except (ObjectNotFoundError, StorageRefusedError):
            return None  # the request to delete it shows what is wrong

    def deletes(self, key: str, journal: Journal) -> bool:
        """Delete one object, and return whether it is gone; see :meth:`permit`."""
        return self.permit(key.rpartition("/")[2], lambda: self._storage.delete([key]), journal)

    def permit(self, name: str, action: Callable[[], None], journal: Journal) -> bool:
        """Run a deletion, and return whether it succeeded; ``name`` is what is reported.

        The locks of some stores show only when they refuse it. That is no failure. Other errors
        are recorded in the ``journal``; see :meth:`pgstash.prune.journal.Journal.keep_going`.
        """
        refused = False

        def attempt() -> None:
            nonlocal refused
            try:
                action()
            except StorageRefusedError as error:
                if not error.locked:
                    raise
                refused = True

        succeeded = journal.succeeds(attempt)
        if refused:
            self._found[name] = _UNKNOWN
        return succeeded and not refused

    def report(self, emit: events.Emit) -> None:
        """Report all of them in one line, those whose lock ends first by name."""
        if not self._found:
            return
        first = sorted(self._found.items(), key=lambda found: found[1])
        named = [f"{name} {_until(until)}" for name, until in first[:_MOST_NAMED]]
        more = [f"and {len(first) - _MOST_NAMED} more"] if len(first) > _MOST_NAMED else []
        emit(
            events.Informed(
                f"Not removed, because the store has locked {counted(len(first), 'expired item')}: "
                f"{', '.join([*named, *more])}"
            )
        )


def _until(moment: datetime) -> str:
    if moment == _UNKNOWN:
        return "until an unknown time"
    return f"until {moment:%Y-%m-%d %H:%M} UTC"
