"""What the store has of each job, so that a restarted service knows what is due."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from pgstash import events
from pgstash.check import freshness
from pgstash.commands import health, job_runs
from pgstash.commands.jobs import Job, Jobs
from pgstash.commands.source import owners_of, source_that_answers
from pgstash.commands.storage import open_storage
from pgstash.errors import PgstashError
from pgstash.format.identity import Identity
from pgstash.postgres.server import conninfo
from pgstash.repository import catalog, databases
from pgstash.runtime import Runtime
from pgstash.service.dispatcher import Stored
from pgstash.settings import Settings, jobs
from pgstash.storage.interface import Storage


def stored(every: Sequence[Job], runtime: Runtime) -> dict[str, Stored]:
    """Return what the store has of each job, as far as it answers.

    A store that does not answer is asked once, and not again for each job: what is not known is
    due at once.
    """
    survey, found = _Survey(), dict[str, Stored]()
    for job in every:
        place = _place(job.settings)
        if place in survey.silent:
            continue
        try:
            found[job.name] = survey.of(job, place, runtime.now())
        except PgstashError as error:
            survey.silent.add(place)
            what = f"Could not find the newest backup of each job: {error.message}"
            runtime.emit(events.Warned(what))
        runtime.interruption.raise_if_interrupted()
    return found


_Place = tuple[str | None, ...]


def _place(settings: Settings) -> _Place:
    """Return what distinguishes the stores of jobs, and the identities that ask them."""
    key = settings.s3_access_key_id
    return (
        settings.storage_url,
        settings.s3_url,
        settings.s3_bucket,
        key.get_secret_value() if key else None,
        settings.s3_role_arn,
    )


class _Survey:
    """Opens each store, and asks each server who it is, once for all jobs."""

    def __init__(self) -> None:
        self.silent: set[_Place] = set()
        self._stores: dict[_Place, Storage] = {}
        self._servers: dict[str, Identity] = {}

    def of(self, job: Job, place: _Place, now: datetime) -> Stored:
        """Return what the store has of a job. Raises StorageError."""
        settings = job.settings
        if place not in self._stores:
            self._stores[place] = open_storage(settings, events.ignore, prompt=True)
        storage = self._stores[place]
        owners = owners_of(storage, may_read=not settings.only_writes)
        source = self._source(settings)
        plan = freshness.Plan(settings.backup_prefix, source, health.stale_at(settings), now)
        newest = freshness.newest(plan, storage, owners)
        proof = None
        if isinstance(settings.verify_interval, int):
            backups = catalog.read(storage, settings.backup_prefix).backups
            proven = owners.last_proven(backups, source, now)
            proof = proven.proven_by(now) if proven else None
        return Stored(newest.started if newest else None, proof)

    def _source(self, settings: Settings) -> Identity:
        configured = conninfo.identity(settings.source_url, settings.source_variables)
        server = job_runs.server_of(settings)
        if server not in self._servers:
            self._servers[server] = source_that_answers(settings) or configured
        return replace(self._servers[server], database=configured.database)


def gone(settings: Settings, found: Jobs, runtime: Runtime) -> None:
    """Report the databases that have backups under the prefix, but are not on the server."""
    chosen = jobs.selection(settings)
    if chosen is None or settings.only_writes:
        return
    there = {*(job.name for job in found.jobs), *found.missing, *found.closed, *found.invalid}
    try:
        storage = open_storage(settings, events.ignore, prompt=True)
        names = databases.with_folder(storage, settings.backup_prefix)
    except PgstashError as error:
        runtime.emit(events.Notice(f"The databases with backups are unknown: {error.message}"))
        return
    if left := [name for name in names if name not in there and chosen.has(name)]:
        what = f"Databases with backups that the server does not have: {job_runs.named(left)}"
        runtime.emit(events.Informed(what))
