"""Why a client tool that reads the database failed: by error codes, and by asking the server.

pg_dump passes on the server's messages, in the language of the server and without the SQLSTATE.
The messages of pg_dump and libpq themselves are English, because they run with ``LC_ALL=C``. So are
those of PgBouncer, and the server's internal errors (``elog``), which are never translated.
"""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import psycopg

from pgstash.errors import DatabaseError, DumpError, LockTimeoutError, RoleRefusedError
from pgstash.postgres.preflight import privileges, topology
from pgstash.postgres.preflight.privileges import Privileges
from pgstash.postgres.server import login_refusal, query, time_limits
from pgstash.postgres.server.connection import Server
from pgstash.postgres.tools import pg_dump_options as dump_options

# psql:<stdin>:12: ERROR:  55P03: could not obtain lock on relation "t"
_STATE = re.compile(r"^psql:\S+ [^:]+:  (\w{5}): ", re.MULTILINE)
# LOCATION:  MemoryContextSizeFailure, mcxt.c:1175
# More memory was asked for than one allocation may have (palloc in releases up to 16). The code is
# that of any internal error; others in this file are bugs of the server.
_INTERNAL = "XX000"
_OVERSIZED_ALLOCATION = re.compile(r"^LOCATION:  \w+, mcxt\.c:\d+", re.MULTILINE)
_LOGIN = re.compile(r"^\w+: error: connection to server .* failed: ", re.MULTILINE)
_QUOTED = re.compile(
    r"^pg_dump: (?:error|detail): (?:the )?(?:query|command) was: (.+?);?$",
    re.MULTILINE | re.IGNORECASE,
)
# A name may contain anything, even messages of pg_dump and statements. So only statements that
# consist of these keywords and of names of tables and columns are repeated.
_NAME = r'(?:"(?:[^"]|"")+"|[a-z_][a-z0-9_]*)'
_TABLE = rf"{_NAME}\.{_NAME}"
_LOCK = re.compile(
    rf"LOCK TABLE ((?:ONLY )?{_TABLE}(?:, (?:ONLY )?{_TABLE})*)"
    r"(?: IN ACCESS SHARE MODE|, .* \.\.\.)"  # of many tables the last name may be cut off
)
_COPY = re.compile(rf"COPY {_TABLE} (?:\({_NAME}(?:, {_NAME})*\))? ?TO stdout")

_DONE = "00000"
_LOCKED = "55P03"
_MAY_NOT = "42501"
_CANCELED = "40001"
_ENDED = "57P01"
_GONE = ("08", "57P")  # the connection was lost, or the session or the server was ended

_DAMAGED = (
    "The source database is damaged. Keep the last good backup (raise BACKUP_RETENTION_DAYS), and "
    "find the damaged rows with amcheck or by reading the table in parts."
)
_TOO_LARGE = (
    "A value is too large to be written as text (PostgreSQL's limit is 1 GB, and bytea doubles in "
    "size). Store it in pieces or as a large object."
)
_TOO_LARGE_OR_DAMAGED = (
    f"{_TOO_LARGE} If no value of this table is that large, a row is damaged: keep the last good "
    "backup, and find the row with amcheck or by reading the table in parts."
)
_GRANT = (
    "Grant the role what it lacks: GRANT pg_read_all_data TO the role (PostgreSQL 14 and newer), "
    "or USAGE on the schema and SELECT on the table or sequence."
)
_LARGE_OBJECTS = (
    "The role must own its large objects, or be granted SELECT ON LARGE OBJECT on each; "
    "pg_read_all_data does not cover them."
)
_ROW_SECURITY = (
    "Row-level security would hide rows from the backup. Use a role with BYPASSRLS, or the owner "
    "of the table."
)
_LOST = (
    "The connection to the database was lost. Was the server restarted, or was the connection cut "
    "in between?"
)
_KILLED = "Was this machine or container short of memory? Then the kernel's log names the process."
_UNKNOWN = "Check the server's log for that time, and run the backup again."

_BY_STATE = {
    _CANCELED: (
        "A standby cancels long queries. Raise max_standby_streaming_delay there, set "
        "hot_standby_feedback, or back up the primary."
    ),
    "42704": "Something was dropped just when the dump began. Run the backup again.",
    _MAY_NOT: _GRANT,
    "53200": _TOO_LARGE,
    "54000": _TOO_LARGE,
    "58030": _DAMAGED,
    "XX001": _DAMAGED,
    "XX002": _DAMAGED,
}

_OPTIONS = "This pg_dump does not accept an option from PG_DUMP_EXTRA_ARGS or an EXCLUDE_… setting."
_POOLER = "There is a pooler in between. Let the backup connect to the server itself."

# What is wrong in these cases stays so until someone changes it.
_LASTING = {
    _DAMAGED,
    _TOO_LARGE,
    _TOO_LARGE_OR_DAMAGED,
    _GRANT,
    _LARGE_OBJECTS,
    _ROW_SECURITY,
    _OPTIONS,
    _POOLER,
    *(hint for state, hint in login_refusal.HINTS.items() if state not in login_refusal.PASSING),
}

# Messages that are never translated. The first match gives the hint.
_BY_WORDS = (
    (r"(unrecognized|invalid|ambiguous) option", _OPTIONS),
    (r"options? .* cannot be used together", _OPTIONS),
    (r"no matching (tables?|schemas?|extensions?|foreign servers?) were found", _OPTIONS),
    (r"improper qualified name", _OPTIONS),
    (r"unsupported startup parameter", _POOLER),
    (r"server closed the connection|no connection to the server", _LOST),
    (r"could not receive data|SSL (error|connection has been)", _LOST),
    (r"invalid memory alloc request size", _TOO_LARGE_OR_DAMAGED),
    (r"cannot enlarge string buffer", _TOO_LARGE),
)

