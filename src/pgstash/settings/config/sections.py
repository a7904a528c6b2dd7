"""The sections of a configuration file, and which keys each may have."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from pgstash.settings.config.toml_file import PLAINTEXT, Document
from pgstash.settings.config.values import Reference, RefusedError, holds_secret, read, setting_of
from pgstash.settings.copy_to import CopyStore
from pgstash.settings.fleet import LABEL, LABELS
from pgstash.settings.model import Settings

OF_THE_PROCESS = frozenset(
    {
        "debug",
        "exit_on_first_failure",
        "health_port",
        "log_format",
        "queue_url",
        "worker_grace",
        "worker_labels",
        "worker_timeout",
        "workers",
    }
)
"""Settings that jobs cannot have each for its own."""

MOST_LABELS = 3
"""How many labels a server or a database may have."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}", re.ASCII)
_BARE = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)
_TABLES = ("defaults", "stores", "servers")

_EVERY = frozenset(Settings.model_fields) - {"pgstash_config"}
_OF_A_STORE = frozenset(CopyStore.model_fields) | {"copy_to"}


class Depth(IntEnum):
    """How special a value is: the highest takes precedence."""

    ENVIRONMENT = 0
    DEFAULTS = 1
    STORE = 2
    SERVER = 3
    DATABASE = 4


SETTINGS: Mapping[Depth, frozenset[str]] = {
    Depth.DEFAULTS: _EVERY,
    Depth.STORE: _OF_A_STORE,
    Depth.SERVER: _EVERY - OF_THE_PROCESS,
    Depth.DATABASE: _EVERY - OF_THE_PROCESS - {"databases"},
}
"""The settings that a section may have."""

OTHER_KEYS: Mapping[Depth, frozenset[str]] = {
    Depth.DEFAULTS: frozenset({"store"}),
    Depth.STORE: frozenset(),
    Depth.SERVER: frozenset({"database", "labels", "store"}),
    Depth.DATABASE: frozenset({"labels", "store"}),
}
"""Its other keys."""


@dataclass(frozen=True, slots=True)
class Section:
    """A section that was read: ``values`` by variable. They may be secret.

    ``of_copy`` is the name of the copy whose store the section is; ``refused`` are the variables
    whose values are problems.
    """

    path: str
    depth: Depth
    values: Mapping[str, str | Reference] = field(default_factory=dict, repr=False)
    problems: tuple[str, ...] = ()
    store: str = ""
    labels: tuple[str, ...] = ()
    of_copy: str = ""
    refused: frozenset[str] = frozenset()


def joined(*keys: str) -> str:
    """Return the path of a key, as it is written in a header: ``servers.eu.database."My Shop"``."""
    return ".".join(
        each if _BARE.fullmatch(each) else json.dumps(each, ensure_ascii=False) for each in keys
    )


def tables(document: Document, name: str) -> dict[str, Any]:
    """Return the stores or the servers; those that are not tables are reported by :func:`odd`."""
    found = document.table.get(name, {})
    return found if isinstance(found, dict) else {}


def databases(server: object) -> dict[str, Any]:
    """Return the tables of exceptions that a server has, by database."""
    found = server.get("database", {}) if isinstance(server, dict) else {}
    return found if isinstance(found, dict) else {}


def odd(document: Document) -> Iterator[str]:
    """Yield the problems of what is in no section: unknown tables, and their names."""
    for key in document.table:
        if key not in (*_TABLES, PLAINTEXT):
            near = _near(key, [*_TABLES, PLAINTEXT])
            yield f"{joined(key)} is not a section of this file.{near}"
    if not isinstance(document.table.get(PLAINTEXT, False), bool):
        yield f"{PLAINTEXT} must be true or false."
    for name in ("stores", "servers"):
        if not isinstance(document.table.get(name, {}), dict):
            yield f"{name} must be tables, such as [{name}.main]."
        for each in tables(document, name):
            if not _NAME.fullmatch(each):
                yield (
                    f"{joined(name, each)} is not a usable name: it must begin with a letter or "
                    "a digit, and have at most 63 letters, digits, '-', '_' and '.'."
                )
    if not tables(document, "servers"):
        yield "servers is missing: add a table such as [servers.main]."


def section(table: object, path: str, depth: Depth, *, may_have_secrets: bool) -> Section:
    """Read one section."""
    if not isinstance(table, dict):
        return Section(path, depth, problems=(f"{path} must be a table.",))
    values: dict[str, str | Reference] = {}
    problems, refused = [], set()
    for key, value in table.items():
        where = f"{path}.{joined(key)}"
        if key in OTHER_KEYS[depth]:
            continue
        if not is_allowed(key, depth):
            problems.append(f"{where} {_refusal(key, depth)}")
            continue
        try:
            values[key.upper()] = read(key, value, may_be_secret=may_have_secrets)
        except RefusedError as error:
            refused.add(key.upper())
            problems.append(f"{where} {error}")
    other = OTHER_KEYS[depth]
    store = table.get("store", "") if "store" in other else ""
    if not isinstance(store, str) or (not store and "store" in table):
        problems.append(f"{path}.store must be the name of a store.")
        store = ""
    labels = table.get("labels", []) if "labels" in other else []
    if not isinstance(labels, list) or not all(isinstance(each, str) for each in labels):
        problems.append(f"{path}.labels must be a list of strings.")
        labels = []
    elif len(labels) > MOST_LABELS or not all(map(LABEL.fullmatch, labels)):
        problems.append(f"{path}.labels must be at most {MOST_LABELS} {LABELS}.")
    if "database" in other and not isinstance(table.get("database", {}), dict):
        problems.append(f"{path}.database must be tables, such as [{path}.database.shop].")
    return Section(
        path, depth, values, tuple(problems), store, tuple(labels), refused=frozenset(refused)
    )


def is_allowed(key: str, depth: Depth) -> bool:
    """Return whether a section may have a setting. Keys are in lower case."""
    of_copy = key == key.lower() and key not in Settings.model_fields
    return key in SETTINGS[depth] or (of_copy and bool(setting_of(key)))


def _refusal(key: str, depth: Depth) -> str:
    """Return why a key is refused, and what to do."""
    if key != key.lower() and is_allowed(key.lower(), depth):
        return f"must be in lower case: {key.lower()}."
    base = key.lower().removesuffix("_file")
    if base != key.lower() and is_allowed(base, depth) and holds_secret(base):
        return f"is not a setting of this file. Write {base} = {{ file = … }}."
    if key in Settings.model_fields:
        return _misplaced(key, depth)
    return f"is not a setting.{_near(key.lower(), [*SETTINGS[depth], *OTHER_KEYS[depth]])}"


def _misplaced(key: str, depth: Depth) -> str:
    if key not in _EVERY:
        return "cannot be set in the file itself."
    if key in OF_THE_PROCESS:
        return "is the same for all jobs. Move it to [defaults]."
    if depth == Depth.STORE:
        return "is not a setting of a store. Move it to [defaults], a server or a database."
    return "cannot be set for one database. Move it to the server."


def _near(key: str, known: Collection[str]) -> str:
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    return f" Did you mean {close[0]}?" if close else ""
