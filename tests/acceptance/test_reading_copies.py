"""`--from`, and the copy that takes the place of a primary store that is gone."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import pytest

from support.backups import PREFIX, back_up
from support.cli import environment, run_pgstash
from support.postgres import Cluster, Database, temporary_database

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator
    from pathlib import Path

    from support.postgres import MakeDatabase

UNREACHABLE = {
    "S3_ENDPOINT": "http://127.0.0.1:1",
    "S3_BUCKET": "backups",
    "S3_ACCESS_KEY_ID": "PlantedKey1",
    "S3_SECRET_ACCESS_KEY": "PlantedSecret1",
    "RETRY_ATTEMPTS": "0",
}


@pytest.fixture(scope="module")
def source(newest_cluster: Cluster) -> Iterator[Database]:
    with temporary_database(newest_cluster) as database:
        database.run_sql("CREATE TABLE t AS SELECT generate_series(1, 100) AS n")
        yield database


@pytest.fixture
def store(source: Database, tmp_path: Path) -> Path:
    """A primary with a backup, and a whole copy of it on a disk."""
    (tmp_path / "primary").mkdir()
    back_up(source, tmp_path / "primary")
    shutil.copytree(tmp_path / "primary", tmp_path / "disk")
    return tmp_path


def env_of(source: Database, store: Path, **more: str) -> dict[str, str]:
    values = {
        "STORAGE_URL": (store / "primary").as_uri(),
        "COPY_TO": "disk",
        "COPY_DISK_STORAGE_URL": (store / "disk").as_uri(),
        "RESTORE_URL": source.cluster.maintenance.uri,
        "VERIFY_DATABASE_URL": source.cluster.maintenance.uri,
    }
    return environment(source.bin_dir, **values | more)


def on_a_machine_without_the_primary(source: Database, store: Path) -> dict[str, str]:
    env = env_of(source, store)
    del env["STORAGE_URL"]
    return env


def run(env: dict[str, str], *arguments: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    done = run_pgstash(arguments, env)
    assert done.returncode == status, done.stdout + done.stderr
    return done


def restored(target: Database) -> bool:
    with target.connect() as connection:
        return connection.execute("SELECT count(*), sum(n) FROM t").fetchall() == [(100, 5050)]


def test_everything_is_read_from_a_copy_if_the_primary_is_gone(
    source: Database, store: Path, make_database: MakeDatabase
) -> None:
    shutil.rmtree(store / "primary")
    warning = "Reading the copy disk instead. The primary may have newer backups"
    gone = env_of(source, store)
    refusing = env_of(source, store, STORAGE_URL="", **UNREACHABLE)
    for env, where in ((gone, str(store / "primary")), (refusing, "s3://backups")):
        listed = run(env, "list", "--json")
        assert [each["source"].partition("@")[0] for each in json.loads(listed.stdout)] == [
            source.name
        ]
        assert listed.stderr.count("WARNING") == listed.stderr.count(warning) == 1
        assert where in listed.stderr
    shown = run(refusing, "show", "--json")
    assert json.loads(shown.stdout)["database"]["name"] == source.name
    assert warning in shown.stderr
    target = make_database()
    done = run(gone, "restore", "--to", target.uri)
    assert warning in done.stdout + done.stderr
    assert restored(target)
    assert "PlantedSecret1" not in listed.stderr + shown.stderr


def test_a_database_is_replaced_by_a_copy_only_when_asked_for(
    source: Database, store: Path, make_database: MakeDatabase
) -> None:
    shutil.rmtree(store / "primary")
    target = make_database()
    target.run_sql("CREATE TABLE present AS SELECT 1 AS n")
    for option in (("--overwrite", "--to", target.uri), ("--replace", "--create", target.name)):
        failed = run(env_of(source, store), "restore", *option, status=20)
        assert "To restore from the copy, add --from disk." in failed.stdout + failed.stderr
    with target.connect() as connection:
        assert connection.execute("SELECT n FROM present").fetchall() == [(1,)]
    # A backup that is named is the same one in each place.
    [archive] = (store / "disk" / PREFIX).glob("backup_????????_??????.sql.gz")
    for which in ((archive.name,), ("--from", "disk")):
        run(env_of(source, store), "restore", "--overwrite", "--to", target.uri, *which)
        assert restored(target)


def test_from_a_copy_without_any_setting_of_the_primary(
    source: Database, store: Path, make_database: MakeDatabase
) -> None:
    env = on_a_machine_without_the_primary(source, store)
    assert "STORAGE_URL" not in env
    assert source.name in run(env, "list", "--from", "DISK").stdout
    target = make_database()
    log = run(env, "restore", "--from", "disk", "--to", target.uri)
    assert restored(target)
    assert "Reading the copy disk: file://" in log.stdout + log.stderr
    assert "No primary store is configured" in log.stdout + log.stderr
    for place in (str(store / "disk"), (store / "disk").as_uri()):
        assert "COPY public.t (n) FROM stdin;" in run(env, "cat", "--from", place).stdout
    assert json.loads(run(env, "show", "--json", "--from", "disk").stdout)["id"]


def test_a_drill_of_a_copy_proves_the_copy(source: Database, store: Path) -> None:
    done = run(env_of(source, store), "drill", "--from", "disk", "--json")
    proof = json.loads(done.stdout)["location"]
    assert proof.startswith((store / "disk").as_uri())
    assert len(list((store / "disk" / PREFIX).glob("backup_*.proof_*"))) == 1
    assert list((store / "primary" / PREFIX).glob("backup_*.proof_*")) == []
    env = env_of(source, store)
    [listed] = json.loads(run(env, "list", "--json").stdout)
    assert listed["proven"] is None
    [listed] = json.loads(run(env, "list", "--json", "--from", "disk").stdout)
    assert listed["proven"] is not None


def test_a_damaged_backup_is_read_from_a_copy_only_when_asked_for(
    source: Database, store: Path, make_database: MakeDatabase
) -> None:
    [archive] = (store / "primary" / PREFIX).glob("backup_????????_??????.sql.gz")
    data = bytearray(archive.read_bytes())
    data[len(data) // 2] ^= 1
    archive.write_bytes(data)
    target = make_database()
    env = env_of(source, store)
    failed = run(env, "restore", "--to", target.uri, "--json", status=31)
    outcome = json.loads(failed.stdout)
    assert outcome["hint"].endswith("A copy may have it intact: --from disk")
    assert failed.stderr.count("--from disk") == 1
    with target.connect() as connection:
        assert connection.execute("SELECT to_regclass('t')").fetchall() == [(None,)]
    failed = run(env, "cat", status=31)
    assert failed.stderr.count("A copy may have it intact: --from disk") == 1
    run(env, "restore", "--to", target.uri, "--from", "disk")
    assert restored(target)


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("--from", ""), 2, "is empty"),
        (("--from", "tape"), 1, "COPY_TO, which names disk"),
        (("--from", "ftp://disk"), 1, "--from does not begin with file://"),
        (("--from", "/never/made"), 20, "/never/made"),
    ],
)
def test_a_place_that_cannot_be_read(
    arguments: tuple[str, ...], status: int, message: str, tmp_path: Path
) -> None:
    for name in ("primary", "disk"):
        (tmp_path / name).mkdir()
    env = environment(
        STORAGE_URL=(tmp_path / "primary").as_uri(),
        COPY_TO="disk",
        COPY_DISK_STORAGE_URL=(tmp_path / "disk").as_uri(),
        RESTORE_URL="postgresql://u@127.0.0.1:1/x",
    )
    for command in ("list", "show", "restore", "drill"):
        done = run(env, command, *arguments, status=status)
        assert message in done.stdout + done.stderr, command


def test_a_copy_without_backups_is_named(tmp_path: Path) -> None:
    env = environment(COPY_TO="disk", COPY_DISK_STORAGE_URL=tmp_path.as_uri())
    assert "Check COPY_DISK_BACKUP_PREFIX, and" in run(env, "list", "--from", "disk").stderr


def test_a_file_is_in_no_copy() -> None:
    done = run(environment(), "show", "./backup_x.sql.gz", "--from", "disk", status=2)
    assert "cannot be combined with a file" in done.stderr
