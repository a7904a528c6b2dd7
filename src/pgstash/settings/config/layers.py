"""Which of several values of a setting is used, and the folders below its prefix."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, MutableMapping
from dataclasses import dataclass, field

from pgstash.format.folders import folder_of
from pgstash.settings import copy_to, store_url
from pgstash.settings.config.sections import Depth, Section
from pgstash.settings.config.values import Reference

_URL = "STORAGE_URL"
_PREFIX = "BACKUP_PREFIX"
_PLACES = (_URL, "S3_BUCKET")


@dataclass(frozen=True, slots=True)
class Entry:
    """The value that is used; ``path`` is where it is set. It may be secret."""

    value: str | Reference = field(repr=False)
    path: str
    depth: Depth


def merged(sections: Iterable[Section]) -> dict[str, Entry]:
    """Return the values that are used; later sections take precedence.

    A section that names a place for backups, by URL or bucket, hides the places of earlier ones.
    """
    found: dict[str, Entry] = {}
    for section in sections:
        for variable in section.values:
            stem, setting = _split(variable)
            if setting in _PLACES:
                for each in _PLACES:
                    found.pop(f"{stem}{each}", None)
        for variable, value in section.values.items():
            key = variable.removeprefix(copy_to.first_part(section.of_copy)).lower()
            path = f"{section.path}.{key}" if section.path else variable
            found[variable] = Entry(value, path, section.depth)
    return found


def names_place(section: Section) -> bool:
    """Return whether a section names a store by URL or bucket."""
    return any(section.values.get(each) for each in _PLACES)


def places(variables: Mapping[str, str]) -> Section:
    """Return the places of backups that the environment names."""
    named = {
        variable: value
        for variable, value in variables.items()
        if value and _split(variable)[1] in (*_PLACES, _PREFIX)
    }
    return Section("", Depth.ENVIRONMENT, named)


def as_copy(store: Section, name: str) -> Section:
    """Return the settings of a store as those of a copy with its name."""
    first = copy_to.first_part(name)
    own = {
        f"{first}{variable}": value
        for variable, value in store.values.items()
        if variable in copy_to.VARIABLES
    }
    return Section(store.path, Depth.STORE, own, store.problems, of_copy=name)


@dataclass(slots=True)
class Prefixes:
    """How special the prefix of each store is, by what its variables begin with."""

    depths: dict[str, Depth] = field(default_factory=dict)

    def settle(self, values: MutableMapping[str, str], entries: Mapping[str, Entry]) -> None:
        """Note the depths. Of a prefix and one in a URL, keep the more special one."""
        for variable in [each for each in entries if _split(each)[1] in (_URL, _PREFIX)]:
            stem = _split(variable)[0]
            url, prefix = entries.get(f"{stem}{_URL}"), entries.get(f"{stem}{_PREFIX}")
            text = values.get(f"{stem}{_URL}", "")
            in_url = url if url and _has_prefix(text) else None
            if in_url and prefix and prefix.depth > in_url.depth and values.get(f"{stem}{_PREFIX}"):
                values[f"{stem}{_URL}"] = store_url.without_prefix(text)
                in_url = None
            elif in_url and prefix and prefix.depth < in_url.depth:
                values.pop(f"{stem}{_PREFIX}", None)
                prefix = None
            used = in_url or (prefix if values.get(f"{stem}{_PREFIX}") else None)
            self.depths[stem] = used.depth if used else Depth.ENVIRONMENT

    def folder(self, copy: str, server: str, database: str | None) -> str:
        """Return what follows the prefix of a store; an empty name is the primary.

        The prefix of a server is used as it is, and so is the one of a database.
        """
        depth = self.depths.get(copy_to.first_part(copy) if copy else "", Depth.ENVIRONMENT)
        folders = [folder_of(server)] if depth < Depth.SERVER else []
        if database is not None and depth < Depth.DATABASE:
            folders.append(folder_of(database))
        return "/".join(folders)


def _has_prefix(url: str) -> bool:
    try:
        return bool(store_url.parse(url.strip()).prefix)
    except ValueError:
        return False


def _split(variable: str) -> tuple[str, str]:
    """Return what a variable of a copy begins with, and the setting; of another, the setting."""
    setting = copy_to.setting_of(variable)
    return (variable.removesuffix(setting), setting) if setting else ("", variable)


def is_place(variable: str) -> bool:
    """Return whether a variable names a place of backups."""
    return _split(variable)[1] in (*_PLACES, _PREFIX)
