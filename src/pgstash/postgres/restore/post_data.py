"""The post-data section: pg_restore creates indexes, constraints and the rest in several sessions.

pg_restore knows the dependencies from its own table of contents
(https://www.postgresql.org/docs/current/app-pgrestore.html, --jobs). It needs a seekable file,
which exists only in memory.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from pgstash.errors import CorruptedError, RestoreError, StatementError, TargetLostError
from pgstash.events import Emit, PhaseStarted, StepsDone, ignore
from pgstash.postgres.dump import extension_tables, schema_dump
from pgstash.postgres.restore import activity, session_settings, target
from pgstash.postgres.restore.hints import QUERY_CANCELED
from pgstash.postgres.restore.psql import Psql
from pgstash.postgres.restore.refusals import Refusal, refused, without_confidential
from pgstash.postgres.server import time_limits
from pgstash.postgres.server.connection import Connection, Server
from pgstash.postgres.server.quoting import qualified
from pgstash.postgres.tools import toc
from pgstash.postgres.tools.environment import in_memory
from pgstash.postgres.tools.process import Child, Command
from pgstash.postgres.tools.tool_run import ToolRun
from pgstash.throttle import Throttle

# pg_restore: from TOC entry 3; 1259 16392 INDEX a_idx admin
_ENTRY = re.compile(r"pg_restore: from TOC entry (\d+);")
_ERROR = re.compile(r"pg_restore: error: (?:could not execute query: )?(.*)")
_OWN = "pg_restore: "
_COMMAND = "Command was: "
# pg_restore: finished item 3403 INDEX a_idx, by several sessions. For the display of progress only.
_FINISHED = "pg_restore: finished item "
_ENTRIES_KEPT = 16
_LINES_KEPT = 12
# Messages of libpq, in English because pg_restore runs with LC_ALL=C.
_LOST = re.compile(
    r"^(?:server closed the connection|no connection to the server|connection to server|"
    r"could not (?:send|receive) data|SSL (?:error|SYSCALL error|connection has been))",
    re.MULTILINE,
)

_MAY_SILENCE = """
    SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname = session_user
