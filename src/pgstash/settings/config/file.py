"""A configuration file: its servers, and the settings of each job."""

from __future__ import annotations

import contextlib
import difflib
import os
from collections.abc import Collection, Iterator, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from pgstash.errors import ConfigurationError
from pgstash.monitoring import redaction
from pgstash.settings import copies, env_file, jobs, places
from pgstash.settings.config import sections, toml_file
from pgstash.settings.config.clashes import Claims
from pgstash.settings.config.layers import as_copy, names_place
from pgstash.settings.config.loading import Loader, Place, refuse
from pgstash.settings.config.sections import Depth, Section, joined
from pgstash.settings.model import Settings
from pgstash.settings.origin import Origin
from pgstash.settings.sources import CONFIG_VARIABLE, SNAPSHOT_VARIABLE, Request

_MOST_NAMED = 5


@dataclass(frozen=True)
class Config:
    """A file that was read for a command.

    Its methods raise ConfigurationError, which lists all problems of the sections they need.
    """

    document: toml_file.Document
    loader: Loader = field(repr=False)
    request: Request = field(repr=False)

    @property
    def path(self) -> Path:
        """The path of the file."""
        return self.document.path

    @property
    def servers(self) -> list[str]:
        """The names of the servers."""
        return list(self._servers)

    def exceptions(self, server: str) -> Collection[str]:
        """Return the databases of a server that have a section of their own."""
        return sections.databases(self._servers[server]).keys()

    def labels(self, server: str, database: str = "") -> tuple[str, ...]:
        """Return the labels of a database, or else those of its server."""
        own = sections.databases(self._servers[server]).get(database, {})
        found = self._section(own, joined("servers", server, "database", database), Depth.DATABASE)
        return found.labels or self._server(server).labels

    def process(self) -> Settings:
        """Return the settings that belong to no job: those of the defaults."""
        refuse([*self._odd, *self._defaults.problems])
        return self._loaded([self._defaults], replace(self.request, needs=()), Place())

    def server(self, name: str) -> Settings:
        """Return the settings of a server: those of its jobs without exceptions.

        From then on, the process removes their secrets from all output. So do other methods for
        commands that work for several jobs; the secrets of a single job are known anyway.
        """
        return _learnt(self._read(Place(name)), name)

    def job(self, name: str) -> Settings:
        """Return the settings of a job, by its name: ``server/database``."""
        server, _, database = name.partition("/")
        if server not in self._servers:
            close = difflib.get_close_matches(server, self.servers, n=1, cutoff=0.6)
            hint = f"Did you mean {close[0]}?" if close else f"Its servers: {self._named_servers}."
            refuse([f"--job {name}: {self.path} has no server {server}. {hint}"])
        if not database:
            refuse([f"--job {name} names no database. Write {server}/DATABASE."])
        only = ""
        if database in self.exceptions(server):
            found = self._exception(server, database)
        else:
            of_server = self._read(Place(server))
            found = jobs.regular(of_server, database)
            only = jobs.database_of(of_server)
        chosen = jobs.selection(found)
        if chosen and not chosen.has(database):
            refuse([unselected(server, database, found)])
        if not chosen and only not in ("", database):
            refuse([f"--job {name}: the only job of {server} is {server}/{only}."])
        return found

    def of_exception(self, server: str, database: str) -> Settings:
        """Return the settings of a database that has a section of its own."""
        return _learnt(self._exception(server, database), server)

    def _exception(self, server: str, database: str) -> Settings:
        return jobs.named(self._read(Place(server, database)), database)

    def elsewhere(self, of_server: Settings) -> Iterator[str]:
        """Yield the databases whose store or prefix is not the usual one of their server."""
        for database in self.exceptions(of_server.origin.server):
            own = jobs.of_database(of_server, database)
            if places.of(own) != places.of(jobs.regular(of_server, database)):
                yield database

    def check(self) -> None:
        """Check all sections, and that no two jobs would write to one place."""
        problems, claims = list[str](), Claims()
        for store in self._stores.values():
            problems += store.problems
        for server in self._servers:
            with _noted(problems):
                of_server = self._read(Place(server))
                claims.add_server(of_server, joined("servers", server))
                if not jobs.selection(of_server):
                    self.only_database(of_server)
                for database in self.exceptions(server):
                    with _noted(problems):
                        problems += self._wrong_exception(of_server, database, claims)
        with _noted(problems):
            self.process()
        refuse([*problems, *claims.problems()])

    def _wrong_exception(self, of_server: Settings, database: str, claims: Claims) -> Iterator[str]:
        server = of_server.origin.server
        chosen = jobs.selection(of_server)
        only = jobs.database_of(of_server)
        where = joined("servers", server, "database", database)
        own = self._exception(server, database)
        if chosen is not None and not chosen.has(database):
            yield f"{where} is of no job: {unselected(server, database, of_server)}"
        elif not chosen and only and only != database:
            yield f"{where} is of no job: the only job of {server} is {server}/{only}."
        else:
            claims.add_job(own, jobs.regular(of_server, database), where)

    @staticmethod
    def only_database(of_server: Settings) -> str:
        """Return the database of a server that has no list of databases."""
        found = jobs.database_of(of_server)
        where = joined("servers", of_server.origin.server)
        if not found:
            problem = (
                f"{where}.database_url names no database. Name one in it, or set {where}.databases."
            )
            refuse([problem])
        return found

    def only_job(self) -> Settings | None:
        """Return the settings of the only job; None if there are several, or may be."""
        if len(self._servers) != 1:
            return None
        (server,) = self._servers
        found = self._read(Place(server))
        database = jobs.database_of(found)
        if jobs.selection(found) or not database:
            return None
        if database in self.exceptions(server):
            return self._exception(server, database)
        return jobs.regular(found, database)

    @property
    def _named_servers(self) -> str:
        more = len(self._servers) - _MOST_NAMED
        named = ", ".join(self.servers[:_MOST_NAMED])
        return f"{named}, and {more} more" if more > 0 else named or "none"

    @cached_property
    def _odd(self) -> tuple[str, ...]:
        return tuple(sections.odd(self.document))

    @cached_property
    def _servers(self) -> dict[str, object]:
        return sections.tables(self.document, "servers")

    @cached_property
    def _defaults(self) -> Section:
        return self._section(self.document.table.get("defaults", {}), "defaults", Depth.DEFAULTS)

    @cached_property
    def _stores(self) -> dict[str, Section]:
        return {
            name: self._section(table, joined("stores", name), Depth.STORE)
            for name, table in sections.tables(self.document, "stores").items()
        }

    def _server(self, name: str) -> Section:
        return self._section(self._servers[name], joined("servers", name), Depth.SERVER)

    def _section(self, table: object, path: str, depth: Depth) -> Section:
        secrets = self.document.may_have_secrets
        return sections.section(table, path, depth, may_have_secrets=secrets)

    def _read(self, place: Place) -> Settings:
        own = [self._server(place.server)]
        if place.database is not None:
            table = sections.databases(self._servers[place.server])[place.database]
            path = joined("servers", place.server, "database", place.database)
            own.append(self._section(table, path, Depth.DATABASE))
        problems = [*self._odd]
        used = []
        setter = next((each for each in [*own[::-1], self._defaults] if each.store), None)
        if setter and setter.store in self._stores:
            used = [self._stores[setter.store]]
        elif setter:
            close = difflib.get_close_matches(setter.store, self._stores, n=1, cutoff=0.6)
            table_of_it = f"[{joined('stores', setter.store)}]"
            hint = f"Did you mean {close[0]}?" if close else f"Add a table {table_of_it}."
            problems.append(f"{setter.path}.store is {setter.store}, which is no store. {hint}")
            refuse([*problems, *(each for one in [self._defaults, *own] for each in one.problems)])
        if setter is own[-1] and names_place(own[0]) and not names_place(own[-1]):
            problems.append(
                f"{setter.path}.store has no effect: {own[0].path} has a place for backups, which "
                "takes precedence over that of a store. Move it to a store."
            )
        every = [self._defaults, *used, *own]
        copied = list(self._copies(every))
        problems += [each for one in [*every, *copied] for each in one.problems]
        try:
            found = self._loaded([*copied, *every], self.request, place)
        except ConfigurationError as error:
            refuse([*problems, *error.problems])
            raise
        if len(self._servers) > 1 and "target" not in self.request.needs:
            problems += self.loader.misled(found, every, place)
        refuse(problems)
        return found

    def _copies(self, every: Sequence[Section]) -> Iterator[Section]:
        """Yield the settings of copies whose names are stores of the file."""
        listed = next((v for one in every[::-1] if (v := one.values.get("COPY_TO"))), "")
        if listed and isinstance(listed, str):
            for name in copies.names({"COPY_TO": listed}):
                if name in self._stores:
                    yield as_copy(self._stores[name], name)

    def _loaded(self, every: Sequence[Section], request: Request, place: Place) -> Settings:
        found = self.loader.load(every, request, place)
        found._origin = Origin(  # noqa: SLF001 - only here a file is known
            server=place.server,
            config=self,
            referenced=self.loader.referenced,
            warnings=self.document.warnings,
        )
        return found


