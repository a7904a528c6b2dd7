"""The state of all jobs: by the store, and by the server if it answers."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Literal

from pgstash import events
from pgstash.check import state
from pgstash.check.state import State
from pgstash.commands import copies
from pgstash.commands.jobs import Job, on_server
from pgstash.commands.schedules import next_run, schedule_of
from pgstash.commands.source import configured_source, owners_of, source_that_answers
from pgstash.commands.storage import open_storage
from pgstash.copying import behind
from pgstash.errors import (
    ConfigurationError,
    DatabaseError,
    StorageError,
    StorageUnreachableError,
)
from pgstash.format.identity import Identity
from pgstash.repository import catalog
from pgstash.repository import databases as stored_databases
from pgstash.repository.catalog import Backup
from pgstash.repository.object_metadata import in_parallel
from pgstash.settings import Settings, jobs
from pgstash.settings.config.file import Config
from pgstash.storage.interface import Storage

Condition = Literal["unknown", "never", "stale", "ok", "gone"]
"""``never``: a job without a backup. ``gone``: no job any more, but there are backups.
``unknown``: its backups cannot be read."""

_WORST_FIRST: Sequence[Condition] = ("never", "unknown", "stale", "ok", "gone")
_BAD = ("never", "unknown", "stale")
_BEFORE = timedelta(seconds=1)


@dataclass(frozen=True, slots=True)
class Line:
    """One job. ``copies`` is whether each copy has the last backup, None if it cannot be read.

    ``reason`` explains a condition other than ``ok`` and ``stale``.
    """

    job: str
    condition: Condition
    found: State = field(default_factory=State)
    copies: Mapping[str, bool | None] = field(default_factory=dict)
    reason: str = ""

    @property
    def since(self) -> datetime | None:
        """When it became stale, or will."""
        return self.found.stale_at

    @property
    def is_bad(self) -> bool:
        """Whether the job has no backup that is known to be recent enough."""
        return self.condition in _BAD


@dataclass(frozen=True, slots=True)
class Overview:
    """The jobs, the worst first. ``unanswered`` is why the server could not be asked, if so."""

    now: datetime
    lines: Sequence[Line]
    unanswered: str = ""


@dataclass(frozen=True, slots=True)
class _Known:
    """The jobs to inspect, and what is known of them.

    ``gone`` are those that are none any more, and ``missing`` those whose database is not there,
    each with the reason. ``doubtful`` ones are known by their folder alone, which may be empty.
    ``system`` identifies the server. ``of_store`` is whether the server of many did not answer: it
    may be gone, and the settings may name its successor.
    """

    jobs: Sequence[Job]
    gone: Mapping[str, str] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)
    doubtful: Collection[str] = ()
    system: str | None = None
    unanswered: str = ""
    of_store: bool = False


def overview(settings: Settings, now: datetime, emit: events.Emit) -> Overview:
    """Return the state of one job, or of all that are configured or have backups.

    Raises StorageError if the store does not answer. If it refuses to list the backups of a job,
    the job is unknown. A copy that cannot be read is a warning.
    """
    config = settings.origin.config
    if config is not None and not settings.origin.server:
        return _of_file(config, now, emit)
    storage = open_storage(settings, emit)
    many = jobs.selection(settings) is not None and not settings.job
    known = _of_server(settings, storage) if many else _one(settings)
    look = _Look(settings, storage, known, now)
    found = [line for line in in_parallel(look.at, known.jobs) if line]
    for name, problem in look.copies.broken.items():
        emit(events.Warned(f"The copy {name} cannot be read: {problem}"))
    if many and all(line.condition == "gone" for line in found):
        found.append(_without_jobs(known))
    found.sort(key=lambda line: (_WORST_FIRST.index(line.condition), line.since or now, line.job))
    return Overview(now, found, known.unanswered)


def _without_jobs(known: _Known) -> Line:
    """Return a line for a server of which nothing is known to be backed up."""
    if known.unanswered:
        return Line("*", "unknown", reason="the server does not answer, and there is no backup")
    return Line("*", "never", reason="no database of the server is selected")


def _of_file(config: Config, now: datetime, emit: events.Emit) -> Overview:
    """Return the state of all jobs of a configuration file."""
    lines, unanswered = list[Line](), list[str]()
    for server in config.servers:
        of_server = config.server(server)
        many = jobs.selection(of_server) is not None
        other = list(config.elsewhere(of_server)) if many else [config.only_database(of_server)]
        every = [of_server] * many + [jobs.of_database(of_server, each) for each in other]
        for settings in every:
            try:
                found = overview(settings, now, emit)
            except StorageError as error:
                name = settings.job or f"{server}/*"
                lines.append(Line(name, "unknown", reason=error.message))
                continue
            unanswered += [f"{server}: {found.unanswered}"] if found.unanswered else []
            if settings.job:
                lines += found.lines
            else:
                own = [each for each in found.lines if each.job not in other]
                lines += [replace(each, job=f"{server}/{each.job}") for each in own]
    lines.sort(key=lambda line: (_WORST_FIRST.index(line.condition), line.since or now, line.job))
    return Overview(now, lines, "; ".join(dict.fromkeys(unanswered)))


def _one(settings: Settings) -> _Known:
    configured, answer = configured_source(settings), source_that_answers(settings)
    name = settings.job or (configured and configured.database) or settings.backup_prefix
    unanswered = "the database does not answer" if settings.has_source and not answer else ""
    system = answer.system if answer else None
    return _Known([Job(name, settings)], system=system, unanswered=unanswered)


def _of_server(settings: Settings, storage: Storage) -> _Known:
    """Return the jobs that the server has, or else those that DATABASES selects in the store."""
    selected = jobs.selection(settings)
    if selected is None:
        raise AssertionError("only for settings with DATABASES")
    stored = stored_databases.with_folder(storage, settings.backup_prefix)
    gone = {name: "not selected by DATABASES" for name in stored if not selected.has(name)}
    wanted, doubtful = set(selected.named), set[str]()
    missing: dict[str, str] = {}
    unanswered, system = "", None
    try:
        server = on_server(settings)
    except DatabaseError as error:
        unanswered = error.message
        doubtful = {name for name in stored if name not in gone} - wanted
        wanted |= doubtful
    else:
        system = server.system
        wanted |= {job.name for job in server.jobs}
        missing = dict.fromkeys(server.missing, "not on the server")
        missing |= dict.fromkeys(server.closed, "takes no connections")
        missing |= dict.fromkeys(server.invalid, "invalid, and can only be dropped")
        lost = [name for name in stored if name not in wanted and name not in gone]
        gone |= {name: missing.get(name, "not on the server") for name in lost}
    every = [Job(name, jobs.of_database(settings, name)) for name in sorted({*wanted, *gone})]
    return _Known(every, gone, missing, doubtful, system, unanswered, of_store=bool(unanswered))


class _Copies:
    """The copies, each asked until it fails. ``broken`` are those that failed, and why."""

    def __init__(self, settings: Settings) -> None:
        self.broken: dict[str, str] = {}
        self._stores: dict[str, Storage] = {}
        for copy in copies.of(settings):
            try:
                self._stores[copy.name] = copy.open(events.ignore, prompt=True)
            except ConfigurationError as error:
                self.broken[copy.name] = error.message

    def of(self, settings: Settings, backup: Backup) -> dict[str, bool | None]:
        """Return whether each copy has a backup of the job with these settings."""
        return {name: self._has(name, settings, backup) for name in settings.copy_names}

    def _has(self, name: str, settings: Settings, backup: Backup) -> bool | None:
        if name in self.broken:
            return None
        prefix = settings.of_copy(name).backup_prefix
        try:
            listed = catalog.read(self._stores[name], prefix, since=backup.started - _BEFORE)
        except StorageError as error:
            self.broken[name] = error.message
            return None
        there = {each.name: each for each in listed.backups}
        return behind.is_copy(there.get(backup.name), backup)


class _Look:
    """Inspects jobs; several threads may use it at once."""

    def __init__(self, settings: Settings, storage: Storage, known: _Known, now: datetime) -> None:
        self.copies = _Copies(settings)
        self._storage = storage
        self._owners = owners_of(storage, may_read=not settings.only_writes)
        self._known = known
        self._now = now

    def at(self, job: Job) -> Line | None:
        """Return the state of a job; None if it is none and has no backup.

        Raises StorageUnreachableError.
        """
        known, name = self._known, job.name
        try:
            found = state.look(self._plan(job), self._storage, self._owners)
        except StorageUnreachableError:
            raise
        except StorageError as error:
            return Line(name, "unknown", reason=error.message)
        if found.last is None:
            if name in known.gone or name in known.doubtful:
                return None
            return Line(name, "never", found, reason=known.missing.get(name, ""))
        copied = self.copies.of(job.settings, found.last)
        if name in known.gone:
            past = replace(found, stale_at=None, due=None)
            return Line(name, "gone", past, copied, known.gone[name])
        condition: Condition = "stale" if found.is_stale(self._now) else "ok"
        return Line(name, condition, found, copied, known.missing.get(name, ""))

    def _plan(self, job: Job) -> state.Plan:
        settings = job.settings
        drilled = settings.verify_interval
        return state.Plan(
            prefix=settings.backup_prefix,
            source=self._source(job),
            schedule=lambda last: schedule_of(settings, last),
            due=lambda last: next_run(settings, last, self._now),
            window=state.window(
                schedule_of(settings, self._now),
                self._now,
                kept_days=settings.backup_retention_days,
                drilled=drilled if isinstance(drilled, int) else 0,
            ),
            now=self._now,
        )

    def _source(self, job: Job) -> Identity | None:
        """Return whose backups count: those of its database alone, if no server answered."""
        source = configured_source(job.settings)
        if source is None or job.name in self._known.gone:
            return None
        if self._known.of_store:
            return Identity(source.database)
        return replace(source, system=self._known.system)
