"""Why a client tool that reads the database failed: by codes, and by asking the server.

pg_dump passes on what the server said, in the language of the server and without its SQLSTATE. The
words of pg_dump and libpq themselves are English, since they run with ``LC_ALL=C``; so are those of
PgBouncer, and the server's own internal errors (``elog``), which are never translated.
"""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import psycopg

from pgstash.errors import DatabaseError, DumpError, LockTimeoutError, RoleRefusedError
from pgstash.postgres import inquiry, login, rights, situation
from pgstash.postgres import options as dump_options
from pgstash.postgres.rights import Rights
from pgstash.postgres.source import Server

_SECONDS_TO_REPEAT = 30.0

# psql:<stdin>:12: ERROR:  55P03: could not obtain lock on relation "t"
_STATE = re.compile(r"^psql:\S+ [^:]+:  (\w{5}): ", re.MULTILINE)
_LOGIN = re.compile(r"^\w+: error: connection to server .* failed: ", re.MULTILINE)
_QUOTED = re.compile(
    r"^pg_dump: (?:error|detail): (?:the )?(?:query|command) was: (.+?);?$",
    re.MULTILINE | re.IGNORECASE,
)
# Names may hold anything, words of pg_dump and statements among it: what is repeated names tables
# and columns, and is nothing else.
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
_GONE = ("08", "57P")  # the connection, or somebody ended the session or the server

_DAMAGED = (
    "The source database is damaged. Keep the last good backup (raise BACKUP_RETENTION_DAYS), and "
    "find the rows with amcheck or by reading the table in parts."
)
_TOO_LARGE = (
    "A value is too large to be written as text (PostgreSQL's limit is 1 GB, and bytea doubles): "
    "store it in pieces or as a large object."
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
    "Row-level security would hide rows from the backup: use a role with BYPASSRLS, or the owner "
    "of the table."
)
_LOST = (
    "The connection to the database was lost: was it restarted, or did something in between cut it?"
)
_KILLED = "Was this machine or container short of memory? Then the kernel's log names it."
_UNKNOWN = "Look into the server's log for that time, and run the backup again."

_BY_STATE = {
    _CANCELED: (
        "A standby cancels long queries: raise max_standby_streaming_delay there, set "
        "hot_standby_feedback, or back up the primary."
    ),
    "42704": "Something was dropped just when the dump began: run the backup again.",
    _MAY_NOT: _GRANT,
    "53200": _TOO_LARGE,
    "54000": _TOO_LARGE,
    "58030": _DAMAGED,
    "XX001": _DAMAGED,
    "XX002": _DAMAGED,
}

_OPTIONS = "This pg_dump does not take what PG_DUMP_EXTRA_ARGS or an EXCLUDE_… setting asks of it."
_POOLER = "A pooler stands in between: let the backup connect to the server itself."

# Words that are never translated; the first that fits gives the hint.
_BY_WORDS = (
    (r"(unrecognized|invalid|ambiguous) option", _OPTIONS),
    (r"options? .* cannot be used together", _OPTIONS),
    (r"no matching (tables?|schemas?|extensions?|foreign servers?) were found", _OPTIONS),
    (r"improper qualified name", _OPTIONS),
    (r"unsupported startup parameter", _POOLER),
    (r"server closed the connection|no connection to the server", _LOST),
    (r"could not receive data|SSL (error|connection has been)", _LOST),
    (r"invalid memory alloc request size|cannot enlarge string buffer", _TOO_LARGE),
)

# That something is gone which was there when the catalog was read.
_DISTURBED = ("3F000", "42P01")
_DISTURBED_WORDS = re.compile(r"cache lookup failed for |could not open relation with OID ")


class DisturbedError(DumpError):
    """Others dropped or altered something while a tool read the catalog; try again."""

    default_hint = (
        "Something was dropped or altered just when the dump began: run the backup again. If it "
        "fails so each time, the catalog is damaged: look with pg_amcheck."
    )


