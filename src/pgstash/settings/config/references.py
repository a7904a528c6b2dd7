"""Finds the values that a configuration file refers to; each command runs once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pgstash.errors import DatabaseLoginError
from pgstash.processes.password_command import PasswordCommand
from pgstash.settings import preparation
from pgstash.settings.config.values import Reference

_VALUE = "VALUE"


class UnknownError(Exception):
    """A value cannot be found; the message follows the name of the key."""


@dataclass(frozen=True, slots=True)
class Finder:
    """Finds values. ``variables`` may hold secrets; relative paths are of the ``folder``.

    ``visible`` are the variables that a command gets.
    """

    folder: Path
    variables: Mapping[str, str] = field(repr=False)
    visible: Mapping[str, str] = field(repr=False)
    _printed: dict[tuple[str, ...], str | UnknownError] = field(default_factory=dict, repr=False)

    def find(self, reference: Reference) -> str:
        """Return the value of a reference. Raises UnknownError."""
        if isinstance(reference.target, tuple):
            return self._output(reference.target)
        if reference.kind == "env":
            value = self.variables.get(reference.target, "")
            if not value:
                raise UnknownError(f"refers to the variable {reference.target}, which is not set.")
            return value
        return self._content(self.folder / reference.target)

    def _content(self, path: Path) -> str:
        values, problems = {f"{_VALUE}_FILE": str(path)}, list[str]()
        if preparation.read_secret_file(_VALUE, values, problems):
            return values[_VALUE]
        raise UnknownError("; ".join(problems).removeprefix(f"{_VALUE}_FILE ") + ".")

    def _output(self, command: tuple[str, ...]) -> str:
        if command not in self._printed:
            run = PasswordCommand(f"the command {command[0]}", command, self.visible, _ignore)
            try:
                self._printed[command] = run()
            except DatabaseLoginError as error:
                self._printed[command] = UnknownError(f"could not be read: {error.message}.")
        found = self._printed[command]
        if isinstance(found, UnknownError):
            raise found
        return found


def _ignore(_secrets: object) -> None:
    """Learn nothing: the value becomes a setting, and is removed from output as one."""
