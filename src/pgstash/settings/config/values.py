"""One value of a configuration file: as text, as in the environment, or where it is found."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, get_args, get_origin

from pgstash.postgres.server import conninfo, foreign_parameters
from pgstash.settings import copy_to
from pgstash.settings.config.toml_file import PLAINTEXT
from pgstash.settings.model import Settings, is_secret, variable_of

REFERENCES = "{ env = … }, { file = … } or { command = [ … ] }"
_PATHS = ("/", "./", "../", "~/")

SEPARATED: dict[str, str] = {
    **dict.fromkeys(
        (
            "backup_encryption_recipients",
            "copy_to",
            "databases",
            "exclude_schemas",
            "exclude_table_data",
            "exclude_tables",
            "require_tables",
            "s3_tags",
            "worker_labels",
        ),
        ",",
    ),
    "backup_encryption_old_keys": "\n",
}
"""Settings that may be lists in the file, and what separates the values in the environment."""

WORDS = frozenset(
    {
        "database_password_command",
        "hook_after_backup",
        "hook_before_backup",
        "hook_verify",
        "pg_dump_extra_args",
        "restore_password_command",
    }
)
"""Settings that may be lists of words."""

# The ID of a key is shown by stores and in logs; connection strings have a part that may be secret.
_PUBLIC = "s3_access_key_id"
_CONNECTIONS = ("database_url", "queue_url", "restore_url", "verify_database_url")


class RefusedError(ValueError):
    """A value is refused; the reason follows the name of the key."""


@dataclass(frozen=True, slots=True)
class Reference:
    """Where a value is found: a variable, a file, or the output of a command."""

    kind: Literal["env", "file", "command"]
    target: str | tuple[str, ...]


def read(key: str, value: object, *, may_be_secret: bool) -> str | Reference:
    """Return a value as text, or a reference to it. Raises RefusedError.

    A secret is refused unless it ``may_be_secret``.
    """
    name = setting_of(key)
    if isinstance(value, dict):
        return _reference(value)
    text = _text(name, value)
    if text and not may_be_secret and has_secret(name, text):
        raise RefusedError(
            f"holds a secret. Write {REFERENCES}, or allow secrets in this file with "
            f"{PLAINTEXT} = true."
        )
    return text


def setting_of(key: str) -> str:
    """Return the setting that a key sets, also one of a copy; "" if it sets none."""
    name = key if key in Settings.model_fields else copy_to.setting_of(key.upper()).lower()
    return name if name in Settings.model_fields else ""


def holds_secret(key: str) -> bool:
    """Return whether a key may hold a secret."""
    return is_secret(setting_of(key))


def _text(name: str, value: object) -> str:
    types = set(_types(Settings.model_fields[name].annotation))
    if isinstance(value, bool) and bool in types:
        return str(value).lower()
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(value, str) or (number and {bool, int, float} & types):
        text = str(value)
        if "\0" in text:
            raise RefusedError("contains a NUL character.")
        return text
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        if name in WORDS:
            return shlex.join(value)
        if name in SEPARATED:
            return _joined(value, SEPARATED[name])
    quotes = "" if {bool, int, float} & types else ", in quotes"
    raise RefusedError(f"must be {variable_of(name).expected}{quotes}.")


def _types(annotation: object) -> Iterator[object]:
    """Yield the types that the values of a setting may have."""
    parts = get_args(annotation)
    for part in parts[:1] if get_origin(annotation) is Annotated else parts:
        yield from _types(part)
    if not parts:
        yield annotation


def _joined(values: Sequence[str], separator: str) -> str:
    if any(not each.strip() or separator in each for each in values):
        what = "a comma" if separator == "," else "a line break"
        raise RefusedError(f"has a value that is empty or contains {what}.")
    return separator.join(values)


def _reference(value: dict[str, object]) -> Reference:
    kinds: Collection[str] = value.keys()
    if kinds == {"env"} and isinstance(name := value["env"], str) and name:
        return Reference("env", name)
    if kinds == {"file"} and isinstance(path := value["file"], str) and path:
        return Reference("file", path)
    if kinds == {"command"} and isinstance(words := value["command"], list):
        strings = [each for each in words if isinstance(each, str)]
        if words and len(strings) == len(words) and words[0]:
            return Reference("command", tuple(strings))
    raise RefusedError(f"must be a value, or one of {REFERENCES}.")


def has_secret(name: str, text: str) -> bool:
    """Return whether the value of a setting is, or contains, a secret."""
    if not is_secret(name) or name == _PUBLIC:
        return False
    if name in _CONNECTIONS:
        return _has_password(text)
    return not (name == "backup_decryption_identity" and text.startswith(_PATHS))


def _has_password(url: str) -> bool:
    """Return whether a connection string holds a secret; one that cannot be read may hold any."""
    try:
        given = conninfo.parse(foreign_parameters.without_ignored(url)[0])
    except ValueError:
        return "@" in url and ":" in url.partition("://")[2].rpartition("@")[0]
    return bool(conninfo.SECRETS & given.keys())
