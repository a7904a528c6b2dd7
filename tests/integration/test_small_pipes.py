"""All rows arrive through pipes as small as the kernel gives them to a user who has many."""

from __future__ import annotations

import contextlib
import os
import re
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from pgstash.errors import DumpError
from pgstash.events import ignore
from pgstash.postgres.dump import copy_reader
from pgstash.postgres.dump import snapshot as copying
from pgstash.postgres.dump.snapshot import Chunk
from pgstash.postgres.server import login
from pgstash.postgres.tools import installed, process
from pgstash.postgres.tools.tool_run import ToolRun
from support import backups, pieces
from support.cli import environment, run_pgstash
from support.compare import compare
from support.postgres import clean_environment

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pgstash.postgres.dump.copy_reader import Reader
    from support.postgres import Cluster, Database, MakeDatabase

ROWS = 20_000
LIST_BYTES = 10 * 1024
PAUSE = 0.05  # seconds after each write, as on a machine with too much to do


@pytest.fixture
def narrow(make_database: MakeDatabase, cluster: Cluster) -> Database:
    database = make_database(on=cluster)
    database.run_sql(f"CREATE TABLE t AS SELECT n FROM generate_series(1, {ROWS}) n")
    return database


@contextlib.contextmanager
def reading(database: Database) -> Iterator[tuple[Reader, Chunk]]:
    """Yield a reader that is ready for the one chunk of a table."""
    server = login.inspect(database.uri)
    env = clean_environment(database.bin_dir)
    client = installed.find(server.major, env["PATH"], env)
    with (
        copying.snapshot(server) as snapshot,
        pytest.MonkeyPatch.context() as patch,
        pieces.contents(server, client, snapshot, env) as contents,
    ):
        patch.setattr(copying, "_SMALLEST", 0)
        [table] = snapshot.cut(contents.entries)
        with copy_reader.Reader(
            server,
            ToolRun(client, env, ignore),
            snapshot=snapshot.name,
            role=None,
            idle_seconds=60,
        ) as subject:
            subject.begin([table])
            yield subject, Chunk(table, 0)


@pytest.mark.newest_first
@pytest.mark.parametrize("pipe", [4096, 8192])
def test_rows_that_come_before_the_statement_is_written(
    pipe: int, narrow: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """psql reads what a page of a pipe holds, and answers before it gets the rest."""

    def written_slowly(descriptor: int, data: bytes) -> int:
        count = write(descriptor, data)
        time.sleep(PAUSE)
        return count

    write = os.write
    monkeypatch.setattr(process, "_PIPE_BYTES", pipe)
    with reading(narrow) as (subject, chunk):
        # The statement ends where a page does: what is written after it comes too late.
        pages = LIST_BYTES // pipe + 1
        padding = pages * pipe - len(chunk.read) - len(" \\g /dev/stdout\n")
        columns = chunk.table.columns + b" " * padding
        padded = replace(chunk, table=replace(chunk.table, columns=columns))
        assert len(padded.read) > LIST_BYTES
        monkeypatch.setattr(os, "write", written_slowly)
        rows = b"".join(subject.read(padded))
        monkeypatch.undo()
        assert rows == b"".join(b"%d\n" % n for n in range(1, ROWS + 1))
        subject.confirm(padded, ROWS)


def test_the_rows_that_the_server_counted_are_compared(narrow: Database) -> None:
    with reading(narrow) as (subject, chunk):
        for counted in (ROWS - 1, ROWS + 1, 0):
            assert b"".join(subject.read(chunk)).count(b"\n") == ROWS
            with pytest.raises(DumpError, match=rf"{ROWS} rows of public\.t.* {counted} were"):
                subject.confirm(chunk, counted)
        none = replace(chunk, table=replace(chunk.table, pages=10**6, step=1), start=10**5)
        assert list(subject.read(none)) == []
        subject.confirm(none, 0)


@pytest.mark.newest_first
def test_a_row_that_is_lost_on_the_way_fails_the_backup(narrow: Database, tmp_path: Path) -> None:
    losing = (
        "read = copy_reader.Reader._run\n"
        "def losing(self, *given):\n"
        "    for piece in read(self, *given):\n"
        "        yield piece.partition(b'\\n')[2] if piece.count(b'\\n') > 1 else piece\n"
        "copy_reader.Reader._run = losing"
    )
    env = environment(narrow.bin_dir, **backups.settings(narrow, tmp_path))
    done = run_pgstash(["once"], env, statements=pieces.statements(losing), timeout=60)
    assert done.returncode == 13, done.stdout + done.stderr
    assert re.search(r"the server sent \d+ rows of public\.t, but \d+ were counted", done.stderr)
    assert backups.stored(tmp_path) == []


def test_a_round_trip_through_small_pipes(make_database: MakeDatabase, tmp_path: Path) -> None:
    names = [f"{'column_' * 8}{number}" for number in range(LIST_BYTES // 60)]
    columns = ", ".join(f"{name} text DEFAULT ''" for name in names)
    database = make_database()
    database.run_sql(
        f"CREATE TABLE wide (n int, {columns});"
        f"INSERT INTO wide (n) SELECT generate_series(1, {ROWS})"
    )
    small = (
        "import os",
        "from pgstash.postgres.tools import process",
        "process._PIPE_BYTES = 8192",
        "write = os.write",
        f"os.write = lambda *given: (write(*given), time.sleep({PAUSE}))[0]",
    )
    (folder := tmp_path / "storage").mkdir()
    env = environment(database.bin_dir, **backups.settings(database, folder))
    done = run_pgstash(["once"], env, statements=pieces.statements(*small), timeout=120)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    target = make_database()
    backups.stored(folder)[0].restore(target)
    assert compare(database.conninfo, target.conninfo, bin_dir=database.bin_dir) == []
