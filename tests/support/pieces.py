"""Lets pgstash take small tables for big ones, which several sessions read in pieces."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pgstash.events import ignore
from pgstash.postgres.dump import schema_dump
from pgstash.postgres.tools.tool_run import Limits, ToolRun
from support import backups
from support.cli import TOOLS_ON_PATH_ALONE, environment, run_pgstash

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pgstash.postgres.dump.snapshot import Snapshot
    from pgstash.postgres.server.connection import Server
    from pgstash.postgres.tools.installed import ClientTools
    from pgstash.postgres.tools.toc import Contents
    from support.backups import StoredBackup
    from support.postgres import Database

PATIENCE = 30.0  # seconds

_PROGRAM = """
import pathlib
import time
from pgstash.backup import dump_workers
from pgstash.pipeline import member_writer
from pgstash.postgres.dump import copy_reader, schema_dump, snapshot

snapshot._SMALLEST = 0
snapshot.CHUNK_BYTES = 65536


def before(owner, name, wait):
    function = getattr(owner, name)

    def waiting(*args, **kwargs):
        wait()
        return function(*args, **kwargs)

    setattr(owner, name, waiting)


def stop(folder):
    number = len(list(folder.glob("arrived *")))
    (folder / f"arrived {number}").touch()
    while not (folder / f"go on {number}").exists():
        time.sleep(0.01)
"""

# Moments of a dump, by the function that is called next.
SNAPSHOT_TAKEN = "schema_dump, 'opened'"
LOCKED_BY_FIRST = "snapshot.Snapshot, 'cut'"
CUT = "dump_workers.DumpWorkers, 'open'"
LOCKED_BY_ALL = "dump_workers.DumpWorkers, 'run'"


def statements(*more: str) -> Sequence[str]:
    """Return what makes pgstash take what is small for big, for ``run_pgstash``; ``more`` follow.

    It knows only the tools on PATH.
    """
    return [_PROGRAM, *TOOLS_ON_PATH_ALONE, *more]


def back_up(
    database: Database,
    folder: Path,
    *,
    encrypted: bool = False,
    tools: Path | None = None,
    **more: str,
) -> StoredBackup:
    """Back every table up in chunks of two pages; nothing may be said that is a warning."""
    small = ("snapshot.CHUNK_BYTES = 16 * 1024", "member_writer.MEMBER_BYTES = 16 * 1024")
    settings = backups.settings(database, folder, encrypted=encrypted) | more
    env = environment(tools or database.bin_dir, **settings)
    done = run_pgstash(["once"], env, statements=statements(*small))
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    return backups.stored(folder)[-1]


@contextlib.contextmanager
def contents(
    server: Server, client: ClientTools, snapshot: Snapshot, env: Mapping[str, str]
) -> Iterator[Contents]:
    """Let pg_dump look at a database under a snapshot, and hold its locks for the block."""
    with schema_dump.opened(
        server,
        ToolRun(client, env, ignore),
        [],
        Limits(lock=PATIENCE, idle=PATIENCE),
        snapshot=snapshot.name,
    ) as found:
        yield found


def slow(seconds: float) -> str:
    """Return a statement by which each piece begins so much later."""
    return f"before(copy_reader.Reader, 'read', lambda: time.sleep({seconds}))"


@dataclass(frozen=True)
class Stop:
    """A moment at which pgstash waits for the test, each time that it comes to it.

    ``folder`` is an empty one, for the two to talk by.
    """

    moment: str
    folder: Path

    @property
    def statement(self) -> str:
        return f"before({self.moment}, lambda: stop(pathlib.Path({str(self.folder)!r})))"

    @contextlib.contextmanager
    def reached(self, number: int = 0) -> Iterator[None]:
        """Wait until pgstash is there for the time of this number; it goes on after the block."""
        give_up = time.monotonic() + PATIENCE
        while not (self.folder / f"arrived {number}").exists():
            if time.monotonic() > give_up:
                raise AssertionError(f"pgstash did not come to {self.moment}, time {number}")
            time.sleep(0.01)
        try:
            yield
        finally:
            (self.folder / f"go on {number}").touch()
