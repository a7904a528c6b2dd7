"""Which copies have a stored backup, by one listing of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pgstash import events
from pgstash.commands import copies
from pgstash.commands.stored import Listed
from pgstash.copying import behind
from pgstash.errors import PgstashError
from pgstash.repository import catalog
from pgstash.repository.catalog import Backup
from pgstash.settings import Settings


def presence(
    settings: Settings, backups: Sequence[Listed], emit: events.Emit
) -> list[Mapping[str, bool | None]]:
    """Return for each backup which of the copies in COPY_TO have it.

    None stands for a copy that cannot be read, about which there is a warning. Each is tried once.
    """
    found = {copy.name: _listed(copy, emit) for copy in copies.of(settings)}
    return [
        {
            name: None
            if there is None
            else behind.is_copy(there.get(each.backup.name), each.backup)
            for name, there in found.items()
        }
        for each in backups
    ]


def _listed(copy: copies.Copy, emit: events.Emit) -> Mapping[str, Backup] | None:
    try:
        storage = copy.open(events.ignore, prompt=True)
        found = catalog.read(storage, copy.settings.backup_prefix).backups
    except PgstashError as error:
        emit(events.Warned(f"The copy {copy.name} cannot be read: {error.message}"))
        return None
    return {each.name: each for each in found}
