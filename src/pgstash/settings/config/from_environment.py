"""Writes a configuration file that means the same as the environment."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from pgstash.errors import ConfigurationError
from pgstash.postgres.server import conninfo, foreign_parameters
from pgstash.settings import copies, copy_to, env_file, roles, store_url
from pgstash.settings.config.sections import joined
from pgstash.settings.config.values import has_secret, setting_of
from pgstash.settings.copy_to import CopyStore
from pgstash.settings.model import Settings, is_secret
from pgstash.settings.storage import RetentionSettings

_SERVER = ("DATABASE_URL", "DATABASE_PASSWORD_COMMAND", "DATABASES")
_OF_A_STORE = CopyStore.model_fields.keys() - RetentionSettings.model_fields.keys()
_NAME = "main"
_PREFIX = "BACKUP_PREFIX"
_BARE = re.compile(r"true|false|(0|[1-9]\d*)(\.\d+)?")
_STAYING = re.compile(r"(PG|AWS_|AZURE_|GOOGLE_)[A-Z]")


def text(environ: Mapping[str, str] = os.environ, dotenv: Path = Path(".env")) -> str:
    """Return the file. Raises ConfigurationError if the source names no database."""
    problems: list[str] = []
    values = env_file.read(dotenv, problems) | {k: v for k, v in environ.items() if v}
    roles.settle(values)
    own = {name: value for name, value in sorted(values.items()) if _is_setting(name)}
    prefixes = dict(_prefixes(own))
    server, store = joined("servers", _NAME), _store(values)
    place = server
    if "DATABASES" not in own:
        place = joined("servers", _NAME, "database", _database(values))
    sections: dict[str, dict[str, str]] = {"defaults": {}, f"stores.{store}": {}, server: {}}
    sections.setdefault(place, {}).update(prefixes)
    for name, value in own.items():
        section = _section_of(name, server, store)
        if name not in prefixes:
            sections[section][name] = value
    lines = [*_heading(values)]
    for section, found in sections.items():
        lines += ["", f"[{section}]"]
        lines += [f'store = "{store}"'] if section == server else []
        lines += [_line(name, value) for name, value in found.items()]
    return "\n".join(lines) + "\n"


def _is_setting(variable: str) -> bool:
    base = variable.removesuffix("_FILE")
    if variable == "PGSTASH_CONFIG":
        return False
    if variable.lower() in Settings.model_fields or copy_to.setting_of(variable):
        return True
    return base.lower() in Settings.model_fields and is_secret(base.lower())


def _store(values: Mapping[str, str]) -> str:
    """Return a name for the store that no copy has: such a copy would get the store's settings."""
    name, taken = _NAME, copies.names(values)
    while name in taken:
        name += "-primary"
    return name


def _section_of(variable: str, server: str, store: str) -> str:
    base = variable.removesuffix("_FILE")
    if base in _SERVER:
        return server
    if base.lower() in _OF_A_STORE or base.startswith("COPY_"):
        return f"stores.{store}"
    return "defaults"


def _prefixes(values: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield the prefixes that the primary and the copies have: so they stay where they are."""
    stems = {
        variable.removesuffix(each)
        for variable in values
        for each in (_PREFIX, "STORAGE_URL")
        if variable.endswith(each)
    }
    for stem in sorted({"", *stems}):
        prefix = values.get(f"{stem}{_PREFIX}", "") or _in_url(values.get(f"{stem}STORAGE_URL", ""))
        if not prefix and not stem:
            prefix = Settings.model_fields["backup_prefix"].default
        if prefix:
            yield f"{stem}{_PREFIX}", prefix


def _in_url(url: str) -> str:
    try:
        return store_url.parse(url.strip()).prefix
    except ValueError:
        return ""


def _database(values: Mapping[str, str]) -> str:
    """Return the database of the source. Raises ConfigurationError."""
    url = values.get("DATABASE_URL", "")
    if path := values.get("DATABASE_URL_FILE"):
        url = Path(path).read_text(encoding="utf-8").strip()
    plain = foreign_parameters.without_ignored(url)[0]
    found = conninfo.parse(plain).get("dbname") if plain else None
    name = found or values.get("PGDATABASE")
    if not name:
        raise ConfigurationError(
            ["The source names no database. Name it in DATABASE_URL or in PGDATABASE."]
        )
    return name


def _heading(values: Mapping[str, str]) -> Iterator[str]:
    yield "# Made by `pgstash config from-env`. Variables that it refers to must stay set."
    staying = sorted(
        name
        for name in values
        if _STAYING.match(name) and name.lower() not in Settings.model_fields
    )
    if staying:
        yield f"# These are read from the environment, too: {', '.join(staying)}"


def _line(variable: str, value: str) -> str:
    key = variable.lower()
    if not setting_of(key):
        base = key.removesuffix("_file")
        return f"{base} = {{ file = {_quoted(str(Path(value).absolute()))} }}"
    if has_secret(setting_of(key), value):
        return f"{key} = {{ env = {_quoted(variable)} }}"
    typed = "str" not in repr(Settings.model_fields[setting_of(key)].annotation).lower()
    return f"{key} = {value if typed and _BARE.fullmatch(value) else _quoted(value)}"


def _quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007F")
