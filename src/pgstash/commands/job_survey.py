"""What the store has of each job, so that a restarted service knows what is due."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from pgstash import events
from pgstash.check import freshness
from pgstash.commands import health, job_runs
from pgstash.commands.job_runs import server_of
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
from pgstash.workers import answers


def stored(every: Sequence[Job], runtime: Runtime) -> dict[str, Stored]:
    """Return what the store has of each job, as far as it answers.

    Several servers and stores are asked at a time. A store that does not answer is not asked again
    for each job: what is not known is due at once.
    """
    survey = _Survey(every)
    answers(survey.identify, survey.servers)
    answers(survey.open, survey.places)
    runtime.interruption.raise_if_interrupted()
    now = runtime.now()
    known = answers(lambda job: survey.of(job, now), every)
    for reason in survey.silent.values():
        runtime.emit(events.Warned(f"Could not find the newest backup of each job: {reason}"))
    return {job.name: found for job, found in zip(every, known, strict=True) if found}


_Place = tuple[str | None, ...]


def place_of(settings: Settings) -> _Place:
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
    """Opens each store, and asks each server who it is, once for all jobs.

    Several threads use it at once; each writes what no other does, but for the reasons why stores
    are ``silent``, of which the last one stays.
    """

    def __init__(self, every: Sequence[Job]) -> None:
        self.silent: dict[_Place, str] = {}
        self._first_of_place = {place_of(job.settings): job.settings for job in every[::-1]}
        self._first_of_server = {server_of(job.settings): job.settings for job in every[::-1]}
        self._stores: dict[_Place, Storage] = {}
        self._servers: dict[str, Identity] = {}

    @property
    def places(self) -> list[_Place]:
        """What distinguishes the stores."""
        return list(self._first_of_place)

    @property
    def servers(self) -> list[str]:
        """What distinguishes the servers."""
        return list(self._first_of_server)

    def identify(self, server: str) -> None:
        """Ask a server who it is."""
        settings = self._first_of_server[server]
        self._servers[server] = source_that_answers(settings) or _configured(settings)

    def open(self, place: _Place) -> None:
        """Open a store."""
        settings = self._first_of_place[place]
        try:
            self._stores[place] = open_storage(settings, events.ignore, prompt=True)
        except PgstashError as error:
            self.silent[place] = error.message

    def of(self, job: Job, now: datetime) -> Stored | None:
        """Return what the store has of a job; None if it does not answer."""
        settings, place = job.settings, place_of(job.settings)
        if place in self.silent:
            return None
        try:
            return self._stored(settings, self._stores[place], now)
        except PgstashError as error:
            self.silent[place] = error.message
            return None

    def _stored(self, settings: Settings, storage: Storage, now: datetime) -> Stored:
        owners = owners_of(storage, may_read=not settings.only_writes)
        server = self._servers[server_of(settings)]
        source = replace(server, database=_configured(settings).database)
        plan = freshness.Plan(settings.backup_prefix, source, health.stale_at(settings), now)
        newest = freshness.newest(plan, storage, owners)
        proof = None
        if isinstance(settings.verify_interval, int):
            backups = catalog.read(storage, settings.backup_prefix).backups
            proven = owners.last_proven(backups, source, now)
            proof = proven.proven_by(now) if proven else None
        return Stored(newest.started if newest else None, proof)


def _configured(settings: Settings) -> Identity:
    return conninfo.identity(settings.source_url, settings.source_variables)


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
