"""What several sessions dumped is the database again, by every way back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from integration.test_round_trip import real_counts
from support import databases, pieces
from support.backups import PASSPHRASE, back_up
from support.cli import environment, run_pgstash
from support.compare import compare
from support.postgres import Database

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.postgres import Cluster, MakeDatabase

NEWEST_FIRST = pytest.mark.newest_first
SAMPLES = [
    pytest.param(each, marks=() if each in {"structure", "large_objects"} else NEWEST_FIRST)
    for each in (*databases.ROUND_TRIPPING, "breaks_under_clean")
]


@pytest.fixture
def new_database(cluster: Cluster) -> Iterator[str]:
    name = "brought back"
    yield name
    cluster.drop_database(name)


def restore(folder: Path, on: Cluster, *arguments: str, jobs: int) -> None:
    env = environment(
        on.maintenance.bin_dir,
        STORAGE_URL=folder.as_uri(),
        RESTORE_URL=on.maintenance.uri,
        RESTORE_JOBS=str(jobs),
        BACKUP_ENCRYPTION_KEY=PASSPHRASE,
    )
    done = run_pgstash(["restore", *arguments], env)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout


def differences(source: Database, name: str, on: Cluster) -> list[str]:
    return compare(source.conninfo, Database(on, name).conninfo, bin_dir=source.bin_dir)


@pytest.mark.parametrize(
    ("jobs", "encrypted"),
    [
        pytest.param(2, True, id="2 jobs, encrypted"),
        pytest.param(4, False, id="4 jobs, plain", marks=pytest.mark.long),
        pytest.param(2, False, id="2 jobs, plain", marks=pytest.mark.long),
        pytest.param(4, True, id="4 jobs, encrypted", marks=pytest.mark.long),
    ],
)
@pytest.mark.parametrize("sample", SAMPLES)
def test_every_way_back(
    sample: str,
    jobs: int,
    *,
    encrypted: bool,
    cluster: Cluster,
    make_database: MakeDatabase,
    new_database: str,
    tmp_path: Path,
) -> None:
    source = make_database(sample, on=cluster)
    backup = pieces.back_up(source, tmp_path, encrypted=encrypted, DUMP_JOBS=str(jobs))
    assert backup.manifest["schema_sha256"]
    counted = {table: n for table, n in backup.row_counts.items() if table[1] != "ext_config"}
    assert counted == real_counts(source)

    restore(tmp_path, cluster, "--create", new_database, jobs=jobs)
    assert differences(source, new_database, cluster) == []
    cluster.drop_database(new_database)

    restore(tmp_path, cluster, "--create", new_database, jobs=1)
    assert differences(source, new_database, cluster) == []
    cluster.drop_database(new_database)

    if sample in databases.ROUND_TRIPPING:  # the other one's own drops fail, as pg_dump's do
        cluster.create_database(new_database, encoding=databases.encoding(sample))
        backup.restore(Database(cluster, new_database))
        assert differences(source, new_database, cluster) == []


def test_a_row_that_is_longer_than_members(
    cluster: Cluster, make_database: MakeDatabase, new_database: str, tmp_path: Path
) -> None:
    """A value is never loaded in two pieces, but it is stored in several."""
    source = make_database(on=cluster)
    source.run_sql(
        "CREATE TABLE wide (n int, content bytea);"
        "INSERT INTO wide SELECT n, decode(repeat(md5(n::text), n * 200000), 'hex')"
        " FROM generate_series(1, 4) AS n;"
        "CREATE TABLE narrow AS SELECT n, md5(n::text) FROM generate_series(1, 60000) AS n"
    )
    backup = back_up(source, tmp_path)
    members = [
        dict(zip(backup.manifest["members"]["columns"], row, strict=True))
        for row in backup.manifest["members"]["rows"]
    ]
    going_on = [each for each in members if each["table"] is not None and each["rows"] is None]
    assert going_on
    assert max(each["raw"] for each in members) < 20 * 1024 * 1024
    assert backup.row_counts == {("public", "wide"): 4, ("public", "narrow"): 60_000}
    restore(tmp_path, cluster, "--create", new_database, jobs=2)
    assert differences(source, new_database, cluster) == []
    cluster.drop_database(new_database)
    cluster.create_database(new_database)
    backup.restore(Database(cluster, new_database))
    assert differences(source, new_database, cluster) == []


def test_a_check_that_reads_another_table_meets_the_rows_that_are_before_its_own(
    cluster: Cluster, make_database: MakeDatabase, new_database: str, tmp_path: Path
) -> None:
    """pg_dump writes the limits first, and its script restores: so does ours, by all sessions."""
    source = make_database(on=cluster)
    source.run_sql(
        "CREATE TABLE a_limits (most int, why text);"
        "INSERT INTO a_limits SELECT n, md5(n::text) FROM generate_series(1, 200000) AS n;"
        "CREATE FUNCTION within(n int) RETURNS bool LANGUAGE sql"
        "    AS 'SELECT n <= max(most) FROM public.a_limits';"
        "CREATE TABLE b_checked (n int CONSTRAINT within CHECK (coalesce(within(n), false)));"
        "INSERT INTO b_checked VALUES (200000)"
    )
    backup = back_up(source, tmp_path)
    assert backup.manifest["schema_sha256"]
    for jobs in (4, 1):
        restore(tmp_path, cluster, "--create", new_database, jobs=jobs)
        assert differences(source, new_database, cluster) == []
        cluster.drop_database(new_database)
