"""A drill: restore a stored backup into scratch, check the result, drop it, store the proof.

Only a restore shows that a backup restores. The proof is a companion of the backup, and records
what was checked. It is stored last, so that a drill which fails half-way proves nothing.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime

from pgstash import __version__, events, failure
from pgstash.drill import checks, owners, scratch, standard_tools
from pgstash.drill.scratch import Place
from pgstash.errors import (
    CorruptedError,
    UnverifiedError,
)
from pgstash.format import metadata, names, proof
from pgstash.format.iso_time import iso
from pgstash.format.manifest import Manifest
from pgstash.format.proof import Proof
from pgstash.pipeline import encryption
from pgstash.postgres.restore.request import Request
from pgstash.postgres.scratch import inspection
from pgstash.repository.archive import Archive
from pgstash.restore import run as restore
from pgstash.runtime import Runtime
from pgstash.storage.interface import Storage

# One of this many drills restores the script from end to end, the others by several sessions.
_ONE_IN = 8


@dataclass(frozen=True, slots=True)
class Plan:
    """Where to restore to, by how many sessions (``jobs``), and what to check afterwards.

    ``prefix`` is that of the backups, ``environment`` is where client tools are found.
    """

    prefix: str
    place: Place
    jobs: int
    expected: checks.Expected
    environment: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Found:
    """A backup in the catalog that was not read yet."""

    name: str
    open: Callable[[], Archive]


def run(
    plan: Plan, storage: Storage, wanted: str, find: Callable[[], Found], runtime: Runtime
) -> Proof:
    """Prove that the backup which ``find`` finds restores; store the proof, and return it.

    ``wanted`` is the name of the backup until it is found. Raises DrillFailedError if a check of
    the restored database fails, ScratchError if there is no scratch to restore to, any other
    PgstashError of the restore, and Interrupted on a signal. Scratch is removed in any case.
    """
    began = time.monotonic()
    name, host, database = wanted, "", ""
    runtime.emit(events.DrillAttempted(wanted))
    try:
        found = find()
        name = found.name
        throwaway = plan.place.scratch_url is None
        where = "a throwaway server" if throwaway else "a database created for it"
        runtime.emit(events.DrillStarted(name, where))
        archive = found.open()
        manifest = _manifest_of(archive)
        host, database = manifest.database.host, manifest.database.name
        proven = _drill(plan, archive, manifest, runtime, began)
        location = _store(proven, plan, storage, archive, runtime)
    except BaseException as error:
        runtime.emit(
            events.DrillFailed(
                name=name,
                seconds=time.monotonic() - began,
                host=host,
                database=database,
                **failure.fields(error),
            )
        )
        raise
    runtime.emit(
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


class _RestoreEvents:
    """Passes on the events of a restore, except its start and end: a drill has its own."""

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


def _manifest_of(archive: Archive) -> Manifest:
    if archive.manifest is None:
        raise UnverifiedError(f"{archive.name} has no manifest to compare a restore with")
    if archive.manifest.schema_sha256 and not archive.is_seekable:
        raise CorruptedError(
            f"the schema companion of {archive.name} is missing, so that several sessions cannot "
            "restore it",
            hint="A single session can: `pgstash restore` with RESTORE_JOBS=1. Make a new backup.",
        )
    return archive.manifest


def _drill(
    plan: Plan, archive: Archive, manifest: Manifest, runtime: Runtime, began: float
) -> Proof:
    restore_events = _RestoreEvents(runtime.emit)
    plain = _reads_plain_script(runtime)
    with contextlib.ExitStack() as stack:
        place = stack.enter_context(
            scratch.opened(plan.place, manifest, plan.environment, runtime.emit, restore_events)
        )
        tools = None
        if plain:
            tools = stack.enter_context(
                standard_tools.reading(archive, plan.environment, runtime.emit)
            )
        shown = archive.shown(tools.watch) if tools else archive
        runtime.emit(events.Notice(f"Restoring {archive.name} into {place.where}"))
        unvalidated = checks.UnvalidatedConstraints()
        restore_began = time.monotonic()
        sessions = restore.run(
            restore.Plan(
                target_url=place.url,
                request=Request(
                    create=place.database, create_roles=True, any_locale=True, for_drill=True
                ),
                environment=plan.environment,
                jobs=1 if plain else plan.jobs,
                observe=unvalidated.watch,
            ),
            archive.name,
            lambda: shown,
            replace(runtime, emit=restore_events),
        )
        restore_seconds = time.monotonic() - restore_began
        runtime.emit(events.PhaseStarted("checks"))
        given = list(
            owners.check(place, archive, manifest, plan.environment, restore_events),
        )
        with inspection.opened(place.url, place.database) as inspected:
            version = inspected.version
            results = [
                checks.digests(manifest, sessions),
                *([tools.check()] if tools else []),
                *checks.of_database(inspected, plan.expected, manifest, unvalidated.count),
                *given,
            ]
    checks.refuse_failed(results)
    return Proof(
        format=proof.FORMAT,
        reader=proof.READER,
        tool=f"pgstash {__version__}",
        archive=archive.name,
        id=manifest.id,
        sha256=manifest.sha256,
        at=iso(runtime.now()),
        scratch=place.where,
        server=version,
        client=manifest.client,
        seconds=round(time.monotonic() - began, 3),
        restore_seconds=round(restore_seconds, 3),
        raw_bytes=manifest.raw_bytes,
        stored_bytes=manifest.stored_bytes,
        tables=len(manifest.tables),
        rows=sum(table.rows for table in manifest.tables),
        checks=results,
        warnings=restore_events.warnings,
    )


def _reads_plain_script(runtime: Runtime) -> bool:
    """Decide whether this drill reads the script like the standard tools, to prove that way too.

    The choice is random, because a service that was restarted does not know the last one.
    """
    return runtime.random(1)[0] < 256 // _ONE_IN


def _store(proven: Proof, plan: Plan, storage: Storage, archive: Archive, runtime: Runtime) -> str:
    """Store the proof, encrypted if the backup is, and return its location."""
    manifest = _manifest_of(archive)
    key = archive.new_key(runtime.random(encryption.SALT_BYTES))
    text = proof.dump(proven, key.authenticate if key else None)
    name = names.proof_name(
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
            "server": metadata.header(proven.server),
            **metadata.encoded(manifest.database.identity.metadata()),
        },
    )
    return storage.url(stored)
