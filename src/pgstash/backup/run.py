"""Backs one database up: dump, compress, encrypt, upload, then store what describes it.

The order keeps the promises: pg_dump has ended without an error before the manifest is stored, the
manifest is stored before the archive becomes visible, and one request makes the archive visible.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from pgstash import __version__, events, failure
from pgstash.backup import dump_stream, dump_workers, earlier_backups, facts, other_writers
from pgstash.backup.companions import Companions, Digests
from pgstash.backup.earlier_backups import Earlier
from pgstash.backup.job import Job, Plan, unused_name
from pgstash.backup.observers import Digest, announce_end, report_progress
from pgstash.backup.sealing import sealing_of
from pgstash.errors import HookError, Interrupted, PgstashError
from pgstash.format import manifest as manifests
from pgstash.format import metadata, names, size_history
from pgstash.format.iso_time import iso
from pgstash.format.manifest import Manifest
from pgstash.pipeline import encryption
from pgstash.postgres.dump import extension_omissions, required_tables
from pgstash.postgres.dump import globals as globals_dump
from pgstash.postgres.preflight import privileges
from pgstash.postgres.server import conninfo, login, pooler, writer_lock
from pgstash.postgres.tools import installed
from pgstash.postgres.tools.tool_run import Limits, ToolRun
from pgstash.processes import hooks
from pgstash.repository.owners import Owners
from pgstash.runtime import Runtime
from pgstash.storage.interface import Storage, Upload

__all__ = ["Backup", "Plan", "run"]

_ID_BYTES = 8


@dataclass(frozen=True, slots=True)
class Backup:
    """A backup that is complete and visible; ``seconds`` is how long it took."""

    name: str
    location: str
    manifest: Manifest
    seconds: float


def run(plan: Plan, storage: Storage, owners: Owners, runtime: Runtime) -> Backup:
    """Back one database up; return only when a complete archive is visible in the store.

    Raises a PgstashError if anything goes wrong before that, WriterBusyError among them if another
    backup of this source to this place is running, and Interrupted on a signal; then there is no
    archive of this backup. A hook that fails afterwards is a warning.
    """
    began = time.monotonic()
    encrypted = bool(plan.keys)
    base = names.base_name(runtime.now())
    host, database = conninfo.named(plan.source_url)
    runtime.emit(events.BackupAttempted(host, database))
    source = {"PGSTASH_HOST": host, "PGSTASH_DATABASE": database}
    try:
        if plan.hooks.before:
            hooks.run(plan.hooks.before, {"PGSTASH_HOOK": "before", **source}, runtime.emit)
        storage.check()
        server = login.inspect(plan.source_url, plan.source_password)
        with writer_lock.hold(server, storage.url(plan.prefix), runtime.emit) as lock:
            identity = server.database.identity
            others = other_writers.look(storage, plan.prefix, identity, owners, runtime)
            started, base = unused_name(storage, plan.prefix, runtime)
            backup_id = runtime.random(_ID_BYTES).hex()
            sealed = sealing_of(plan.keys, runtime.random, backup_id)
            made = _back_up(
                Job(
                    plan, storage, owners, runtime, server, lock, others, started, backup_id, sealed
                )
            )
    except BaseException as error:
        following = runtime.follow_up(error)
        failed = events.BackupFailed(
            name=names.archive_name(base, encrypted=encrypted),
            seconds=time.monotonic() - began,
            host=host,
            database=database,
            next_attempt=following.at,
            repeated=following.repeated,
            **failure.fields(error),
        )
        runtime.emit(failed)
        if isinstance(error, Exception):
            _run_hook_after(plan, runtime, facts.hook_environment_after_failure(failed))
        raise
    outcome = facts.hook_environment_after_success(made.manifest, made.location, made.seconds)
    _run_hook_after(plan, runtime, outcome)
    return made


def _run_hook_after(plan: Plan, runtime: Runtime, outcome: Mapping[str, str]) -> None:
    """Run the hook at the end. It cannot change the outcome of the backup."""
    if plan.hooks.after is None:
        return
    runtime.interruption.raise_if_interrupted()
    try:
        hooks.run(plan.hooks.after, {"PGSTASH_HOOK": "after", **outcome}, runtime.emit)
    except HookError as error:
        runtime.emit(events.Warned(f"{error.message}\n{error.hint}"))


def _back_up(job: Job) -> Backup:
    """Send the data on its way; the commit at the end makes the archive visible."""
    began = time.monotonic()
    server, lock, emit = job.server, job.lock, job.emit
    emit(events.BackupStarted(job.name))
    contents = _inspect(job)
    earlier = earlier_backups.find(job)
    tool_run = _tool_run(job)
    key = job.new_key()
    stored = Digest()
    companions = Companions(job)
    upload: Upload | None = None
    emit(events.DumpStarted(job.name, tool_run.client.version, server.version))
    try:
        with (
            _opened_dump(job, tool_run) as stream,
            job.storage.upload(
                job.object_key,
                metadata=facts.metadata(job, tool_run.client, key),
                expected_size=server.database.bytes,
                usual_size=earlier.stored_bytes,
            ) as upload,
        ):
            sizes = earlier.stored_bytes, server.database.bytes
            emit(events.UploadStarted(job.name, job.storage.url(), upload.part_size, *sizes))
            archive = announce_end(stream, job.name, began, emit)
            if key:
                archive = encryption.encrypt(archive, key)
            archive = report_progress(stored.watch(archive), job.name, stream, stored, emit)
            for chunk in lock.watch(archive):
                upload.write(chunk)
            tables = facts.tables(stream.rows, server.codec)
            _refuse_incomplete(job, tables, contents.expected)
            upload.flush()
            lock.check()

            companions.store_key()
            digests = companions.store_contents(tool_run, stream)
            sent = _Sent(tool_run.client, key, stream, stored, tables)
            manifest = _manifest(job, contents, sent, digests)
            companions.store_manifest(manifest, time.monotonic() - began)
            lock.check()
            with job.runtime.interruption.defer_signals():
                upload.commit()
    except (PgstashError, Interrupted) as error:
        if upload is None or not upload.committed:
            if upload is not None and upload.committed is False:
                companions.remove(error)
            raise
        # The answer to the commit was cut off, or something failed after the commit.
        if isinstance(error, PgstashError):
            emit(events.Warned(f"{job.name} is complete, but then: {error}"))
    made = Backup(job.name, job.location, manifest, time.monotonic() - began)
    with job.runtime.interruption.defer_signals():
        lock.release()
        _report_success(job, made, earlier)
    return made


@dataclass(frozen=True, slots=True)
class _Contents:
    """What is known of the database before the dump.

    ``expected`` are the tables that the dump must hold, ``left_out`` the tables of extensions whose
    rows it cannot hold.
    """

    expected: Sequence[required_tables.Expected]
    required: globals_dump.Required
    left_out: Sequence[manifests.LeftOut]


def _inspect(job: Job) -> _Contents:
    """Query what the dump has to hold, and warn of what it cannot hold."""
    server, options = job.server, job.plan.options
    expected = required_tables.look_up(server, job.plan.required)
    required = globals_dump.required(server)
    if closed := privileges.closed_mappings(server, options):
        job.emit(events.Warned("\n".join(privileges.closed_mappings_warning(closed))))
    omissions = extension_omissions.find(server, options)
    for warning in extension_omissions.warnings(omissions):
        job.emit(events.Warned("\n".join(warning)))
    return _Contents(expected, required, omissions.left_out)


@dataclass(frozen=True, slots=True)
class _Sent:
    """An archive of which every byte was sent: what made it, and what it holds."""

    client: installed.ClientTools
    key: encryption.Key | None
    stream: dump_stream.Stream
    stored: Digest
    tables: Sequence[manifests.Table]


def _manifest(job: Job, contents: _Contents, sent: _Sent, digests: Digests) -> Manifest:
    return Manifest(
        format=job.sealing.format,
        reader=job.sealing.reader,
        tool=f"pgstash {__version__}",
        id=job.id,
        archive=job.name,
        started=iso(job.started),
        finished=iso(job.runtime.now()),
        server=job.server.version,
        client=sent.client.version,
        database=job.server.database,
        raw_bytes=sent.stream.raw_bytes,
        stored_bytes=sent.stored.bytes,
        sha256=sent.stored.hexdigest(),
        compression=manifests.Compression("gzip", job.plan.compression_level),
        encryption=facts.encryption_of(sent.key, job.sealing.rounds),
        tables=sent.tables,
        members=sent.stream.members,
        options=list(job.plan.options),
        roles=contents.required.roles,
        extensions=contents.required.extensions,
        globals_sha256=digests.globals,
        globals_passwords=digests.globals_passwords,
        privileges_sha256=digests.privileges,
        privilege_roles=digests.privilege_roles,
        schema_sha256=digests.schema,
        statistics_sha256=digests.statistics,
        left_out=contents.left_out,
        snapshot=facts.snapshot_of(sent.stream.moment),
    )


def _tool_run(job: Job) -> ToolRun:
    environment = job.plan.environment
    client = installed.find(job.server.major, environment.get("PATH", ""), environment)
    installed.refuse_unknown_parameters(client, job.server.connection, environment)
    return ToolRun(client, environment, job.emit)


def _opened_dump(job: Job, tool_run: ToolRun) -> AbstractContextManager[dump_stream.Stream]:
    plan = dump_workers.Plan(
        server=job.server,
        tool_run=tool_run,
        jobs=job.plan.jobs,
        level=job.plan.compression_level,
        options=job.plan.options,
        limits=Limits(lock=job.plan.lock_seconds, idle=job.plan.idle_seconds),
        ask=job.lock.ask,
    )
    environment = facts.hook_environment_to_verify(job)
    return dump_stream.opened(plan, job.plan.hooks.verify, environment, job.name)


def _refuse_incomplete(
    job: Job, tables: Iterable[manifests.Table], expected: Iterable[required_tables.Expected]
) -> None:
    """Raise if the dump lacks required tables or rows, or pg_dump may have lost its settings."""
    rows = {(each.schema, each.name): each.rows for each in tables}
    required_tables.check(expected, rows)
    privileges.refuse_hidden_rows(job.server, job.plan.options, rows)
    pooler.refuse_swapping_again(job.server, job.emit)


def _report_success(job: Job, made: Backup, earlier: Earlier) -> None:
    manifest, figures = made.manifest, metadata.figures(made.manifest)
    job.emit(events.UploadFinished(made.name, made.seconds, manifest.stored_bytes))
    shrunk = size_history.shrunk(figures, earlier.figures, job.plan.anomaly_ratio)
    if shrunk:
        job.emit(events.BackupShrunk(made.name, tuple(shrunk)))
    job.emit(
        events.BackupSucceeded(
            name=made.name,
            seconds=made.seconds,
            location=made.location,
            raw_bytes=manifest.raw_bytes,
            stored_bytes=manifest.stored_bytes,
            tables=figures.tables,
            rows=figures.rows,
            host=manifest.database.host,
            database=manifest.database.name,
            last_proof=earlier.last_proof,
        )
    )
