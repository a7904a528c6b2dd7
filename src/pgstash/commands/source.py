"""The source that the settings select, and the owners of stored backups."""

from __future__ import annotations

import contextlib
from datetime import datetime
from functools import partial

from pgstash.errors import DatabaseError
from pgstash.format.identity import Identity
from pgstash.monitoring import redaction
from pgstash.postgres.server import conninfo, login
from pgstash.postgres.server.connection import Password
from pgstash.processes import hooks
from pgstash.processes.password_command import SECONDS, PasswordCommand
from pgstash.repository.owners import Owners, Seen
from pgstash.settings import Settings, environment, secret_variables
from pgstash.storage.interface import Storage

_SEEN: Seen = {}

_SECONDS_TO_ASK = 10


def source_password(settings: Settings, seconds: float = SECONDS) -> Password | None:
    """Return what provides passwords for logins to the source; None if nothing is set.

    The command may run for ``seconds``.
    """
    command = settings.database_password_command
    name = "DATABASE_PASSWORD_COMMAND"
    return _password(settings, name, command, seconds) if command else None


def target_password(settings: Settings) -> Password | None:
    """Return the same for the target of a restore."""
    command = settings.restore_password_command
    return _password(settings, "RESTORE_PASSWORD_COMMAND", command) if command else None


def _password(settings: Settings, name: str, command: str, seconds: float = SECONDS) -> Password:
    # It may log in to a cloud by what the environment holds, but needs no secret of pgstash's own.
    hidden = secret_variables(settings)
    visible = {key: value for key, value in environment().items() if key not in hidden}
    learn = partial(redaction.learn, origin=name)
    return PasswordCommand(name, hooks.words(command), visible, learn, seconds)


def server_clock(settings: Settings) -> datetime:
    """Return the time of the source server's clock. Raises DatabaseError."""
    return login.clock(settings.source_url, _SECONDS_TO_ASK, source_password(settings))


def configured_source(settings: Settings) -> Identity | None:
    """Return the source as far as the settings identify it; None if they name none."""
    if not settings.has_source:
        return None
    return conninfo.identity(settings.source_url, settings.source_variables)


def source_that_answers(settings: Settings) -> Identity | None:
    """Ask the server for the identity of the source; return None if it does not answer."""
    with contextlib.suppress(DatabaseError):
        if settings.has_source:
            password = source_password(settings)
            return login.identify(settings.source_url, _SECONDS_TO_ASK, password)
    return None


def owners_of(storage: Storage, *, may_read: bool = True) -> Owners:
    """Return the owners of stored backups; the process reads the metadata of each only once."""
    return Owners(storage, _SEEN) if may_read else Owners(storage, may_read=False)
