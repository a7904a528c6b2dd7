"""The source that the settings select, and the owners of stored backups."""

from __future__ import annotations

import contextlib
from datetime import datetime

from pgstash.errors import DatabaseError
from pgstash.format.identity import Identity
from pgstash.postgres.server import conninfo, login
from pgstash.repository.owners import Owners, Seen
from pgstash.settings import Settings
from pgstash.storage.interface import Storage

_SEEN: Seen = {}

_SECONDS_TO_ASK = 10


def server_clock(settings: Settings) -> datetime:
    """Return the time of the source server's clock. Raises DatabaseError."""
    return login.clock(settings.source_url, _SECONDS_TO_ASK)


def configured_source(settings: Settings) -> Identity | None:
    """Return the source as far as the settings identify it; None if they name none."""
    if not settings.has_source:
        return None
    return conninfo.identity(settings.source_url, settings.source_variables)


def source_that_answers(settings: Settings) -> Identity | None:
    """Ask the server for the identity of the source; return None if it does not answer."""
    with contextlib.suppress(DatabaseError):
        if settings.has_source:
            return login.identify(settings.source_url, _SECONDS_TO_ASK)
    return None


def owners_of(storage: Storage) -> Owners:
    """Return the owners of stored backups; the process reads the metadata of each only once."""
    return Owners(storage, _SEEN)