@dataclass(frozen=True, slots=True)
class Tool:
    """A client tool that reads this database, with the user's options for pg_dump."""

    name: str
    server: Server
    options: Sequence[str] = ()

    def failure(self, status: int, lines: Iterable[str]) -> DatabaseError:
        """Return the error for its exit status and the last lines that it wrote.

        The server may be asked, which takes as long as it takes to answer.
        """
        said = "\n".join(lines)
        killed = f"was killed by signal {-status}"
        how = killed if status < 0 else f"failed with exit status {status}"
        message = f"{self.name} {how}" + (f":\n{said}" if said else " and said nothing")
        if states := _STATE.findall(said):
            return _by_state(states[-1], message)
        if _DISTURBED_WORDS.search(said):
            return DisturbedError(message)
        for pattern, hint in _BY_WORDS:
            if re.search(pattern, said, re.IGNORECASE):
                return DumpError(message, hint=hint)
        if status == -signal.SIGKILL:
            return DumpError(message, hint=_KILLED)
        if _LOGIN.search(said):
            hint = login.hint(self.server.connection.conninfo_with_secrets())
            return DumpError(message, hint=hint or _LOST)
        return self._asked(said, message)

    def _asked(self, said: str, message: str) -> DatabaseError:
        if not said:
            return DumpError(message, hint=_UNKNOWN)
        statement = (_QUOTED.findall(said) or [""])[-1]  # not of a large object, for example
        try:
            found = rights.look(self.server, self.options)
            if hint := _lacking(found):
                return DumpError(message, hint=hint)
            state = self._repeated(statement)
            if state == _DONE and _COPY.fullmatch(statement):  # it was ended, or its session was
                state = _CANCELED if situation.look(self.server).standby else _ENDED
        except RoleRefusedError as error:
            return DumpError(message, hint=error.hint)
        except DatabaseError:
            return DumpError(message, hint=_LOST if statement else _UNKNOWN)
        if _LOCK.match(statement) and state == _DONE:  # it is not locked any more
            return LockTimeoutError(message)
        return _by_state(state, message)

    def _repeated(self, statement: str) -> str:
        """Return the SQLSTATE with which a statement of pg_dump ends now.

        Empty for a statement that cannot be repeated, or only in a long time.
        """
        if lock := _LOCK.match(statement):
            return self._state(
                lambda session: session.execute(
                    self._bytes(f"LOCK TABLE {lock[1]} IN ACCESS SHARE MODE NOWAIT")
                )
            )
        if _COPY.fullmatch(statement):
            return self._state(lambda session: self._read(session, statement))
        return ""

    def _read(self, session: inquiry.Session, statement: str) -> None:
        give_up = time.monotonic() + _SECONDS_TO_REPEAT
        with session.cursor().copy(self._bytes(statement)) as rows:
            for _ in rows:
                if time.monotonic() > give_up:
                    session.close()
                    return

    def _state(self, ask: Callable[[inquiry.Session], object]) -> str:
        with inquiry.opened(self.server, dump_options.role(self.options)) as session:
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
    """Tell whether pg_dump failed when it was to lock its tables, for whatever reason."""
    return any(map(_LOCK.match, _QUOTED.findall(error.message)))


def _by_state(state: str, message: str) -> DatabaseError:
    if state == _LOCKED:
        return LockTimeoutError(message)
    if state in _DISTURBED:
        return DisturbedError(message)
    known = _LOST if state.startswith(_GONE) else login.HINTS.get(state, _UNKNOWN)
    return DumpError(message, hint=_BY_STATE.get(state, known))


def _lacking(found: Rights) -> str:
    """Return what to do about rights that the role lacks; empty if it lacks none."""
    if found.closed_schemas or found.unreadable_tables or found.unreadable_sequences:
        return _GRANT
    if found.guarded_tables:
        return _ROW_SECURITY
    if found.unreadable_object_count:
        return _LARGE_OBJECTS
    return ""
