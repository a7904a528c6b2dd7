"""A restored application works: each of its roles may do what it could, and nothing more."""

from __future__ import annotations

import gzip
import re
import subprocess
from typing import TYPE_CHECKING

import pytest

from acceptance.test_privileges import described
from support import application
from support.backups import PASSPHRASE, back_up, decrypted
from support.cli import COMMAND, NO_DOTENV, environment, run_pgstash
from support.postgres import REPOSITORY, Cluster, Database, clean_environment
from support.tiers import later

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.backups import StoredBackup
    from support.postgres import MakeDatabase

NAME = "the_application"
PAGE = REPOSITORY / "docs" / "how-to" / "the-database-is-gone.md"
STEPS = re.compile(r"^```sh\n(.*?)^```", re.DOTALL | re.MULTILINE)


def remove(cluster: Cluster, *databases: str) -> None:
    for name in databases:
        cluster.drop_database(name)
    for role in application.ROLES:
        cluster.maintenance.run_sql(f"DROP ROLE IF EXISTS {role}")


@pytest.fixture(scope="module")
def source(newest_cluster: Cluster) -> Iterator[Database]:
    newest_cluster.maintenance.run_sql(application.CREATE_ROLES)
    for role in application.ROLES[1:]:
        newest_cluster.maintenance.run_sql(f"ALTER ROLE {role} PASSWORD 'planted {role}'")
    database = newest_cluster.create_database("application_source")
    database.run_sql(application.CREATE)
    assert list(application.failures(database)) == []
    yield database
    remove(newest_cluster, database.name)


@pytest.fixture(scope="module")
def backup(source: Database, tmp_path_factory: pytest.TempPathFactory) -> StoredBackup:
    folder = tmp_path_factory.mktemp("application")
    return back_up(source, folder, encrypted=True, GLOBALS_PASSWORDS="true")


@pytest.fixture(scope="module")
def as_stored(source: Database) -> list[str]:
    """Return the description of the source, in which nothing changes once its suite has run."""
    return described(source)


@pytest.fixture
def target(newest_cluster: Cluster) -> Iterator[Cluster]:
    """The server of the source, for databases of another name."""
    yield newest_cluster
    kept = "SELECT datname FROM pg_database WHERE datname LIKE 'the_application%'"
    for name in newest_cluster.maintenance.run_sql(kept).split():
        newest_cluster.drop_database(name)


@pytest.fixture
def empty_server(newest_cluster: Cluster) -> Iterator[Cluster]:
    """Another server, without any role of the application."""
    with Cluster(newest_cluster.major) as cluster:
        yield cluster


def restore(
    backup: StoredBackup,
    on: Cluster,
    *arguments: str,
    folder: Path | None = None,
    **more: str,
) -> str:
    """Restore into a new database; return what was reported to be wrong."""
    given = {
        "STORAGE_URL": backup.archive.parent.parent.as_uri(),
        "RESTORE_URL": on.maintenance.uri,
        "BACKUP_ENCRYPTION_KEY": PASSPHRASE,
    }
    done = run_pgstash(
        ["restore", "--create", NAME, *arguments],
        environment(on.bin_dir, **(given | more)),
        cwd=folder or NO_DOTENV,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stderr


def assert_works(database: Database, as_stored: list[str]) -> None:
    assert described(database) == as_stored
    assert list(application.failures(database)) == []


@pytest.mark.parametrize("jobs", later(["1", "2"], "1"))
def test_on_the_same_server(
    backup: StoredBackup, target: Cluster, as_stored: list[str], jobs: str
) -> None:
    assert restore(backup, target, RESTORE_JOBS=jobs) == ""
    assert_works(Database(target, NAME), as_stored)


def test_on_an_empty_server(
    backup: StoredBackup, empty_server: Cluster, as_stored: list[str]
) -> None:
    assert restore(backup, empty_server, "--create-roles") == ""
    assert_works(Database(empty_server, NAME), as_stored)


@pytest.mark.long
def test_in_the_place_of_a_damaged_one(
    backup: StoredBackup, target: Cluster, as_stored: list[str]
) -> None:
    damaged = target.create_database(NAME)
    assert list(application.failures(damaged)) != []
    assert restore(backup, target, "--replace") == ""
    assert_works(damaged, as_stored)


@pytest.mark.long
def test_on_a_managed_server(
    backup: StoredBackup, empty_server: Cluster, as_stored: list[str], tmp_path: Path
) -> None:
    """Nobody is a superuser but the provider, who is given what the restore may not do."""
    empty_server.maintenance.run_sql("CREATE ROLE managed LOGIN CREATEDB CREATEROLE")
    url = empty_server.maintenance.uri.replace("//admin@", "//managed@")
    wanted = ["--create-roles", "--skip-superuser-objects"]
    said = restore(backup, empty_server, *wanted, folder=tmp_path, RESTORE_URL=url)
    [script] = tmp_path.glob("*.for_administrator.sql")
    assert script.name in said
    restored = Database(empty_server, NAME)
    done = subprocess.run(
        [empty_server.bin_dir / "psql", "-X", "-q", "-d", restored.conninfo, "-f", script],
        env=clean_environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        check=True,
    )
    assert done.stderr == b""
    assert_works(restored, as_stored)


def test_by_hand(backup: StoredBackup, target: Cluster, as_stored: list[str]) -> None:
    restored = target.create_database(NAME)
    backup.restore(restored)
    assert list(application.failures(restored)) != []
    [privileges] = backup.archive.parent.glob("backup_*.privileges.sql.gz.enc")
    done = subprocess.run(
        [target.bin_dir / "psql", "-X", "-q", "-d", restored.conninfo],
        input=gzip.decompress(decrypted(privileges.read_bytes())),
        env=clean_environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        check=True,
    )
    assert done.stderr == b""
    assert_works(restored, as_stored)


@pytest.mark.long
def test_the_page_for_the_worst_hour(
    source: Database, empty_server: Cluster, as_stored: list[str], tmp_path: Path
) -> None:
    back_up(source, tmp_path, encrypted=True, GLOBALS_PASSWORDS="true")
    restored = Database(empty_server, NAME)
    environment = clean_environment(COMMAND.parent, empty_server.bin_dir) | {
        "STORAGE_URL": tmp_path.as_uri(),
        "BACKUP_ENCRYPTION": "true",
        "BACKUP_ENCRYPTION_KEY": PASSPHRASE,
        "RESTORE_URL": empty_server.maintenance.uri,
    }
    for block in STEPS.findall(PAGE.read_text()):
        if "pgstash once" in block:
            assert described(restored) == as_stored
            environment["DATABASE_URL"] = restored.uri
        done = subprocess.run(
            ["bash", "-e", "-c", block.replace("--create shop ", f"--create {NAME} ")],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, (block, done.stdout, done.stderr)
    assert "Backup completed successfully" in done.stdout
    assert list(application.failures(restored)) == []


def test_a_suite_that_can_fail(source: Database, make_database: MakeDatabase) -> None:
    database = make_database(on=source.cluster)
    database.run_sql(application.CREATE)
    database.run_sql("REVOKE EXECUTE ON FUNCTION billing.book FROM shop_app")
    [failure] = application.failures(database)
    assert failure.startswith("shop_app: SELECT (billing.book")
