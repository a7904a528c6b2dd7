"""An extension that only the database of one name may have: restored, drilled, or refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pgstash.format.manifest import Extension
from pgstash.postgres.restore import bound_extensions
from support import extension, pieces, postgres
from support.backups import stored
from support.cli import environment, run_pgstash
from support.compare import compare
from support.extension import BOUND
from support.postgres import Cluster, Database
from support.tiers import later

if TYPE_CHECKING:
    import subprocess

APP = "bound_app"
WAS = "bound_app_before"


@pytest.fixture(scope="module")
def bound() -> Iterator[Cluster]:
    major = postgres.test_majors()[-1]
    extension.install_bound(major)
    with Cluster(major, settings={f"{BOUND}.database_name": APP}) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def folder(bound: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backup of a database that has its name no more."""
    source = bound.create_database(APP)
    source.run_sql(
        f"CREATE EXTENSION {BOUND}; DELETE FROM bound.job;"
        "INSERT INTO bound.job (what) VALUES ('nightly'), ('hourly');"
        "CREATE VIEW jobs AS SELECT * FROM bound.job;"
        "CREATE TABLE own (n int); INSERT INTO own VALUES (1)"
    )
    folder = tmp_path_factory.mktemp("stored")
    pieces.back_up(source, folder)
    bound.maintenance.run_sql(f"ALTER DATABASE {APP} RENAME TO {WAS}")
    return folder


def run(
    on: Cluster, folder: Path, *arguments: str, **more: str
) -> subprocess.CompletedProcess[str]:
    given = {"STORAGE_URL": folder.as_uri(), "RESTORE_URL": on.maintenance.uri}
    return run_pgstash(arguments, environment(on.bin_dir, **(given | more)))


def databases(on: Cluster) -> set[str]:
    return set(on.maintenance.run_sql("SELECT datname FROM pg_database").split())


def test_the_manifest_says_what_it_is_bound_by(folder: Path) -> None:
    [backup] = stored(folder)
    assert backup.manifest["extensions"] == [
        {
            "name": BOUND,
            "version": "1.0",
            "schema": "public",
            "database_setting": f"{BOUND}.database_name",
        }
    ]


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_restored_under_its_name(jobs: str, bound: Cluster, folder: Path) -> None:
    try:
        done = run(bound, folder, "restore", "--create", APP, RESTORE_JOBS=jobs)
        assert (done.returncode, done.stderr) == (0, ""), done.stdout
        source, target = Database(bound, WAS), Database(bound, APP)
        assert compare(source.conninfo, target.conninfo, bin_dir=bound.bin_dir) == []
    finally:
        bound.drop_database(APP)


def test_another_name_is_refused_before_anything_is_loaded(bound: Cluster, folder: Path) -> None:
    before = databases(bound)
    done = run(bound, folder, "restore", "--create", "bound_copy")
    assert done.returncode == 59, done.stdout + done.stderr
    assert f"can only create extension in database {APP}" in done.stderr
    assert (
        f"Restore with --create {APP}, or set {BOUND}.database_name = 'bound_copy'" in done.stderr
    )
    assert databases(bound) == before


def test_without_the_setting_the_remedy_is_named(folder: Path) -> None:
    with Cluster(postgres.test_majors()[-1]) as cluster:
        done = run(cluster, folder, "restore", "--create", APP)
        assert done.returncode == 59, done.stdout + done.stderr
        assert f"shared_preload_libraries = '{BOUND}' and {BOUND}.database_name = '{APP}'" in (
            done.stderr
        )
        assert databases(cluster) == {"postgres", "template0", "template1"}


def test_only_a_superuser_can(bound: Cluster, folder: Path) -> None:
    bound.maintenance.run_sql("CREATE ROLE maker LOGIN CREATEDB")
    url = bound.maintenance.uri.replace(f"{bound.user}@", "maker@")
    done = run(bound, folder, "restore", "--create", APP, RESTORE_URL=url)
    assert done.returncode == 59, done.stdout + done.stderr
    assert "Only a superuser can create it before the database has its name." in done.stderr


def test_a_database_of_that_name_is_not_replaced(bound: Cluster, folder: Path) -> None:
    """The extension cannot be created elsewhere, and the name is in use."""
    bound.create_database(APP)
    before = databases(bound)
    try:
        done = run(bound, folder, "restore", "--create", APP, "--replace")
        assert done.returncode == 59, done.stdout + done.stderr
        assert f"restore with --create {APP}, without --replace" in done.stderr
        assert databases(bound) == before
    finally:
        bound.drop_database(APP)


@pytest.mark.parametrize("jobs", later(["1", "2"], "1"))
def test_drilled_on_a_server_of_its_own(
    jobs: str, bound: Cluster, folder: Path, scratch: Path
) -> None:
    done = run(bound, folder, "drill", TMPDIR=str(scratch), RESTORE_JOBS=jobs)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert list(scratch.iterdir()) == []


def test_drilled_on_a_server_that_is_named(bound: Cluster, folder: Path) -> None:
    """The name is free there; nobody but the drill sees it used."""
    before = databases(bound)
    done = run(bound, folder, "drill", VERIFY_DATABASE_URL=bound.maintenance.uri)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    bound.create_database(APP)
    try:
        done = run(bound, folder, "drill", VERIFY_DATABASE_URL=bound.maintenance.uri)
        assert done.returncode == 59, done.stdout + done.stderr
        assert "leave VERIFY_DATABASE_URL out" in done.stderr
    finally:
        bound.drop_database(APP)
    assert databases(bound) == before


def test_no_worker_of_a_library_runs_in_a_drill() -> None:
    cron = Extension("pg_cron", "1.6")
    settings = bound_extensions.server_settings([cron, Extension("hstore", "1.8")], "drilled")
    assert settings == {
        "shared_preload_libraries": "pg_cron",
        "cron.database_name": "drilled",
        "max_worker_processes": "0",
        "max_logical_replication_workers": "0",
    }
    assert bound_extensions.server_settings([Extension("hstore", "1.8")], "drilled") == {}
