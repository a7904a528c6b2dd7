"""A drill: restore a stored backup into scratch, look at what came out, drop it, keep the proof.

Only a restore shows that a backup restores. The proof is stored beside the backup, and says what
was checked; it is stored last, so what failed half-way has proven nothing.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime

from pgstash import __version__, events, proof, record, restore, standard
from pgstash import manifest as manifests
from pgstash.archive import Archive
from pgstash.errors import (
    EXIT_UNFORESEEN,
    CorruptedError,
    DatabaseError,
    DrillFailedError,
    Interrupted,
    PgstashError,
    UnverifiedError,
)
from pgstash.manifest import Manifest
from pgstash.pipeline import encryption
from pgstash.postgres import binding, cluster, inspection, scratch, source
from pgstash.proof import Check, Proof
from pgstash.storage.interface import Storage

_MOST_PROBLEMS = 20

# In a cluster of its own no name is taken.
_DATABASE = "pgstash_drill"

# How many drills go the way of several sessions for one that reads the script from end to end.
_ONE_IN = 8

_NOT_VALID = b" NOT VALID;\n"


@dataclass(frozen=True, slots=True)
class Plan:
    """Where to try a restore, and what to look at afterwards.

    ``scratch_url`` is a server where databases may be made; None for a throwaway server.
    ``source_url`` is the source, which must not be the scratch; None where nobody knows it.
    ``jobs`` is how many sessions restore, ``statements`` are the user's own checks, ``min_tables``
    is the fewest tables that there may be.
    ``environment`` is what client tools may choose from.
    """

    prefix: str
    scratch_url: str | None = field(repr=False)
    source_url: str | None = field(repr=False)
    passphrase: str | None = field(repr=False)
    jobs: int
    statements: str | None
    min_tables: int | None
    environment: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class World:
    """What comes from outside: the time, chance, who is told, and how to put a signal off."""

    now: Callable[[], datetime]
    random: Callable[[int], bytes]
    emit: events.Emit
    uninterrupted: Callable[[], AbstractContextManager[None]]


@dataclass(frozen=True, slots=True)
class Found:
    """A backup that is in the catalog; nothing of it was read yet."""

    name: str
    open: Callable[[], Archive]


@dataclass(frozen=True, slots=True)
class _Scratch:
    """Where to restore to: a ``database`` to be made by way of ``url``; ``where`` is for people."""

    url: str
    database: str
    where: str


def run(
    plan: Plan, storage: Storage, wanted: str, find: Callable[[], Found], world: World
) -> Proof:
    """Prove that the backup which ``find`` finds restores; return the proof, which is stored.

    ``wanted`` is what the backup is called until then. Raises DrillFailedError where what
    was restored is not what it should be, ScratchError where there is no place to try, any other
    PgstashError that the restore met, and Interrupted on a signal. Scratch is gone in any case.
    """
    began = time.monotonic()
    name, host, database = wanted, "", ""
    try:
        found = find()
        name = found.name
        where = "a throwaway server" if plan.scratch_url is None else "a database made for it"
        world.emit(events.DrillStarted(name, where))
        archive = found.open()
        manifest = _manifest_of(archive)
        host, database = manifest.database.host, manifest.database.name
        proven = _drill(plan, archive, manifest, world, began)
        location = _store(proven, plan, storage, manifest, world)
    except BaseException as error:
        foreseen = isinstance(error, PgstashError | Interrupted)
        world.emit(
            events.DrillFailed(
                name=name,
                seconds=time.monotonic() - began,
                message=str(error) if foreseen else f"{type(error).__name__}: {error}",
                hint=getattr(error, "hint", ""),
                host=host,
                database=database,
                error=type(error).__name__,
                exit_code=getattr(error, "exit_code", EXIT_UNFORESEEN),
            )
        )
        raise
    world.emit(
        events.DrillSucceeded(
            name=name,
            seconds=proven.seconds,
            restore_seconds=proven.restore_seconds,
            location=location,
            at=datetime.fromisoformat(proven.at),
            checks=len(proven.checks),
            tables=proven.tables,
            rows=proven.rows,
            host=host,
            database=database,
        )
    )
    return proven


class _Told:
    """Passes on what a restore tells, but for its beginning and end: they are the drill's own."""

    def __init__(self, emit: events.Emit) -> None:
        self._emit = emit
        self.warnings: list[str] = []

    def __call__(self, event: events.Event) -> None:
        match event:
            case events.RestoreStarted() | events.RestoreSucceeded() | events.RestoreFailed():
                return
            case events.Warned():
                self.warnings.append(event.message)
            case _:
                pass
        self._emit(event)


