"""Pruning as a user meets it: the command, its dry run, and what a backup does after itself."""

from __future__ import annotations

import os
import re
import signal
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from faults.scene import archives_in
from pgstash import events
from pgstash.commands.backup import back_up
from pgstash.postgres.server import login, writer_lock
from pgstash.runtime import Runtime
from pgstash.settings import Settings, load
from pgstash.storage.directory.storage import DirectoryStorage
from support.backups import settings
from support.cli import environment, run_pgstash, started_pgstash
from support.fake_tools import fails_after_complete_dump, install_pg_dump
from support.postgres import MakeDatabase
from support.proxy import Answer, Change, HttpProxy
from support.swift import SwiftServer

SHELL_SERVICE = ["backup_20200101_000000.sql.gz", "backup_20200102_000000.sql.gz.enc"]
YOUNG = f"{datetime.now(UTC) - timedelta(days=2):backup_%Y%m%d_%H%M%S}.sql.gz"


def folder_with(root: Path, *names: str) -> Path:
    folder = root / "postgres-backups"
    folder.mkdir()
    for name in names:
        (folder / name).write_bytes(b"data")
    return folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def prune_environment(root: Path, **more: str) -> dict[str, str]:
    return environment(STORAGE_URL=root.as_uri(), **more)


def told(output: str) -> list[str]:
    """Return the log without its timestamps."""
    return [line.partition(" ")[2] for line in output.splitlines()]


def test_a_dry_run_and_then_the_real_one(tmp_path: Path) -> None:
    foreign = ["backup_20200101_000000.sql.gz.bak", "backup_20201399_000000.sql.gz", "notes.txt"]
    everything = sorted([*SHELL_SERVICE, YOUNG, *foreign])
    folder = folder_with(tmp_path, *everything)
    env = prune_environment(tmp_path)
    dry = run_pgstash(["prune", "--dry-run"], env)
    assert (dry.returncode, dry.stderr) == (0, "")
    assert told(dry.stdout) == [
        f"INFO remove  {SHELL_SERVICE[0]}  older than 7 days",
        f"INFO remove  {SHELL_SERVICE[1]}  older than 7 days",
        f"INFO keep    {YOUNG}  the newest; within 7 days",
        f"INFO Dry run of file://{folder}: 1 backup to keep, 2 to remove, 0 leftovers to sweep",
    ]
    assert names(folder) == everything
    real = run_pgstash(["prune"], env)
    assert (real.returncode, real.stderr) == (0, "")
    assert told(real.stdout) == [
        f"INFO keep    {YOUNG}  the newest; within 7 days",
        f"INFO removed {SHELL_SERVICE[0]}  older than 7 days",
        f"INFO removed {SHELL_SERVICE[1]}  older than 7 days",
        f"INFO Pruned file://{folder}: 1 backup kept, 2 removed, 0 leftovers swept",
    ]
    assert names(folder) == sorted([YOUNG, *foreign])


def test_every_rule_has_a_setting(tmp_path: Path) -> None:
    bases = [f"backup_{year}0101_000000.sql.gz" for year in range(2010, 2020)]
    folder = folder_with(tmp_path, *bases)
    env = prune_environment(
        tmp_path,
        BACKUP_RETENTION_DAYS="1",
        RETENTION_KEEP_LAST="2",
        RETENTION_KEEP_DAILY="3",
        RETENTION_KEEP_WEEKLY="4",
        RETENTION_KEEP_MONTHLY="5",
        RETENTION_KEEP_YEARLY="6",
    )
    done = run_pgstash(["prune"], env)
    assert done.returncode == 0, done.stderr
    assert names(folder) == bases[-6:]
    assert done.stdout.count("older than 1 day, and kept by no other rule") == 4
    assert done.stdout.count("one of the last 2") == 2
    for count, period in enumerate(("day", "week", "month", "year"), start=3):
        assert done.stdout.count(f"the newest of {period} ") == count


