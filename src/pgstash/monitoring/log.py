"""The log: one line a record, in UTC, scrubbed, warnings and worse on stderr."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from types import TracebackType
from typing import Literal, TextIO

from pgstash import events, retention
from pgstash.monitoring.scrub import Scrubber

SUCCESS = 25
FAILURE = 45
logging.addLevelName(SUCCESS, "SUCCESS")
logging.addLevelName(FAILURE, "FAILURE")

LOGGER = logging.getLogger("pgstash")

_COLOURS = {
    "DEBUG": "\033[2m",
    "WARNING": "\033[33m",
    "ERROR": "\033[31m",
    "SUCCESS": "\033[32m",
    "FAILURE": "\033[1;31m",
}
_RESET = "\033[0m"

# Of a library that logs what it sends, even a debug log wants the failures alone.
_CHATTY = ("botocore", "boto3", "urllib3", "psycopg")

Format = Literal["text", "json"]


class _Formatter(logging.Formatter):
    """Formats a record, traceback included, and scrubs what came of it."""

    def __init__(self, scrubber: Scrubber, *, layout: Format, colour: bool) -> None:
        super().__init__()
        self._scrubber = scrubber
        self._layout = layout
        self._colour = colour

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, or the lines where the message has several."""
        time = datetime.fromtimestamp(record.created, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        message = self._scrubbed(record)
        if self._layout == "json":
            line = {"timestamp": time, "level": record.levelname, "message": message}
            return json.dumps(line)  # in ASCII, which any encoding of stdout can carry
        # A line feed or an escape sequence in a name must not forge a line of its own.
        message = "\n  ".join(printable(line) for line in message.split("\n"))
        line_text = f"{time} {record.levelname} {message}"
        colour = _COLOURS.get(record.levelname) if self._colour else None
        return f"{colour}{line_text}{_RESET}" if colour else line_text

    def _scrubbed(self, record: logging.LogRecord) -> str:
        """Return the message without secrets.

        The words of pgstash's own messages are constants that people search for: they stay also
        where a secret is one of them ("backup"). All that is put into them is scrubbed first.
        """
        if record.name.partition(".")[0] != LOGGER.name:
            return self._scrubber.scrub(f"{record.name}: {super().format(record)}")
        scrub = self._scrubber.scrub
        arguments = record.args if isinstance(record.args, tuple) else (record.args,)
        message = str(record.msg)
        if record.args:
            message %= tuple(_Argument.of(argument, scrub) for argument in arguments)
        lines = [self._scrubber.scrub_distinct(message)]
        if record.exc_info:
            lines.append(scrub(self.formatException(record.exc_info)))
        if record.stack_info:
            lines.append(scrub(self.formatStack(record.stack_info)))
        return "\n".join(lines)


class _Argument:
    """What is put into a message, and shows itself without secrets."""

    def __init__(self, value: object, scrub: Callable[[str], str]) -> None:
        self._value = value
        self._scrub = scrub

    @classmethod
    def of(cls, value: object, scrub: Callable[[str], str]) -> object:
        """Return the argument; a number as it is, for ``%d`` wants one."""
        return value if isinstance(value, int | float) else cls(value, scrub)

    def __str__(self) -> str:
        return self._scrub(str(self._value))

    def __repr__(self) -> str:
        return self._scrub(repr(self._value))


def printable(text: str) -> str:
    """Return a text whose control characters are written as escapes."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


class _Handler(logging.Handler):
    """Writes to what is stdout or stderr now: a progress bar replaces them while it shows."""

    def __init__(self, name: Literal["stdout", "stderr"]) -> None:
        super().__init__()
        self._name = name

    @property
    def stream(self) -> TextIO | None:
        """What it writes to now; None where the process was started without it."""
        stream: TextIO | None = getattr(sys, self._name)
        return stream

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record; a closed pipe at the other end is no reason to stop a backup."""
        stream = self.stream
        if stream is None:
            return
        # TypeError: some library's record whose arguments do not fit its message.
        with contextlib.suppress(OSError, ValueError, TypeError):
            stream.write(self.format(record) + "\n")
            stream.flush()


def start(scrubber: Scrubber, *, layout: Format, debug: bool, stdout_is_data: bool = False) -> None:
    """Send all records, third-party loggers' and uncaught exceptions' too, through the scrubber.

    With ``stdout_is_data`` none goes to stdout.
    """
    root = logging.getLogger()
    for handler in root.handlers[:]:
        root.removeHandler(handler)
    out, err = _Handler("stderr" if stdout_is_data else "stdout"), _Handler("stderr")
    out.addFilter(lambda record: record.levelno < logging.WARNING)
    err.setLevel(logging.WARNING)
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure:
            reconfigure(errors="backslashreplace")  # show what cannot be encoded
    for handler in (out, err):
        colour = handler.stream is not None and handler.stream.isatty()
        handler.setFormatter(_Formatter(scrubber, layout=layout, colour=colour))
        root.addHandler(handler)
    root.setLevel(logging.DEBUG if debug else logging.INFO)
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.INFO if debug else logging.WARNING)
    logging.raiseExceptions = False  # its own complaint would go to stderr unscrubbed
    logging.captureWarnings(capture=True)
    sys.excepthook = _uncaught
    threading.excepthook = _uncaught_in_thread
    sys.unraisablehook = _unraisable


def finish() -> None:
    """Write out what is left; where nobody takes it, let go of it.

    Otherwise the interpreter would try once more when it ends, fail, and replace the exit
    status of the command by its own.
    """
    for stream in (sys.stdout, sys.stderr):
        if stream is None:
            continue
        try:
            stream.flush()
        except (OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)


def _uncaught(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    LOGGER.log(FAILURE, "Unforeseen error", exc_info=(kind, error, traceback))


def _uncaught_in_thread(args: threading.ExceptHookArgs) -> None:
    if args.exc_value is not None:
        _uncaught(args.exc_type, args.exc_value, args.exc_traceback)


def _unraisable(args: sys.UnraisableHookArgs) -> None:
    if args.exc_value is not None:
        error = (args.exc_type, args.exc_value, args.exc_traceback)
        LOGGER.warning("Ignored an error in %r", args.object, exc_info=error)


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


def is_warning(event: events.ToolSaid) -> bool:
    """Tell whether a client tool complained, rather than told of something by the way."""
    words = event.line.lower()
    return "warning:" in words or "error:" in words


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


def drill_success(event: events.DrillSucceeded) -> str:
    """Say in a sentence that a backup is proven."""
    return (
        f"Drill passed in {seconds(event.seconds)}: {event.name} is proven to restore, "
        f"in {seconds(event.restore_seconds)} "
        f"({event.checks} checks, {event.tables} tables, {event.rows} rows)"
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


def drill_failure(event: events.DrillFailed) -> str:
    """Say in a sentence that a backup was not proven."""
    return f"Drill failed after {seconds(event.seconds)}: {event.name}: {event.message}"


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
    events.LeftoverSwept: _swept,
    events.SweepLeftOut: lambda event: LOGGER.info("Leftovers are not swept: %s", event.reason),
    events.PruneFinished: _prune_finished,
    events.PruneFailed: _prune_failed,
}