class _Unvalidated:
    """Counts the constraints of a script that are not to be validated, from above.

    A row of a table may look the same: then a missing validation may not be noticed.
    """

    def __init__(self) -> None:
        self.count = 0
        self._tail = b""

    def watch(self, chunk: bytes) -> None:
        seen = self._tail + chunk if len(chunk) < len(_NOT_VALID) else chunk
        border = self._tail + chunk[: len(_NOT_VALID) - 1]
        self.count += chunk.count(_NOT_VALID) + border.count(_NOT_VALID)
        self._tail = seen[-len(_NOT_VALID) + 1 :]


def _manifest_of(archive: Archive) -> Manifest:
    if archive.manifest is None:
        raise UnverifiedError(f"{archive.name} has no manifest: nothing says what it must hold")
    if archive.manifest.schema_sha256 and not archive.is_seekable:
        raise CorruptedError(
            f"the schema beside {archive.name} is gone: several sessions cannot restore it",
            hint="One can: RESTORE_JOBS=1 restores it all the same. Take another backup.",
        )
    return archive.manifest


def _drill(plan: Plan, archive: Archive, manifest: Manifest, world: World, began: float) -> Proof:
    told = _Told(world.emit)
    plain = _takes_the_plain_way(world)
    with contextlib.ExitStack() as stack:
        place = stack.enter_context(_scratch(plan, manifest, told, world))
        tools = None
        if plain:
            tools = stack.enter_context(
                standard.reading(manifest, plan.passphrase, plan.environment, world.emit)
            )
        shown = archive.shown(tools.watch) if tools else archive
        world.emit(events.Notice(f"Restoring {archive.name} into {place.where}"))
        unvalidated = _Unvalidated()
        restore_began = time.monotonic()
        sessions = restore.run(
            restore.Plan(
                target_url=place.url,
                create=place.database,
                overwrite=False,
                dry_run=False,
                environment=plan.environment,
                uninterrupted=world.uninterrupted,
                create_roles=True,
                for_drill=True,
                jobs=1 if plain else plan.jobs,
                any_locale=True,
                observe=unvalidated.watch,
            ),
            archive.name,
            lambda: shown,
            told,
        )
        restore_seconds = time.monotonic() - restore_began
        with inspection.opened(place.url, place.database) as inspected:
            version = inspected.version
            checks = [
                _digests(manifest, sessions),
                *([tools.check()] if tools else []),
                *_look(inspected, plan, manifest, unvalidated.count),
            ]
    _refuse(checks)
    return Proof(
        format=proof.FORMAT,
        reader=proof.READER,
        tool=f"pgstash {__version__}",
        archive=archive.name,
        id=manifest.id,
        sha256=manifest.sha256,
        at=record.iso(world.now()),
        scratch=place.where,
        server=version,
        client=manifest.client,
        seconds=round(time.monotonic() - began, 3),
        restore_seconds=round(restore_seconds, 3),
        raw_bytes=manifest.raw_bytes,
        stored_bytes=manifest.stored_bytes,
        tables=len(manifest.tables),
        rows=sum(table.rows for table in manifest.tables),
        checks=checks,
        warnings=told.warnings,
    )


