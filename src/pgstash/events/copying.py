"""Events of copies of backups in other stores. ``copy`` names the copy for people."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from pgstash.errors import EXIT_UNEXPECTED
from pgstash.events.base import Event


@dataclass(frozen=True, slots=True)
class CopyStarted(Event):
    """The copying of a backup of ``stored_bytes`` starts."""

    name: str
    copy: str
    stored_bytes: int


@dataclass(frozen=True, slots=True)
class CopyProgressed(Event):
    """Bytes of the archive copied so far, of ``total``: sent, or copied by the store itself."""

    name: str
    sent_bytes: int
    total: int


@dataclass(frozen=True, slots=True)
class CopySucceeded(Event):
    """A backup is complete in the copy.

    ``sent_bytes`` were sent, none if everything was there ``already``. ``inside_bytes`` were copied
    by the store itself. If ``verified`` is False, no digest was known to compare the archive with;
    None if the archive was not copied.
    """

    name: str
    copy: str
    location: str
    seconds: float
    sent_bytes: int
    already: bool
    verified: bool | None
    inside_bytes: int = 0


@dataclass(frozen=True, slots=True)
class CopyFailed(Event):
    """A backup was not copied, or no backup could be; then ``name`` is empty.

    ``after_backup`` is whether a backup that is complete was to be copied: then it is a warning.
    """

    name: str
    copy: str
    seconds: float
    message: str
    hint: str
    after_backup: bool
    error: str = ""
    exit_code: int = EXIT_UNEXPECTED
    host: str = ""
    database: str = ""


@dataclass(frozen=True, slots=True)
class CopyCompared(Event):
    """A copy was compared with the primary: its newest backup of the source, started ``at``.

    ``missing`` is the number of backups that are still to be copied; None, like the newest, if the
    copy could not be read. ``problem`` is why not all of them were copied.
    """

    copy: str
    newest: str | None
    at: datetime | None
    missing: int | None
    problem: str = ""
