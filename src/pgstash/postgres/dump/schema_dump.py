"""A dump without the rows: pg_dump's table of contents, and the script that pg_restore makes of it.

A pg_dump in custom format lists what to dump, in which order, with which statements. It is stopped
where the rows begin, and holds its locks until then. pg_restore turns the list into plain SQL with
the same code as pg_dump (RestoreArchive() in pg_backup_archiver.c).
"""

from __future__ import annotations

import contextlib
import re
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from pgstash.errors import DumpError
from pgstash.events import ToolSaid
from pgstash.postgres.dump.failure_cause import Tool
from pgstash.postgres.dump.pg_dump import (
    CLOSING,
    arguments,
    in_one_session,
    patient,
    refuse_search_path,
    watched,
)
from pgstash.postgres.server.connection import Server
from pgstash.postgres.tools import toc
from pgstash.postgres.tools.environment import child_environment, in_memory
from pgstash.postgres.tools.process import Child, Command
from pgstash.postgres.tools.toc import Contents
from pgstash.postgres.tools.tool_run import Limits, ToolRun

LARGEST = 32 * 1024 * 1024
"""The largest accepted table of contents, in bytes: a few copies of it are held in memory."""

_SECONDS_TO_CONVERT = 600

# The rows in this dump are not read. The fewer of them pg_dump can write before it must wait, the
# fewer tables it reads from the server. A pipe has this size by default.
_AHEAD_BYTES = 64 * 1024

# Options that change the script, but not the contents of the archive.
_OF_RESTORE = (
    "--no-statistics",
    "--no-table-access-method",
    "--no-tablespaces",
    "--statistics",
    "--use-set-session-authorization",
)
_NOT_FOR_ARCHIVE = ("--verbose", "-v")

# Written before the first entry that needs it, so its place may differ.
_LAZY = re.compile(rb"^SET default_(?:tablespace|table_access_method) = [^\n]*;\n\n", re.MULTILINE)
ENTRY = re.compile(rb"^--\n-- Name: ", re.MULTILINE)


class CompositionError(DumpError):
    """The parts do not add up to what pg_dump would have written."""

    default_hint = "A single pg_dump makes the backup."


@dataclass(frozen=True, slots=True)
class Script:
    """The script of a database without its rows, which belong between the two parts."""

    before: bytes
    after: bytes


@contextlib.contextmanager
def opened(
    server: Server,
    tool_run: ToolRun,
    options: Sequence[str],
    limits: Limits,
    *,
    snapshot: str | None,
) -> Iterator[Contents]:
    """Let pg_dump read the catalog, and yield the table of contents of the dump, with privileges.

    Without an exported ``snapshot`` it is that of the moment.
    pg_dump holds its locks on everything that it would dump until the block is left. Raises
    CompositionError if its output is not understood, and what a dump raises.
    """
    words = arguments(
        server,
        tool_run.client,
        [
            "--format=custom",
            "--compress=0",
            *([f"--snapshot={snapshot}"] if snapshot else []),
            *(option for option in options if option not in _NOT_FOR_ARCHIVE),
        ],
        limits.before_first_byte,
    )
    command = Command(words, tool_run.environment, ahead_bytes=_AHEAD_BYTES)
    done = False

    def report(line: str) -> None:
        if not done:  # later lines only report that it was stopped
            tool_run.emit(ToolSaid("pg_dump", line))

    _, connection, ask = watched(server)
    with Child(command, connection, report) as child:
        chunks = patient(child, limits.idle, limits.lock, ask)
        found = in_one_session(chunks, server, connection)
        contents = _contents(child, found, Tool("pg_dump", server, options))
        done = True
        yield contents


def _contents(child: Child, chunks: Iterable[bytes], tool: Tool) -> Contents:
    reading = toc.Reading()
    for chunk in chunks:
        try:
            contents = reading.feed(chunk)
        except toc.TocError as error:
            raise CompositionError(
                f"pg_dump's table of contents is not understood: {error}"
            ) from error
        if contents:
            return contents
        if len(reading) > LARGEST:
            raise CompositionError(
                f"pg_dump's table of contents is larger than {LARGEST // 1024**2} MiB"
            )
    status = child.wait()
    if status != 0:
        raise tool.failure(status, child.last_lines)
    raise CompositionError("pg_dump's table of contents is cut short")


