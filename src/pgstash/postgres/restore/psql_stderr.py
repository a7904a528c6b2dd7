"""What a target refused: by SQLSTATE, by libpq's labels and by our own statement.

A server writes its messages, the word for their severity included, in the language of its
``lc_messages``. Nothing here depends on them. The same everywhere are the SQLSTATE
(https://www.postgresql.org/docs/current/errcodes-appendix.html), libpq's labels (client tools run
with ``LC_ALL=C``), names of settings and types, and the statement, which pg_dump wrote.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pgstash.child import shortened
from pgstash.errors import RestoreError, StatementError, TargetLostError

# psql:<stdin>:123: ERROR:  42P07: relation "a" already exists
_MESSAGE = re.compile(r"psql:<stdin>:(\d+): ([^:]+):  ([0-9A-Z]{5}): (.*)")
_STATEMENT = re.compile(r"psql:<stdin>:\d+: STATEMENT:  ")
_OF_PSQL = re.compile(r"psql(?:\.bin)?:(?:<stdin>:\d+:)? ")
_LOCATION = "LOCATION: "  # a line in PostgreSQL's source

_LINES_KEPT = 12
_LONGEST_TOLD = 500  # characters
_MESSAGES_TOLD = 20
_LONGEST_FIRST = 200  # characters

# Options of servers, user mappings and subscriptions may hold passwords.
_CONFIDENTIAL = re.compile(r"(OPTIONS \(|CONNECTION ').*", re.DOTALL)

_LOST = ("08", "57")  # classes: the connection is gone, or somebody ended the session
QUERY_CANCELED = "57014"
"""The SQLSTATE of a statement that took too long, or that somebody canceled."""
_NO_LOCKS = ("53200", "max_locks_per_transaction")

_UNDEFINED = r"42P01|42883|42704|42703"
_IN_QUERY = re.compile(r"^QUERY:  ", re.MULTILINE)
_CONTEXT = re.compile(
    r"^CONTEXT:  (.*(?:\n(?!STATEMENT:|LOCATION:|[A-Z ]+ NAME:).*)*)", re.MULTILINE
)

# What cannot be restored as it is, and is fixed in the source.
_SEARCH_PATH = (
    "A function depends on the search_path that its caller happened to have, and a restore has "
    "none. Fix it in the source: ALTER FUNCTION … SET search_path = …; then back up again."
)
_BROKEN_CHECK = (
    "Rows of the source break their own CHECK, which PostgreSQL does not test again when a "
    "function in it, or a table that this reads, changes. Fix it in the source: make the check a "
    "trigger, or correct the rows; then back up again."
)
BROKEN_CONSTRAINT = (
    "Rows of the source break a constraint, as can be where triggers were disabled, or an index is "
    "damaged (REINDEX). Correct them in the source; then back up again."
)
"""The hint of an error that a constraint of the target raised."""

_LIBRARY = (
    "The target's server lacks the library {}, or has another version of it. Install the package "
    "that brings it on the target's server, and restore again."
)
_TABLESPACE = (
    "Create the tablespace {0} on the target's server first (CREATE TABLESPACE {0} LOCATION '…'), "
    "and restore again. Or back up without tablespaces: PG_DUMP_EXTRA_ARGS=--no-tablespaces."
)

_NAME = r'("(?:[^"]|"")+"|[^\s;]+)'

# SQLSTATE, a pattern of the statement, and what to do; {} is what the pattern found.
_HINTS = (
    (
        "0A000|58P01|42704",
        rf"EXTENSION (?:IF NOT EXISTS )?{_NAME}",
        "Install the package of the extension {} on the target's server, and restore again.",
    ),
    (
        "58P01|42883",
        r"LANGUAGE c\b.*?\sAS '((?:[^']|'')+)'",
        _LIBRARY,
    ),
    (
        "42704|22023",
        rf"(?:default_tablespace = |TABLESPACE ){_NAME}",
        _TABLESPACE,
    ),
    (
        "42704|22023",
        r"\bROLE\b|CREATE USER MAPPING|CREATE POLICY|OWNER TO|\bSET role\b",
        "Create the role first (CREATE ROLE …), and restore again.",
    ),
    ("42501", "", "Restore with a role that owns the database, or with a superuser."),
    (
        "42P06|42P07|42710|42723|2BP01|42P16",
        "",
        "Something of the target is in the way: restore into an empty database, or with --create.",
    ),
    ("23514", "", _BROKEN_CHECK),
    ("23502|23503|23505|23P01", "", BROKEN_CONSTRAINT),
    (
        "25001",
        "SUBSCRIPTION",
        "Drop the subscription in the target first, or restore with --create NAME.",
    ),
    ("53100", "", "The target's disk is full."),
    ("42704", r"\ASET ", "The script was written for a newer server than the target's."),
    (QUERY_CANCELED, "", "Somebody canceled the statement: restore again."),
)
_MONEY = "The amounts were written in another lc_monetary, which the target's server must have."


class LockTableFullError(StatementError):
    """One transaction cannot lock as many objects as the script makes."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A message of the server: its SQLSTATE, its text with libpq's labels, and our statement."""

    state: str
    text: str
    statement: str

    @property
    def headline(self) -> str:
        """The message, its SQLSTATE and the statement."""
        first, _, more = self.text.partition("\n")
        lines = [f"{first} (SQLSTATE {self.state})"]
        if more:
            lines.append(more)
        if self.statement:
            lines.append(f"STATEMENT: {self.statement}")
        return without_confidential("\n".join(lines))

    @property
    def hint(self) -> str:
        """What to do about it; empty if nobody can tell."""
        if re.fullmatch(_UNDEFINED, self.state) and self._in_function:
            return _SEARCH_PATH
        if self.state == "22P02" and re.search(r"\bmoney\b", self.text):  # a name of a type
            return _MONEY
        for states, pattern, hint in _HINTS:
            found = re.search(pattern, self.statement, re.DOTALL)
            if re.fullmatch(states, self.state) and found:
                return hint.format(*found.groups()) if found.groups() else hint
        return ""

    @property
    def _in_function(self) -> bool:
        """Tell whether the server was in a function: only then it quotes a query of its own.

        Or it names what called what. COPY does, too, in one line of its own.
        """
        if _IN_QUERY.search(self.text):
            return True
        context = _CONTEXT.search(self.text)
        own = 1 if self.statement.startswith("COPY ") else 0
        return context is not None and len(context[1].splitlines()) > own


