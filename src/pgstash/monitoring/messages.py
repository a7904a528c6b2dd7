"""What is said of events in more than one place, and figures, in words for people."""

from __future__ import annotations

from pgstash import events


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
    """Return a time to wait for people, in its two largest units: ``2h 5m``, ``45s``."""
    whole = round(duration)
    days, hours = divmod(whole // 3600, 24)
    minutes, rest = whole // 60 % 60, whole % 60
    counts = zip((days, hours, minutes, rest), "dhms", strict=True)
    parts = [f"{count}{unit}" for count, unit in counts if count]
    return " ".join(parts[:2]) or "0s"


def success(event: events.BackupSucceeded) -> str:
    """Say in a sentence that a backup is complete."""
    return (
        f"Backup completed successfully in {seconds(event.seconds)}: {event.name} "
        f"({event.tables} tables, {event.rows} rows, {size(event.stored_bytes)} stored)"
    )


def failure(event: events.BackupFailed) -> str:
    """Say in a sentence that there is no backup."""
    return f"Backup failed after {seconds(event.seconds)}: {event.name}: {event.message}"


def left_behind(event: events.UploadLeftBehind) -> str:
    """Say what an operator may want to clear away."""
    return (
        f"The upload of {event.key} could not be aborted ({event.reason}). It is not visible as "
        "a backup, but its parts take space until they are removed; "
        f"upload id: {event.upload_id}"
    )


def drill_success(event: events.DrillSucceeded) -> str:
    """Say in a sentence that a backup is proven."""
    return (
        f"Drill passed in {seconds(event.seconds)}: {event.name} is proven to restore, "
        f"in {seconds(event.restore_seconds)} "
        f"({event.checks} checks, {event.tables} tables, {event.rows} rows)"
    )


def drill_failure(event: events.DrillFailed) -> str:
    """Say in a sentence that a backup was not proven."""
    return f"Drill failed after {seconds(event.seconds)}: {event.name}: {event.message}"


def is_warning(event: events.ToolSaid) -> bool:
    """Tell whether a client tool complained, rather than told of something by the way."""
    words = event.line.lower()
    return "warning:" in words or "error:" in words
