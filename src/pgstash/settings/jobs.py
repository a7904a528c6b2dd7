"""Jobs: one database of one server, one store and prefix, one policy.

The environment describes one job, or with ``DATABASES`` one for each database of a server. A job
has the settings of the environment, with a ``DATABASE_URL`` and a prefix of its own.
"""

from __future__ import annotations

from pydantic import SecretStr

from pgstash.errors import ConfigurationError
from pgstash.format.folders import folder_of
from pgstash.postgres.server import conninfo
from pgstash.settings import databases
from pgstash.settings.model import Settings

_MAINTENANCE = "postgres"


def selection(settings: Settings) -> databases.Selection | None:
    """Return which databases of the server are jobs; None if there is one job only."""
    return databases.parse(settings.databases) if settings.databases else None


def server_url(settings: Settings) -> str:
    """Return a connection string to list the databases of the server with."""
    url = settings.source_url
    named = bool(url and conninfo.parse(url).get("dbname")) or "PGDATABASE" in (
        settings.source_variables
    )
    return url if named else conninfo.with_database(url, _MAINTENANCE)


def of_job(settings: Settings, name: str | None, *, may_be_all: bool) -> Settings:
    """Return the settings of one job, or those of all of them if that is allowed.

    Raises ConfigurationError if the name is missing, or is of no job.
    """
    chosen = selection(settings)
    if name is None:
        if chosen is None or may_be_all:
            return settings
        raise ConfigurationError(
            ["DATABASES is set, so there are several jobs. Name a database with --job."]
        )
    if chosen is None:
        raise ConfigurationError([f"--job {name} is given, but DATABASES is not set."])
    if not chosen.has(name):
        raise ConfigurationError([f"--job {name} is not in DATABASES={settings.databases}."])
    return of_database(settings, name)


def of_database(settings: Settings, database: str) -> Settings:
    """Return the settings of the job of one database of the server."""
    folder = folder_of(database)
    own = settings.model_copy(
        update={
            "database_url": SecretStr(conninfo.with_database(settings.source_url, database)),
            "backup_prefix": f"{settings.backup_prefix}/{folder}",
        }
    )
    own._job = database  # noqa: SLF001 - only here a job is made
    own._copies = {  # noqa: SLF001 - as above
        # Without a prefix of its own, a copy has that of the primary.
        name: store.model_copy(update={"backup_prefix": f"{store.backup_prefix}/{folder}"})
        if "backup_prefix" in store.model_fields_set
        else store
        for name, store in settings._copies.items()  # noqa: SLF001 - as above
    }
    return own
