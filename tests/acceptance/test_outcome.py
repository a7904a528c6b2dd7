"""What is left to do comes after the end of a restore, and scripts read it all as JSON."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from support.backups import back_up
from support.cli import COMMAND, environment, run_pgstash
from support.tiers import later

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.postgres import Cluster, Database, MakeDatabase

SECRET = "planted-secret"


@pytest.fixture
def stored(make_database: MakeDatabase, tmp_path: Path) -> Database:
    """Return a database with a backup in ``tmp_path``."""
    database = make_database()
    database.run_sql("CREATE TABLE t (n int PRIMARY KEY); INSERT INTO t VALUES (1), (2)")
    back_up(database, tmp_path)
    return database


@pytest.fixture
def new_name(newest_cluster: Cluster) -> Iterator[str]:
    yield "outcome"
    newest_cluster.drop_database("outcome")


@pytest.fixture
def closed_role(newest_cluster: Cluster) -> Iterator[str]:
    """Yield a role that may be gone by the time of a restore."""
    newest_cluster.maintenance.run_sql("CREATE ROLE closed LOGIN PASSWORD 'x'")
    yield "closed"
    newest_cluster.maintenance.run_sql("DROP ROLE IF EXISTS closed")


def run(
    command: str, folder: Path, target: Database, *arguments: str, **more: str
) -> subprocess.CompletedProcess[str]:
    given = {"STORAGE_URL": folder.as_uri(), "RESTORE_URL": target.uri} | more
    return run_pgstash([command, *arguments], environment(target.bin_dir, **given))


def outcome(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """Return what the command printed: one line, one object."""
    [line] = done.stdout.splitlines()
    found: dict[str, Any] = json.loads(line)
    assert found["exit_code"] == done.returncode
    return found


def test_a_restore_as_json(
    stored: Database, closed_role: str, new_name: str, tmp_path: Path
) -> None:
    back_up(stored, tmp_path)
    stored.run_sql(f"DROP ROLE {closed_role}")
    planned = run("restore", tmp_path, stored, "--create", new_name, "--dry-run", "--json")
    found = outcome(planned)
    assert (found["status"], found["tables"], found["rows"]) == ("planned", 1, 2)
    done = run("restore", tmp_path, stored, "--create", new_name, "--create-roles", "--json")
    found = outcome(done)
    assert "SUCCESS Restore completed" in done.stderr.partition("cannot log in")[0]
    assert found.pop("backup").startswith("backup_")
    assert found.pop("seconds") > 0
    assert found.pop("raw_bytes") > 0
    [to_do] = found.pop("to_do")
    assert to_do.startswith("1 created role cannot log in")
    assert found == {
        "operation": "restore",
        "status": "success",
        "database": {"host": stored.cluster.host, "name": new_name},
        "verified": True,
        "kept": None,
        "exit_code": 0,
        "warnings": [],
    }


def test_a_restore_that_fails_as_json(stored: Database, tmp_path: Path) -> None:
    done = run("restore", tmp_path, stored, "--create", "postgres", "--json")
    found = outcome(done)
    assert done.stderr.count("FAILURE") == 1
    assert found["status"] == "failure"
    assert found["database"]["name"] == "postgres"
    assert found["target"] == "nothing was changed in the target"
    assert found["message"]
    assert found["hint"]


def test_no_secret_is_printed_as_json(stored: Database, tmp_path: Path) -> None:
    # The name of the database is a secret too if it is the password.
    url = stored.uri.replace("@", f":{SECRET}@").rpartition("/")[0] + f"/{SECRET}"
    done = run("restore", tmp_path, stored, "--to", url, "--json")
    assert outcome(done)["status"] == "failure"
    assert SECRET not in done.stdout + done.stderr


@pytest.mark.long
def test_drills_as_json(stored: Database, tmp_path: Path) -> None:
    back_up(stored, tmp_path)
    done = run(
        "drill", tmp_path, stored, "--all-unproven", "--json", VERIFY_DATABASE_URL=stored.uri
    )
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(each["operation"], each["status"], each["rows"]) for each in found] == [
        ("drill", "success", 2)
    ] * 2
    assert all(each["location"].startswith(tmp_path.as_uri()) for each in found)
    done = run(
        "drill", tmp_path, stored, "--all-unproven", "--json", VERIFY_DATABASE_URL=stored.uri
    )
    assert (done.returncode, done.stdout) == (0, "")
    assert "There is nothing to drill: each backup is proven" in done.stderr


def test_a_drill_that_fails_as_json(stored: Database, tmp_path: Path) -> None:
    unreachable = "postgresql://admin@127.0.0.1:1/nothing"
    found = outcome(run("drill", tmp_path, stored, "--json", VERIFY_DATABASE_URL=unreachable))
    assert (found["status"], found["to_do"]) == ("failure", [])
    assert found["message"]


@pytest.mark.parametrize("exists", [False, True], ids=["no folder", "an empty folder"])
def test_a_place_without_backups_has_nothing_to_prove(
    stored: Database, tmp_path: Path, *, exists: bool
) -> None:
    folder = tmp_path / "other"
    if exists:
        folder.mkdir()
    done = run("drill", folder, stored, "--all-unproven")
    assert done.returncode == (25 if exists else 20)
    [line] = [line for line in done.stderr.splitlines() if "FAILURE" in line]
    assert str(folder) in line


@pytest.mark.parametrize("stdout", later([">/dev/full", ">&-"], ">&-"))
def test_an_outcome_that_cannot_be_printed(stdout: str, stored: Database, tmp_path: Path) -> None:
    """A restore that failed keeps the exit status of its error."""
    env = environment(stored.bin_dir, STORAGE_URL=tmp_path.as_uri(), RESTORE_URL=stored.uri)
    script = f'"$0" restore --create outcome --dry-run --json "$@" {stdout}'
    for arguments, status in ((["latest"], 52), (["no_such_backup"], 25)):
        words = ["sh", "-c", script, str(COMMAND), *arguments]
        done = subprocess.run(words, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == status, done.stderr
    assert "Unexpected error" not in done.stderr
