"""Jobs: one database of one server, one store and prefix, one policy.

The environment describes one job, or with ``DATABASES`` one for each database of a server. A job
has the settings of the environment, with a ``DATABASE_URL`` and a prefix of its own. A
configuration file describes the jobs of several servers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from pydantic import SecretStr

from pgstash.errors import ConfigurationError
from pgstash.format.folders import folder_of
from pgstash.postgres.server import conninfo
from pgstash.settings import databases
from pgstash.settings.model import Settings
from pgstash.settings.sources import Request, load

_MAINTENANCE = "postgres"


def selection(settings: Settings) -> databases.Selection | None:
    """Return which databases of the server are jobs; None if there is one job only."""
    return databases.parse(settings.databases) if settings.databases else None


def server_url(settings: Settings) -> str:
    """Return a connection string to list the databases of the server with."""
    url = settings.source_url
    return url if database_of(settings) else conninfo.with_database(url, _MAINTENANCE)


def are_several(settings: Settings) -> bool:
    """Return whether these are the settings of all jobs, and not of one: there may be several."""
    origin = settings.origin
    if origin.config and not origin.server:
        return True
    return not origin.job and selection(settings) is not None


def chosen(request: Request, name: str | None, *, may_be_all: bool) -> Settings:
    """Return the settings of a job, from the environment or the configuration file.

    Without a name, they are those of the only job. If there are several, they are those of all of
    them if that is allowed. Raises ConfigurationError.
    """
    from pgstash.settings.config import file  # noqa: PLC0415 - it makes jobs with this module

    if name == "":
        raise ConfigurationError(["--job is empty. Give it the name of a job."])
    config = file.opened(request)
    if config is None:
        found = load(needs=request.needs, given=request.given, only_reads=request.only_reads)
        return of_job(found, name, may_be_all=may_be_all)
    if name is not None:
        return config.job(name)
    if only := config.only_job():
        return only
    if may_be_all:
        return config.process()
    raise ConfigurationError(
        [f"{config.path} describes several jobs. Name one with --job SERVER/DATABASE."]
    )


def check_file(request: Request) -> None:
    """Check the whole configuration file, if there is one. Raises ConfigurationError."""
    from pgstash.settings.config import file  # noqa: PLC0415 - it makes jobs with this module

    config = file.opened(request)
    if config is not None:
        config.check()


def of_job(settings: Settings, name: str | None, *, may_be_all: bool) -> Settings:
    """Return the settings of one job, or those of all of them if that is allowed.

    Raises ConfigurationError if the name is missing, or is of no job.
    """
    chosen = selection(settings)
    if name is None:
        if chosen is None or may_be_all:
            return settings
        problem = (
            "DATABASES is set, so there are several jobs. Name a database with --job. To list, "
            "check, drill, copy or prune all of them, give --all-jobs."
        )
        raise ConfigurationError([problem])
    if chosen is None:
        raise ConfigurationError([f"--job {name} is given, but DATABASES is not set."])
    if not chosen.has(name):
        raise ConfigurationError([f"--job {name} is not in DATABASES={settings.databases}."])
    return of_database(settings, name)


def of_database(settings: Settings, database: str) -> Settings:
    """Return the settings of the job of one database of the server; of a copy, those for that copy.

    Raises ConfigurationError if it has a section of its own in the configuration file, and
    something is wrong there.
    """
    config, server = settings.origin.config, settings.origin.server
    if config and server and database in config.exceptions(server):
        own = config.of_exception(server, database)
        if not settings.copy_name:
            return own
        if settings.copy_name in own.copy_names:
            return own.of_copy(settings.copy_name)
    return regular(settings, database)


def regular(settings: Settings, database: str) -> Settings:
    """Return the settings of a job without a section of its own in a configuration file."""
    folder = folder_of(database)
    return named(in_folders(settings, lambda _copy: folder), database)


def named(settings: Settings, database: str) -> Settings:
    """Return the same for one database of the server, with the name of its job."""
    own = settings.model_copy()
    if database_of(settings) != database:
        url = SecretStr(conninfo.with_database(settings.source_url, database))
        own = settings.model_copy(update={"database_url": url})
    server = settings.origin.server
    job = f"{server}/{database}" if server else database
    own._origin = replace(settings.origin, job=job)  # noqa: SLF001 - only here a job is made
    return own


def database_of(settings: Settings) -> str:
    """Return the database that the settings of the source name; empty if none."""
    url = settings.source_url
    named_by_url = conninfo.parse(url).get("dbname", "") if url else ""
    return named_by_url or settings.source_variables.get("PGDATABASE", "")


def in_folders(settings: Settings, folder: Callable[[str], str]) -> Settings:
    """Return the same with the prefix of each store followed by a folder, if that is not empty.

    ``folder`` gets the name of a copy; an empty one for the primary.
    """

    def below(prefix: str, copy: str) -> str:
        return f"{prefix}/{more}" if (more := folder(copy)) else prefix

    own = settings.model_copy(update={"backup_prefix": below(settings.backup_prefix, "")})
    own._copies = {  # noqa: SLF001 - a job has copies of its own
        # Without a prefix of its own, a copy has that of the primary.
        name: store.model_copy(update={"backup_prefix": below(store.backup_prefix, name)})
        if "backup_prefix" in store.model_fields_set
        else store
        for name, store in settings._copies.items()  # noqa: SLF001 - as above
    }
    return own