@contextlib.contextmanager
def _noted(problems: list[str]) -> Iterator[None]:
    """Add the problems of a block to a list."""
    try:
        yield
    except ConfigurationError as error:
        problems += error.problems


def _learnt(settings: Settings, server: str) -> Settings:
    redaction.learn(settings.secrets(), origin=f"servers.{server}")
    return settings


def unselected(server: str, database: str, settings: Settings) -> str:
    """Return the problem of a job that ``databases`` does not select."""
    where = joined("servers", server)
    return f"{server}/{database} is not in {where}.databases: {settings.databases}."


def opened(
    request: Request,
    environ: MutableMapping[str, str] = os.environ,
    dotenv: Path = Path(".env"),
) -> Config | None:
    """Return the file that ``PGSTASH_CONFIG`` names; None if it is not set.

    Raises ConfigurationError.
    """
    problems: list[str] = []
    of_file = env_file.read(dotenv, problems)
    path = environ.get(CONFIG_VARIABLE) or of_file.get(CONFIG_VARIABLE)
    if not path:
        return None
    refuse(problems)
    copy = environ.get(SNAPSHOT_VARIABLE)
    document = toml_file.read(Path(path), Path(f"/proc/self/fd/{copy}") if copy else None)
    referenced = frozenset(_names_of_variables(document.table))
    return Config(document, Loader(environ, of_file, referenced, document.path.parent), request)


def _names_of_variables(value: object) -> Iterator[str]:
    """Yield the names in ``{ env = "…" }``, however deep."""
    waiting = [value]
    while waiting:
        found = waiting.pop()
        if isinstance(found, dict):
            if isinstance(name := found.get("env"), str):
                yield name
            waiting.extend(found.values())
