"""The names of ``COPY_TO``, and the variables of each copy: ``COPY_OFFSITE_S3_BUCKET``.

A copy is another place for the same backups. Each setting of a store and of its retention is a
setting of a copy too, with ``COPY_``, the name in upper case and ``_`` before it.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Annotated

from pydantic import AfterValidator

from pgstash.settings.declaration import Group, setting
from pgstash.settings.other_stores import OtherStoreSettings
from pgstash.settings.storage import RetentionSettings, StorageSettings

_FIRST = "COPY_"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}", re.ASCII)
_WORD = re.compile(r"\b[A-Z][A-Z0-9_]+\b", re.ASCII)


class CopyStore(RetentionSettings, OtherStoreSettings, StorageSettings):
    """The store of one copy, and how long backups are kept there."""


INHERITED = frozenset({"backup_prefix", "retry_attempts", "retry_delay"}).union(
    RetentionSettings.model_fields
)
"""The fields that a copy takes from the primary unless they are set for the copy."""

_SECRET = {
    name.upper()
    for name, field in CopyStore.model_fields.items()
    if "SecretStr" in repr(field.annotation)
}
_FILES = {f"{name}_FILE" for name in _SECRET}
VARIABLES = frozenset({name.upper() for name in CopyStore.model_fields} | _FILES)
"""What may follow the name of a copy in a variable."""


def parse(text: str) -> list[str]:
    """Return the names in lower case. Raises ValueError with the reason."""
    found: dict[str, str] = {}
    for name in (each.strip().lower() for each in text.split(",")):
        if not _NAME.fullmatch(name):
            raise ValueError(
                "has a name that is empty, begins with '-' or '_', has more than 32 characters, or "
                "others than letters, digits, '-' and '_'"
            )
        if other := found.get(first_part(name)):
            if other == name:
                raise ValueError(f"has {name} twice")
            raise ValueError(f"has {other} and {name}, whose settings have the same names")
        found[first_part(name)] = name
    return list(found.values())


def _normalised(text: str) -> str:
    return ",".join(parse(text))


class CopyToSettings(Group):
    """Where copies of backups go."""

    copy_to: Annotated[str, AfterValidator(_normalised)] | None = setting(
        "Copies",
        "names such as offsite,disk",
        "Other stores with copies of the backups. Each has settings of its own, with `COPY_` and "
        "the name before them: `COPY_OFFSITE_STORAGE_URL`.",
        default=None,
    )


def first_part(name: str) -> str:
    """Return what the variables of a copy begin with: ``COPY_OFFSITE_``."""
    return f"{_FIRST}{name.upper().replace('-', '_')}_"


def split(variable: str, names: Collection[str]) -> tuple[str, str] | None:
    """Return the copy that a variable belongs to, and the setting; None if it is of none of them.

    The setting may be misspelt.
    """
    matching = [
        (name, variable.removeprefix(first_part(name)))
        for name in sorted(names, key=len, reverse=True)
        if variable.startswith(first_part(name))
    ]
    known = [each for each in matching if each[1] in VARIABLES]
    return next(iter(known or matching), None)


def setting_of(variable: str) -> str:
    """Return the setting that a variable of any copy sets, named in COPY_TO or not; "" if none."""
    if not variable.startswith(_FIRST):
        return ""
    return next((each for each in VARIABLES if variable.endswith(f"_{each}")), "")


def name_in(variable: str) -> str:
    """Return the name in a variable that sets a setting of a copy, in lower case."""
    return variable.removeprefix(_FIRST).removesuffix(f"_{setting_of(variable)}").lower()


def is_secret(variable: str) -> bool:
    """Return whether a variable holds a secret of a copy, or names the file that does."""
    return setting_of(variable) in _SECRET | _FILES


def as_written(text: str, name: str, others: Collection[str] = ()) -> str:
    """Return a message about a store with its settings as they are named for a copy.

    ``others`` are misspelt ones.
    """

    def written(word: re.Match[str]) -> str:
        known = word[0] in VARIABLES or word[0] in others
        return f"{first_part(name)}{word[0]}" if known else word[0]

    return _WORD.sub(written, text)
