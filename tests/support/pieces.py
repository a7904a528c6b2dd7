"""Lets pgstash take small tables for big ones, which several sessions read in pieces."""

from __future__ import annotations

import contextlib
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pgstash.events import ignore
from pgstash.postgres import outline
from support import backups
from support.cli import environment, run_pgstash

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pgstash.postgres.copying import Snapshot
    from pgstash.postgres.source import Server
    from pgstash.postgres.toc import Contents
    from pgstash.postgres.tools import ClientTools
    from support.backups import StoredBackup
    from support.postgres import Database

PATIENCE = 30.0  # seconds

_PROGRAM = """
import pathlib
import time
from pgstash import pieces
from pgstash.pipeline import packing
from pgstash.postgres import copying, outline, reader

copying._SMALLEST = 0
copying.CHUNK_BYTES = 65536


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
_MAIN = """
from pgstash.cli import main
main()
"""

# Moments of a dump, by the function that is called next.
SNAPSHOT_TAKEN = "outline, 'opened'"
LOCKED_BY_FIRST = "copying.Snapshot, 'cut'"
CUT = "pieces.Pieces, 'open'"
LOCKED_BY_ALL = "pieces.Pieces, 'run'"


def program(*more: str) -> Sequence[str]:
    """Return a command that is pgstash, but for what is small; ``more`` are statements."""
    return [sys.executable, "-c", "\n".join([_PROGRAM, *more, _MAIN])]


def back_up(
    database: Database,
    folder: Path,
    *,
    encrypted: bool = False,
    tools: Path | None = None,
    **more: str,
) -> StoredBackup:
    """Back every table up in chunks of two pages; nothing may be said that is a warning."""
    small = ("copying.CHUNK_BYTES = 16 * 1024", "packing.MEMBER_BYTES = 16 * 1024")
    settings = backups.settings(database, folder, encrypted=encrypted) | more
    env = environment(tools or database.bin_dir, **settings)
    done = run_pgstash(["once"], env, command=program(*small))
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    return backups.stored(folder)[-1]


@contextlib.contextmanager
def contents(
    server: Server, client: ClientTools, snapshot: Snapshot, env: Mapping[str, str]
) -> Iterator[Contents]:
    """Let pg_dump look at a database under a snapshot, and hold its locks for the block."""
    with outline.opened(
        server,
        client,
        snapshot=snapshot.name,
        options=[],
        lock_seconds=PATIENCE,
        idle_seconds=PATIENCE,
        environment=env,
        emit=ignore,
    ) as found:
        yield found


def slow(seconds: float) -> str:
    """Return a statement by which each piece begins so much later."""
    return f"before(reader.Reader, 'read', lambda: time.sleep({seconds}))"


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
