"""The copies of ``COPY_TO``: the store of each, and the settings of its prefix and retention."""

from __future__ import annotations

from dataclasses import dataclass, field

from pgstash import events
from pgstash.commands.storage import open_storage
from pgstash.errors import ConfigurationError
from pgstash.settings import Settings
from pgstash.storage.interface import Storage


@dataclass(frozen=True, slots=True)
class Copy:
    """One copy. Its ``settings`` have its store, prefix and retention instead of the primary's."""

    name: str
    settings: Settings = field(repr=False)

    def open(self, emit: events.Emit, *, prompt: bool = False) -> Storage:
        """Return its store; nothing is sent to it yet. See :func:`open_storage`.

        Raises ConfigurationError, which names the settings as they are named for the copy.
        """
        try:
            return open_storage(self.settings, emit, prompt=prompt)
        except ConfigurationError as error:
            problems = [self.settings.as_written(each) for each in error.problems]
            raise ConfigurationError(problems) from error


def of(settings: Settings) -> list[Copy]:
    """Return the copies in the order of COPY_TO; nothing is opened."""
    return [Copy(name, settings.of_copy(name)) for name in settings.copy_names]
