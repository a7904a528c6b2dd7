"""Gives the objects of a restored database their owners and privileges, as far as that is allowed.

The script is that of ``postgres/dump/owners_and_privileges.py``. Each of its statements stands for
itself: one that is refused is reported, and the others are run. An owner that the login may not
give something to must not undo a restore of all data.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from pgstash.errors import TargetLostError
from pgstash.postgres.restore import session_settings, target
from pgstash.postgres.server.connection import Server
from pgstash.postgres.tools.process import Child, Command
from pgstash.postgres.tools.tool_run import ToolRun

# psql:<stdin>:12: ERROR:  42704: role "app" does not exist
_MESSAGE = re.compile(r"psql:<stdin>:\d+: [^:]+:  [0-9A-Z]{5}: (.*)")
# With ECHO=errors psql writes it after the message of an error, and after no other.
_STATEMENT = re.compile(r"psql:<stdin>:\d+: STATEMENT:  ")

# What pg_restore writes: comments, quoted names and text, the ends of statements, and the rest.
_TOKEN = re.compile(rb"""--[^\n]*+\n|"(?:[^"]|"")*+"|'(?:[^']|'')*+'|;|[^-"';]++|-""")
_NAME = rb"""(?:"(?:[^"]|"")++"|[^"'\s;]++)"""
_OF_SESSION = re.compile(
    rb"\s*+(?:\\restrict \w+\s++)?(?:SET \w+ = |SELECT pg_catalog\.set_config\('search_path')"
)
_OF_OWNERS = re.compile(rb"\s*+ALTER\s.*\sOWNER TO " + _NAME + rb";", re.DOTALL)
_OF_PRIVILEGES = re.compile(
    rb"\s*+(?:GRANT|REVOKE|ALTER DEFAULT PRIVILEGES|(?:RE)?SET SESSION AUTHORIZATION)\b"
)
_OF_DATABASE = b"-- The database itself\n"  # a comment that pg_restore does not write

_SECONDS_OF_SILENCE = 600.0
_MOST_REASONS = 5

_IS_SUPERUSER = (
    "SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname OPERATOR(pg_catalog.=) current_user"
)
# For majors without event_triggers=off, and poolers that do not pass it on: no event trigger fires,
# unless it is made for replicas.
_WITHOUT_TRIGGERS = (
    "SELECT pg_catalog.set_config('session_replication_role', 'replica', false)"
    " FROM pg_catalog.pg_roles WHERE rolname OPERATOR(pg_catalog.=) current_user AND rolsuper;"
)


class Refusals:
    """What the server refused: the number of statements (``total``), and the first reasons."""

    def __init__(self) -> None:
        """Start without any."""
        self.total = 0
        self.reasons: dict[str, int] = {}
        self.more = False
        self._held: str | None = None

    def read(self, line: str) -> None:
        """Take the next line of psql's stderr."""
        if match := _MESSAGE.match(line):
            self._held = match[1]
        elif self._held is not None and _STATEMENT.match(line):
            self.total += 1
            if self._held in self.reasons or len(self.reasons) < _MOST_REASONS:
                self.reasons[self._held] = self.reasons.get(self._held, 0) + 1
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
    refusals = Refusals()
    # An event trigger might write rows, or refuse statements or the login.
    connection = target.without_event_triggers(into).connection
    with Child(command, connection, refusals.read) as child:
        fed = child.feed_and_discard(f"{settings}\n{_WITHOUT_TRIGGERS}\n".encode() + script)
        child.close_stdin()
        for _ in child.read(_SECONDS_OF_SILENCE):
            pass
        status = child.wait()
        if not fed or status != 0:
            raise TargetLostError(
                f"psql ended with status {status} while it restored owners and privileges: "
                + "\n".join(child.last_lines)
            )
    return refusals


def is_superuser(server: Server) -> bool:
    """Return whether the role of the login is a superuser. Raises TargetLostError."""
    with target.connected(server) as session:
        return session.execute(_IS_SUPERUSER).fetchone() == (True,)


def parts(script: bytes) -> tuple[bytes, bytes]:
    """Return the script of the objects, and that of the database itself."""
    header = b""
    for statement in _statements(script):
        if not _OF_SESSION.match(_bare(statement)):
            break
        header += statement
    for token in _TOKEN.finditer(script):
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


def _statements(script: bytes) -> Iterator[bytes]:
    """Yield statements, each with the comments before it."""
    start = 0
    for token in _TOKEN.finditer(script):
        if token[0] == b";":
            yield script[start : token.end()]
            start = token.end()
    yield script[start:]


def _bare(statement: bytes) -> bytes:
    """Return a statement without comments."""
    tokens = (token[0] for token in _TOKEN.finditer(statement))
    return b"".join(token for token in tokens if not token.startswith(b"--"))
