"""The backup that is read is the one that was meant: not a file's, and not a wrong clock's."""

from __future__ import annotations

import os
import shutil
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pgstash import settings
from pgstash.commands.service import is_drill_due
from pgstash.errors import BackupNotFoundError, UnverifiedError, WrongClockError
from support import backups
from support.backups import PREFIX
from support.cli import environment, run_pgstash
from support.postgres import Cluster, Database, temporary_database
from support.tiers import later

if TYPE_CHECKING:
    from collections.abc import Iterator

# pgstash on a machine whose clock is two months ahead.
WRONG_CLOCK = (
    sys.executable,
    "-c",
    """
import datetime

class Ahead(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return super().now(tz) + datetime.timedelta(days=60)

datetime.datetime = Ahead
from pgstash.cli import main
main()
""",
)


@pytest.fixture
def source(newest_cluster: Cluster) -> Iterator[Database]:
    with temporary_database(newest_cluster) as database:
        database.run_sql("CREATE TABLE t AS SELECT 1 AS n")
        yield database


def reading(source: Database, folder: Path) -> dict[str, str]:
    return environment(
        source.bin_dir,
        STORAGE_URL=folder.as_uri(),
        RESTORE_URL=source.cluster.maintenance.uri,
        VERIFY_DATABASE_URL=source.cluster.maintenance.uri,
    )


