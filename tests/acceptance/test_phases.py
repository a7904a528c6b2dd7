"""A restore and a drill show on a terminal what they are doing, with a clock that goes on."""

from __future__ import annotations

import contextlib
import itertools
import os
import pty
import re
import subprocess
import time
from typing import TYPE_CHECKING

import psycopg
import pytest

from support import databases
from support.backups import back_up
from support.cli import COMMAND, environment
from support.pieces import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.postgres import Cluster, Database, MakeDatabase

HOLDER = "holds the index"
# An index that is not complete for as long as a session has that name.
SLOW = f"""
    CREATE FUNCTION waits(n int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS $$
        BEGIN
            WHILE EXISTS (SELECT FROM pg_stat_activity WHERE application_name = '{HOLDER}') LOOP
                PERFORM pg_sleep(0.1), pg_stat_clear_snapshot();
            END LOOP;
            RETURN n;
        END $$;
    CREATE TABLE quick (n int PRIMARY KEY);
    CREATE TABLE slow (n int);
    INSERT INTO slow VALUES (1);
    CREATE INDEX takes_long ON slow (waits(n));
"""


@pytest.fixture
def stored(make_database: MakeDatabase, tmp_path: Path) -> Database:
    database = make_database()
    database.run_sql(SLOW)
    back_up(database, tmp_path)
    return database


@pytest.fixture
def new_name(newest_cluster: Cluster) -> Iterator[str]:
    yield "shown"
    newest_cluster.drop_database("shown")


@pytest.fixture
def gigabyte(make_database: MakeDatabase, tmp_path: Path) -> Database:
    database = make_database()
    database.run_sql(databases.big())
    back_up(database, tmp_path)
    return database


def screen(arguments: list[str], env: dict[str, str], holder: Database, line: str) -> str:
    """Run pgstash on a terminal of 200 columns; return all that it wrote there.

    The index is complete once the clock of the line was seen to go on.
    """
    ours, theirs = pty.openpty()
    with (
        psycopg.connect(holder.uri, application_name=HOLDER) as session,
        subprocess.Popen(
            [COMMAND, *arguments], env=env, stdin=theirs, stdout=theirs, stderr=theirs
        ) as process,
    ):
        os.close(theirs)
        shown = b""
        give_up = time.monotonic() + 4 * PATIENCE
        while True:
            try:
                shown += os.read(ours, 65536)
            except OSError:  # the other end is closed
                break
            if (
                len(clock_of(shown.decode(errors="replace"), line)) >= 3
                or time.monotonic() > give_up
            ):
                session.close()
    os.close(ours)
    assert process.returncode == 0, shown.decode(errors="replace")
    return shown.decode(errors="replace")


def env_of(database: Database, folder: Path, jobs: int) -> dict[str, str]:
    return environment(
        database.bin_dir,
        STORAGE_URL=folder.as_uri(),
        RESTORE_URL=database.uri,
        VERIFY_DATABASE_URL=database.uri,
        RESTORE_JOBS=str(jobs),
        TERM="xterm-256color",
        COLUMNS="200",
    )


def clock_of(shown: str, line: str) -> list[str]:
    """Return the times that were shown with a line, each once."""
    return list(dict.fromkeys(re.findall(rf"{line}.*?, (\d+)s elapsed", shown)))


@pytest.mark.long
def test_a_restore_by_several_sessions(stored: Database, new_name: str, tmp_path: Path) -> None:
    line = r"indexes and constraints: \d+%, \d of 2, index of public\.slow"
    shown = screen(["restore", "--create", new_name], env_of(stored, tmp_path, 2), stored, line)
    assert len(clock_of(shown, line)) >= 3


def test_a_restore_by_one_session(stored: Database, new_name: str, tmp_path: Path) -> None:
    line = r"objects, rows and indexes: 99%, [^\r\n]*, index of public\.slow"
    shown = screen(["restore", "--create", new_name], env_of(stored, tmp_path, 1), stored, line)
    assert len(clock_of(shown, line)) >= 3


def test_a_drill(stored: Database, tmp_path: Path) -> None:
    # One drill in eight restores by one session.
    line = r"indexes[^\r\n]*: \d+%, [^\r\n]*index of public\.slow"
    shown = screen(["drill"], env_of(stored, tmp_path, 2), stored, line)
    assert len(clock_of(shown, line)) >= 3
    assert "checks: " in shown


def seconds_shown(shown: str) -> list[int]:
    """Return the seconds of the clock in the order in which they were shown, each once."""
    clock = re.findall(r"(?:(\d+)m )?(?:(\d+)s )?elapsed", shown)
    return list(dict.fromkeys(60 * int(minutes or 0) + int(rest or 0) for minutes, rest in clock))


def watched(arguments: list[str], env: dict[str, str]) -> str:
    """Run pgstash on a terminal to its end; return all that it wrote there."""
    ours, theirs = pty.openpty()
    shown = b""
    with subprocess.Popen(
        [COMMAND, *arguments], env=env, stdin=theirs, stdout=theirs, stderr=theirs
    ) as process:
        os.close(theirs)
        with contextlib.suppress(OSError):  # the other end is closed
            while chunk := os.read(ours, 65536):
                shown += chunk
    os.close(ours)
    assert process.returncode == 0, shown.decode(errors="replace")
    return shown.decode(errors="replace")


@pytest.mark.long
@pytest.mark.parametrize("jobs", [1, 2])
def test_no_phase_stops_the_clock(
    gigabyte: Database, new_name: str, tmp_path: Path, jobs: int
) -> None:
    env = env_of(gigabyte, tmp_path, jobs)
    for arguments in (["restore", "--create", new_name], ["drill"]):
        shown = watched(arguments, env)
        seconds = seconds_shown(shown)
        assert len(seconds) > 3
        assert seconds[0] <= 2
        # A clock that stands still shows it by the seconds that it leaves out.
        assert max(later - before for before, later in itertools.pairwise(seconds)) <= 2
