"""All jobs: one for each database that is selected or stored, of one server or several."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace

from pgstash import events
from pgstash.commands.origin import of_copy
from pgstash.commands.source import source_password
from pgstash.commands.storage import open_storage
from pgstash.errors import ConfigurationError, DatabaseError, StorageError
from pgstash.postgres.server import databases
from pgstash.repository import databases as stored_databases
from pgstash.repository.databases import Has
from pgstash.settings import Settings, jobs, places
from pgstash.settings.config.file import Config
from pgstash.workers import answers


@dataclass(frozen=True, slots=True)
class Job:
    """One job. Its name is that of its database, in a file with the server: ``eu/shop``."""

    name: str
    settings: Settings = field(repr=False)


@dataclass(frozen=True, slots=True)
class Jobs:
    """The jobs of a server, or of all servers, by name, and what is not as it should be.

    ``missing`` are databases that DATABASES names and the server does not have. The next ones are
    selected, but cannot be backed up, each for its reason in
    :class:`pgstash.postgres.server.databases.Databases`; ``unusable`` are those of them that
    DATABASES names. ``unreachable`` are the servers of the configuration file whose databases are
    not known, because they did not answer. ``unused`` are databases with a section of their own in
    that file that the server does not have. ``clashing`` have the same place for their backups as
    the job that each names, and are no jobs. ``system`` identifies the only server, if it discloses
    that.
    """

    jobs: list[Job]
    missing: list[str] = field(default_factory=list)
    closed: list[str] = field(default_factory=list)
    invalid: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)
    unusable: list[str] = field(default_factory=list)
    unreachable: dict[str, DatabaseError] = field(default_factory=dict)
    unused: list[str] = field(default_factory=list)
    clashing: dict[str, str] = field(default_factory=dict)
    system: str | None = None


def are_of_a_file(settings: Settings) -> bool:
    """Return whether these are the settings of all servers of a configuration file."""
    return settings.origin.config is not None and not settings.origin.server


def on_server(settings: Settings) -> Jobs:
    """Ask the server for its databases, or all servers of the file, and return their jobs.

    Only for settings of several jobs. Raises DatabaseError for the only server, and
    ConfigurationError for the file.
    """
    config = settings.origin.config
    if config is not None and not settings.origin.server:
        return _of_file(config)
    return _of_databases(settings, _listed(settings))


def _listed(settings: Settings) -> databases.Databases:
    """Return the databases of a server. Raises DatabaseError."""
    return databases.listed(jobs.server_url(settings), source_password(settings))


def _of_databases(settings: Settings, found: databases.Databases) -> Jobs:
    """Return the jobs of a server with these databases."""
    config, chosen = settings.origin.config, jobs.selection(settings)
    if chosen is None:
        raise AssertionError("only for settings with DATABASES")
    there = {*found.usable, *found.closed, *found.invalid}
    sections = config.exceptions(settings.origin.server) if config else ()

    def selected(names: list[str]) -> list[str]:
        return [name for name in names if chosen.has(name)]

    return Jobs(
        [Job(name, jobs.of_database(settings, name)) for name in selected(found.usable)],
        missing=[name for name in chosen.named if name not in there],
        unusable=[name for name in chosen.named if name in {*found.closed, *found.invalid}],
        closed=selected(found.closed),
        invalid=selected(found.invalid),
        foreign=selected(found.foreign),
        unused=selected([name for name in sections if name not in {*there, *chosen.named}]),
        system=found.system,
    )


def refuse_clashes(settings: Settings) -> None:
    """Refuse a configuration file with two jobs in one place, or with any other problem.

    Raises ConfigurationError.
    """
    if settings.origin.config is not None and are_of_a_file(settings):
        settings.origin.config.check()


def apart(found: Jobs, first: Collection[str] = ()) -> Jobs:
    """Return the same without jobs in the place of another one; the ``first`` take precedence.

    The file alone does not show all: folders may be links, and databases may appear.
    """
    taken: dict[tuple[str, ...], str] = {}
    clashing = dict[str, str]()
    for job in sorted(found.jobs, key=lambda job: job.name not in first):
        place = places.of(job.settings)
        if place and (other := taken.setdefault(place, job.name)) != job.name:
            clashing[job.name] = other
    kept = [job for job in found.jobs if job.name not in clashing]
    return replace(found, jobs=kept, clashing=clashing)


def _of_file(config: Config) -> Jobs:
    every, problems = Jobs([]), list[str]()
    of_servers = dict[str, Settings]()
    for server in config.servers:
        try:
            of_servers[server] = config.server(server)
        except ConfigurationError as error:
            problems += error.problems
    several = [each for each in of_servers.values() if jobs.selection(each) is not None]
    # Each server that does not answer takes seconds.
    names = [each.origin.server for each in several]
    listed = dict(zip(names, answers(_answer, several), strict=True))
    for server, settings in of_servers.items():
        answer = listed.get(server)
        if isinstance(answer, DatabaseError):
            every.unreachable[server] = answer
            continue
        try:
            found = _of_databases(settings, answer) if answer else _only(config, settings)
        except ConfigurationError as error:
            problems += error.problems
            continue
        every.jobs.extend(Job(job.settings.job, job.settings) for job in found.jobs)
        for names, more in (
            (every.missing, found.missing),
            (every.unusable, found.unusable),
            (every.closed, found.closed),
            (every.invalid, found.invalid),
            (every.foreign, found.foreign),
            (every.unused, found.unused),
        ):
            names.extend(f"{server}/{name}" for name in more)
    if problems:
        raise ConfigurationError(list(dict.fromkeys(problems)))
    return every


def _answer(settings: Settings) -> databases.Databases | DatabaseError:
    try:
        return _listed(settings)
    except DatabaseError as error:
        return error


def _only(config: Config, settings: Settings) -> Jobs:
    """Return the only job of a server. Raises ConfigurationError."""
    only = config.only_database(settings)
    return Jobs([Job(only, jobs.of_database(settings, only))])


@dataclass(frozen=True, slots=True)
class WithBackups:
    """The jobs that have backups. ``unreadable`` are the servers of which this is not known."""

    jobs: list[Job]
    unreadable: dict[str, StorageError] = field(default_factory=dict)


def with_backups(
    settings: Settings, copy: str | None = None, has: Has = stored_databases.has_backup
) -> WithBackups:
    """Return what :func:`stored` does. In a configuration file, a store that fails hides no other.

    The jobs are those of which the store ``has`` something. For all servers of such a file,
    ``copy`` is what ``--from`` names: a copy, a folder or a URL.
    """
    config = settings.origin.config
    if config is None or not are_of_a_file(settings):
        return WithBackups(stored(settings, has))
    found = WithBackups([])
    for own in _of_copies([config.server(each) for each in config.servers], copy):
        try:
            found.jobs.extend(_stored_in_file(config, own, has))
        except StorageError as error:
            found.unreadable[own.origin.server] = error
    return found


def stored(settings: Settings, has: Has = stored_databases.has_backup) -> list[Job]:
    """Return the jobs that have backups, or what else ``has`` finds, by name.

    Whether DATABASES selects them does not matter. Settings of one copy give its jobs. No server is
    asked: it, or a database, may be gone. Raises StorageError, and ConfigurationError for the
    configuration file.
    """
    config = settings.origin.config
    if config is not None and are_of_a_file(settings):
        of_servers = [config.server(each) for each in config.servers]
        return [job for each in of_servers for job in _stored_in_file(config, each, has)]
    names = _with_backups(settings, has)
    return [Job(name, jobs.of_database(settings, name)) for name in names]


def _with_backups(settings: Settings, has: Has) -> list[str]:
    storage = open_storage(settings, events.ignore)
    return stored_databases.with_backups(storage, settings.backup_prefix, has)


def _of_copies(of_servers: list[Settings], copy: str | None) -> list[Settings]:
    """Return the settings for a copy of each server that has it.

    Raises ConfigurationError if none has.
    """
    found, refused = list[Settings](), None
    for settings in of_servers:
        try:
            found.append(of_copy(settings, copy))
        except ConfigurationError as error:
            refused = error
    if refused and not found:
        raise refused
    return found


def _stored_in_file(config: Config, settings: Settings, has: Has) -> list[Job]:
    names = _with_backups(settings, has)
    elsewhere = list(config.elsewhere(settings))
    found = [jobs.of_database(settings, name) for name in names if name not in elsewhere]
    for name in elsewhere:
        own = jobs.of_database(settings, name)
        if has(open_storage(own, events.ignore), own.backup_prefix):
            found.append(own)
    return sorted((Job(own.job, own) for own in found), key=lambda job: job.name)
