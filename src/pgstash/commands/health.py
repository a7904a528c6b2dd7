"""Report health, according to the settings: is there a fresh backup."""

from __future__ import annotations

from datetime import UTC, datetime

from pgstash import events
from pgstash.check import freshness
from pgstash.commands.schedules import anchored
from pgstash.commands.source import owners_of, source_password
from pgstash.commands.storage import open_storage
from pgstash.errors import StaleBackupError
from pgstash.monitoring import messages
from pgstash.postgres.server import login
from pgstash.service import schedule
from pgstash.settings import Settings

_PING_SECONDS = 3

PASSWORD_SECONDS = 15.0
"""How long the command for the password may run. Docker kills the check after 30 seconds, but not
the command, which would stay."""


def healthcheck(settings: Settings) -> str:
    """Return a sentence if everything is healthy.

    Raises DatabaseError, StorageError or StaleBackupError: the first that occurs.
    """
    password = source_password(settings, PASSWORD_SECONDS)
    ours = login.identify(settings.source_url, _PING_SECONDS, password)
    storage = open_storage(settings, events.ignore, prompt=True)
    now = datetime.now(UTC)
    rule = stale_at(settings)
    plan = freshness.Plan(settings.backup_prefix, ours, rule, now)
    owners = owners_of(storage, may_read=not settings.only_writes)
    found = freshness.newest(plan, storage, owners)
    where = storage.url(settings.backup_prefix)
    if found is None:
        raise StaleBackupError(f"there is no recent backup under {where}")
    late = (now - rule(found.started)).total_seconds()
    age = messages.span((now - found.started).total_seconds())
    if late >= 0:
        raise StaleBackupError(
            f"the newest backup under {where}, {found.name}, is {age} old, "
            f"{messages.span(late)} too old"
        )
    return f"the database and the store answer, and the newest backup, {found.name}, is {age} old"


def stale_at(settings: Settings) -> freshness.StaleAt:
    """Return the rule of the schedule; an interval counts from the backup itself."""
    anchored_at = anchored(settings)
    return lambda last: schedule.stale_at(anchored_at(last), last)
