"""What comes after the rows, by pg_restore with several sessions: indexes, constraints, the rest.

pg_restore knows what depends on what, from its own table of contents
(https://www.postgresql.org/docs/current/app-pgrestore.html, --jobs). It wants a file that it can
seek in, which exists in memory alone.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

from pgstash.errors import CorruptedError, RestoreError, TargetLostError
from pgstash.postgres import extensions, outline, target, toc
from pgstash.postgres.process import Child, in_memory
from pgstash.postgres.restore import UNFINISHED, refusal, without_confidential
from pgstash.postgres.source import Connection, Server
from pgstash.postgres.tools import ClientTools

# pg_restore: error: could not execute query: ERROR:  could not create unique index "a"
_ERROR = re.compile(
    r"pg_restore: error: (?:could not execute query: )?(?:ERROR:  )?(.*)", re.DOTALL
)
_LOST = re.compile(
    r"terminating connection|server closed the connection|connection to server|"
    r"no connection to the server"
)
_NOISE = re.compile(r"pg_restore: (?:while|from TOC entry|warning|error: a worker process died)")


# Filled last of all by pg_dump's order, and what is stored of them after that.
_OF_VIEWS = (b"MATERIALIZED VIEW DATA", b"STATISTICS DATA")


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
) -> None:
    """Make all that comes after the rows; materialized views one after the other if need be.

    ``options`` are those that the dump was made with. Raises StatementError, TargetLostError,
    CorruptedError.
    """
    connection = _neutral(server.connection, lc_monetary)
    # Some are there before its last login.
    if target.may_fire_no_event_triggers(server):
        connection = connection.with_options(target.NO_EVENT_TRIGGERS)
    elif extensions.must_be_silenced(server):
        connection = connection.with_options(extensions.SILENT)
    with in_memory("schema", head) as (descriptor, path):
        chosen = outline.of_restore(options)
        many = [f"--jobs={jobs}", *chosen, path]
        if not views_in_order:
            _restore(tools, connection, environment, many, [descriptor])
            return
        entries = _entries(head)
        for of_views in (False, True):
            lines = [
                b"%d;\n" % entry.number
                for entry in entries
                if (entry.description in _OF_VIEWS) == of_views
            ]
            with in_memory("list", b"".join(lines)) as (listed, list_path):
                own = [f"--use-list={list_path}", *([*chosen, path] if of_views else many)]
                _restore(tools, connection, environment, own, [descriptor, listed])


def _entries(head: bytes) -> Sequence[toc.Entry]:
    try:
        contents = toc.read(head)
    except toc.TocError as error:
        raise CorruptedError(f"the schema beside the archive is not understood: {error}") from error
    if contents is None:
        raise CorruptedError("the schema beside the archive ends before its end")
    return contents.entries


def _restore(
    tools: ClientTools,
    connection: Connection,
    environment: Mapping[str, str],
    options: Sequence[str],
    inherited: Sequence[int],
) -> None:
    command = [
        str(tools.pg_restore),
        *("--no-owner", "--no-acl", "--no-password", "--exit-on-error", "--section=post-data"),
        *options,
    ]
    with Child(
        command,
        connection,
        environment,
        say=lambda _line: None,
        inherited=inherited,
        failure=TargetLostError,
    ) as child:
        # Its workers hold its output open, and may be at a statement for hours after its end.
        status = child.wait(math.inf)
        if status != 0:
            raise _failure(status, child.last_lines)


def _failure(status: int, lines: list[str]) -> RestoreError:
    said = without_confidential("\n".join(line for line in lines if not _NOISE.match(line)))
    match = _ERROR.search(said)
    if match is None:
        return TargetLostError(
            f"pg_restore ended with status {status}: {said or 'and said nothing'}"
        )
    if _LOST.search(match[1]):
        return TargetLostError(f"pg_restore stopped: {match[1]}")
    return refusal(f"pg_restore stopped: {match[1]}")


def _neutral(connection: Connection, lc_monetary: str | None) -> Connection:
    """Let nothing that somebody planted cut the work short, or refuse it."""
    settings = UNFINISHED | ({"lc_monetary": lc_monetary} if lc_monetary else {})
    settings.pop("transaction_timeout")  # older servers do not know it; pg_restore sets it
    return connection.with_options(
        *(f"-c {name}={_escaped(value)}" for name, value in settings.items())
    )


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace(" ", "\\ ")
