"""What is stored, as a user looks at it: list, show and cat."""

from __future__ import annotations

import gzip
import json
import re
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pgstash.storage.directory import DirectoryStorage
from support.backups import PASSPHRASE, back_up
from support.cli import COMMAND, environment, run_pgstash
from support.stored import CLOSING, make

if TYPE_CHECKING:
    from support.postgres import MakeDatabase

KEY = {"BACKUP_ENCRYPTION_KEY": PASSPHRASE}


def reader(folder: Path, **more: str) -> dict[str, str]:
    """Return an environment that knows the store and nothing of a source."""
    return environment(STORAGE_URL=folder.as_uri(), **more)


def store(folder: Path, base: str, script: bytes = CLOSING, **metadata: str) -> None:
    storage = DirectoryStorage(folder)
    made = make(script, base=base)
    name = made.key.removeprefix("p/")
    storage.put(f"postgres-backups/{name}", made.archive, {"id": made.manifest.id} | metadata)
    beside = made.manifest_key.removeprefix("p/")
    storage.put(f"postgres-backups/{beside}", made.packed_manifest(), {"id": made.manifest.id})


@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "encrypted"])
def test_a_backup_is_listed_shown_and_written_out(
    make_database: MakeDatabase, tmp_path: Path, *, encrypted: bool
) -> None:
    source = make_database("odd_names")
    backup = back_up(source, tmp_path, encrypted=encrypted)
    listed = run_pgstash(["list"], reader(tmp_path))
    assert (listed.returncode, listed.stderr) == (0, "")
    head, row = listed.stdout.splitlines()
    assert head.split() == [
        "NAME",
        "TIME",
        "AGE",
        "SIZE",
        "DATABASE",
        "SERVER",
        "ENCRYPTED",
        "PROVEN",
    ]
    name, when, _, size, database, server, is_encrypted, proven = row.split()
    assert (name, database, proven) == (backup.archive.name, source.name, "-")
    assert f"backup_{re.sub('[-:Z]', '', when).replace('T', '_')}.sql.gz" in name
    assert size.endswith("KB")
    assert server.startswith(f"{source.cluster.major}.")
    assert is_encrypted == ("yes" if encrypted else "no")

    env = reader(tmp_path, **KEY if encrypted else {})
    base = backup.archive.name.partition(".")[0]
    for name in ("latest", base, backup.archive.name, str(backup.archive)):
        shown = run_pgstash(["show", name, "--json"], env)
        assert shown.returncode == 0, shown.stderr
        found = json.loads(shown.stdout)
        assert found == {key: item for key, item in backup.manifest.items() if key != "hmac"}
    shown = run_pgstash(["show"], env)
    for schema, table in backup.row_counts:
        assert table.isprintable() <= (f"\n{schema}.{table} " in shown.stdout), table

    done = subprocess.run([COMMAND, "cat"], env=env, cwd="/", capture_output=True, check=True)
    assert (done.stdout, done.stderr) == (backup.script(), b"")


def test_the_newest_twenty_or_all(tmp_path: Path) -> None:
    names = [f"backup_202601{day:02d}_000000" for day in range(1, 26)]
    for name in names:
        store(tmp_path, name, database="sh%C3%B6p%1B[2J", server="16.15")
    newest_first = [f"{name}.sql.gz" for name in names[::-1]]
    listed = run_pgstash(["list"], reader(tmp_path))
    rows = listed.stdout.splitlines()[1:]
    assert [row.split()[0] for row in rows] == newest_first[:20]
    assert r"  shöp\x1b[2J  16.15  " in rows[0]  # a terminal obeys no database
    everything = run_pgstash(["list", "--all", "--json"], reader(tmp_path))
    found = json.loads(everything.stdout)
    assert [each["name"] for each in found] == newest_first
    assert found[0]["database"] == "shöp\x1b[2J"
    assert found[0]["time"] == "2026-01-25T00:00:00Z"
    assert found[0]["encrypted"] is False


def test_the_latest_proof_is_listed_without_the_key(tmp_path: Path) -> None:
    storage = DirectoryStorage(tmp_path)
    bases = [f"backup_2026010{day}_000000" for day in (1, 2, 3)]
    for base in bases:
        made = make(CLOSING, base=base, passphrase=PASSPHRASE)
        made.store_as_backup(tmp_path)
        key = f"postgres-backups/{base}.{made.manifest.id}"
        for when in ("20260105_040506", "20260104_000000") if base == bases[1] else ():
            storage.put(f"{key}.proof_{when}.json.gz.enc", b"sealed", {"id": made.manifest.id})
    rows = run_pgstash(["list"], reader(tmp_path)).stdout.splitlines()[1:]
    assert [row.split()[-1] for row in rows] == ["-", "2026-01-05T04:05:06Z", "-"]
    listed = json.loads(run_pgstash(["list", "--json"], reader(tmp_path)).stdout)
    assert [each["proven"] for each in listed] == [None, "2026-01-05T04:05:06Z", None]


