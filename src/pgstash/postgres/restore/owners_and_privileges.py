"""Gives the objects of a restored database their owners and privileges, as far as that is allowed.

The script is that of ``postgres/dump/owners_and_privileges.py``. Each of its statements stands for
itself: one that is refused is reported, and the others are run. An owner that the login may not
give something to must not undo a restore of all data.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from pgstash.errors import TargetLostError
from pgstash.postgres.restore import session_settings, target
from pgstash.postgres.server.connection import Server
from pgstash.postgres.tools.process import Child, Command
from pgstash.postgres.tools.tool_run import ToolRun

# psql:<stdin>:12: ERROR:  42704: role "app" does not exist
_MESSAGE = re.compile(r"psql:<stdin>:(\d+): [^:]+:  ([0-9A-Z]{5}): (.*)")
# Warnings of a statement that granted or revoked nothing: privilege_not_revoked and _not_granted.
NOTHING_DONE = frozenset({"01006", "01007"})
# With ECHO=errors psql writes it after the message of an error, and after no other.
_STATEMENT = re.compile(r"psql:<stdin>:\d+: STATEMENT:  ")

# What pg_restore writes: comments, quoted names and text, the ends of statements, and the rest.
TOKEN = re.compile(rb"""--[^\n]*+\n|"(?:[^"]|"")*+"|'(?:[^']|'')*+'|;|[^-"';]++|-""")
_NAME = rb"""(?:"(?:[^"]|"")++"|[^"'\s;]++)"""
_OF_SESSION = re.compile(
    rb"\s*+(?:\\restrict \w+\s++)?(?:SET \w+ = |SELECT pg_catalog\.set_config\('search_path')"
)
_OF_OWNERS = re.compile(rb"\s*+ALTER\s.*\sOWNER TO " + _NAME + rb";", re.DOTALL)
_OF_PRIVILEGES = re.compile(
    rb"\s*+(?:GRANT|REVOKE|ALTER DEFAULT PRIVILEGES|(?:RE)?SET SESSION AUTHORIZATION)\b"
)
# What has an effect on the statements after it, and what ends that.
_UNITS = (
    (re.compile(rb"SET SESSION AUTHORIZATION\b"), re.compile(rb"RESET SESSION AUTHORIZATION\b")),
    (re.compile(rb"BEGIN;"), re.compile(rb"SET search_path = '';")),
)
_RESTRICT = re.compile(rb"\s*+\\restrict \w+\s++")
_OF_DATABASE = b"-- The database itself\n"  # a comment that pg_restore does not write

_SECONDS_OF_SILENCE = 600.0
_MOST_REASONS = 5

_OWN = """
    SELECT rolsuper, pg_catalog.format('ALTER DATABASE :"DBNAME" OWNER TO %I;', rolname)
    FROM pg_catalog.pg_roles WHERE rolname OPERATOR(pg_catalog.=) current_user
"""
# For majors without event_triggers=off, and poolers that do not pass it on: no event trigger fires,
# unless it is made for replicas.
_WITHOUT_TRIGGERS = (
    "SELECT pg_catalog.set_config('session_replication_role', 'replica', false)"
    " FROM pg_catalog.pg_roles WHERE rolname OPERATOR(pg_catalog.=) current_user AND rolsuper;"
)


@dataclass(frozen=True, slots=True)
class Refused:
    """Statements that belong together, of which the server refused some; the last ``state``."""

    statements: tuple[bytes, ...]
    state: str
    reason: str


class Refusals:
    """What the server refused: the number of statements (``total``), and the first reasons.

    ``units`` are the refused statements in their order, each with those that belong to it.
    """

    def __init__(self) -> None:
        """Start without any."""
        self.total = 0
        self.reasons: dict[str, int] = {}
        self.more = False
        self.lines: dict[int, tuple[str, str]] = {}
        self.units: Sequence[Refused] = ()
        self._held: tuple[int, str, str] | None = None

    @property
    def statements(self) -> list[bytes]:
        """All statements of the units."""
        return [statement for unit in self.units for statement in unit.statements]

    def read(self, line: str) -> None:
        """Take the next line of psql's stderr."""
        if match := _MESSAGE.match(line):
            self._held = int(match[1]), match[2], match[3]
            if match[2] in NOTHING_DONE:
                self._count(*self._held)
        elif self._held is not None and _STATEMENT.match(line):
            self._count(*self._held)

    def _count(self, line: int, state: str, reason: str) -> None:
        self.total += 1
        self.lines[line] = state, reason
        if reason in self.reasons or len(self.reasons) < _MOST_REASONS:
            self.reasons[reason] = self.reasons.get(reason, 0) + 1
        else:
            self.more = True
        self._held = None