# An object no longer exists that existed when the catalog was read.
_DISTURBED = ("3F000", "42P01")
_DISTURBED_WORDS = re.compile(r"cache lookup failed for |could not open relation with OID ")


class DisturbedError(DumpError):
    """Another session dropped or altered an object while a tool read the catalog; try again."""

    default_hint = (
        "Something was dropped or altered just when the dump began. Run the backup again. If it "
        "fails each time, the catalog may be damaged: check it with pg_amcheck."
    )


@dataclass(frozen=True, slots=True)
class Tool:
    """A client tool that reads this database, with the user's options for pg_dump."""

    name: str
    server: Server
    options: Sequence[str] = ()

    def failure(self, status: int, lines: Iterable[str]) -> DatabaseError:
        """Return the error for its exit status and the last lines of its stderr.

        It may ask the server, and then takes as long as the server takes to answer.
        """
        said = "\n".join(lines)
        killed = f"was killed by signal {-status}"
        how = killed if status < 0 else f"failed with exit status {status}"
        message = f"{self.name} {how}" + (f":\n{said}" if said else " without a message")
        if states := _STATE.findall(said):
            return _by_state(states[-1], message)
        if _DISTURBED_WORDS.search(said):
            return DisturbedError(message)
        for pattern, hint in _BY_WORDS:
            if re.search(pattern, said, re.IGNORECASE):
                return _failed(message, hint)
        if status == -signal.SIGKILL:
            return _failed(message, _KILLED)
        if _LOGIN.search(said):
            hint = login_refusal.hint(self.server.connection.conninfo_with_secrets())
            return _failed(message, hint or _LOST)
        return self._asked(said, message)

    def _asked(self, said: str, message: str) -> DatabaseError:
        if not said:
            return _failed(message, _UNKNOWN)
        # The statement about a large object, for example, is not quoted.
        quoted = _QUOTED.findall(said)
        statement = quoted[-1] if quoted else ""
        try:
            found = privileges.check(self.server, self.options)
            if hint := _lacking(found):
                return _failed(message, hint)
            state = self._repeated(statement)
            # If a COPY succeeds now, the statement or its session was ended.
            if state == _DONE and _COPY.fullmatch(statement):
                state = _CANCELED if topology.check(self.server).standby else _ENDED
        except RoleRefusedError as error:
            return _failed(message, error.hint)
        except (DatabaseError, UnicodeError) as error:
            # psycopg connects to no database whose name is not UTF-8.
            lost = statement and isinstance(error, DatabaseError)
            return _failed(message, _LOST if lost else _UNKNOWN)
        if _LOCK.match(statement) and state == _DONE:  # the lock has been released
            return LockTimeoutError(message)
        return _by_state(state, message)

    def _repeated(self, statement: str) -> str:
        """Repeat a statement of pg_dump, and return the SQLSTATE with which it ends now.

        Empty if the statement cannot be repeated, or takes too long. A LOCK TABLE with a name that
        arrived incomplete, because it is not UTF-8, counts as refused for the lock: the missing
        privileges have been ruled out.
        """
        try:
            self._bytes(statement)
        except UnicodeEncodeError:
            return _LOCKED if _LOCK.match(statement) else ""
        if lock := _LOCK.match(statement):
            return self._state(
                lambda session: session.execute(
                    self._bytes(f"LOCK TABLE {lock[1]} IN ACCESS SHARE MODE NOWAIT")
                )
            )
        if _COPY.fullmatch(statement):
            return self._state(lambda session: self._read(session, statement))
        return ""

    def _read(self, session: query.Connection, statement: str) -> None:
        give_up = time.monotonic() + time_limits.REPEAT
        with session.cursor().copy(self._bytes(statement)) as rows:
            for _ in rows:
                if time.monotonic() > give_up:
                    session.close()
                    return

    def _state(self, ask: Callable[[query.Connection], object]) -> str:
        role = dump_options.role(self.options)
        with query.opened(self.server, "the state of a statement", role) as session:
            try:
                session.execute("SET row_security = off")
                with session.transaction():
                    ask(session)
            except psycopg.Error as error:
                return error.sqlstate or ""
            return "" if session.closed else _DONE

    def _bytes(self, statement: str) -> bytes:
        return statement.encode(self.server.codec, "surrogateescape")


def failed_to_lock(error: DatabaseError) -> bool:
    """Return whether pg_dump failed while it locked its tables, for whatever reason."""
    return any(map(_LOCK.match, _QUOTED.findall(error.message)))


def _failed(message: str, hint: str) -> DumpError:
    return DumpError(message, hint=hint, retryable=hint not in _LASTING)


def _by_state(state: str, message: str) -> DatabaseError:
    if state == _LOCKED:
        return LockTimeoutError(message)
    if state in _DISTURBED:
        return DisturbedError(message)
    if state == _INTERNAL and _OVERSIZED_ALLOCATION.search(message):
        return _failed(message, _TOO_LARGE_OR_DAMAGED)
    known = _LOST if state.startswith(_GONE) else login_refusal.HINTS.get(state, _UNKNOWN)
    return _failed(message, _BY_STATE.get(state, known))


def _lacking(found: Privileges) -> str:
    """Return what to do about privileges that the role lacks; empty if it lacks none."""
    if found.closed_schemas or found.unreadable_tables or found.unreadable_sequences:
        return _GRANT
    if found.guarded_tables:
        return _ROW_SECURITY
    if found.unreadable_object_count:
        return _LARGE_OBJECTS
    return ""