def test_backups_of_the_shell_service_are_listed(tmp_path: Path) -> None:
    folder = tmp_path / "postgres-backups"
    folder.mkdir()
    (folder / "backup_20200101_000000.sql.gz").write_bytes(gzip.compress(b"SELECT 1;\n" + CLOSING))
    [_, row] = run_pgstash(["list"], reader(tmp_path)).stdout.splitlines()
    assert row.split()[-4:] == ["-", "-", "no", "-"]
    shown = run_pgstash(["show"], reader(tmp_path))
    assert (shown.returncode, shown.stdout) == (32, "")
    refused = run_pgstash(["cat"], reader(tmp_path))
    assert (refused.returncode, refused.stdout) == (32, "")
    assert "--unverified" in refused.stderr
    written = run_pgstash(["cat", "--unverified"], reader(tmp_path))
    assert written.stdout.encode() == b"SELECT 1;\n" + CLOSING


def test_nothing_is_there(tmp_path: Path) -> None:
    listed = run_pgstash(["list"], reader(tmp_path))
    assert (listed.returncode, len(listed.stdout.splitlines())) == (0, 1)
    assert json.loads(run_pgstash(["list", "--json"], reader(tmp_path)).stdout) == []
    for command in ("show", "cat"):
        done = run_pgstash([command], reader(tmp_path))
        assert (done.returncode, done.stdout) == (25, "")
        assert "FAILURE there is no backup\n" in done.stderr


@pytest.mark.parametrize("command", ["show", "cat"])
def test_a_wrong_key_or_none(make_database: MakeDatabase, tmp_path: Path, command: str) -> None:
    back_up(make_database(), tmp_path, encrypted=True)
    wrong = run_pgstash([command], reader(tmp_path, BACKUP_ENCRYPTION_KEY="wrong " * 7))
    assert (wrong.returncode, wrong.stdout) == (31, "")
    assert "BACKUP_ENCRYPTION_KEY" in wrong.stderr
    none = run_pgstash([command], reader(tmp_path))
    assert (none.returncode, none.stdout) == (30, "")


def test_damage_ends_the_script_with_an_error(tmp_path: Path) -> None:
    script = b"".join(b"SELECT %d;\n" % number for number in range(1000))
    store(tmp_path, "backup_20260101_000000", script + CLOSING)
    [archive] = tmp_path.glob("postgres-backups/*.sql.gz")
    data = bytearray(archive.read_bytes())
    data[len(data) // 2] ^= 1
    archive.write_bytes(data)
    done = run_pgstash(["cat"], reader(tmp_path))
    assert done.returncode == 31
    assert "FAILURE the archive is damaged: member " in done.stderr
    assert script.startswith(done.stdout.encode())


def test_a_reader_that_has_seen_enough_ends_it_quietly(tmp_path: Path) -> None:
    store(tmp_path, "backup_20260101_000000", b"SELECT 1;\n" * 500_000 + CLOSING)
    with subprocess.Popen(
        [COMMAND, "cat"],
        env=reader(tmp_path),
        cwd="/",
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout
        assert process.stderr
        assert process.stdout.readline() == b"SELECT 1;\n"
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == -signal.SIGPIPE


@pytest.mark.parametrize(
    "arguments", [["list"], ["show"], ["show", "--json"], ["cat"], ["check", "storage"]]
)
def test_a_disk_that_is_full_is_told_in_one_sentence(arguments: list[str], tmp_path: Path) -> None:
    store(tmp_path, "backup_20260101_000000", b"SELECT 1;\n" * 100_000 + CLOSING)
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [COMMAND, *arguments],
            env=reader(tmp_path, DATABASE_URL="postgresql://127.0.0.1:1/x"),
            cwd="/",
            stdout=full,
            stderr=subprocess.PIPE,
            check=False,
            text=True,
        )
    assert done.returncode == 52
    assert "FAILURE stdout cannot be written to: No space left on device\n" in done.stderr
    assert "Traceback" not in done.stderr
