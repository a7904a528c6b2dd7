"""What pg_dump knows of a database, without the rows: its table of contents, and its script.

One pg_dump in custom format says what is to be dumped, in which order, with which statements. It is
stopped where the rows begin, and holds its locks until then. pg_restore makes plain SQL of it, by
the same code by which pg_dump does (RestoreArchive() in pg_backup_archiver.c).
"""

from __future__ import annotations

import contextlib
import re
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from pgstash.errors import DumpError
from pgstash.events import Emit, ToolSaid
from pgstash.postgres import toc
from pgstash.postgres.causes import Tool
from pgstash.postgres.dump import (
    CLOSING,
    arguments,
    in_one_session,
    patient,
    refuse_search_path,
    watched,
)
from pgstash.postgres.process import Child, child_environment, in_memory
from pgstash.postgres.source import Server
from pgstash.postgres.toc import Contents
from pgstash.postgres.tools import ClientTools

LARGEST = 32 * 1024 * 1024
"""The largest table of contents that is worked with, in bytes: it is held in memory a few times."""

_SECONDS_TO_CONVERT = 600

# Rows that nobody reads: the less of them pg_dump can write before it has to wait, the fewer tables
# it asks the server for. No pipe has to be larger by default.
_AHEAD_BYTES = 64 * 1024

# What decides on the script, and not on what is in the archive.
_OF_RESTORE = (
    "--no-statistics",
    "--no-table-access-method",
    "--no-tablespaces",
    "--statistics",
    "--use-set-session-authorization",
)
_NOT_FOR_ARCHIVE = ("--verbose", "-v")

# Written where the first entry needs it, so that it may stand at another place.
_LAZY = re.compile(rb"^SET default_(?:tablespace|table_access_method) = [^\n]*;\n\n", re.MULTILINE)
_ENTRY = re.compile(rb"^--\n-- Name: ", re.MULTILINE)


class CompositionError(DumpError):
    """The pieces do not add up to what pg_dump would have written: then it shall write it."""

    default_hint = "The backup is made by one pg_dump."


@dataclass(frozen=True, slots=True)
class Script:
    """The script of a database without its rows, which belong between its two pieces."""

    before: bytes
    after: bytes


@contextlib.contextmanager
def opened(  # noqa: PLR0913 - each is one knob of one process
    server: Server,
    tools: ClientTools,
    *,
    snapshot: str,
    options: Sequence[str],
    lock_seconds: float,
    idle_seconds: float,
    environment: Mapping[str, str],
    emit: Emit,
) -> Iterator[Contents]:
    """Let pg_dump look at the database, and yield what it would dump.

    Until the block is left it holds its locks on all that it would dump. Raises CompositionError
    where what it writes is not understood, and what a dump raises.
    """
    command = arguments(
        server,
        tools,
        [
            "--format=custom",
            "--compress=0",
            f"--snapshot={snapshot}",
            *(option for option in options if option not in _NOT_FOR_ARCHIVE),
        ],
        lock_seconds,
    )
    done = False

    def say(line: str) -> None:
        if not done:  # afterwards it says that it was stopped
            emit(ToolSaid("pg_dump", line))

    _, connection, ask = watched(server)
    with Child(command, connection, environment, say=say, ahead_bytes=_AHEAD_BYTES) as child:
        chunks = patient(child, idle_seconds, lock_seconds, ask)
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
                f"what pg_dump knows of the database takes more than {LARGEST // 1024**2} MiB"
            )
    status = child.wait()
    if status != 0:
        raise tool.failure(status, child.last_lines)
    raise CompositionError("pg_dump's table of contents is cut short")


def script(
    contents: Contents,
    tools: ClientTools,
    options: Sequence[str],
    environment: Mapping[str, str],
) -> Script:
    """Return the script, cut where the rows belong.

    That the statements after the rows end a script of all is how pg_restore works, and nothing it
    promises: both are compared. Raises CompositionError.
    """
    chosen = of_restore(options)
    sections = ["--section=pre-data", "--section=post-data"]
    whole = plain(contents.head, tools, ["--clean", "--if-exists", *sections, *chosen], environment)
    after = plain(contents.head, tools, ["--section=post-data", *chosen], environment)
    refuse_search_path(whole)
    ends, end = CLOSING.search(after), CLOSING.search(whole)
    if ends is None or end is None:
        raise CompositionError("pg_restore's script does not end as expected")
    first = _ENTRY.search(after)
    if first is None:
        return Script(whole[: end.start()], whole[end.start() :])
    wanted = _LAZY.sub(b"", after[first.start() : ends.start()])
    bare = _LAZY.sub(b"", whole[: end.start()])
    if not bare.endswith(wanted):
        raise CompositionError("the end of pg_restore's script is not what it writes of it alone")
    split = len(bare) - len(wanted)
    for lazy in _LAZY.finditer(whole):
        if lazy.start() > split:
            break
        split += len(lazy[0])
    return Script(whole[:split], whole[split:])


def of_restore(options: Iterable[str]) -> list[str]:
    """Return those of pg_dump's options that pg_restore has to be told, too."""
    return [option for option in options if option in _OF_RESTORE]


def entries(
    head: bytes,
    tools: ClientTools,
    numbers: Sequence[int],
    options: Sequence[str],
    environment: Mapping[str, str],
) -> bytes:
    """Return the statements of a few entries that come after the rows.

    ``options`` are those that the dump was made with. Raises CompositionError.
    """
    text, first = _of_entries(head, tools, numbers, options, environment)
    end = CLOSING.search(text)
    if end is None:
        raise CompositionError("pg_restore's script does not end as expected")
    return text[first : end.start()]


def script_of(
    head: bytes,
    tools: ClientTools,
    number: int,
    options: Sequence[str],
    environment: Mapping[str, str],
) -> Script:
    """Return the script of one entry that comes after the rows, cut where the entry begins.

    Arguments and errors as for :func:`entries`.
    """
    text, first = _of_entries(head, tools, [number], options, environment)
    return Script(text[:first], text[first:])


def _of_entries(
    head: bytes,
    tools: ClientTools,
    numbers: Sequence[int],
    options: Sequence[str],
    environment: Mapping[str, str],
) -> tuple[bytes, int]:
    """Return a script of a few entries, and where the first one begins."""
    listed = "".join(f"{number};\n" for number in numbers).encode()
    with in_memory("list", listed) as (descriptor, path):
        own = ["--section=post-data", f"--use-list={path}", *of_restore(options)]
        text = plain(head, tools, own, environment, inherited=[descriptor])
    first, end = _ENTRY.search(text), CLOSING.search(text)
    return text, first.start() if first else end.start() if end else len(text)


def plain(
    head: bytes,
    tools: ClientTools,
    options: Sequence[str],
    environment: Mapping[str, str],
    inherited: Sequence[int] = (),
) -> bytes:
    """Return what pg_restore makes of a table of contents: plain SQL.

    ``inherited`` are descriptors that it keeps. Raises CompositionError.
    """
    command = [str(tools.pg_restore), "--no-owner", "--no-acl", *options, "--file=-"]
    try:
        done = subprocess.run(  # noqa: S603 - no shell, a path that was found
            command,
            input=head,
            capture_output=True,
            env=child_environment(environment),
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
