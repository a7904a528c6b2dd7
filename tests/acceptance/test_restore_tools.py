"""Backups come back with the tools that are there, and with the options they were made with."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from support import backups, pieces
from support.cli import environment, run_pgstash
from support.compare import compare
from support.postgres import Cluster, Clusters, Database, bin_dir, temporary_database
from support.postgres import test_majors as majors_under_test

if TYPE_CHECKING:
    from support.postgres import MakeDatabase

MAJORS = majors_under_test()
NAME = "restored_by_tools"
SPACE, OTHER = "fast_disk", "another_disk"


def restoring(folder: Path, on: Cluster, tools: Path) -> dict[str, str]:
    return environment(
        tools,
        STORAGE_URL=folder.as_uri(),
        RESTORE_URL=on.maintenance.uri,
        VERIFY_DATABASE_URL=on.maintenance.uri,
    )


@pytest.mark.parametrize(
    ("older", "newer"),
    [(older, newer) for older in MAJORS for newer in MAJORS if older < newer],
)
def test_tools_that_are_newer_than_server_and_backup(
    older: int, newer: int, clusters: Clusters, make_database: MakeDatabase, tmp_path: Path
) -> None:
    """pg_restore sets what servers before 17 do not know, whoever wrote the archive."""
    on = clusters.get(older)
    source = make_database("structure", on=on)
    backup = pieces.back_up(source, tmp_path)
    assert backup.manifest["client"].startswith(f"{older}.")
    env = restoring(tmp_path, on, bin_dir(newer)) | {"DEBUG": "true"}
    done = run_pgstash(["restore", "--create", NAME], env, statements=pieces.statements())
    try:
        assert done.returncode == 0, done.stderr
        told = f"pg_restore {newer} cannot restore into PostgreSQL {older}"
        assert (told in done.stdout + done.stderr) == (older < 17)
        made = Database(on, NAME)
        assert compare(source.conninfo, made.conninfo, bin_dir=source.bin_dir) == []
    finally:
        on.drop_database(NAME)


@pytest.fixture
def moved(newest_cluster: Cluster) -> Iterator[Database]:
    """A database in a tablespace that goes by another name by the time of the restore."""
    folder = newest_cluster.folder / "space"
    folder.mkdir(exist_ok=True)
    shutil.chown(folder, newest_cluster.folder.owner(), newest_cluster.folder.group())
    on = newest_cluster.maintenance
    on.run_sql(f"CREATE TABLESPACE {SPACE} LOCATION '{folder}'")
    try:
        with temporary_database(newest_cluster) as source:
            source.run_sql(
                f"""
                CREATE TABLE t (id int PRIMARY KEY USING INDEX TABLESPACE {SPACE}, n int)
                    TABLESPACE {SPACE};
                CREATE INDEX by_n ON t (n) TABLESPACE {SPACE};
                CREATE INDEX by_both ON t (id, n) TABLESPACE {SPACE};
                INSERT INTO t SELECT n, n FROM generate_series(1, 1000) n;
                CREATE MATERIALIZED VIEW m TABLESPACE {SPACE} AS SELECT * FROM t;
                """
            )
            yield source
    finally:
        on.run_sql(f"DROP TABLESPACE IF EXISTS {OTHER}; DROP TABLESPACE IF EXISTS {SPACE}")


@pytest.mark.parametrize(
    "arguments",
    [
        ("restore", "--create", NAME),
        ("restore", "--create", NAME, "--table", "t"),
        ("drill",),
    ],
    ids=["all", "one table", "drill"],
)
def test_without_tablespaces(
    arguments: tuple[str, ...], moved: Database, newest_cluster: Cluster, tmp_path: Path
) -> None:
    backups.back_up(moved, tmp_path, PG_DUMP_EXTRA_ARGS="--no-tablespaces")
    newest_cluster.maintenance.run_sql(f"ALTER TABLESPACE {SPACE} RENAME TO {OTHER}")
    try:
        done = run_pgstash(arguments, restoring(tmp_path, newest_cluster, moved.bin_dir))
        assert done.returncode == 0, done.stderr
        if arguments[0] == "restore":
            made = Database(newest_cluster, NAME)
            indexes = "SELECT count(*) FROM pg_indexes WHERE tablename = 't' AND tablespace IS NULL"
            assert made.run_sql(indexes) == "3\n"
    finally:
        newest_cluster.drop_database(NAME)
