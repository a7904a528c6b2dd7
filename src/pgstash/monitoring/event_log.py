"""Writes every event to the log, each as one of a kind is written."""

from __future__ import annotations

import logging
from collections.abc import Callable

from pgstash import events, retention
from pgstash.monitoring.log import FAILURE, LOGGER, SUCCESS
from pgstash.monitoring.wording import is_warning, left_behind, seconds, size, span


def _next_run(event: events.NextRunPlanned) -> None:
    wait = f"in {span(event.seconds)}" if event.seconds > 0 else "at once: it is overdue"
    LOGGER.info("Next run at %s (%s)", event.at.strftime("%Y-%m-%dT%H:%M:%SZ"), wait)


def listen(event: events.Event) -> None:
    """Write an event to the log. Safe to call from any thread."""
    for kind, write in _WRITERS.items():
        if isinstance(event, kind):
            write(event)


def explain(event: events.Event) -> None:
    """Write an event as :func:`listen` does, and at once what is a detail after a backup.

    For a user who asked for pruning: which backups are kept and why, and the summary.
    """
    if isinstance(event, events.BackupKept):
        _backup_kept(event, logging.INFO)
    elif isinstance(event, events.PruneFinished):
        _prune_finished(event, logging.INFO)
    elif isinstance(event, events.OthersLeft):
        _others_left(event, logging.INFO)
    else:
        listen(event)


def _tool_said(event: events.ToolSaid) -> None:
    level = logging.WARNING if is_warning(event) else logging.INFO
    named = event.tool in event.line.lower()
    LOGGER.log(level, "%s", event.line if named else f"{event.tool}: {event.line}")


def _retrying(event: events.Retrying) -> None:
    LOGGER.warning(
        "%s failed (%s); retry %d of %d in %.1fs",
        event.request,
        event.reason,
        event.attempt,
        event.attempts,
        event.delay,
    )


def _dump_started(event: events.DumpStarted) -> None:
    LOGGER.info("Creating database dump...")
    LOGGER.debug("pg_dump %s, server %s", event.client, event.server)


def _upload_started(event: events.UploadStarted) -> None:
    if event.destination.startswith("s3:"):
        LOGGER.info("Uploading to S3...")
    else:
        LOGGER.info("Uploading to %s...", event.destination)
    LOGGER.debug("Parts of %s to %s", size(event.part_size), event.destination)


def _dump_finished(event: events.DumpFinished) -> None:
    LOGGER.info("Dump completed in %s, size: %s", seconds(event.seconds), size(event.raw_bytes))


def _backup_succeeded(event: events.BackupSucceeded) -> None:
    # Not by success(): what is written here as a constant survives the scrubber, even where a
    # secret is one of its words.
    LOGGER.log(
        SUCCESS,
        "Backup completed successfully in %s: %s (%d tables, %d rows, %s stored)",
        seconds(event.seconds),
        event.name,
        event.tables,
        event.rows,
        size(event.stored_bytes),
    )
    LOGGER.info("Backup location: %s", event.location)


def _backup_failed(event: events.BackupFailed) -> None:
    hint = f"\n{event.hint}" if event.hint else ""
    LOGGER.log(
        FAILURE,
        "Backup failed after %s: %s: %s%s",
        seconds(event.seconds),
        event.name,
        event.message,
        hint,
    )


def _restore_started(event: events.RestoreStarted) -> None:
    what = "Dry run of a restore:" if event.dry_run else "Starting restore:"
    of = f" of {event.of}" if event.of else ""
    LOGGER.info("%s %s%s to %s on %s", what, event.name, of, event.database, event.host)


def _restore_planned(event: events.RestorePlanned) -> None:
    how = "a new database" if event.created else "the database"
    LOGGER.info(
        "Would restore %s into %s %s on %s, PostgreSQL %s, with psql %s",
        event.name,
        how,
        event.database,
        event.host,
        event.server,
        event.client,
    )
    if event.raw_bytes is None:
        LOGGER.warning("There is no manifest to check %s with", event.name)
    else:
        LOGGER.info(
            "It holds %d rows in %d tables, %s of SQL",
            event.rows,
            event.tables,
            size(event.raw_bytes),
        )


def _restore_succeeded(event: events.RestoreSucceeded) -> None:
    LOGGER.log(
        SUCCESS,
        "Restore completed successfully in %s: %s to %s on %s (%s of SQL, %s)",
        seconds(event.seconds),
        event.name,
        event.database,
        event.host,
        size(event.raw_bytes),
        "verified" if event.verified else "not verified: there is no manifest",
    )


