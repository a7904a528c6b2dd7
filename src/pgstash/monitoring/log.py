"""The log: one line per record, in UTC, without secrets, warnings and errors on stderr."""

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

from pgstash.errors import Interrupted
from pgstash.format.iso_time import iso
from pgstash.monitoring.redaction import Scrubber

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

# These libraries log everything they send; even the debug log only needs their failures.
_CHATTY = ("azure", "boto3", "botocore", "google", "msal", "psycopg", "urllib3")

Format = Literal["text", "json"]


class _Formatter(logging.Formatter):
    """Formats a record, including its traceback, and scrubs the result."""

    def __init__(self, scrubber: Scrubber, *, layout: Format, colour: bool, job: str) -> None:
        super().__init__()
        self._scrubber = scrubber
        self._layout = layout
        self._colour = colour
        self._job = scrubber.scrub(job)

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, or the lines if the message has several."""
        time = iso(datetime.fromtimestamp(record.created, UTC))
        message = self._scrubbed(record)
        if self._layout == "json":
            line = {"timestamp": time, "level": record.levelname, "message": message}
            if self._job:
                line["job"] = self._job
            return json.dumps(line)  # in ASCII, which any encoding of stdout can carry
        # A line feed or an escape sequence in a name must not forge a line of its own.
        message = "\n  ".join(printable(line) for line in message.split("\n"))
        job = f"[{printable(self._job)}] " if self._job else ""
        line_text = f"{time} {record.levelname} {job}{message}"
        colour = _COLOURS.get(record.levelname) if self._colour else None
        return f"{colour}{line_text}{_RESET}" if colour else line_text

    def _scrubbed(self, record: logging.LogRecord) -> str:
        """Return the message without secrets.

        The words of pgstash's own messages are constants that people search for. They stay even
        if a secret is the same word ("backup"). Everything that is put into them is scrubbed first.
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
    """An argument of a message whose text has no secrets."""

    def __init__(self, value: object, scrub: Callable[[str], str]) -> None:
        self._value = value
        self._scrub = scrub

    @classmethod
    def of(cls, value: object, scrub: Callable[[str], str]) -> object:
        """Return the wrapped argument; a number stays as it is, because ``%d`` needs one."""
        return value if isinstance(value, int | float) else cls(value, scrub)

    def __str__(self) -> str:
        return self._scrub(str(self._value))

    def __repr__(self) -> str:
        return self._scrub(repr(self._value))


def printable(text: str) -> str:
    """Return a text with its control characters written as escapes."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


class _Handler(logging.Handler):
    """Writes to the current stdout or stderr: a progress bar replaces them while it is shown."""

    def __init__(self, name: Literal["stdout", "stderr"]) -> None:
        super().__init__()
        self._name = name

    @property
    def stream(self) -> TextIO | None:
        """The current stream; None if the process was started without it."""
        stream: TextIO | None = getattr(sys, self._name)
        return stream

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record. A closed pipe must not stop a backup."""
        stream = self.stream
        if stream is None:
            return
        # TypeError: a library's record whose arguments do not match its message.
        with contextlib.suppress(OSError, ValueError, TypeError):
            stream.write(self.format(record) + "\n")
            stream.flush()


def start(
    scrubber: Scrubber,
    *,
    layout: Format,
    debug: bool,
    stdout_is_data: bool = False,
    job: str = "",
) -> None:
    """Send all records through the scrubber, including those of libraries and uncaught exceptions.

    With ``stdout_is_data`` none goes to stdout. Each line names its ``job``, if that is given.
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
            reconfigure(errors="backslashreplace")  # show characters that cannot be encoded
    for handler in (out, err):
        colour = handler.stream is not None and handler.stream.isatty()
        handler.setFormatter(_Formatter(scrubber, layout=layout, colour=colour, job=job))
        root.addHandler(handler)
    root.setLevel(logging.DEBUG if debug else logging.INFO)
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.INFO if debug else logging.WARNING)
    # It logs the traceback of each renewal that failed, although the last credentials may do.
    logging.getLogger("botocore.credentials").setLevel(logging.INFO if debug else logging.ERROR)
    logging.raiseExceptions = False  # its own messages would go to stderr unscrubbed
    logging.captureWarnings(capture=True)
    sys.excepthook = _uncaught
    threading.excepthook = _uncaught_in_thread
    sys.unraisablehook = _unraisable


def finish() -> None:
    """Flush stdout and stderr; discard what cannot be written.

    Otherwise the interpreter would try again when it ends, fail, and replace the exit status of
    the command with its own.
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
    LOGGER.log(FAILURE, "Unexpected error", exc_info=(kind, error, traceback))


def _uncaught_in_thread(args: threading.ExceptHookArgs) -> None:
    if args.exc_value is not None:
        _uncaught(args.exc_type, args.exc_value, args.exc_traceback)


def _unraisable(args: sys.UnraisableHookArgs) -> None:
    # A signal that came in a finalizer is raised again: see signals.Interruption.
    if args.exc_value is not None and not isinstance(args.exc_value, Interrupted):
        error = (args.exc_type, args.exc_value, args.exc_traceback)
        LOGGER.warning("Ignored an error in %r", args.object, exc_info=error)
