"""Restore a stored backup with the settings of the environment."""

from __future__ import annotations

from dataclasses import replace

from pgstash import events
from pgstash.commands import origin
from pgstash.commands.source import target_password
from pgstash.commands.stored import Wanted, open_archive
from pgstash.postgres.restore.request import Request
from pgstash.postgres.server import conninfo
from pgstash.restore import run as restore
from pgstash.runtime import Runtime
from pgstash.settings import Settings, environment


def target_of(settings: Settings, request: Request) -> events.RestoreTargeted:
    """Return which database a restore will write to, as configured."""
    _, database = conninfo.named(settings.target_url)
    return events.RestoreTargeted(
        address=conninfo.address(settings.target_url),
        database=database if request.create is None else request.create,
        created=request.create is not None,
    )


def restore_backup(settings: Settings, wanted: Wanted, request: Request, runtime: Runtime) -> None:
    """Restore one backup. Raises what :func:`open_archive` and :func:`restore.run` raise."""
    plan = restore.Plan(
        target_url=settings.target_url,
        request=request,
        environment=environment(),
        jobs=settings.restore_jobs,
        target_password=target_password(settings),
    )
    # The primary may have newer backups, and the target would lose what it holds for an older one.
    newest = wanted.at is not None or wanted.name == "latest"
    wanted = replace(wanted, or_copy=not (newest and (request.replace or request.overwrite)))
    with origin.suggested(settings, runtime.emit) as emit:
        runtime = replace(runtime, emit=emit)
        restore.run(plan, wanted.name, lambda: open_archive(settings, wanted, emit), runtime)