def refused(refusal: Refusal, message: str) -> RestoreError:
    """Return the error for what a server refused; ``message`` says where, and what."""
    if refusal.state == _NO_LOCKS[0] and _NO_LOCKS[1] in refusal.text:
        return LockTableFullError(message)
    if refusal.state[:2] in _LOST and refusal.state != QUERY_CANCELED:
        return TargetLostError(message)
    return StatementError(message, hint=refusal.hint)


def without_confidential(said: str) -> str:
    """Cut what a server or a tool says where the options of a statement begin."""
    return _CONFIDENTIAL.sub(r"\1…", said)


class _Message:
    """A message of the server, as psql writes it: its first lines."""

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
    """Reads psql's stderr, and finds what ended it among all that the server says.

    A warning may have the SQLSTATE of an error, and the word for its severity is the server's. But
    psql (``ECHO=errors``) writes the statement after the message of an error, and of nothing else;
    with ``ON_ERROR_STOP`` it is the last thing that it writes. So a message is passed on as soon as
    the next one follows.
    """

    def __init__(self, say: Callable[[str], None], secrets: Sequence[str]) -> None:
        """Pass messages on to ``say``, but for the error; the first ones, shortened.

        ``secrets`` are those that psql may write.
        """
        self._say = say
        self._secrets = secrets
        self._lock = threading.Lock()
        self._held: _Message | None = None
        self._last: _Message | None = None
        self._statement: list[str] | None = None
        self._first = ""
        self._of_psql: list[str] = []
        self.count = 0

    def hear(self, line: str) -> None:
        """Take the next line."""
        with self._lock:
            for told in self._heard(line):
                self._say(told)

    def finish(self) -> None:
        """Say what is left to be said at the end."""
        with self._lock:
            for told in self._passed_on():
                self._say(told)
            if self.count > _MESSAGES_TOLD:
                self._say(f"({self.count - _MESSAGES_TOLD} more messages were left out)")

    def found(self, *, lost: bool) -> tuple[str, Refusal] | None:
        """Return the line of the script, and what was refused there, if that ended psql.

        Where the connection was ``lost``, the last message may be why.
        """
        with self._lock:
            message, statement = self._held, self._statement
            if statement is None:
                message, statement = self._last, []
                if not lost or message is None or message.state[:2] not in _LOST:
                    return None
            if message is None:
                return None
            text = "\n".join(statement[:_LINES_KEPT])
            more = "\n…" if len(statement) > _LINES_KEPT else ""
            return message.line, Refusal(message.state, message.text, text + more)

    @property
    def of_psql(self) -> str:
        """What psql itself complained of at last."""
        with self._lock:
            return "\n".join(self._of_psql)

    @property
    def before(self) -> str:
        """How many messages came before the error, in a line of its own; empty if none did."""
        with self._lock:
            if not self.count:
                return ""
            others = f"1 message before it: {self._first}"
            if self.count > 1:
                others = f"{self.count} messages before it, the first one: {self._first}"
            return f"\n({others})"

    def _heard(self, line: str) -> list[str]:
        if self._statement is not None:
            if len(self._statement) <= _LINES_KEPT:
                self._statement.append(line)
            return []
        if match := _MESSAGE.match(line):
            told = self._passed_on()
            self._held = self._last = _Message(match)
            return told
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
        if self.count > _MESSAGES_TOLD:
            return []
        lines = f"{held.severity}: {held.text}".splitlines()
        return [shortened(line, _LONGEST_TOLD, self._secrets) for line in lines]
