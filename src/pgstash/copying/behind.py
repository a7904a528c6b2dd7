"""What a copy lacks of the backups of a source, by two listings alone."""

from __future__ import annotations

from collections.abc import Iterable

from pgstash.copying.companions import CHANGES
from pgstash.repository.catalog import Backup, Companion


def missing(source: Iterable[Backup], target: Iterable[Backup]) -> list[Backup]:
    """Return the backups that the target does not have, or has as another one, newest first."""
    there = {backup.name: backup for backup in target}
    return _newest_first(backup for backup in source if not is_copy(there.get(backup.name), backup))


def is_copy(stored: Backup | None, backup: Backup) -> bool:
    """Return whether a backup of the same name has the same size, and no other id.

    The names of companions have the id: two sources may have started a backup in the same second.
    """
    if stored is None or stored.size != backup.size:
        return False
    ours, theirs = ({each.id for each in found.companions} for found in (backup, stored))
    return not ours or not theirs or bool(ours & theirs)


def outdated(source: Iterable[Backup], target: Iterable[Backup]) -> list[Backup]:
    """Return the backups that the target has without all of their companions, newest first.

    A drill may have passed since, or the passphrase was wrapped again.
    """
    there = {(backup.name, backup.size): backup for backup in target}
    return _newest_first(
        backup
        for backup in source
        if (copy := there.get((backup.name, backup.size))) and _is_outdated(backup, copy)
    )


def _is_outdated(backup: Backup, copy: Backup) -> bool:
    present = {_name(each): each for each in copy.companions}
    ids = {each.id for each in copy.companions}
    for each in backup.companions:
        if ids and each.id not in ids:
            continue  # of a failed backup of the same name
        stored = present.get(_name(each))
        if stored is None or (each.kind in CHANGES and each.modified > stored.modified):
            return True
    return False


def _name(companion: Companion) -> str:
    return companion.key.rpartition("/")[2]


def _newest_first(backups: Iterable[Backup]) -> list[Backup]:
    return sorted(backups, key=lambda backup: (backup.started, backup.name), reverse=True)
