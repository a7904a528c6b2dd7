"""Which databases of a server are backed up: the patterns of ``DATABASES``."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Annotated

from pydantic import AfterValidator

from pgstash.settings.declaration import setting
from pgstash.settings.fleet import FleetSettings

_NOT = "!"
_WILD = frozenset("*?")

OF_PROVIDERS = frozenset({"azure_maintenance", "azure_sys", "cloudsqladmin", "rdsadmin"})
"""Databases of managed servers that no customer may log in to: only their own name selects them.

https://docs.aws.amazon.com/AmazonRDS/latest/UserGuide/CHAP_PostgreSQL.html,
https://cloud.google.com/sql/docs/postgres/users,
https://learn.microsoft.com/azure/postgresql/flexible-server/concepts-servers
"""


@dataclass(frozen=True, slots=True)
class Selection:
    """Patterns of names to take, and of names to leave out; ``*`` if there are none to take."""

    taken: tuple[str, ...]
    left_out: tuple[str, ...]

    def has(self, database: str) -> bool:
        """Return whether a database is selected."""
        if any(_matches(database, pattern) for pattern in self.left_out):
            return False
        if database in OF_PROVIDERS:
            return database in self.taken
        return any(_matches(database, pattern) for pattern in self.taken)

    @property
    def named(self) -> list[str]:
        """The databases that are selected by their name: each of them must exist."""
        return [name for name in self.taken if not _WILD.intersection(name) and self.has(name)]


def _matches(database: str, pattern: str) -> bool:
    # Brackets are no sets of characters here: a database may have them in its name.
    return fnmatchcase(database, pattern.replace("[", "[[]"))


def parse(text: str) -> Selection:
    """Read a list of patterns, separated by commas. Raises ValueError with the reason."""
    patterns = [each.strip() for each in text.split(",")]
    if not all(each.removeprefix(_NOT).strip() for each in patterns):
        raise ValueError("has an empty pattern")
    left_out = tuple(each[1:].strip() for each in patterns if each.startswith(_NOT))
    taken = tuple(each for each in patterns if not each.startswith(_NOT))
    return Selection(taken or ("*",), left_out)


def _checked(text: str) -> str:
    parse(text)
    return text


class ManyDatabasesSettings(FleetSettings):
    """Several databases of one server, or a file that describes many servers; and a fleet."""

    pgstash_config: str | None = setting(
        "Many databases",
        "the path of a file in TOML format",
        "A configuration file with stores, servers, and exceptions for single databases. Its "
        "values take precedence over the environment. `--config` has the same effect.",
        default=None,
    )
    databases: Annotated[str, AfterValidator(_checked)] | None = setting(
        "Many databases",
        "patterns such as *,!test_*",
        "Back up all databases of the server whose name matches, each under a prefix of its own: "
        "`BACKUP_PREFIX`, and the name of the database. `*` stands for any characters, `?` for "
        "one, and `!` leaves out. `DATABASE_URL` then only gives the login. Template databases "
        "and invalid ones are left out.",
        default=None,
    )
    workers: int = setting(
        "Many databases",
        "a whole number from 1 to 64",
        "How many processes run backups and drills at once. Each takes the memory of one backup.",
        default=2,
        ge=1,
        le=64,
    )
    max_backups: int = setting(
        "Many databases",
        "a whole number from 1 to 64",
        "How many databases of one server are backed up at once, at most `WORKERS`.",
        default=1,
        ge=1,
        le=64,
    )
