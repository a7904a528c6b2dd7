"""The command as a user meets it: its help, its complaints, its log, its exit statuses."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
from pathlib import Path

import pytest

from support.backups import settings, stored
from support.cli import COMMAND, environment, run_pgstash
from support.postgres import MakeDatabase
from support.swift import SwiftServer

LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ (DEBUG|INFO|WARNING|ERROR|SUCCESS|FAILURE) .+")


def test_help_and_version() -> None:
    shown = run_pgstash(["--help"], environment())
    assert shown.returncode == 0
    assert "once" in shown.stdout
    version = run_pgstash(["--version"], environment())
    assert re.fullmatch(r"pgstash \d+\.\d+\.\d+\n", version.stdout)


@pytest.mark.parametrize("arguments", [["frobnicate"], ["once", "--frobnicate"], ["once", "extra"]])
def test_a_wrong_command_line(arguments: list[str]) -> None:
    done = run_pgstash(arguments, environment())
    assert done.returncode == 2
    assert done.stderr


def test_every_problem_at_once_and_nothing_done(tmp_path: Path) -> None:
    env = environment(
        DATABASE_URL="oracle://somewhere",
        S3_ENDPOINT="s3.example.com",
        COMPRESSION_LEVEL="12",
        BACKUP_ENCRYPTION="perhaps",
        BACKUP_INTERVAL="59",
        BACKUP_RETENTION_DAYS="0",
        RETRY_ATTEMPTS="many",
    )
    done = run_pgstash(["once"], env, cwd=tmp_path)
    assert done.returncode == 1
    for variable in (
        "DATABASE_URL",
        "S3_ENDPOINT",
        "S3_BUCKET",
        "S3_ACCESS_KEY_ID",
        "S3_SECRET_ACCESS_KEY",
        "COMPRESSION_LEVEL",
        "BACKUP_ENCRYPTION",
        "BACKUP_INTERVAL",
        "BACKUP_RETENTION_DAYS",
        "RETRY_ATTEMPTS",
    ):
        assert re.search(rf"ERROR {variable} ", done.stderr), variable
    assert "FAILURE" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_log_of_a_success(
    make_database: MakeDatabase, swift_server: SwiftServer, s3_bucket: str
) -> None:
    database = make_database("mixed")
    env = environment(
        database.bin_dir,
        DATABASE_URL=database.uri,
        S3_ENDPOINT=swift_server.endpoint,
        S3_BUCKET=s3_bucket,
        S3_ACCESS_KEY_ID=swift_server.access_key_id,
        S3_SECRET_ACCESS_KEY=swift_server.secret_access_key,
        BACKUP_PREFIX="team/shop/",
    )
    done = run_pgstash(["once"], env)
    assert done.returncode == 0
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert all(LINE.fullmatch(line) for line in lines)
    name = r"backup_\d{8}_\d{6}\.sql\.gz"
    expected = [
        rf"INFO Starting backup: {name}",
        r"INFO Creating database dump\.\.\.",
        r"INFO Uploading to S3\.\.\.",
        r"INFO Dump completed in [\d.]+s, size: [\d.]+[KMG]?B",
        r"INFO Upload completed in [\d.]+s",
        rf"SUCCESS Backup completed successfully in [\d.]+s: {name} .*",
        rf"INFO Backup location: s3://{s3_bucket}/team/shop/{name}",
    ]
    for line, pattern in zip(lines, expected, strict=True):
        assert re.fullmatch(rf"\S+ {pattern}", line)


def test_the_log_as_json(make_database: MakeDatabase, tmp_path: Path) -> None:
    database = make_database("mixed")
    env = environment(database.bin_dir, **settings(database, tmp_path), LOG_FORMAT="json")
    done = run_pgstash(["once"], env)
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert {"timestamp", "level", "message"} <= records[0].keys()
    assert "SUCCESS" in {record["level"] for record in records}


def test_a_dotenv_file_and_secret_files(make_database: MakeDatabase, tmp_path: Path) -> None:
    database = make_database("mixed")
    secret = tmp_path / "url"
    secret.write_text(database.uri + "\n")
    (tmp_path / "store").mkdir()
    (tmp_path / ".env").write_text(
        f"DATABASE_URL_FILE={secret}\n"
        f"STORAGE_URL={(tmp_path / 'store').as_uri()}\n"
        "BACKUP_PREFIX=from-the-file\nCOMPRESSION_LEVEL=1\n"
    )
    env = environment(database.bin_dir, BACKUP_PREFIX="from-the-environment")
    done = run_pgstash(["once"], env, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    [backup] = stored(tmp_path / "store", "from-the-environment")
    assert backup.manifest["compression"]["level"] == 1


def test_a_line_of_the_dotenv_file_that_cannot_be_read_is_not_skipped(
    make_database: MakeDatabase, tmp_path: Path
) -> None:
    """A missing quote must not turn encryption off."""
    database = make_database()
    store = tmp_path / "store"
    store.mkdir()
    (tmp_path / ".env").write_text(
        f"DATABASE_URL={database.uri}\nSTORAGE_URL={store.as_uri()}\n\nBACKUP_ENCRYPTION='true\n"
    )
    done = run_pgstash(["once"], environment(database.bin_dir), cwd=tmp_path)
    assert done.returncode == 1
    assert re.search(r"ERROR \.env, line 4, ", done.stderr)
    assert "'true" not in done.stdout + done.stderr
    assert list(store.iterdir()) == []


def test_a_key_that_nothing_says_to_use(make_database: MakeDatabase, tmp_path: Path) -> None:
    database = make_database()
    env = environment(database.bin_dir, **settings(database, tmp_path), BACKUP_ENCRYPTION_KEY="k")
    done = run_pgstash(["once"], env)
    assert done.returncode == 1
    assert "BACKUP_ENCRYPTION=true" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_password_that_is_a_word_of_the_log(make_database: MakeDatabase, tmp_path: Path) -> None:
    database = make_database()
    env = environment(database.bin_dir, **settings(database, tmp_path), PGPASSWORD="backup")
    done = run_pgstash(["once"], env)
    assert done.returncode == 0, done.stderr
    assert re.search(
        r"INFO Starting backup: backup_\d{8}_\d{6}\.sql\.gz$", done.stdout, re.MULTILINE
    )
    assert "***" not in done.stdout


def test_a_short_key_and_a_misspelt_setting_are_warned_of(
    make_database: MakeDatabase, tmp_path: Path
) -> None:
    database = make_database("mixed")
    env = environment(
        database.bin_dir,
        **settings(database, tmp_path),
        BACKUP_ENCRYPTION="true",
        BACKUP_ENCRYPTION_KEY="short",
        COMPRESION_LEVEL="9",
    )
    done = run_pgstash(["once"], env)
    assert done.returncode == 0
    assert re.search("WARNING BACKUP_ENCRYPTION_KEY is shorter than 32", done.stderr)
    assert "Did you mean COMPRESSION_LEVEL?" in done.stderr


def test_a_missing_directory_is_said_and_not_made(
    make_database: MakeDatabase, tmp_path: Path
) -> None:
    """A NAS that is not mounted must not fill the root disk."""
    database = make_database()
    env = environment(database.bin_dir, **settings(database, tmp_path / "not" / "there"))
    done = run_pgstash(["once"], env)
    assert done.returncode == 20
    assert "not/there" in done.stderr
    assert not (tmp_path / "not").exists()


def test_a_terminal_gets_colours_and_a_bar(make_database: MakeDatabase, tmp_path: Path) -> None:
    database = make_database("mixed")
    database.run_sql(
        "CREATE TABLE long AS SELECT repeat(md5(n::text), 99) FROM generate_series(1, 90000) n"
    )
    env = environment(database.bin_dir, **settings(database, tmp_path), TERM="xterm-256color")
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [COMMAND, "once"], env=env, stdin=theirs, stdout=theirs, stderr=theirs
    ) as process:
        os.close(theirs)
        screen = b""
        while True:
            try:
                data = os.read(ours, 65536)
            except OSError:  # the other end is closed
                break
            if not data:
                break
            screen += data
    os.close(ours)
    text = screen.decode(errors="replace")
    assert process.returncode == 0
    assert "\x1b[32m" in text
    assert "Backup completed successfully" in text
    assert re.search(r"[\d.]+[KM]B read, [\d,]+ rows, [\d.]+[KM]?B stored", text)


def test_nobody_reads_the_log(make_database: MakeDatabase, tmp_path: Path) -> None:
    """A log whose reader went away is no reason to lose a backup."""
    database = make_database("mixed")
    env = environment(database.bin_dir, **settings(database, tmp_path))
    with subprocess.Popen(
        [COMMAND, "once"], env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout
        process.stdout.close()
    assert process.returncode == 0
    assert len(stored(tmp_path)) == 1


def test_a_full_disk_under_the_log(make_database: MakeDatabase, tmp_path: Path) -> None:
    database = make_database("mixed")
    env = environment(database.bin_dir, **settings(database, tmp_path))
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([COMMAND, "once"], env=env, stdout=full, stderr=full, check=False)
    assert done.returncode == 0
    assert len(stored(tmp_path)) == 1
