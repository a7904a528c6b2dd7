"""Checks the values of some sections like those of the environment, and names them by section."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from pgstash.errors import ConfigurationError
from pgstash.postgres.server import conninfo
from pgstash.settings import copy_to, jobs, sources
from pgstash.settings.config.layers import Entry, Prefixes, is_place, merged, places
from pgstash.settings.config.references import Finder, UnknownError
from pgstash.settings.config.sections import Section, joined
from pgstash.settings.config.values import Reference
from pgstash.settings.model import Settings
from pgstash.settings.sources import Request

_WORD = re.compile(r"\b[A-Z][A-Z0-9_]+\b", re.ASCII)


@dataclass(frozen=True, slots=True)
class Place:
    """A server, or a database of it; or none of them."""

    server: str = ""
    database: str | None = None

    @property
    def path(self) -> str:
        """The path of the section of the server."""
        return joined("servers", self.server) if self.server else "defaults"


@dataclass(frozen=True)
class Loader:
    """What is needed to check values. ``of_file`` are those of a ``.env`` file.

    ``referenced`` are the variables that the configuration file takes values from. References to
    files are relative to the ``folder``.
    """

    environ: MutableMapping[str, str] = field(repr=False)
    of_file: Mapping[str, str] = field(repr=False)
    referenced: frozenset[str]
    folder: Path

    def load(self, every: Sequence[Section], request: Request, place: Place) -> Settings:
        """Return the settings that sections make; later ones take precedence.

        The prefixes have the folders of server and database. Raises ConfigurationError.
        """
        entries = merged([places(self._variables), *every])
        refused = {each for section in every for each in section.refused}
        values, unknown, problems = self._found(entries, request)
        unknown |= refused
        prefixes = Prefixes()
        prefixes.settle(values, entries)
        hidden = {each for name in (*entries, *refused) for each in (name, f"{name}_FILE")}
        hidden |= {name for name in self._variables if is_place(name)}
        rest = {name: value for name, value in self.of_file.items() if name not in hidden}
        written = _Written(entries, place.path)
        try:
            found = sources.checked_values(_Rest(self.environ, hidden), rest | values, request, [])
        except ConfigurationError as error:
            others = [each for each in error.problems if each.split(" ", 1)[0] not in unknown]
            every_problem = dict.fromkeys([*problems, *map(written, others)])
            raise ConfigurationError(list(every_problem)) from error
        refuse(problems)
        for warnings in (found._left_out, found._odd_values, found._notes):  # noqa: SLF001 - loading made them
            warnings[:] = map(written, warnings)
        if not place.server:
            return found
        return jobs.in_folders(
            found, lambda copy: prefixes.folder(copy, place.server, place.database)
        )

    def misled(self, settings: Settings, every: Sequence[Section], place: Place) -> Iterator[str]:
        """Yield a problem if the variables let libpq connect to the server of another section."""
        if settings.has_source and not any("DATABASE_URL" in each.values for each in every):
            yield (
                f"{place.path}.database_url is missing. The environment has a source, but that "
                "would be the same for all servers."
            )
        given = conninfo.parse(settings.source_url) if settings.source_url else {}
        if "PGHOSTADDR" in self._variables and "host" in given and "hostaddr" not in given:
            yield (
                f"{place.path}: with PGHOSTADDR, pgstash would connect to the same server for all "
                "sections. Remove the variable, or add hostaddr to the URL."
            )

    @cached_property
    def _variables(self) -> dict[str, str]:
        return {**self.of_file} | {name: value for name, value in self.environ.items() if value}

    @cached_property
    def _finder(self) -> Finder:
        hidden = sources.secret_variables() | self.referenced
        visible = {name: value for name, value in self.environ.items() if name not in hidden}
        return Finder(self.folder, self._variables, visible)

    def _found(
        self, entries: Mapping[str, Entry], request: Request
    ) -> tuple[dict[str, str], set[str], list[str]]:
        """Return the values by variable, those that are unknown, and the problems with these.

        A command whose output is not used is not run.
        """
        values: dict[str, str] = {}
        unknown, problems, unused = set[str](), list[str](), request.unused
        for variable, entry in entries.items():
            value = entry.value
            if isinstance(value, Reference):
                ignored = variable.lower() in unused
                if ignored and value.kind == "command":
                    continue
                try:
                    value = self._finder.find(value)
                except UnknownError as error:
                    if not ignored:
                        unknown.add(variable)
                        problems.append(f"{entry.path} {error}")
                    continue
            if value:
                values[variable] = value
        return values, unknown, problems


def refuse(problems: Iterable[str]) -> None:
    """Raise ConfigurationError if there are problems; each is reported once."""
    if found := list(dict.fromkeys(problems)):
        raise ConfigurationError(found)


@dataclass(frozen=True, slots=True)
class _Written:
    """Writes a message with settings as they are named in the file."""

    entries: Mapping[str, Entry] = field(repr=False)
    path: str

    def __call__(self, message: str) -> str:
        """Return the message; one about a setting that is missing names its section."""
        written = _WORD.sub(self._path_of, message)
        first = _WORD.match(message)
        if first and first[0] in self.entries:
            return written
        if first and (first[0].lower() in Settings.model_fields or copy_to.setting_of(first[0])):
            rest = _WORD.sub(self._path_of, message[first.end() :])
            return f"{self.path}.{first[0].lower()}{rest}"
        return f"{self.path}: {written}"

    def _path_of(self, word: re.Match[str]) -> str:
        entry = self.entries.get(word[0])
        return entry.path if entry else word[0]


class _Rest(MutableMapping[str, str]):
    """The environment without the variables that the file hides; changes go into it."""

    def __init__(self, environ: MutableMapping[str, str], hidden: set[str]) -> None:
        self._environ = environ
        self._hidden = hidden

    def __getitem__(self, name: str) -> str:
        if name in self._hidden:
            raise KeyError(name)
        return self._environ[name]

    def __setitem__(self, name: str, value: str) -> None:
        self._environ[name] = value

    def __delitem__(self, name: str) -> None:
        del self._environ[name]

    def __iter__(self) -> Iterator[str]:
        return (name for name in self._environ if name not in self._hidden)

    def __len__(self) -> int:
        return sum(1 for _ in self)