"""
# No event trigger fires then, on any major.
_SILENT = "-c session_replication_role=replica"

# pg_dump orders the filling of views last, and their statistics after that.
_ROWS_OF_VIEW = b"MATERIALIZED VIEW DATA"
_OF_VIEWS = (_ROWS_OF_VIEW, b"STATISTICS DATA")


@dataclass(frozen=True, slots=True)
class PostData:
    """The post-data section of a dump.

    ``head`` is the schema companion, ``options`` are those of the dump. With ``views_in_order``
    materialized views are filled one by one. ``fill`` receives their quoted names, if pg_restore
    must not fill them.
    """

    head: bytes
    options: Sequence[str]
    views_in_order: bool
    lc_monetary: str | None
    fill: Callable[[Sequence[bytes]], None] | None = None


def build(server: Server, tool_run: ToolRun, post_data: PostData, *, jobs: int) -> None:
    """Create all that comes after the rows, in ``jobs`` sessions.

    Raises StatementError, TargetLostError, CorruptedError.
    """
    head, options, fill = post_data.head, post_data.options, post_data.fill
    connection = _neutral(server.connection, post_data.lc_monetary)
    # pg_restore still logs in after the first event triggers were created.
    if target.may_fire_no_event_triggers(server):
        connection = connection.with_options(target.NO_EVENT_TRIGGERS)
    elif _must_be_silenced(server):
        connection = connection.with_options(_SILENT)
    pg_restore = _PgRestore(replace(server, connection=connection), tool_run, head, options)
    tool_run.emit(PhaseStarted("indexes and constraints", _steps(head)))
    with (
        activity.reported(pg_restore.server, tool_run.emit),
        in_memory("schema", head) as (descriptor, path),
    ):
        chosen = schema_dump.of_restore(options)
        many = [f"--jobs={jobs}", *chosen, path]
        if not (post_data.views_in_order or fill):
            pg_restore.run(many, [descriptor])
            return
        entries = _entries(head)
        for of_views in (False, True):
            if of_views and fill:
                fill(
                    [
                        qualified(each.schema, each.tag)
                        for each in entries
                        if each.description == _ROWS_OF_VIEW
                    ]
                )
                entries = [each for each in entries if each.description != _ROWS_OF_VIEW]
            lines = [
                b"%d;\n" % entry.number
                for entry in entries
                if (entry.description in _OF_VIEWS) == of_views
            ]
            with in_memory("list", b"".join(lines)) as (listed, list_path):
                own = [f"--use-list={list_path}", *([*chosen, path] if of_views else many)]
                pg_restore.run(own, [descriptor, listed])


def _must_be_silenced(server: Server) -> bool:
    """Return whether event triggers of extensions would fire, and the login may prevent that."""
    with target.connected(server) as session:
        watched = session.execute(extension_tables.WATCHERS).fetchone() is not None
        return watched and session.execute(_MAY_SILENCE).fetchone() == (True,)


def _steps(head: bytes) -> int | None:
    """Return how many entries come after the rows; None if there are none, or it is unknown."""
    try:
        contents = toc.read(head)
    except toc.TocError:  # pg_restore may know this format
        return None
    if contents is None:
        return None
    return sum(each.section == toc.Section.POST_DATA for each in contents.entries) or None


def _entries(head: bytes) -> Sequence[toc.Entry]:
    try:
        contents = toc.read(head)
    except toc.TocError as error:
        raise CorruptedError(f"the schema companion cannot be read: {error}") from error
    if contents is None:
        raise CorruptedError("the schema companion is truncated")
    return contents.entries


@dataclass(frozen=True, slots=True)
class _PgRestore:
    """Runs pg_restore for a server and the schema companion ``head``."""

    server: Server
    tool_run: ToolRun
    head: bytes
    options: Sequence[str]

    def run(self, options: Sequence[str], inherited: Sequence[int]) -> None:
        words = [
            str(self.tool_run.client.pg_restore),
            *("--no-owner", "--no-acl", "--no-password", "--exit-on-error", "--section=post-data"),
            "--verbose",  # otherwise newer ones do not name the entry that fails
            *options,
        ]
        stderr = _Stderr(self.tool_run.emit)
        command = Command(
            words,
            self.tool_run.environment,
            inherited=inherited,
            failure=TargetLostError,
            all_lines=True,
        )
        with Child(command, self.server.connection, stderr.read) as child:
            # Its workers keep its output open, and may go on with a statement for hours after it.
            status = child.wait(math.inf)
            if status == 0:
                return
        raise self._failure(status, stderr)

    def _failure(self, status: int, stderr: _Stderr) -> RestoreError:
        """Return the error for the entry that failed, from a second try by psql.

        pg_restore reports the message of the server without its SQLSTATE.
        """
        if not stderr.error:
            return TargetLostError(f"pg_restore ended with status {status} and named no error")
        if _LOST.search(stderr.error):
            return TargetLostError(f"pg_restore stopped: {stderr.error}")
        for number in stderr.entries:
            try:
                refusal = self._tried(number)
            except StatementError as error:  # only the message of pg_restore is known
                return StatementError(f"{error}: {stderr.error}")
            if refusal:
                where = f"pg_restore stopped at {self._name(number)}"
                return refused(refusal, f"{where}: {refusal.headline}")
        # The statements succeed now, so the reason was not in them.
        return TargetLostError(f"pg_restore stopped: {stderr.error}")

    def _tried(self, number: int) -> Refusal | None:
        """Try the statements of one entry, roll them back, and return the refusal, if any.

        Raises StatementError if that cannot be found out in time.
        """
        try:
            script = schema_dump.script_of(self.head, self.tool_run, number, self.options)
        except schema_dump.CompositionError as error:
            raise StatementError(f"pg_restore stopped at {self._name(number)}") from error
        silent = replace(self.tool_run, emit=ignore)
        psql = Psql(self.server, silent, one_transaction=True, lc_monetary=None)
        limit = f"SET statement_timeout = '{time_limits.REPEAT}s';\n".encode()
        try:
            with psql:
                for piece in (script.before, limit, script.after, b"\nROLLBACK;\n"):
                    psql.feed(piece)
                psql.finish()
        except StatementError as error:
            if psql.refusal is None or psql.refusal.state == QUERY_CANCELED:
                raise StatementError(f"pg_restore stopped at {self._name(number)}") from error
            return psql.refusal
        except TargetLostError:
            pass
        return None

    def _name(self, number: int) -> str:
        """Name an entry for people."""
        for entry in _entries(self.head):
            if entry.number == number:
                parts = [entry.description, b".".join(filter(None, (entry.schema, entry.tag)))]
                return b" ".join(parts).decode(self.server.codec, "replace")
        return f"entry {number}"


class _Stderr:
    """Reads pg_restore's stderr: keeps the first error, and the entries that it names."""

    def __init__(self, emit: Emit = ignore) -> None:
        self.entries: list[int] = []
        self._emit = emit
        self._finished = 0
        self._throttle = Throttle()
        self._lines: list[str] = []
        self._open = False

    def read(self, line: str) -> None:
        if line.startswith(_FINISHED):
            self._finished += 1
            if self._throttle.is_due():
                self._emit(StepsDone(self._finished))
        elif found := _ENTRY.match(line):
            if len(self.entries) < _ENTRIES_KEPT:
                self.entries.append(int(found[1]))
            self._open = False
        elif not self._lines and (found := _ERROR.match(line)):
            self._lines = [found[1]]
            self._open = True
        elif line.startswith((_OWN, _COMMAND)):
            self._open = False
        elif self._open and len(self._lines) < _LINES_KEPT:
            self._lines.append(line)

    @property
    def error(self) -> str:
        """The first error, without the statement; empty if there was none."""
        return without_confidential("\n".join(self._lines))


def _neutral(connection: Connection, lc_monetary: str | None) -> Connection:
    """Return the connection with settings that nothing set for role or database overrides."""
    settings = session_settings.STAGING | ({"lc_monetary": lc_monetary} if lc_monetary else {})
    settings.pop("transaction_timeout")  # older servers do not have it; pg_restore sets it
    return connection.with_options(
        *(f"-c {name}={_escaped(value)}" for name, value in settings.items())
    )


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace(" ", "\\ ")