def script(contents: Contents, tool_run: ToolRun, options: Sequence[str]) -> Script:
    """Return the script, cut where the rows belong.

    The statements after the rows are the end of the whole script. pg_restore works that way, but
    does not guarantee it: so both are made and compared. Raises CompositionError.
    """
    chosen = of_restore(options)
    sections = ["--section=pre-data", "--section=post-data"]
    whole = plain(contents.head, tool_run, ["--clean", "--if-exists", *sections, *chosen])
    after = plain(contents.head, tool_run, ["--section=post-data", *chosen])
    refuse_search_path(whole)
    ends, end = CLOSING.search(after), CLOSING.search(whole)
    if ends is None or end is None:
        raise CompositionError("pg_restore's script does not end as expected")
    first = ENTRY.search(after)
    if first is None:
        return Script(whole[: end.start()], whole[end.start() :])
    wanted = _LAZY.sub(b"", after[first.start() : ends.start()])
    bare = _LAZY.sub(b"", whole[: end.start()])
    if not bare.endswith(wanted):
        raise CompositionError(
            "the end of pg_restore's script differs from its script of that part alone"
        )
    split = len(bare) - len(wanted)
    for lazy in _LAZY.finditer(whole):
        if lazy.start() > split:
            break
        split += len(lazy[0])
    return Script(whole[:split], whole[split:])


def of_restore(options: Iterable[str]) -> list[str]:
    """Return those of pg_dump's options that pg_restore needs as well."""
    return [option for option in options if option in _OF_RESTORE]


def entries(
    head: bytes, tool_run: ToolRun, numbers: Sequence[int], options: Sequence[str]
) -> bytes:
    """Return the statements of a few entries that come after the rows.

    ``options`` are those of the dump. Raises CompositionError.
    """
    text, first = _of_entries(head, tool_run, numbers, options)
    end = CLOSING.search(text)
    if end is None:
        raise CompositionError("pg_restore's script does not end as expected")
    return text[first : end.start()]


def script_of(head: bytes, tool_run: ToolRun, number: int, options: Sequence[str]) -> Script:
    """Return the script of one entry that comes after the rows, cut where the entry begins.

    Arguments and errors are those of :func:`entries`.
    """
    text, first = _of_entries(head, tool_run, [number], options)
    return Script(text[:first], text[first:])


def _of_entries(
    head: bytes, tool_run: ToolRun, numbers: Sequence[int], options: Sequence[str]
) -> tuple[bytes, int]:
    """Return a script of a few entries, and the offset of the first one."""
    listed = "".join(f"{number};\n" for number in numbers).encode()
    with in_memory("list", listed) as (descriptor, path):
        own = ["--section=post-data", f"--use-list={path}", *of_restore(options)]
        text = plain(head, tool_run, own, inherited=[descriptor])
    first, end = ENTRY.search(text), CLOSING.search(text)
    return text, first.start() if first else end.start() if end else len(text)


def plain(
    head: bytes,
    tool_run: ToolRun,
    options: Sequence[str],
    inherited: Sequence[int] = (),
    *,
    with_privileges: bool = False,
) -> bytes:
    """Return the plain SQL that pg_restore makes of a table of contents.

    It inherits the descriptors ``inherited``. Owners and privileges are left out, unless the script
    is wanted ``with_privileges``. Raises CompositionError.
    """
    without = () if with_privileges else ("--no-owner", "--no-acl")
    command = [str(tool_run.client.pg_restore), *without, *options, "--file=-"]
    try:
        done = subprocess.run(  # noqa: S603 - no shell, a path that was found
            command,
            input=head,
            capture_output=True,
            env=child_environment(tool_run.environment),
            pass_fds=inherited,
            start_new_session=True,
            timeout=_SECONDS_TO_CONVERT,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CompositionError(f"pg_restore cannot be run: {error}") from error
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip()
        raise CompositionError(f"pg_restore failed: {said}")
    return done.stdout
