"""Drill a stored backup, according to the settings."""

from __future__ import annotations

from dataclasses import replace

from pgstash import events
from pgstash.commands import origin, stored
from pgstash.commands.failure_records import recorded
from pgstash.commands.source import source_password
from pgstash.commands.storage import open_storage, refuse_if_only_writes
from pgstash.drill import run as drill
from pgstash.drill.checks import Expected
from pgstash.drill.scratch import Place
from pgstash.repository import archive, catalog, empty_prefix
from pgstash.runtime import Runtime
from pgstash.settings import Settings, environment


def drill_backup(
    settings: Settings, name: str, runtime: Runtime, *, source: str | None = None
) -> None:
    """Prove that one stored backup restores. Raises what :func:`drill.run` raises."""
    plan = drill.Plan(
        prefix=settings.backup_prefix,
        place=Place(
            settings.scratch_url,
            settings.source_url if settings.has_source else None,
            source_password(settings),
        ),
        jobs=settings.restore_jobs,
        expected=Expected(settings.min_table_count, settings.verify_sql),
        environment=environment(),
    )
    refuse_if_only_writes(settings, "drill")
    with origin.suggested(settings, runtime.emit) as emit:
        origin.report(settings, emit)
        _drill(settings, plan, stored.Wanted(name, source=source), replace(runtime, emit=emit))


def _drill(settings: Settings, plan: drill.Plan, wanted: stored.Wanted, runtime: Runtime) -> None:
    emit = runtime.emit
    storage = open_storage(settings, emit)

    def find() -> drill.Found:
        search = stored.Search(settings, storage, emit, runtime.now, may_guess=True)
        found = search.find(wanted)
        stored.compare_with_primary(settings, wanted, found.backup, emit)
        return drill.Found(
            found.backup.name,
            lambda: archive.open_stored(storage, found.backup, found.access),
        )

    with recorded(settings, runtime) as noted:
        drill.run(plan, storage, wanted.name, find, noted)


def unproven(settings: Settings, emit: events.Emit, source: str | None = None) -> list[str]:
    """Return the names of backups that no drill has proven, newest first.

    If the user or the settings name a source, only its backups are returned. A backup without a
    manifest cannot be proven: a warning names it. Raises BackupNotFoundError if there is no backup
    at all, SourceUnclearError, StorageError.
    """
    refuse_if_only_writes(settings, "drill")
    storage = open_storage(settings, emit)
    found = catalog.read(storage, settings.backup_prefix)
    if not found.backups:
        raise empty_prefix.error(storage, settings.backup_prefix)
    if source or settings.has_source:
        found = stored.of_one_source(settings, storage, found, source)
    left = [backup for backup in found.backups[::-1] if not backup.proven]
    if not left:
        emit(events.Informed("There is nothing to drill: each backup is proven"))
    for backup in left:
        if not backup.manifests:
            emit(events.Warned(f"{backup.name} has no manifest, so it cannot be proven"))
    return [backup.name for backup in left if backup.manifests]
