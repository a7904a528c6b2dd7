"""The configuration file of a running service: read again when it changes, or on SIGHUP."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

from pgstash import events
from pgstash.counting import counted
from pgstash.errors import ConfigurationError
from pgstash.monitoring import redaction
from pgstash.settings import Settings
from pgstash.settings.config import file
from pgstash.settings.config.file import Config

SECONDS_BETWEEN_LOOKS = 10.0
"""How often the files are compared with what they were."""

SECONDS_TO_SETTLE = 1.0
"""How long a file must stay as it is: what is still being written is not read."""

# What is settled when the process starts, by the names of the file.
_OF_PROCESS = ("health_port", "log_format", "debug")

_Signature = tuple[tuple[int, ...] | None, ...]


class ConfigFile:
    """The file, with the files of the secrets that it refers to.

    ``snapshot`` is a descriptor with its content: jobs run with that, whatever becomes of the file.
    """

    def __init__(self, config: Config) -> None:
        """Take the file as it was read."""
        self._config = config
        self._watched = [config.path, *_files_of_secrets(config)]
        self._seen = _signature(self._watched)
        self._changing: _Signature | None = None
        self._look_at = time.monotonic() + SECONDS_BETWEEN_LOOKS
        self.snapshot = _in_memory(config)
        self._is_asked = _content(config.path) != config.document.content

    def ask(self) -> None:
        """Let it be read, whether or not it has changed. A handler of signals may call this."""
        self._is_asked = True

    def close(self) -> None:
        """Close the snapshot; processes that have it keep it."""
        os.close(self.snapshot)

    def seconds_to_look(self) -> float:
        """Return when :meth:`is_due` is worth another call."""
        return 0.0 if self._is_asked else max(0.0, self._look_at - time.monotonic())

    def is_due(self) -> bool:
        """Return whether to read the file: it, or one of the others, has changed and is settled."""
        if self._is_asked:
            return True
        if time.monotonic() < self._look_at:
            return False
        found = _signature(self._watched)
        if found in (self._seen, self._changing):
            self._look_at = time.monotonic() + SECONDS_BETWEEN_LOOKS
            return found != self._seen
        self._changing = found
        self._look_at = time.monotonic() + SECONDS_TO_SETTLE
        return False

    def read(self) -> Settings:
        """Read the file again, and check all of it; return the settings of all its jobs.

        Raises ConfigurationError with all problems; then everything stays as it was.
        """
        self._is_asked, self._changing = False, None
        self._seen = _signature(self._watched)
        config = file.opened(self._config.request)
        if config is None:
            raise ConfigurationError(["PGSTASH_CONFIG names no file any more."])
        # Before all else is read, which takes seconds in a large file: a change from now on is seen
        # later. One since the file was read is asked for. What a refused file lacks is awaited too.
        files = [config.path, *_files_of_secrets(config)]
        self._watched = list(dict.fromkeys([*self._watched, *files]))
        self._seen = _signature(self._watched)
        self._is_asked |= _content(config.path) not in (None, config.document.content)
        config.check()
        found = config.process()
        redaction.learn(found.secrets(), origin="defaults")
        snapshot = _in_memory(config)
        self.close()
        self._config, self.snapshot = config, snapshot
        seen = dict(zip(self._watched, self._seen, strict=True))
        self._watched, self._seen = files, tuple(seen[each] for each in files)
        return found


def refused(error: ConfigurationError) -> events.BackupFailed:
    """Return the report of a file that is not read again: new jobs in it are not backed up."""
    return events.BackupFailed(
        "the configuration file",
        0.0,
        f"it is not read again, because of {counted(len(error.problems), 'problem')}:\n{error}",
        "Correct it. Until then, the service continues with the configuration that it had.",
        error=type(error).__name__,
        exit_code=error.exit_code,
    )


def reports(before: Settings, after: Settings) -> Iterator[events.Event]:
    """Yield reports of settings that were read again, and of those that wait for a new start."""
    yield events.Informed("The configuration file was read again")
    waiting = [name for name in _OF_PROCESS if getattr(before, name) != getattr(after, name)]
    if waiting:
        yield events.Warned(f"Needs a new start of the service to change: {', '.join(waiting)}")
    for warning in after.warnings():
        if warning not in before.warnings():
            yield events.Warned(warning)


def differs(before: Settings | None, after: Settings) -> bool:
    """Return whether the settings of a job are known, and others now."""
    return before is not None and vars(before) != vars(after)


def _files_of_secrets(config: Config) -> list[Path]:
    found = dict.fromkeys(_names_of_files(config.document.table))
    return [config.path.parent / name for name in found]


def _names_of_files(value: object) -> Iterator[str]:
    """Yield the names in ``{ file = "…" }``, however deep."""
    waiting = [value]
    while waiting:
        each = waiting.pop()
        if isinstance(each, dict):
            if isinstance(name := each.get("file"), str):
                yield name
            waiting.extend(each.values())


def _signature(paths: list[Path]) -> _Signature:
    """Return what changes with the content of files, and when another file takes the place."""

    def of(path: Path) -> tuple[int, ...] | None:
        try:
            found = path.stat()
        except OSError:
            return None
        return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_mode

    return tuple(map(of, paths))


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None


def _in_memory(config: Config) -> int:
    """Return a descriptor with the content of the file, and its permissions, which are checked."""
    descriptor = os.memfd_create(config.path.name, os.MFD_CLOEXEC)
    with open(descriptor, "wb", closefd=False) as copy:
        copy.write(config.document.content)
    os.fchmod(descriptor, config.document.mode | 0o400)
    return descriptor