@contextlib.contextmanager
def _scratch(plan: Plan, manifest: Manifest, told: _Told, world: World) -> Iterator[_Scratch]:
    if plan.scratch_url is None:
        major = int(manifest.server.partition(".")[0])
        size = manifest.database.bytes
        settings = binding.server_settings(manifest.extensions, _DATABASE)
        with cluster.running(major, size, settings, plan.environment, world.emit) as server:
            where = f"a throwaway server of PostgreSQL {server.version}"
            yield _Scratch(server.url, _DATABASE, where)
        return
    url = scratch.alone(plan.scratch_url)
    shared = scratch.look(url)
    if plan.source_url is not None:
        try:
            scratch.keep_off(shared, source.look(plan.source_url), told)
        except DatabaseError as error:
            world.emit(events.Notice(f"The source cannot be compared with: {error.message}"))
    with scratch.name(shared, world.emit) as database:
        host = f"{shared.database.host}:{shared.database.port}"
        yield _Scratch(url, database, f"the database {database} on {host}")


def _takes_the_plain_way(world: World) -> bool:
    """Tell whether this drill reads the script as standard tools do, so that both ways are proven.

    Which one is left to chance: a service that is started anew remembers nothing.
    """
    return world.random(1)[0] < 256 // _ONE_IN


def _digests(manifest: Manifest, sessions: int) -> Check:
    """Say what the restore has shown by coming to its end: it commits nothing else."""
    found = f"SHA-256 of {len(manifest.members)} members"
    if sessions == 1:
        found += ", and of the archive, read as one script"
    else:
        found += f", read by {sessions} sessions"
    return Check("digests", passed=True, found=found)


def _look(
    inspected: inspection.Inspection, plan: Plan, manifest: Manifest, unvalidated: int
) -> Iterator[Check]:
    yield Check("restore", passed=True, found="ran without an error")
    total = sum(table.rows for table in manifest.tables)
    yield _check("rows", inspected.rows(manifest.tables), f"tables, with {total} rows")
    yield _check("indexes", inspected.indexes(), "indexes are valid")
    yield _check("constraints", inspected.constraints(unvalidated), "constraints")
    yield _check("sequences", inspected.sequences(), "sequences, whose next values are free")
    if plan.min_tables is not None:
        count = inspected.table_count()
        found = f"{count} tables, and MIN_TABLE_COUNT is {plan.min_tables}"
        yield Check("MIN_TABLE_COUNT", count >= plan.min_tables, found)
    if plan.statements:
        for number, answer in enumerate(inspected.answers(plan.statements), start=1):
            yield Check(f"VERIFY_SQL, statement {number}", answer.passed, answer.found)


def _check(name: str, found: inspection.Found, what: str) -> Check:
    if not found.problems:
        return Check(name, passed=True, found=f"{found.looked_at} {what}")
    shown = "; ".join(found.problems[:_MOST_PROBLEMS])
    more = len(found.problems) - _MOST_PROBLEMS
    return Check(name, passed=False, found=shown + (f"; and {more} more" if more > 0 else ""))


def _refuse(checks: Sequence[Check]) -> None:
    failed = [f"{check.name}: {check.found}" for check in checks if not check.passed]
    if failed:
        raise DrillFailedError(
            f"{len(failed)} of {len(checks)} checks failed:\n" + "\n".join(failed)
        )


def _store(proven: Proof, plan: Plan, storage: Storage, manifest: Manifest, world: World) -> str:
    """Store the proof, encrypted where the backup is, and return where that is."""
    key = None
    if manifest.encryption and plan.passphrase is not None:
        key = encryption.Key.derive(plan.passphrase, world.random(encryption.SALT_BYTES))
    text = proof.dump(proven, key.authenticate if key else None)
    name = manifests.proof_name(
        manifest.archive.partition(".")[0],
        manifest.id,
        datetime.fromisoformat(proven.at),
        encrypted=key is not None,
    )
    stored = f"{plan.prefix}/{name}"
    storage.put(
        stored,
        encryption.sealed(text, key),
        {
            "id": manifest.id,
            "restore-seconds": f"{proven.restore_seconds:.1f}",
            "server": record.header(proven.server),
            **record.encoded(record.identity_of(manifest.database).metadata()),
        },
    )
    return storage.url(stored)
