"""A place of backups: a store, and the prefix in it."""

from __future__ import annotations

from dataclasses import dataclass

from pgstash.storage.interface import Storage


@dataclass(frozen=True, slots=True)
class Place:
    """A store and a prefix."""

    storage: Storage
    prefix: str

    @property
    def url(self) -> str:
        """The place, for messages."""
        return self.storage.url(self.prefix)
