"""What comes after the rows, by pg_restore with several sessions: indexes, constraints, the rest.

pg_restore knows what depends on what, from its own table of contents
(https://www.postgresql.org/docs/current/app-pgrestore.html, --jobs). It wants a file that it can
seek in, which exists in memory alone.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from pgstash.errors import CorruptedError, RestoreError, StatementError, TargetLostError
from pgstash.events import ignore
from pgstash.postgres import extensions, outline, target, toc
from pgstash.postgres.process import Child, in_memory
from pgstash.postgres.refusals import QUERY_CANCELED, Refusal, refused, without_confidential
from pgstash.postgres.restore import UNFINISHED, Psql
from pgstash.postgres.source import Connection, Server
from pgstash.postgres.tools import ClientTools

# pg_restore: from TOC entry 3; 1259 16392 INDEX a_idx admin
_ENTRY = re.compile(r"pg_restore: from TOC entry (\d+);")
_ERROR = re.compile(r"pg_restore: error: (?:could not execute query: )?(.*)")
_OWN = "pg_restore: "
_COMMAND = "Command was: "
_ENTRIES_KEPT = 16
_LINES_KEPT = 12
_SECONDS_TO_REPEAT = 30
# What libpq says, in English as it is run.
_LOST = re.compile(
    r"^(?:server closed the connection|no connection to the server|connection to server|"
    r"could not (?:send|receive) data|SSL (?:error|SYSCALL error|connection has been))",
    re.MULTILINE,
)

# Filled last of all by pg_dump's order, and what is stored of them after that.
_ROWS_OF_VIEW = b"MATERIALIZED VIEW DATA"
_OF_VIEWS = (_ROWS_OF_VIEW, b"STATISTICS DATA")


def build(  # noqa: PLR0913 - each is one knob of one process
    server: Server,
    tools: ClientTools,
    head: bytes,
    *,
    jobs: int,
    options: Sequence[str],
    views_in_order: bool,
    lc_monetary: str | None,
    environment: Mapping[str, str],
    fill: Callable[[Sequence[bytes]], None] | None = None,
) -> None:
    """Make all that comes after the rows; materialized views one after the other if need be.

    ``options`` are those that the dump was made with. ``fill`` is handed the names of the views to
    fill, quoted, if that is not pg_restore's to do. Raises StatementError, TargetLostError,
    CorruptedError.
    """
    connection = _neutral(server.connection, lc_monetary)
    # Some are there before its last login.
    if target.may_fire_no_event_triggers(server):
        connection = connection.with_options(target.NO_EVENT_TRIGGERS)
    elif extensions.must_be_silenced(server):
        connection = connection.with_options(extensions.SILENT)
    building = _Building(replace(server, connection=connection), tools, head, options, environment)
    with in_memory("schema", head) as (descriptor, path):
        chosen = outline.of_restore(options)
        many = [f"--jobs={jobs}", *chosen, path]
        if not (views_in_order or fill):
            building.run(many, [descriptor])
            return
        entries = _entries(head)
        for of_views in (False, True):
            if of_views and fill:
                fill([_name(each) for each in entries if each.description == _ROWS_OF_VIEW])
                entries = [each for each in entries if each.description != _ROWS_OF_VIEW]
            lines = [
                b"%d;\n" % entry.number
                for entry in entries
                if (entry.description in _OF_VIEWS) == of_views
            ]
            with in_memory("list", b"".join(lines)) as (listed, list_path):
                own = [f"--use-list={list_path}", *([*chosen, path] if of_views else many)]
                building.run(own, [descriptor, listed])


def _name(entry: toc.Entry) -> bytes:
    return b".".join(b'"' + part.replace(b'"', b'""') + b'"' for part in (entry.schema, entry.tag))


def _entries(head: bytes) -> Sequence[toc.Entry]:
    try:
        contents = toc.read(head)
    except toc.TocError as error:
        raise CorruptedError(f"the schema beside the archive is not understood: {error}") from error
    if contents is None:
        raise CorruptedError("the schema beside the archive ends before its end")
    return contents.entries


@dataclass(frozen=True, slots=True)
class _Building:
    """Where to build, from what table of contents, and by what."""

    server: Server
    tools: ClientTools
    head: bytes
    options: Sequence[str]
    environment: Mapping[str, str]

    def run(self, options: Sequence[str], inherited: Sequence[int]) -> None:
        command = [
            str(self.tools.pg_restore),
            *("--no-owner", "--no-acl", "--no-password", "--exit-on-error", "--section=post-data"),
            "--verbose",  # or newer ones do not name the entry that fails
            *options,
        ]
        said = _Said()
        with Child(
            command,
            self.server.connection,
            self.environment,
            say=said.hear,
            inherited=inherited,
            failure=TargetLostError,
            says_all=True,
        ) as child:
            # Its workers hold its output open, and may be at a statement for hours after its end.
            status = child.wait(math.inf)
            if status == 0:
                return
        raise self._failure(status, said)

    def _failure(self, status: int, said: _Said) -> RestoreError:
        """Return the error for an entry, by what the server says when it is tried once more.

        pg_restore passes on what the server said without its SQLSTATE.
        """
        if not said.error:
            return TargetLostError(f"pg_restore ended with status {status} and named no error")
        if _LOST.search(said.error):
            return TargetLostError(f"pg_restore stopped: {said.error}")
        for number in said.entries:
            try:
                refusal = self._tried(number)
            except StatementError as error:  # nothing is known but what pg_restore said
                return StatementError(f"{error}: {said.error}")
            if refusal:
                where = f"pg_restore stopped at {self._name(number)}"
                return refused(refusal, f"{where}: {refusal.headline}")
        # What goes well the second time was not the statement's fault.
        return TargetLostError(f"pg_restore stopped: {said.error}")

    def _tried(self, number: int) -> Refusal | None:
        """Try the statements of one entry, roll them back, and return what is refused.

        Raises StatementError where that cannot be found out in a while.
        """
        try:
            script = outline.script_of(
                self.head, self.tools, number, self.options, self.environment
            )
        except outline.CompositionError as error:
            raise StatementError(f"pg_restore stopped at {self._name(number)}") from error
        psql = Psql(
            self.server,
            self.tools,
            one_transaction=True,
            lc_monetary=None,
            environment=self.environment,
            emit=ignore,
        )
        limit = f"SET statement_timeout = '{_SECONDS_TO_REPEAT}s';\n".encode()
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


class _Said:
    """Reads pg_restore's stderr: keeps the first error, and the entries that it names."""

    def __init__(self) -> None:
        self.entries: list[int] = []
        self._lines: list[str] = []
        self._open = False

    def hear(self, line: str) -> None:
        if found := _ENTRY.match(line):
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
        """What the first error says, without the statement; empty if there was none."""
        return without_confidential("\n".join(self._lines))


def _neutral(connection: Connection, lc_monetary: str | None) -> Connection:
    """Let nothing that somebody planted cut the work short, or refuse it."""
    settings = UNFINISHED | ({"lc_monetary": lc_monetary} if lc_monetary else {})
    settings.pop("transaction_timeout")  # older servers do not know it; pg_restore sets it
    return connection.with_options(
        *(f"-c {name}={_escaped(value)}" for name, value in settings.items())
    )


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace(" ", "\\ ")