def test_nothing_to_prune(tmp_path: Path) -> None:
    done = run_pgstash(["prune"], prune_environment(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    assert "0 backups kept, 0 removed" in done.stdout


def test_a_store_that_is_not_there(tmp_path: Path) -> None:
    done = run_pgstash(["prune"], prune_environment(tmp_path / "nas"))
    assert done.returncode == 20
    assert re.search(
        r"FAILURE Pruning failed: the folder .*/nas does not exist\n  Create it", done.stderr
    )


def test_a_wrong_setting_prunes_nothing(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, *SHELL_SERVICE)
    done = run_pgstash(["prune"], prune_environment(tmp_path, RETENTION_KEEP_LAST="0"))
    assert done.returncode == 1
    assert "ERROR RETENTION_KEEP_LAST " in done.stderr
    assert names(folder) == SHELL_SERVICE


def test_a_backup_prunes_after_itself(make_database: MakeDatabase, tmp_path: Path) -> None:
    database = make_database()
    folder = folder_with(tmp_path, *SHELL_SERVICE)
    done = run_pgstash(["once"], environment(database.bin_dir, **settings(database, tmp_path)))
    assert (done.returncode, done.stderr) == (0, "")
    lines = told(done.stdout)
    success = next(at for at, line in enumerate(lines) if line.startswith("SUCCESS"))
    assert [line for line in lines if line.startswith("INFO removed")] == lines[success + 2 : -1]
    [made] = archives_in(names(folder))
    assert made not in SHELL_SERVICE
    assert not set(SHELL_SERVICE) & set(names(folder))


def test_a_backup_that_failed_prunes_nothing(make_database: MakeDatabase, tmp_path: Path) -> None:
    database = make_database()
    tools = install_pg_dump(tmp_path / "bin", fails_after_complete_dump())
    (tmp_path / "store").mkdir()
    folder = folder_with(tmp_path / "store", *SHELL_SERVICE)
    done = run_pgstash(["once"], environment(tools, **settings(database, tmp_path / "store")))
    assert done.returncode == 13, done.stderr
    left = [each for each in names(folder) if not each.endswith(".failure.json.gz")]
    assert left == SHELL_SERVICE


# Leftovers are swept under the writer lock, which is the database's.

LEFT = ".backup_20200101_000000.sql.gz.20200101T000000Z-0123456789abcdef.partial"
NOT_SWEPT = "INFO Leftovers were not swept: "


def folder_with_leftovers(root: Path) -> Path:
    folder = folder_with(root, *SHELL_SERVICE, YOUNG)
    (folder / LEFT).write_bytes(b"half")
    return folder


def assert_not_swept(root: Path, why: str, **source: str) -> None:
    """Both commands say why leftovers stay, and succeed; the real one prunes all the same."""
    folder = folder_with_leftovers(root)
    for options, left in ((["--dry-run"], 3), ([], 1)):
        done = run_pgstash(["prune", *options], prune_environment(root, **source))
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        [line] = [each for each in told(done.stdout) if each.startswith(NOT_SWEPT)]
        assert why in line
        assert len(names(folder)) == left
    assert (folder / LEFT).exists()


def test_without_a_database_leftovers_stay(tmp_path: Path) -> None:
    assert_not_swept(tmp_path, "no source database is configured")


def test_while_the_database_is_down_leftovers_stay(tmp_path: Path) -> None:
    assert_not_swept(
        tmp_path, "cannot be reached", DATABASE_URL="postgresql://backup@127.0.0.1:1/shop"
    )


def test_while_a_backup_runs_leftovers_stay(make_database: MakeDatabase, tmp_path: Path) -> None:
    database = make_database()
    destination = DirectoryStorage(tmp_path).url("postgres-backups")
    with writer_lock.hold(login.inspect(database.uri), destination, events.ignore):
        why = f"the writer lock of this database and {destination} is taken by process "
        assert_not_swept(tmp_path, why, DATABASE_URL=database.uri)


def test_leftovers_are_swept_when_no_backup_runs(
    make_database: MakeDatabase, tmp_path: Path
) -> None:
    database = make_database()
    folder = folder_with_leftovers(tmp_path)
    env = prune_environment(tmp_path, DATABASE_URL=database.uri)
    for options in (["--dry-run"], []):
        assert (folder / LEFT).exists()
        done = run_pgstash(["prune", *options], env)
        assert (done.returncode, done.stderr) == (0, "")
        assert "an upload that began " in done.stdout
        assert "1 leftover " in done.stdout
    assert not (folder / LEFT).exists()


def s3_settings(swift_server: SwiftServer, bucket: str, endpoint: str) -> dict[str, str]:
    return {
        "S3_ENDPOINT": endpoint,
        "S3_BUCKET": bucket,
        "S3_ACCESS_KEY_ID": swift_server.access_key_id,
        "S3_SECRET_ACCESS_KEY": swift_server.secret_access_key,
    }


@pytest.mark.parametrize("operation", ["DeleteObjects", "ListMultipartUploads"])
def test_pruning_that_fails_is_a_warning_after_a_backup_and_an_error_by_itself(
    make_database: MakeDatabase, swift_server: SwiftServer, s3_bucket: str, operation: str
) -> None:
    database = make_database()
    old = f"postgres-backups/{SHELL_SERVICE[0]}"
    swift_server.client.put_object(Bucket=s3_bucket, Key=old, Body=b"data")
    with HttpProxy(swift_server.port) as proxy:
        proxy.rule(operation, Answer(403, "AccessDenied"))
        env = environment(
            database.bin_dir,
            DATABASE_URL=database.uri,
            **s3_settings(swift_server, s3_bucket, proxy.endpoint),
        )
        once = run_pgstash(["once"], env)
        assert once.returncode == 0, once.stderr
        assert "SUCCESS" in once.stdout
        assert "WARNING Pruning failed: cannot" in once.stderr
        assert "FAILURE" not in once.stderr
        prune = run_pgstash(["prune"], env)
        assert prune.returncode == 21
        assert "FAILURE Pruning failed: cannot" in prune.stderr
    left = swift_server.client.list_objects_v2(Bucket=s3_bucket)["Contents"]
    assert (old in {each["Key"] for each in left}) == (operation == "DeleteObjects")


def test_a_signal_in_the_commit_is_heard_before_pruning(
    make_database: MakeDatabase, swift_server: SwiftServer, s3_bucket: str
) -> None:
    database = make_database()
    old = f"postgres-backups/{SHELL_SERVICE[0]}"
    swift_server.client.put_object(Bucket=s3_bucket, Key=old, Body=b"data")
    with HttpProxy(swift_server.port) as proxy:
        env = environment(
            database.bin_dir,
            DATABASE_URL=database.uri,
            **s3_settings(swift_server, s3_bucket, proxy.endpoint),
        )
        with started_pgstash(["once"], env) as process:

            def interrupt(answer: bytes) -> bytes:
                process.terminate()
                time.sleep(0.3)
                return answer

            proxy.rule("CompleteMultipartUpload", Change(interrupt))
            out, err = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGTERM, err
    assert "SUCCESS" in out
    left = {
        each["Key"] for each in swift_server.client.list_objects_v2(Bucket=s3_bucket)["Contents"]
    }
    assert old in left
    assert len(left) == 6  # and the new archive with its four companions


def test_even_an_unexpected_error_in_pruning_leaves_the_backup_a_success(
    make_database: MakeDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = make_database()
    loop = folder_with(tmp_path) / "backup_loop"
    loop.symlink_to(loop)  # which is skipped
    monkeypatch.setenv("PATH", f"{database.bin_dir}{os.pathsep}{os.environ['PATH']}")

    def broken(_settings: Settings) -> datetime:
        raise RuntimeError("planted")

    heard: list[events.Event] = []
    loaded = load(settings(database, tmp_path), tmp_path / ".env")
    made = back_up(loaded, Runtime(heard.append), server_now=broken)
    assert made.name in names(loop.parent)
    [failed] = [event for event in heard if isinstance(event, events.PruneFailed)]
    assert (failed.message, failed.after_backup) == ("RuntimeError: planted", True)
