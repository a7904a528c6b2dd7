"""The pieces of a dump by several sessions are just the tables that pg_dump lists, or no backup."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from faults.scene import Folder, Scene, assert_failed, complete_archives
from support import pieces
from support.cli import run_pgstash

if TYPE_CHECKING:
    from pathlib import Path

    from support.postgres import MakeDatabase

TABLES = """
    CREATE TABLE big AS SELECT n, md5(n::text) AS noise FROM generate_series(1, 20000) n;
    CREATE TABLE empty_one (n int);
    CREATE TABLE other AS SELECT n FROM generate_series(1, 500) n;
"""
# What the pg_dump that writes the rest of the rows is made to leave out, or to write as well.
CHANGES = {
    "nothing": "",
    "missing": 'set -- "$@" --exclude-table-data=public.other',
    "empty and missing": 'set -- "$@" --exclude-table-data=public.empty_one',
    "twice": 'for each; do shift; case $each in --exclude-table-data=*) ;; *) set -- "$@" "$each";;'
    " esac; done",
}


def changed(folder: Path, bin_dir: Path, change: str) -> Path:
    """Return a folder with the real tools, of which pg_dump gets other arguments for the rows."""
    folder.mkdir()
    for tool in ("psql", "pg_restore", "pg_dumpall"):
        (folder / tool).symlink_to(bin_dir / tool)
    script = folder / "pg_dump"
    script.write_text(
        f'#!/bin/sh\ncase "$*" in *--section=data*) {change or ":"};; esac\n'
        f'exec "{bin_dir}/pg_dump" "$@"\n'
    )
    script.chmod(0o755)
    return folder


@pytest.mark.parametrize("what", CHANGES)
def test_a_table_that_no_piece_holds_or_two(
    what: str, make_database: MakeDatabase, folder: Folder, tmp_path: Path
) -> None:
    database = make_database()
    database.run_sql(TABLES)
    tools = changed(tmp_path / "bin", database.bin_dir, CHANGES[what])
    scene = Scene(database, folder, tools)
    only_big = "snapshot._SMALLEST = 1024 * 1024"
    done = run_pgstash(["once"], scene.environment(), statements=pieces.statements(only_big))
    if what == "nothing":
        assert done.returncode == 0, done.stderr
        assert len(complete_archives(scene.place)) == 1
        return
    table = {"missing": "other", "empty and missing": "empty_one", "twice": "big"}[what]
    words = ("dumped twice or not at all", table, "DUMP_JOBS=1")
    assert_failed(done, 13, *words, nothing_left=scene)
