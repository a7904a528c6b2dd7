"""Reads psql's stderr: messages that are passed on, and the one that ended psql."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Sequence

from pgstash.postgres.restore.refusals import LOST, Refusal, without_confidential
from pgstash.processes.child import shortened

# psql:<stdin>:123: ERROR:  42P07: relation "a" already exists
_MESSAGE = re.compile(r"psql:<stdin>:(\d+): ([^:]+):  ([0-9A-Z]{5}): (.*)")
_STATEMENT = re.compile(r"psql:<stdin>:\d+: STATEMENT:  ")
_OF_PSQL = re.compile(r"psql(?:\.bin)?:(?:<stdin>:\d+:)? ")
_LOCATION = "LOCATION: "  # a line in PostgreSQL's source

_LINES_KEPT = 12
_LONGEST_LINE = 500  # characters
_MESSAGES_PASSED_ON = 20
_LONGEST_FIRST = 200  # characters


class _Message:
    """The first lines of a message of the server, as psql writes it."""

    def __init__(self, match: re.Match[str]) -> None:
        self.line, self.severity, self.state = match[1], match[2], match[3]
        self.lines = [match[4]]
        self.cut = False

    def add(self, line: str) -> None:
        if line.startswith(_LOCATION):
            return
        if len(self.lines) < _LINES_KEPT:
            self.lines.append(line)
        else:
            self.cut = True

    @property
    def text(self) -> str:
        return without_confidential("\n".join([*self.lines, *(["…"] if self.cut else [])]))


class Stderr:
    """Reads psql's stderr, and finds the message that ended psql among all others.

    A warning may have the SQLSTATE of an error, and the word for its severity is in the language of
    the server. But with ``ECHO=errors`` psql writes the statement after the message of an error,
    and after no other; with ``ON_ERROR_STOP`` it is the last thing that psql writes. So a message
    is passed on as soon as the next one follows.
    """

    def __init__(self, report: Callable[[str], None], secrets: Sequence[str]) -> None:
        """Pass the first messages on to ``report``, shortened, but not the error.

        ``secrets`` are those that psql may write.
        """
        self._report = report
        self._secrets = secrets
        self._lock = threading.Lock()
        self._held: _Message | None = None
        self._last: _Message | None = None
        self._statement: list[str] | None = None
        self._first = ""
        self._of_psql: list[str] = []
        self.count = 0

    def read(self, line: str) -> None:
        """Take the next line."""
        with self._lock:
            for complete in self._taken(line):
                self._report(complete)

    def finish(self) -> None:
        """Pass on the last message."""
        with self._lock:
            for complete in self._passed_on():
                self._report(complete)
            if self.count > _MESSAGES_PASSED_ON:
                more = self.count - _MESSAGES_PASSED_ON
                self._report(f"({more} more message{'s'[: more != 1]} not shown)")

    def found(self, *, lost: bool) -> tuple[str, Refusal] | None:
        """Return the line of the script and the refusal there, if a refusal ended psql.

        If the connection was ``lost``, the last message may be the reason.
        """
        with self._lock:
            message, statement = self._held, self._statement
            if statement is None:
                message, statement = self._last, []
                if not lost or message is None or message.state[:2] not in LOST:
                    return None
            if message is None:
                return None
            text = "\n".join(statement[:_LINES_KEPT])
            more = "\n…" if len(statement) > _LINES_KEPT else ""
            return message.line, Refusal(message.state, message.text, text + more)

    @property
    def of_psql(self) -> str:
        """The last lines of psql's own messages."""
        with self._lock:
            return "\n".join(self._of_psql)

    @property
    def before(self) -> str:
        """The number of messages before the error, on a line of its own; empty without any."""
        with self._lock:
            if not self.count:
                return ""
            others = f"1 message before it: {self._first}"
            if self.count > 1:
                others = f"{self.count} messages before it, the first one: {self._first}"
            return f"\n({others})"

    def _taken(self, line: str) -> list[str]:
        if self._statement is not None:
            if len(self._statement) <= _LINES_KEPT:
                self._statement.append(line)
            return []
        if match := _MESSAGE.match(line):
            complete = self._passed_on()
            self._held = self._last = _Message(match)
            return complete
        if self._held and (found := _STATEMENT.match(line)):
            self._statement = [line[found.end() :]]
            return []
        if _OF_PSQL.match(line):
            self._of_psql = [*self._of_psql[1 - _LINES_KEPT :], line]
            return [*self._passed_on(), line]
        if self._held:
            self._held.add(line)
            return []
        return [line]

    def _passed_on(self) -> list[str]:
        held = self._held
        if held is None or self._statement is not None:
            return []
        self._held = None
        self.count += 1
        if self.count == 1:
            self._first = shortened(held.lines[0], _LONGEST_FIRST, self._secrets)
        if self.count > _MESSAGES_PASSED_ON:
            return []
        lines = f"{held.severity}: {held.text}".splitlines()
        return [shortened(line, _LONGEST_LINE, self._secrets) for line in lines]
