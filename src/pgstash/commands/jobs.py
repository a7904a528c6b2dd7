"""The jobs of a server: one for each of its databases that DATABASES selects, or that is stored."""

from __future__ import annotations

from dataclasses import dataclass, field

from pgstash import events
from pgstash.commands.source import source_password
from pgstash.commands.storage import open_storage
from pgstash.postgres.server import databases
from pgstash.repository import databases as stored_databases
from pgstash.settings import Settings, jobs


@dataclass(frozen=True, slots=True)
class Job:
    """One job. Its name is that of its database."""

    name: str
    settings: Settings = field(repr=False)


@dataclass(frozen=True, slots=True)
class Jobs:
    """The jobs of a server, by name, and what it lacks.

    ``missing`` are databases that DATABASES names and the server does not have. The others are
    selected, but cannot be backed up, each for its reason in
    :class:`pgstash.postgres.server.databases.Databases`. ``system`` identifies the server, if it
    discloses that.
    """

    jobs: list[Job]
    missing: list[str]
    closed: list[str]
    invalid: list[str]
    foreign: list[str]
    system: str | None


def on_server(settings: Settings) -> Jobs:
    """Ask the server for its databases, and return their jobs. Raises DatabaseError."""
    chosen = jobs.selection(settings)
    if chosen is None:
        raise AssertionError("only for settings with DATABASES")
    found = databases.listed(jobs.server_url(settings), source_password(settings))
    there = {*found.usable, *found.closed, *found.invalid}

    def selected(names: list[str]) -> list[str]:
        return [name for name in names if chosen.has(name)]

    return Jobs(
        [Job(name, jobs.of_database(settings, name)) for name in selected(found.usable)],
        missing=[name for name in chosen.named if name not in there],
        closed=selected(found.closed),
        invalid=selected(found.invalid),
        foreign=selected(found.foreign),
        system=found.system,
    )


def stored(settings: Settings) -> list[Job]:
    """Return the jobs that have backups, by name, whether or not DATABASES selects them.

    The server is not asked: it, or a database, may be gone. Raises StorageError.
    """
    storage = open_storage(settings, events.ignore)
    names = stored_databases.with_backups(storage, settings.backup_prefix)
    return [Job(name, jobs.of_database(settings, name)) for name in names]
