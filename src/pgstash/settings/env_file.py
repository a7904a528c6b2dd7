"""The ``.env`` file of the working directory."""

from __future__ import annotations

from pathlib import Path

from dotenv.parser import parse_stream

from pgstash.settings import copy_to
from pgstash.settings.model import Settings


def read(path: Path, problems: list[str]) -> dict[str, str]:
    """Return the variables of the file that are not empty; add what is wrong to ``problems``."""
    try:
        if not path.is_file():
            return {}
        with path.open(encoding="utf-8-sig") as file:
            # The parser does not interpolate: a "$" in a password stays a "$".
            bindings = list(parse_stream(file))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        problems.append(f"{path} cannot be read: {reason}")
        return {}
    values = {}
    for binding in bindings:
        text = binding.original.string
        blank = text[: len(text) - len(text.lstrip())]
        where = f"{path}, line {binding.original.line + blank.count(chr(10))},"
        if binding.error or (binding.key and binding.value is None):
            # Do not skip it: it could be the line that turns encryption on.
            problems.append(f"{where} is not NAME=value, or a quote is missing.")
        elif binding.key and _is_ours(binding.key) and "\n" in text.strip():
            # A quote in a later line may complete one missing here, and hide the lines between.
            problems.append(f"{where} starts a value of several lines, or a quote is missing.")
        elif binding.key:
            values[binding.key] = binding.value or ""
    return {name: value for name, value in values.items() if value}


def _is_ours(variable: str) -> bool:
    name = variable.removesuffix("_FILE").lower()
    own = name in Settings.model_fields or bool(copy_to.setting_of(variable))
    return own or variable.startswith("PG")