def damage(archive: Path) -> None:
    data = bytearray(archive.read_bytes())
    data[len(data) // 2] ^= 1
    archive.write_bytes(data)


@pytest.mark.parametrize("arguments", [("drill",), ("restore", "--create", "never_made")])
def test_a_file_in_the_folder_is_not_the_stored_backup(
    arguments: tuple[str, ...], source: Database, tmp_path: Path
) -> None:
    """Who follows how-to/restore-without-pgstash has copies there."""
    (tmp_path / "store").mkdir()
    backup = backups.back_up(source, tmp_path / "store")
    here = tmp_path / "here"
    shutil.copytree(backup.archive.parent, here)
    damage(backup.archive)
    env = reading(source, tmp_path / "store")
    done = run_pgstash([*arguments, backup.archive.name], env, cwd=here)
    assert done.returncode == 31, done.stdout + done.stderr
    assert list(backup.archive.parent.glob("backup_*.proof_*")) == []


def test_a_file_is_read_where_its_name_says_so(source: Database, tmp_path: Path) -> None:
    backup = backups.back_up(source, tmp_path)
    (tmp_path / "elsewhere").mkdir()
    env = reading(source, tmp_path / "elsewhere")
    done = run_pgstash(["cat", f"./{backup.archive.name}"], env, cwd=backup.archive.parent)
    assert (done.returncode, done.stderr) == (0, "")
    done = run_pgstash(["cat", backup.archive.name], env, cwd=backup.archive.parent)
    assert done.returncode == BackupNotFoundError.exit_code
    assert f"write ./{backup.archive.name}." in done.stderr


@pytest.mark.long
def test_a_wrong_clock_makes_no_latest(source: Database, tmp_path: Path) -> None:
    env = environment(source.bin_dir, **backups.settings(source, tmp_path))
    done = run_pgstash(["once"], env, command=WRONG_CLOCK)
    assert done.returncode == 0, done.stderr
    [wrong] = [each.archive.name for each in backups.stored(tmp_path)]
    source.run_sql("INSERT INTO t VALUES (2)")
    assert run_pgstash(["once"], env).returncode == 0
    [right] = {each.archive.name for each in backups.stored(tmp_path)} - {wrong}
    done = run_pgstash(["cat"], reading(source, tmp_path))
    assert done.returncode == 0
    assert "COPY public.t (n) FROM stdin;\n1\n2\n" in done.stdout
    assert f"Using {right} as the latest backup" in done.stderr
    assert wrong in done.stderr
    assert run_pgstash(["drill"], reading(source, tmp_path)).returncode == 0
    [proof] = (tmp_path / PREFIX).glob("backup_*.proof_*")
    assert proof.name.startswith(right.partition(".")[0])


@pytest.mark.long
def test_by_a_slow_clock_there_is_no_latest(source: Database, tmp_path: Path) -> None:
    """What the store says was stored in the future may be the newest: the clock may be ours."""
    env = environment(source.bin_dir, **backups.settings(source, tmp_path))
    assert run_pgstash(["once"], env, command=WRONG_CLOCK).returncode == 0
    [newest] = backups.stored(tmp_path)
    assert run_pgstash(["once"], env).returncode == 0
    later = time.time() + 60 * 24 * 3600
    os.utime(newest.archive, (later, later))
    for command in (["cat"], ["show"], ["restore", "--create", "never_made"]):
        done = run_pgstash(command, reading(source, tmp_path))
        assert done.returncode == WrongClockError.exit_code
        assert newest.archive.name in done.stderr
        assert "name the backup" in done.stderr
        assert "COPY" not in done.stdout
    assert run_pgstash(["cat", newest.archive.name], reading(source, tmp_path)).returncode == 0
    done = run_pgstash(["drill"], reading(source, tmp_path))
    assert done.returncode == 0
    assert "is dated in the future" in done.stderr


READERS = [["cat"], ["drill"], ["restore", "--create", "never_made"]]


@pytest.mark.parametrize("command", later(READERS, ["drill"]))
def test_a_plain_one_among_encrypted_ones_is_not_trusted(
    command: list[str], source: Database, tmp_path: Path
) -> None:
    """As where the store's settings and the key are all that there is, to restore elsewhere."""
    backups.back_up(source, tmp_path, encrypted=True)
    backups.back_up(source, tmp_path)
    env = reading(source, tmp_path) | {"BACKUP_ENCRYPTION_KEY": backups.PASSPHRASE}
    done = run_pgstash(command, env)
    assert done.returncode == UnverifiedError.exit_code
    assert "not encrypted" in done.stderr
    assert run_pgstash(["cat", "--unverified"], env).returncode == 0
    for more in ({"BACKUP_ENCRYPTION": "false"}, {"DATABASE_URL": source.uri}):
        assert run_pgstash(["cat"], env | more).returncode == 0


def test_a_name_that_no_file_could_have(source: Database, tmp_path: Path) -> None:
    backups.back_up(source, tmp_path)
    done = run_pgstash(["cat", "x" * 300], reading(source, tmp_path))
    assert done.returncode == BackupNotFoundError.exit_code


def test_a_proof_of_a_wrong_clock_puts_no_drill_off(source: Database, tmp_path: Path) -> None:
    backups.back_up(source, tmp_path)
    env = reading(source, tmp_path) | {"VERIFY_INTERVAL": "3600"}
    values = settings.load(env, needs=["storage"])
    now = datetime.now(UTC)
    assert is_drill_due(values, now)
    assert run_pgstash(["drill"], env, command=WRONG_CLOCK).returncode == 0
    assert list((tmp_path / PREFIX).glob("backup_*.proof_*"))
    assert is_drill_due(values, now)
    assert run_pgstash(["drill"], env).returncode == 0
    assert not is_drill_due(values, datetime.now(UTC))


def test_by_a_wrong_clock_nothing_is_pruned(source: Database, tmp_path: Path) -> None:
    """Two months on, all that was there would be older than 30 days."""
    env = environment(
        source.bin_dir, **backups.settings(source, tmp_path), BACKUP_RETENTION_DAYS="30"
    )
    for _ in range(3):
        assert run_pgstash(["once"], env).returncode == 0
    before = {each.archive.name for each in backups.stored(tmp_path)}
    done = run_pgstash(["once"], env, command=WRONG_CLOCK)
    assert done.returncode == 0
    assert "nothing was pruned: by this machine's clock" in done.stderr
    now = {each.archive.name for each in backups.stored(tmp_path)}
    assert before < now
    for more in ([], ["--dry-run"]):
        done = run_pgstash(["prune", *more], env, command=WRONG_CLOCK)
        assert done.returncode == WrongClockError.exit_code
        assert "nothing was pruned: by this machine's clock" in done.stderr
        assert now == {each.archive.name for each in backups.stored(tmp_path)}
    assert run_pgstash(["prune"], env).returncode == 0
