"""Which store a command reads from: the primary, a copy, or another place.

Without ``--from`` it is the primary. If that cannot be read at all, it is the first copy that can.
What is damaged in the primary is not silently taken from a copy: a hint names the option. Neither
does an older backup of a copy take the place of what a database holds now.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace

from pgstash import events
from pgstash.commands import copies
from pgstash.commands.storage import open_storage
from pgstash.errors import (
    BackupNotFoundError,
    ConfigurationError,
    CorruptedError,
    ObjectDamagedError,
    ObjectNotFoundError,
    StorageRefusedError,
    StorageUnreachableError,
    UnverifiedError,
)
from pgstash.settings import Settings
from pgstash.storage.interface import Storage

_UNREADABLE = (StorageUnreachableError, StorageRefusedError)
_INTACT_ELSEWHERE = (
    *_UNREADABLE,
    BackupNotFoundError,
    CorruptedError,
    ObjectDamagedError,
    ObjectNotFoundError,
    UnverifiedError,
)
_NO_COPY = "No copy can be read either."
_OPTION = "--from"
_NAMES = {each.__name__ for each in _INTACT_ELSEWHERE}


def of_copy(settings: Settings, origin: str | None) -> Settings:
    """Return the settings of the copy that ``--from`` names.

    Those given are returned if it names none, but a folder or a URL, which they contain, and those
    of all servers of a configuration file, each of which has its own copies. Raises
    ConfigurationError.
    """
    of_file = settings.origin.config is not None and not settings.origin.server
    if origin is None or "/" in origin or of_file:
        return settings
    wanted = origin.strip().lower().replace("-", "_")
    for name in settings.copy_names:
        if name.replace("-", "_") == wanted:
            return settings.of_copy(name)
    names = settings.copy_names
    known = f"COPY_TO, which names {', '.join(names)}" if names else "COPY_TO, which is not set"
    raise ConfigurationError(
        [f"--from {origin} is not in {known}. For a folder, write ./{origin}."],
    )


def readable(settings: Settings, emit: events.Emit, *, or_copy: bool = True) -> Settings:
    """Return the settings of the store to read: the primary, or else the first copy that answers.

    The primary is asked only if there are copies. If none answers, its own error is raised, and so
    it is unless a copy may be read instead (``or_copy``): then its hint names the copy.
    """
    if not settings.copy_names:
        return settings
    primary = open_storage(settings, emit)
    try:
        _ask(primary, settings)
    except _UNREADABLE as error:
        refused = error
    else:
        return settings
    for copy in copies.of(settings):
        try:
            _ask(copy.open(emit), copy.settings)
        except (*_UNREADABLE, ConfigurationError) as error:
            emit(events.Warned(f"The copy {copy.name} cannot be read either: {error.message}"))
        else:
            if not or_copy:
                refused.hint = f"{refused.hint}\n{_may_be_older(copy.name)}".strip()
                raise refused
            emit(
                events.Warned(
                    f"The primary store cannot be read: {refused.message}. Reading the copy "
                    f"{copy.name} instead. The primary may have newer backups"
                )
            )
            return copy.settings
    refused.hint = f"{refused.hint}\n{_NO_COPY}".strip()
    raise refused


def _may_be_older(copy: str) -> str:
    return (
        f"The copy {copy} can be read, but the primary may have newer backups, and this restore "
        f"deletes what the target holds. To restore from the copy, add {_OPTION} {copy}."
    )


def _ask(storage: Storage, settings: Settings) -> None:
    """Raise StorageError unless the backups can be listed."""
    next(iter(storage.list(f"{settings.backup_prefix}/backup_")), None)


@contextlib.contextmanager
def suggested(settings: Settings, emit: events.Emit) -> Iterator[events.Emit]:
    """Add the copies to the hint of what fails because of the store that is read.

    Yields where events go: those of a failure get the same hint.
    """

    def hint(own: str) -> str:
        more = "" if _NO_COPY in own or _OPTION in own else _others(settings)
        return f"{settings.as_written(own)}\n{more}".strip()

    def hinting(event: events.Event) -> None:
        if isinstance(event, events.RestoreFailed | events.DrillFailed) and event.error in _NAMES:
            event = replace(event, hint=hint(event.hint))
        emit(event)

    try:
        yield hinting
    except _INTACT_ELSEWHERE as error:
        error.hint = hint(error.hint)
        raise


def _others(settings: Settings) -> str:
    names = (settings.primary or settings).copy_names
    options = [f"{_OPTION} {name}" for name in names if name != settings.copy_name]
    return f"A copy may have it intact: {' or '.join(options)}" if options else ""


def is_configured(settings: Settings) -> bool:
    """Return whether a store can be opened: a copy is read without the settings of the primary."""
    keys = settings.s3_access_key_id, settings.s3_secret_access_key
    has_bucket = settings.s3_bucket is not None and (keys[0] is None) == (keys[1] is None)
    return settings.store is not None or has_bucket


def report(settings: Settings, emit: events.Emit) -> None:
    """Report which copy is read, if ``--from`` names one."""
    if settings.copy_name:
        url = open_storage(settings, events.ignore).url(settings.backup_prefix)
        emit(events.Informed(f"Reading the copy {settings.copy_name}: {url}/"))
