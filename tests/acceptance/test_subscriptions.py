"""A subscription comes back, and keeps no database of ours from being dropped."""

from __future__ import annotations

import contextlib
import re
from typing import TYPE_CHECKING

import pytest

from pgstash.format import manifest as manifests
from support.backups import PASSPHRASE, back_up
from support.cli import environment, run_pgstash
from support.compare import compare
from support.postgres import Database
from support.stored import CLOSING, make

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator
    from pathlib import Path

    from support.postgres import Cluster, MakeDatabase

SUBSCRIPTION = """
CREATE TABLE public.fed (id integer PRIMARY KEY);
CREATE SUBSCRIPTION "Fe ed" CONNECTION 'host=127.0.0.1 port=1 dbname=nowhere' PUBLICATION p
    WITH (connect = false, slot_name = 'feed');
"""
# Of the server, which words it in one way up to 15, and in another since.
TOLD = re.compile(
    r"psql: WARNING: (subscription was created, but is not connected|tables were not subscribed)"
)


@contextlib.contextmanager
def subscribing(database: Database) -> Iterator[Database]:
    """Take the subscription away in the end, with which the database could not be dropped."""
    try:
        yield database
    finally:
        if subscriptions(database):
            database.run_sql(
                'ALTER SUBSCRIPTION "Fe ed" SET (slot_name = NONE); DROP SUBSCRIPTION "Fe ed"'
            )


def subscriptions(database: Database) -> str:
    return database.run_sql(
        "SELECT subname, subslotname, subenabled FROM pg_subscription s"
        " JOIN pg_database d ON d.oid = subdbid WHERE datname = current_database()"
    )


def ours(cluster: Cluster) -> str:
    return cluster.maintenance.run_sql(
        "SELECT datname FROM pg_database WHERE datname ~ '_pgstash_|^pgstash_drill_'"
    )


def run(
    command: str, folder: Path, target: Database, *arguments: str, **more: str
) -> subprocess.CompletedProcess[str]:
    env = environment(
        target.bin_dir,
        STORAGE_URL=folder.as_uri(),
        RESTORE_URL=target.uri,
        BACKUP_ENCRYPTION_KEY=PASSPHRASE,
        **more,
    )
    return run_pgstash([command, *arguments], env)


@pytest.fixture
def source(cluster: Cluster, make_database: MakeDatabase) -> Iterator[Database]:
    with subscribing(make_database(on=cluster)) as database:
        database.run_sql(SUBSCRIPTION)
        yield database


def test_it_is_restored_without_a_connection(
    source: Database, cluster: Cluster, make_database: MakeDatabase, tmp_path: Path
) -> None:
    back_up(source, tmp_path)
    with subscribing(make_database(on=cluster)) as target:
        done = run("restore", tmp_path, target, "--to", target.uri)
        assert done.returncode == 0, done.stderr
        [line] = done.stderr.splitlines()
        assert TOLD.search(line)
        assert "LOCATION" not in done.stdout
        assert compare(source.conninfo, target.conninfo, bin_dir=source.bin_dir) == []
        assert subscriptions(target) == "Fe ed|feed|f\n"


@pytest.mark.newest_first
def test_over_itself_it_is_told_what_to_do(source: Database, tmp_path: Path) -> None:
    """PostgreSQL drops a subscription with a slot in no transaction."""
    back_up(source, tmp_path)
    done = run("restore", tmp_path, source, "--overwrite")
    assert done.returncode == 62, done.stderr
    assert "nothing was changed in the target" in done.stderr
    assert "Drop the subscription in the target first" in done.stderr


@pytest.mark.newest_first
def test_a_new_database_that_fails_is_dropped(
    cluster: Cluster, make_database: MakeDatabase, tmp_path: Path
) -> None:
    make(SUBSCRIPTION.encode() + b"SELECT 1 / 0;\n" + CLOSING).store_as_backup(tmp_path)
    done = run("restore", tmp_path, make_database(on=cluster), "--create", "never_made")
    assert done.returncode == 62, done.stderr
    assert "could not be dropped" not in done.stderr
    assert ours(cluster) == ""


@pytest.mark.newest_first
def test_a_drill_drops_its_database(
    cluster: Cluster, make_database: MakeDatabase, tmp_path: Path
) -> None:
    make(SUBSCRIPTION.encode() + CLOSING).with_manifest(
        tables=[manifests.Table("public", "fed", 0)]
    ).store_as_backup(tmp_path)
    target = make_database(on=cluster)
    done = run("drill", tmp_path, target, VERIFY_DATABASE_URL=target.uri)
    assert done.returncode == 0, done.stderr
    assert "could not be dropped" not in done.stderr
    assert ours(cluster) == ""
