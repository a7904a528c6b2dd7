"""Reads a configuration file as TOML, and refuses one that others could change."""

from __future__ import annotations

import os
import stat
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pgstash.errors import ConfigurationError

_LARGEST = 32 * 1024 * 1024  # bytes; 5,000 databases with exceptions have less than one
PLAINTEXT = "allow_plaintext_secrets"


@dataclass(frozen=True, slots=True)
class Document:
    """A file that was read, with its ``mode``. ``table`` and ``content`` may hold secrets."""

    path: Path
    table: dict[str, Any] = field(repr=False)
    warnings: tuple[str, ...] = ()
    content: bytes = field(repr=False, default=b"")
    mode: int = 0

    @property
    def may_have_secrets(self) -> bool:
        """Whether secrets may be written into the file."""
        return self.table.get(PLAINTEXT) is True


def read(path: Path, copy: Path | None = None) -> Document:
    """Return what a file contains, or a copy of it. Raises ConfigurationError."""
    place = copy or path
    try:
        if not stat.S_ISREG(place.stat().st_mode):
            raise ConfigurationError([f"{path} is not a regular file."])
        with place.open("rb") as file:
            found = os.fstat(file.fileno())
            content = file.read(_LARGEST + 1)
    except OSError as error:
        raise ConfigurationError([f"{path} cannot be read: {error.strerror}."]) from error
    if found.st_mode & stat.S_IWOTH:
        problem = (
            f"{path} can be changed by every user of this machine, and so could the commands in "
            f"it. Run: chmod o-w {path}"
        )
        raise ConfigurationError([problem])
    if len(content) > _LARGEST:
        raise ConfigurationError([f"{path} is larger than 32 MiB."])
    try:
        table = tomllib.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise ConfigurationError([f"{path} is not UTF-8 text."]) from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError([f"{path} is not valid TOML: {error}."]) from None
    except ValueError:  # Python reads no number with thousands of digits
        raise ConfigurationError([f"{path} has a number that is too long."]) from None
    except RecursionError:
        raise ConfigurationError([f"{path} is nested too deeply."]) from None
    mode = stat.S_IMODE(found.st_mode)
    document = Document(path, table, (), content, mode)
    if document.may_have_secrets and found.st_mode & (stat.S_IROTH | stat.S_IRGRP):
        warning = f"{path} holds secrets, and other users can read it. Run: chmod 600 {path}"
        return Document(path, table, (warning,), content, mode)
    return document
