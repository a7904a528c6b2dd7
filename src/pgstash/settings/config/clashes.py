"""Finds jobs of a configuration file that would have their backups in one place."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from pgstash.format import folders
from pgstash.settings import jobs, places
from pgstash.settings.model import Settings

_Place = tuple[str, ...]


@dataclass(slots=True)
class Claims:
    """The places of all jobs, and of their copies.

    The usual place of a job is a folder of its server. Those of ``_moved`` jobs are elsewhere: by
    server, database, and copy, which is empty for the primary.
    """

    _servers: list[tuple[str, Settings]] = field(default_factory=list)
    _moved: dict[tuple[str, str, str], tuple[str, Settings]] = field(default_factory=dict)

    def add_server(self, settings: Settings, path: str) -> None:
        """Add the jobs of a server, whose section has this path."""
        self._servers.append((path, settings))

    def add_job(self, own: Settings, regular: Settings, path: str) -> None:
        """Add a job with a section of its own; ``regular`` are its settings without that."""
        usual = dict(_stores(regular))
        server, _, database = own.job.partition("/")
        for copy, store in _stores(own):
            if copy not in usual or places.of(store) != places.of(usual[copy]):
                self._moved[server, database, copy] = path, store

    def problems(self) -> Iterator[str]:
        """Yield a problem for each place that was taken before."""
        taken: dict[_Place, str] = {}
        of_servers: dict[_Place, tuple[Settings, str]] = {}
        for path, server in self._servers:
            for copy, store in _stores(server):
                if place := places.of(store):
                    of_servers.setdefault(place, (server, copy))
                    yield from _taken(taken, place, _named(path, copy))
        for (_, _, copy), (path, store) in self._moved.items():
            if not (place := places.of(store)):
                continue
            name = _named(path, copy)
            yield from _taken(taken, place, name)
            above, _, folder = store.backup_prefix.rpartition("/")
            shared = places.of(store.model_copy(update={"backup_prefix": above})) or ()
            database = folders.database_of(folder)
            if database is None or shared not in of_servers:
                continue
            server, other = of_servers[shared]
            if self._has(server, database, other):
                job = f"{server.origin.server}/{database}"
                yield _same(name, _named(f"the job {job}", other))

    def _has(self, server: Settings, database: str, copy: str) -> bool:
        """Return whether a database has backups in the usual place below its server."""
        if (server.origin.server, database, copy) in self._moved:
            return False
        chosen = jobs.selection(server)
        return chosen.has(database) if chosen else jobs.database_of(server) == database


def _stores(settings: Settings) -> Iterator[tuple[str, Settings]]:
    """Yield the settings of the primary, and of each copy with its name."""
    yield "", settings
    for name in settings.copy_names:
        yield name, settings.of_copy(name)


def _named(path: str, copy: str) -> str:
    return f"the copy {copy} of {path}" if copy else path


def _taken(taken: dict[_Place, str], place: _Place, name: str) -> Iterator[str]:
    other = taken.setdefault(place, name)
    if other != name:
        yield _same(name, other)


def _same(name: str, other: str) -> str:
    first = f"T{name[1:]}" if name.startswith("the copy ") else name
    return f"{first} has the same store and prefix as {other}. Give it another backup_prefix."