def apply(into: Server, script: bytes, tool_run: ToolRun) -> Refusals:
    """Run the script in the database of this connection; return what was refused.

    Raises TargetLostError if psql or its session ended before the script did.
    """
    words = [
        str(tool_run.client.psql),
        *("--no-psqlrc", "--quiet", "--no-align", "--tuples-only", "--no-password"),
        *("--set=ECHO=errors", "--set=VERBOSITY=verbose", "--file=-"),
    ]
    command = Command(
        words, tool_run.environment, fed=True, failure=TargetLostError, all_lines=True
    )
    settings = session_settings.statements(session_settings.STAGING, None)
    before = f"{settings}\n{_WITHOUT_TRIGGERS}\n".encode()
    # psql reports the line on which a refused statement ends: no other one ends there.
    statements = [statement + b"\n" for statement in _statements(script)]
    refusals = Refusals()
    # An event trigger might write rows, or refuse statements or the login.
    connection = target.without_event_triggers(into).connection
    with Child(command, connection, refusals.read) as child:
        fed = child.feed_and_discard(before + b"".join(statements))
        child.close_stdin()
        for _ in child.read(_SECONDS_OF_SILENCE):
            pass
        status = child.wait()
        if not fed or status != 0:
            raise TargetLostError(
                f"psql ended with status {status} while it restored owners and privileges: "
                + "\n".join(child.last_lines)
            )
    refusals.units = list(_refused(statements, refusals.lines, before.count(b"\n")))
    return refusals


def _refused(
    statements: Iterable[bytes], lines: Mapping[int, tuple[str, str]], line: int
) -> Iterator[Refused]:
    """Yield the units with statements that end on these lines; the first is after this ``line``."""
    for unit in _units(statements):
        found = None
        for statement in unit:
            line += statement.count(b"\n")
            found = lines.get(line, found)
        if found:
            yield Refused(tuple(map(_stripped, unit)), *found)


def _units(statements: Iterable[bytes]) -> Iterator[list[bytes]]:
    """Yield statements that belong together.

    A statement between SET and RESET SESSION AUTHORIZATION comes with both, and one of a
    transaction with all of it.
    """
    unit: list[bytes] = []
    closing = None
    for statement in statements:
        bare = _stripped(statement)
        unit.append(statement)
        closing = closing or next((end for begin, end in _UNITS if begin.match(bare)), None)
        if closing is None or closing.match(bare):
            yield unit
            unit, closing = [], None
    if unit:
        yield unit


def may_give_database(into: Server, of_database: bytes) -> bool:
    """Return whether the login may give the database to its owner, and still name it afterwards.

    A superuser may, and the owner itself. Raises TargetLostError.
    """
    with target.connected(
        target.without_event_triggers(into), "SQL_ASCII"
    ) as session:  # names are bytes
        row = session.execute(_OWN).fetchone()
    superuser, own = row or (False, b"")
    return superuser or own in map(_stripped, _statements(of_database))


def session_of(script: bytes) -> list[bytes]:
    """Return the statements at the beginning of a script that set up its session."""
    return [_RESTRICT.sub(b"", _stripped(each)) for each in _header(script)]


def statements_of(script: bytes) -> list[bytes]:
    """Return the other statements of a script, without comments."""
    rest = list(_statements(script))[len(list(_header(script))) :]
    return [statement for statement in map(_stripped, rest) if statement.endswith(b";")]


def units_of(script: bytes) -> list[tuple[bytes, ...]]:
    """Return the statements for owners and privileges alone, those that belong together as one."""
    return [
        tuple(unit)
        for unit in _units(statements_of(script))
        if any(_OF_OWNERS.fullmatch(each) or _OF_PRIVILEGES.match(each) for each in unit)
    ]


def _header(script: bytes) -> Iterator[bytes]:
    return itertools.takewhile(
        lambda statement: _OF_SESSION.match(_bare(statement)), _statements(script)
    )


def parts(script: bytes) -> tuple[bytes, bytes]:
    """Return the script of the objects, and that of the database itself."""
    header = b"".join(_header(script))
    for token in TOKEN.finditer(script):
        if token[0] == _OF_DATABASE:
            return script[: token.start()], header + b"\n" + script[token.start() :]
    return script, b""


def chosen(script: bytes, *, owners: bool, privileges: bool) -> bytes:
    """Return the script without the statements that are not wanted."""
    if owners and privileges:
        return script
    return b"".join(
        statement
        for statement in _statements(script)
        if (owners or not _OF_OWNERS.fullmatch(_bare(statement)))
        and (privileges or not _OF_PRIVILEGES.match(_bare(statement)))
    )


def without_entries(script: bytes, headings: Iterable[bytes]) -> tuple[bytes, list[bytes]]:
    """Return the script without the statements of some entries, and those statements.

    ``headings`` are the beginnings of the comments before the entries.
    """
    kept: list[bytes] = []
    taken: list[bytes] = []
    is_taken = False
    for statement in _statements(script):
        for token in TOKEN.finditer(statement):
            if token[0].startswith(b"-- Name: ") or token[0] == _OF_DATABASE:
                is_taken = token[0].startswith(tuple(headings))
        bare = _stripped(statement)
        if is_taken and bare.endswith(b";"):
            taken.append(bare)
        else:
            kept.append(statement)
    return b"".join(kept), taken


def _statements(script: bytes) -> Iterator[bytes]:
    """Yield statements, each with the comments before it."""
    start = 0
    for token in TOKEN.finditer(script):
        if token[0] == b";":
            yield script[start : token.end()]
            start = token.end()
    yield script[start:]


def _bare(statement: bytes) -> bytes:
    """Return a statement without comments."""
    tokens = (token[0] for token in TOKEN.finditer(statement))
    return b"".join(token for token in tokens if not token.startswith(b"--"))


def _stripped(statement: bytes) -> bytes:
    return _bare(statement).strip()
