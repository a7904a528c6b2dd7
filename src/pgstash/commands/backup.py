"""Back up once, according to the settings."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from pgstash.backup import run as backup
from pgstash.commands.copies_after_backup import copy_and_prune
from pgstash.commands.failure_records import keys_of, recorded
from pgstash.commands.prune import prune_after_backup
from pgstash.commands.source import owners_of, server_clock, source_password
from pgstash.commands.storage import open_storage
from pgstash.monitoring.redaction import Scrubber
from pgstash.postgres.dump import required_tables as required
from pgstash.postgres.tools import pg_dump_options
from pgstash.processes import hooks
from pgstash.runtime import Runtime
from pgstash.settings import Settings, environment, secret_variables


def back_up(
    settings: Settings,
    runtime: Runtime,
    server_now: Callable[[Settings], datetime] = server_clock,
) -> backup.Backup:
    """Run one backup according to the settings, then prune. Raises what :func:`backup.run` raises.

    A failure to prune is a warning: the backup is complete by then. Nothing is pruned if the
    runtime's clock and ``server_now``, that of the source's server, are far apart, or if this host
    only writes. A signal that was deferred while the backup was committed raises Interrupted
    between the two, and before the hook at the end.
    """
    plan = backup.Plan(
        source_url=settings.source_url,
        prefix=settings.backup_prefix,
        compression_level=settings.compression_level,
        keys=keys_of(settings, runtime.emit),
        jobs=settings.dump_jobs,
        lock_seconds=settings.lock_timeout,
        idle_seconds=settings.dump_idle_timeout,
        environment=environment(),
        options=dump_options(settings),
        required=required_tables(settings),
        hooks=_hooks(settings),
        anomaly_ratio=settings.anomaly_ratio,
        globals_passwords=settings.globals_passwords,
        source_password=source_password(settings),
        may_delete=not settings.only_writes,
    )
    with recorded(settings, runtime) as noted:
        storage = open_storage(settings, noted.emit)
        owners = owners_of(storage, may_read=not settings.only_writes)
        made = backup.run(plan, storage, owners, noted)
    runtime.interruption.raise_if_interrupted()
    if not settings.only_writes:
        source = made.manifest.database.identity
        prune_after_backup(settings, source, storage, runtime, server_now)
    return made


def back_up_and_copy(settings: Settings, runtime: Runtime) -> None:
    """Run one backup, then copy it to each of COPY_TO. Raises what :func:`back_up` raises.

    What goes wrong after the backup is a warning.
    """
    made = back_up(settings, runtime)
    go_on = runtime.interruption.raise_if_interrupted
    go_on()
    copy_and_prune(settings, made.manifest.database.identity, runtime, go_on)


def required_tables(settings: Settings) -> list[required.Requirement]:
    """Return the tables that must be in a backup."""
    return required.parse(settings.require_tables) if settings.require_tables else []


def dump_options(settings: Settings) -> list[str]:
    """Return the options that the settings give pg_dump."""
    excluded = pg_dump_options.excluding(
        tables=settings.exclude_tables or "",
        table_data=settings.exclude_table_data or "",
        schemas=settings.exclude_schemas or "",
    )
    return excluded + pg_dump_options.allowed(settings.pg_dump_extra_args or "")


def _hooks(settings: Settings) -> hooks.Hooks:
    secrets = settings.secrets()
    visible = hooks.visible(environment(), secret_variables(settings), Scrubber(secrets).knows)

    def hook(name: str) -> hooks.Hook | None:
        command: str | None = getattr(settings, name)
        if command is None:
            return None
        words = hooks.words(command)
        return hooks.Hook(name.upper(), words, settings.hook_timeout, visible, secrets)

    return hooks.Hooks(
        before=hook("hook_before_backup"),
        after=hook("hook_after_backup"),
        verify=hook("hook_verify"),
    )
