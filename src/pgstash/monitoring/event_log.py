"""Writes events to the log: one function for each kind."""

from __future__ import annotations

import logging
from collections.abc import Callable

from pgstash import events
from pgstash.counting import counted
from pgstash.format.iso_time import iso
from pgstash.monitoring import copy_log
from pgstash.monitoring.log import FAILURE, LOGGER, SUCCESS
from pgstash.monitoring.messages import (
    is_warning,
    left_behind,
    prune_failure,
    seconds,
    shrunk,
    size,
    span,
)


def _next_run(event: events.NextRunPlanned) -> None:
    wait = f"in {span(event.seconds)}" if event.seconds > 0 else "now: it is overdue"
    reason = f": {event.reason}" if event.reason else ""
    LOGGER.info("Next run at %s (%s)%s", iso(event.at), wait, reason)


def listen(event: events.Event) -> None:
    """Write an event to the log. Safe to call from any thread."""
    for kind, write in _WRITERS.items():
        if isinstance(event, kind):
            write(event)


def explain(event: events.Event) -> None:
    """Write an event as :func:`listen` does, but log what pruning keeps, and why, as information.

    For a user who asked for pruning. After a backup these are details for the debug log.
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
    # Not messages.success(): the redaction keeps constants of the log, even if a secret is one of
    # their words.
    LOGGER.log(
        SUCCESS,
        "Backup completed successfully in %s: %s (%s, %s, %s stored)",
        seconds(event.seconds),
        event.name,
        counted(event.tables, "table"),
        counted(event.rows, "row"),
        size(event.stored_bytes),
    )
    LOGGER.info("Backup location: %s", event.location)


def _backup_failed(event: events.BackupFailed) -> None:
    hint = f"\n{event.hint}" if event.hint else ""
    what = seconds(event.seconds), event.name, event.message, hint
    if event.repeated:
        LOGGER.warning("Backup failed again after %s: %s: %s%s", *what)
    else:
        LOGGER.log(FAILURE, "Backup failed after %s: %s: %s%s", *what)


def _backup_chosen(event: events.BackupChosen) -> None:
    if event.at is None:
        LOGGER.info("Chosen: %s of %s", event.name, iso(event.started))
        return
    LOGGER.info(
        "Chosen: %s of %s, %s before %s; the next one: %s, the one before: %s",
        event.name,
        iso(event.started),
        span((event.at - event.started).total_seconds()),
        iso(event.at),
        event.after or "none",
        event.before or "none",
    )


def _restore_targeted(event: events.RestoreTargeted) -> None:
    what = "new database" if event.created else "database"
    LOGGER.info("Target: %s %s on %s", what, event.database, event.address)


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
        LOGGER.warning("%s has no manifest to verify it against", event.name)
    else:
        LOGGER.info(
            "It contains %s in %s, %s of SQL",
            counted(event.rows or 0, "row"),
            counted(event.tables or 0, "table"),
            size(event.raw_bytes),
        )


def _restore_succeeded(event: events.RestoreSucceeded) -> None:
    LOGGER.log(
        SUCCESS,
        "Restore completed successfully in %s: %s to %s on %s (%s of SQL, %s)%s",
        seconds(event.seconds),
        event.name,
        event.database,
        event.host,
        size(event.raw_bytes),
        "verified" if event.verified else "not verified: it has no manifest",
        f"\n{event.kept}" if event.kept else "",
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
        "Drill passed in %s: %s is proven to restore, in %s (%s, %s, %s)",
        seconds(event.seconds),
        event.name,
        seconds(event.restore_seconds),
        counted(event.checks, "check"),
        counted(event.tables, "table"),
        counted(event.rows, "row"),
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
    if event.reasons == (events.KEPT_AS_PROVEN,):
        # The retention settings alone would remove it, so show why it is kept.
        level = logging.INFO
    LOGGER.log(level, "keep    %s  %s", event.name, "; ".join(event.reasons))


def _backup_removed(event: events.BackupRemoved) -> None:
    done = "remove " if event.dry_run else "removed"
    LOGGER.info("%s %s  %s", done, event.name, "; ".join(event.reasons))


def _others_left(event: events.OthersLeft, level: int = logging.DEBUG) -> None:
    LOGGER.log(
        level, "leave   %s of another source  %s", counted(event.number, "backup"), event.label
    )


def _swept(event: events.LeftoverSwept) -> None:
    LOGGER.info(
        "%s %s  %s", "sweep  " if event.dry_run else "swept  ", event.location, event.reason
    )


def _prune_finished(event: events.PruneFinished, level: int = logging.DEBUG) -> None:
    if not event.dry_run and (event.removed or event.swept):
        level = logging.INFO
    kept, swept = counted(event.kept, "backup"), counted(event.swept, "leftover")
    counts = event.location, kept, event.removed, swept
    if event.dry_run:
        LOGGER.log(level, "Dry run of %s: %s to keep, %d to remove, %s to sweep", *counts)
    else:
        LOGGER.log(level, "Pruned %s: %s kept, %d removed, %s swept", *counts)


def _prune_failed(event: events.PruneFailed) -> None:
    hint = f"\n{event.hint}" if event.hint else ""
    level = logging.WARNING if event.after_backup else FAILURE
    LOGGER.log(level, "%s%s", prune_failure(event), hint)


_WRITERS: dict[type[events.Event], Callable[..., None]] = {
    events.Notice: lambda event: LOGGER.debug("%s", event.message),
    events.Informed: lambda event: LOGGER.info("%s", event.message),
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
    events.BackupShrunk: lambda event: LOGGER.warning("%s", shrunk(event)),
    events.BackupSucceeded: _backup_succeeded,
    events.BackupFailed: _backup_failed,
    events.BackupChosen: _backup_chosen,
    events.RestoreTargeted: _restore_targeted,
    events.RestoreStarted: _restore_started,
    events.RestorePlanned: _restore_planned,
    events.RestoreSucceeded: _restore_succeeded,
    events.RestoreFailed: _restore_failed,
    events.RoleCreated: lambda event: LOGGER.info(
        "Created the role %s, %s",
        event.name,
        "with its login and password" if event.login else "without login",
    ),
    events.DrillStarted: lambda event: LOGGER.info(
        "Starting drill: %s in %s", event.name, event.where
    ),
    events.DrillSucceeded: _drill_succeeded,
    events.DrillFailed: _drill_failed,
    **copy_log.WRITERS,
    events.BackupKept: _backup_kept,
    events.BackupRemoved: _backup_removed,
    events.OthersLeft: _others_left,
    events.LeftoverSwept: _swept,
    events.PruneFinished: _prune_finished,
    events.PruneFailed: _prune_failed,
}
