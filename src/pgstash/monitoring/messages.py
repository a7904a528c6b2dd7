"""Texts that more than one listener uses, and numbers formatted for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

from pgstash import events
from pgstash.counting import counted
from pgstash.format.iso_time import iso

Kind = Literal[
    "failure", "recovery", "drill-failed", "shrunk", "pruning-failed", "copy-failed", "success"
]
KINDS: Sequence[Kind] = get_args(Kind)
"""What a message may be about."""


def size(count: int) -> str:
    """Return a number of bytes for people, in powers of 1,000: ``524MB``."""
    amount = float(count)
    for unit in ("B", "KB", "MB", "GB", "TB"):
        if amount < 999.5 or unit == "TB":  # noqa: PLR2004 - the next unit begins here
            digits = 0 if unit == "B" or amount >= 10 else 1  # noqa: PLR2004 - two digits at least
            return f"{amount:.{digits}f}{unit}"
        amount /= 1000
    raise AssertionError("the last unit returns")


def seconds(duration: float) -> str:
    """Return a duration for people: ``0.4s``, ``21s``."""
    return f"{duration:.1f}s" if duration < 9.95 else f"{duration:.0f}s"  # noqa: PLR2004 - as size


def span(duration: float) -> str:
    """Return a time span for people, in its two largest units: ``2h 5m``, ``45s``."""
    whole = round(duration)
    days, hours = divmod(whole // 3600, 24)
    minutes, rest = whole // 60 % 60, whole % 60
    counts = zip((days, hours, minutes, rest), "dhms", strict=True)
    parts = [f"{count}{unit}" for count, unit in counts if count]
    return " ".join(parts[:2]) or "0s"


def success(event: events.BackupSucceeded) -> str:
    """Return the sentence for a complete backup."""
    return (
        f"Backup completed successfully in {seconds(event.seconds)}: {event.name} "
        f"({counted(event.tables, 'table')}, {counted(event.rows, 'row')}, "
        f"{size(event.stored_bytes)} stored)"
    )


def shrunk(event: events.BackupShrunk) -> str:
    """Return the sentence for a backup that is much smaller than usual."""
    return f"{event.name} is much smaller than usual: {'; '.join(event.figures)}"


def prune_failure(event: events.PruneFailed) -> str:
    """Return the sentence for pruning that failed."""
    whose = f" of the copy {event.copy}" if event.copy else ""
    return f"Pruning{whose} failed: {event.message}"


def failure(event: events.BackupFailed) -> str:
    """Return the sentence for a failed backup."""
    following = f" (next attempt at {iso(event.next_attempt)})" if event.next_attempt else ""
    return f"Backup failed after {seconds(event.seconds)}: {event.name}: {event.message}{following}"


def left_behind(event: events.UploadLeftBehind) -> str:
    """Return the sentence for an upload that an operator may want to remove."""
    return (
        f"The upload of {event.key} could not be aborted ({event.reason}). It is not visible as "
        "a backup, but its parts take up space until they are removed; "
        f"upload id: {event.upload_id}"
    )


def drill_success(event: events.DrillSucceeded) -> str:
    """Return the sentence for a drill that passed."""
    return (
        f"Drill passed in {seconds(event.seconds)}: {event.name} is proven to restore, "
        f"in {seconds(event.restore_seconds)} "
        f"({counted(event.checks, 'check')}, {counted(event.tables, 'table')}, "
        f"{counted(event.rows, 'row')})"
    )


def drill_failure(event: events.DrillFailed) -> str:
    """Return the sentence for a drill that failed."""
    return f"Drill failed after {seconds(event.seconds)}: {event.name}: {event.message}"


def copy_failure(event: events.CopyFailed) -> str:
    """Return the sentence for a backup that was not copied."""
    what = f"{event.name} was not copied" if event.name else "No backup was copied"
    return f"{what} to {event.copy}: {event.message}"


def is_warning(event: events.ToolSaid) -> bool:
    """Return whether the line of a client tool is a warning or an error."""
    words = event.line.lower()
    return "warning:" in words or "error:" in words
