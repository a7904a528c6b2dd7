"""What is stored, as a user looks at it: list, show and cat."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import re
import signal
import subprocess
import termios
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pgstash.format import names
from pgstash.storage.directory.storage import DirectoryStorage
from support.backups import PASSPHRASE, back_up
from support.cli import COMMAND, environment, run_pgstash
from support.stored import CLOSING, make
from support.tiers import ENCRYPTED_FIRST, later

if TYPE_CHECKING:
    from support.postgres import MakeDatabase

MIDNIGHT = datetime(2026, 2, 1, tzinfo=UTC)
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


@pytest.mark.parametrize("encrypted", ENCRYPTED_FIRST)
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


def listed_on_a_terminal(columns: int, env: dict[str, str]) -> list[str]:
    """Return the lines that ``pgstash list`` prints on a terminal of this width."""
    ours, theirs = os.openpty()
    termios.tcsetwinsize(theirs, (25, columns))
    with subprocess.Popen([COMMAND, "list"], env=env, cwd="/", stdout=theirs, stderr=theirs):
        os.close(theirs)
        printed = b""
        # Linux reports an error instead of the end when the last writer is gone.
        with contextlib.suppress(OSError):
            while chunk := os.read(ours, 65536):
                printed += chunk
    os.close(ours)
    # The progress bar is not shown, but hides and shows the cursor.
    text = re.sub(r"\x1b\[[?\d;]*[A-Za-z]|\r", "", printed.decode())
    return text.rstrip("\n").split("\n")


@pytest.mark.parametrize(
    ("columns", "heads"),
    [
        pytest.param(
            *(200, "NAME TIME AGE SIZE DATABASE SERVER ENCRYPTED PROVEN"), marks=pytest.mark.long
        ),
        pytest.param(
            *(110, "NAME AGE SIZE DATABASE SERVER ENCRYPTED PROVEN"), marks=pytest.mark.long
        ),
        (80, "NAME AGE SIZE DATABASE PROVEN"),
        pytest.param(60, "NAME SIZE PROVEN", marks=pytest.mark.long),
        (20, "NAME SIZE PROVEN"),
    ],
)
def test_a_narrow_terminal_shows_fewer_columns(tmp_path: Path, columns: int, heads: str) -> None:
    made = make(CLOSING, passphrase=PASSPHRASE)
    storage = DirectoryStorage(tmp_path)
    facts = {"id": made.manifest.id, "database": "production_1", "host": "h", "server": "16.15"}
    storage.put(made.key.replace("p/", "postgres-backups/"), made.archive, facts)
    proof = names.proof_name(made.base, made.manifest.id, MIDNIGHT, encrypted=True)
    storage.put(f"postgres-backups/{proof}", b"sealed", {"id": made.manifest.id})
    printed = listed_on_a_terminal(columns, reader(tmp_path))
    assert printed[0].split() == heads.split()
    assert printed[1].split()[0] == made.manifest.archive
    assert printed[1].split()[-1].startswith("2026-02-01")
    assert max(map(len, printed)) <= max(columns, 53)
    # COLUMNS does the same for a pipe, which else gets every column.
    piped = run_pgstash(["list"], reader(tmp_path, COLUMNS=str(columns)))
    assert piped.stdout.splitlines()[0].split() == heads.split()
    assert "TIME" in run_pgstash(["list"], reader(tmp_path)).stdout


def test_what_a_backup_does_not_record_is_no_key(tmp_path: Path) -> None:
    recorded = {"host": "db.internal", "client": "18.1", "tool": "pgstash 0.2.0"}
    store(tmp_path, "backup_20260102_000000", CLOSING, database="shop", **recorded)
    store(tmp_path, "backup_20260101_000000")
    full, old = json.loads(run_pgstash(["list", "--json"], reader(tmp_path)).stdout)
    assert {key: full[key] for key in recorded} == recorded
    assert full.keys() - old.keys() == recorded.keys()
    assert old["database"] is None


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
    place = f"under file://{tmp_path}/postgres-backups/\n"
    assert f" INFO there is no backup {place}" in listed.stderr
    for command in (["show"], ["cat"], ["cat", "--at", "3 hours ago"]):
        done = run_pgstash(command, reader(tmp_path))
        assert (done.returncode, done.stdout) == (25, "")
        assert f"FAILURE there is no backup {place}  Check BACKUP_PREFIX" in done.stderr
    done = run_pgstash(["cat", "220003"], reader(tmp_path))
    assert (done.returncode, done.stdout) == (25, "")
    assert f"FAILURE there is no backup 220003, nor any other, {place}" in done.stderr


def test_nothing_is_there_but_elsewhere(tmp_path: Path) -> None:
    store(tmp_path, "backup_20260101_000000")
    (tmp_path / "unreadable").mkdir(mode=0)
    for command in (["list"], ["cat"], ["restore", "--to", "postgresql://127.0.0.1:1/none"]):
        done = run_pgstash(command, reader(tmp_path, BACKUP_PREFIX="postgres-backup"))
        assert done.returncode == (0 if command == ["list"] else 25)
        assert f"there is no backup under file://{tmp_path}/postgres-backup/\n" in done.stderr
        assert "There are backups under postgres-backups. Set BACKUP_PREFIX" in done.stderr


BASES = ["backup_20260701_100000", "backup_20260701_110000", "backup_20260701_120003"]


@pytest.fixture
def three(tmp_path: Path) -> dict[str, str]:
    """Three backups of one July day, seen from Berlin."""
    for base in BASES:
        store(tmp_path, base, f"SELECT '{base}';\n".encode() + CLOSING)
    return reader(tmp_path, TZ="Europe/Berlin")


@pytest.mark.parametrize(
    ("time", "moment", "index", "rest"),
    [
        ("2026-07-01 13:30", "11:30:00Z", 1, "30m before"),
        ("2026-07-01 13:30 +00:00", "13:30:00Z", 2, "1h 29m before"),
        ("2026-07-01 12:00", "10:00:00Z", 0, "0s before"),
        ("2026-07-01 11:59:59", "11:59:59Z", 1, "59m 59s before"),
    ],
)
def test_a_time_finds_a_backup_and_the_answer_names_its_neighbours(
    three: dict[str, str], time: str, moment: str, index: int, rest: str
) -> None:
    chosen = BASES[index]
    before, after = ([None, *BASES, None][index + number] for number in (0, 2))
    done = run_pgstash(["cat", "--at", time], three)
    assert (done.returncode, chosen in done.stdout) == (0, True)
    [line] = [line for line in done.stderr.splitlines() if "Chosen: " in line]
    assert f" INFO Chosen: {chosen}.sql.gz of 2026-07-01T" in line
    assert f", {rest} 2026-07-01T{moment}; " in line
    assert f"the next one: {after}.sql.gz, ".replace("None.sql.gz", "none") in line
    assert line.endswith(f"the one before: {before}.sql.gz".replace("None.sql.gz", "none"))
    # A form that was read in UTC before is still read so, and a warning gives the local time.
    assert ('"2026-07-01 11:59:59 +02:00"' in done.stderr) == (time == "2026-07-01 11:59:59")

    shown = run_pgstash(["show", "--at", time, "--json"], three)
    assert shown.returncode == 0, shown.stderr
    answer = json.loads(shown.stdout)
    assert answer["archive"] == f"{chosen}.sql.gz"
    assert answer.pop("chosen") == {
        "at": f"2026-07-01T{moment}",
        "name": f"{chosen}.sql.gz",
        "before": before and f"{before}.sql.gz",
        "after": after and f"{after}.sql.gz",
    }
    by_name = run_pgstash(["show", chosen, "--json"], three)
    assert (json.loads(by_name.stdout), by_name.stderr) == (answer, "")


def test_times_that_mean_no_backup(three: dict[str, str]) -> None:
    for time, reason in (
        ("2026-03-29 02:30", "does not exist in Europe/Berlin"),
        ("2025-10-26 02:30", "happened twice in Europe/Berlin"),
        ("2199-01-01 00:00", "is in the future"),
        ("11/12/2026", "Write 2026-12-11 or 2026-11-12."),
        ("yesterday", "Give the time of day too"),
    ):
        for command in (["show"], ["cat"], ["restore", "--to", "postgresql://127.0.0.1:1/none"]):
            done = run_pgstash([*command, "--at", time], three)
            assert done.returncode == 2, done.stderr
            # Which moment it is depends on a setting; by then a restore has named its target.
            printed = [line for line in done.stdout.splitlines() if " INFO Target: " not in line]
            assert printed == []
            [line] = [line for line in done.stderr.splitlines() if reason in line]
            assert line.startswith("Error: Invalid value for --at: ")
            assert "Unexpected" not in done.stderr
    done = run_pgstash(["show", "--at", "2026-07-01 11:00"], three)
    assert (done.returncode, done.stdout) == (25, "")
    assert f"at or before 2026-07-01T09:00:00Z; the oldest is {BASES[0]}.sql.gz" in done.stderr
    done = run_pgstash(["show", "100000", "--at", "3 hours ago"], three)
    assert (done.returncode, done.stdout) == (2, "")


def test_a_part_of_a_name_finds_a_backup_and_the_answer_names_it(three: dict[str, str]) -> None:
    for part in ("20260701_110000", "110000", "2026-07-01T11:00:00Z"):
        done = run_pgstash(["cat", part], three)
        assert done.returncode == 0
        assert BASES[1] in done.stdout
        assert done.stderr.endswith(f" INFO Chosen: {BASES[1]}.sql.gz of 2026-07-01T11:00:00Z\n")
    done = run_pgstash(["cat", "0000"], three)
    assert (done.returncode, done.stdout) == (25, "")
    assert f"0000 may mean {BASES[0]}.sql.gz and {BASES[1]}.sql.gz" in done.stderr


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
    [archive] = tmp_path.glob("postgres-backups/backup_????????_??????.sql.gz")
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
    "arguments",
    later(
        [["list"], ["show"], ["show", "--json"], ["cat"], ["check", "storage"]],
        *(["show"], ["show", "--json"]),
    ),
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
    assert "FAILURE cannot write to stdout: No space left on device\n" in done.stderr
    assert "Traceback" not in done.stderr