def _restore_failed(event: events.RestoreFailed) -> None:
    hint = f"\n{event.hint}" if event.hint else ""
    LOGGER.log(
        FAILURE,
        "Restore failed after %s, and %s: %s: %s%s",
        seconds(event.seconds),
        event.outcome,
        event.name,
        event.message,
        hint,
    )


def _drill_succeeded(event: events.DrillSucceeded) -> None:
    LOGGER.log(
        SUCCESS,
        "Drill passed in %s: %s is proven to restore, in %s (%d checks, %d tables, %d rows)",
        seconds(event.seconds),
        event.name,
        seconds(event.restore_seconds),
        event.checks,
        event.tables,
        event.rows,
    )
    LOGGER.info("Proof location: %s", event.location)


def _drill_failed(event: events.DrillFailed) -> None:
    hint = f"\n{event.hint}" if event.hint else ""
    LOGGER.log(
        FAILURE,
        "Drill failed after %s: %s: %s%s",
        seconds(event.seconds),
        event.name,
        event.message,
        hint,
    )


def _backup_kept(event: events.BackupKept, level: int = logging.DEBUG) -> None:
    if event.reasons == (retention.PROVEN,):
        # The rules would have it go: whoever looks for what they set up is told why it stays.
        level = logging.INFO
    LOGGER.log(level, "keep    %s  %s", event.name, "; ".join(event.reasons))


def _backup_removed(event: events.BackupRemoved) -> None:
    done = "remove " if event.dry_run else "removed"
    LOGGER.info("%s %s  %s", done, event.name, "; ".join(event.reasons))


def _others_left(event: events.OthersLeft, level: int = logging.DEBUG) -> None:
    count = "1 backup" if event.number == 1 else f"{event.number} backups"
    LOGGER.log(level, "leave   %s of another source  %s", count, event.label)


def _swept(event: events.LeftoverSwept) -> None:
    LOGGER.info(
        "%s %s  %s", "sweep  " if event.dry_run else "swept  ", event.location, event.reason
    )


def _prune_finished(event: events.PruneFinished, level: int = logging.DEBUG) -> None:
    if not event.dry_run and (event.removed or event.swept):
        level = logging.INFO
    counts = event.location, event.kept, event.removed, event.swept
    if event.dry_run:
        LOGGER.log(
            level, "Dry run of %s: %d backups to keep, %d to remove, %d leftovers to sweep", *counts
        )
    else:
        LOGGER.log(level, "Pruned %s: %d backups kept, %d removed, %d leftovers swept", *counts)


def _prune_failed(event: events.PruneFailed) -> None:
    hint = f"\n{event.hint}" if event.hint else ""
    LOGGER.log(FAILURE, "Pruning failed: %s%s", event.message, hint)


_WRITERS: dict[type[events.Event], Callable[..., None]] = {
    events.Notice: lambda event: LOGGER.debug("%s", event.message),
    events.Warned: lambda event: LOGGER.warning("%s", event.message),
    events.ToolSaid: _tool_said,
    events.Retrying: _retrying,
    events.UploadLeftBehind: lambda event: LOGGER.warning("%s", left_behind(event)),
    events.IterationStarted: lambda event: LOGGER.info("Iteration %d", event.number),
    events.NextRunPlanned: _next_run,
    events.BackupStarted: lambda event: LOGGER.info("Starting backup: %s", event.name),
    events.DumpStarted: _dump_started,
    events.UploadStarted: _upload_started,
    events.DumpFinished: _dump_finished,
    events.UploadFinished: lambda event: LOGGER.info(
        "Upload completed in %s", seconds(event.seconds)
    ),
    events.BackupSucceeded: _backup_succeeded,
    events.BackupFailed: _backup_failed,
    events.RestoreStarted: _restore_started,
    events.RestorePlanned: _restore_planned,
    events.RestoreSucceeded: _restore_succeeded,
    events.RestoreFailed: _restore_failed,
    events.RoleCreated: lambda event: LOGGER.info("Created the role %s, without login", event.name),
    events.DrillStarted: lambda event: LOGGER.info(
        "Starting drill: %s in %s", event.name, event.where
    ),
    events.DrillSucceeded: _drill_succeeded,
    events.DrillFailed: _drill_failed,
    events.BackupKept: _backup_kept,
    events.BackupRemoved: _backup_removed,
    events.OthersLeft: _others_left,
    events.LeftoverSwept: _swept,
    events.SweepLeftOut: lambda event: LOGGER.info("Leftovers are not swept: %s", event.reason),
    events.PruneFinished: _prune_finished,
    events.PruneFailed: _prune_failed,
}
