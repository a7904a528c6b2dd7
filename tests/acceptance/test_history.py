"""`pgstash history`: what succeeded and what failed, from the store alone."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from support import backups
from support.backups import PREFIX
from support.cli import environment, run_pgstash
from support.postgres import MakeDatabase

FAILED = "no_such_table"


def history(env: dict[str, str], *arguments: str) -> Any:
    done = run_pgstash(["history", "--json", *arguments], env)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_failure_is_in_the_history_and_nowhere_else(
    make_database: MakeDatabase, tmp_path: Path
) -> None:
    database = make_database()
    database.run_sql("CREATE TABLE t AS SELECT 1 AS n")
    env = environment(database.bin_dir, **backups.settings(database, tmp_path, encrypted=True))
    empty = run_pgstash(["history", "--days", "1"], env)
    assert (empty.returncode, empty.stdout) == (0, "")
    assert "No backup, drill or failure in the last 1 day." in empty.stderr
    failed = run_pgstash(["once"], env | {"REQUIRE_TABLES": FAILED})
    assert failed.returncode == 51
    assert run_pgstash(["list"], env).stdout.count("backup_") == 0
    assert run_pgstash(["healthcheck"], env).returncode == 41
    assert run_pgstash(["drill"], env).returncode == 25
    made = run_pgstash(["once"], env)
    assert made.returncode == 0, made.stderr

    [backup, drill, first] = history(env)
    assert (backup["run"], backup["result"], backup["tables"], backup["rows"]) == (
        "backup",
        "success",
        1,
        1,
    )
    assert (first["run"], first["result"], first["exit_code"], first["phase"]) == (
        "backup",
        "failure",
        51,
        "preparing",
    )
    assert (first["error"], first["database"]) == ("RequiredTableError", database.name)
    assert FAILED in first["message"]
    assert (drill["run"], drill["exit_code"], drill["backup"]) == ("drill", 25, None)
    assert history(env, "--days", "1") == [backup, drill, first]

    shown = run_pgstash(["history"], env)
    assert (shown.returncode, shown.stderr) == (0, "")
    lines = shown.stdout.splitlines()
    assert re.split(r"\s{2,}", lines[0]) == [
        "TIME",
        "RUN",
        "RESULT",
        "TOOK",
        "DATABASE",
        "BACKUP",
        "DETAILS",
    ]
    assert re.search(rf"backup  ok .* {backup['backup']} .*, 1 table, 1 row$", lines[1])
    assert re.search(
        r"backup  FAILED .* exit status 51, while preparing: .*no_such_table", lines[3]
    )
    narrow = run_pgstash(["history"], env | {"COLUMNS": "120"})
    assert max(map(len, narrow.stdout.splitlines())) == 120

    # The message is in the encrypted record alone. The rest needs no key.
    unable = {key: value for key, value in env.items() if "ENCRYPTION" not in key}
    [_, _, without] = history(unable)
    assert without == first | {"message": None, "hint": None, "machine": None}
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or FAILED.encode() not in path.read_bytes()
    # None of it is a leftover, and none is old enough to be removed.
    for path in (tmp_path / PREFIX).glob("backup_*"):
        os.utime(path, (0, 0))
    pruned = run_pgstash(["prune"], env)
    assert (pruned.returncode, "swept" in pruned.stdout.replace("0 leftovers swept", "")) == (
        0,
        False,
    )
    assert len(history(env)) == 3
    moved = []
    for path in (tmp_path / PREFIX).iterdir():
        if ".failure." in path.name:
            old = re.sub(r"backup_\d{8}", "backup_20200101", path.name)
            moved.append(path.rename(path.with_name(old)))
    assert len(moved) == 4  # with the files of their metadata
    pruned = run_pgstash(["prune"], env)
    assert pruned.stdout.count("it is of a run that failed") == 2
    assert not any(path.exists() for path in moved)


def test_the_history_of_all_jobs_has_those_that_never_succeeded(
    make_database: MakeDatabase, tmp_path: Path
) -> None:
    well, lacking = make_database(), make_database()
    well.run_sql("CREATE TABLE t ()")
    env = environment(
        well.bin_dir,
        **backups.settings(well, tmp_path),
        DATABASES=f"{well.name},{lacking.name}",
        REQUIRE_TABLES="t",
        DUMP_JOBS="1",
    )
    done = run_pgstash(["once"], env)
    assert done.returncode == 53, done.stderr
    found = history(env, "--all-jobs")
    assert {each["job"]: each["result"] for each in found} == {
        well.name: "success",
        lacking.name: "failure",
    }
    shown = run_pgstash(["history", "--all-jobs"], env)
    assert shown.stdout.splitlines()[0].split()[:3] == ["TIME", "JOB", "RUN"]
    assert [each["result"] for each in history(env, "--job", lacking.name)] == ["failure"]
    both = run_pgstash(["history", "--all-jobs", "--job", well.name], env)
    assert both.returncode == 2
    # A listing of all jobs has only those with backups.
    listed = run_pgstash(["list", "--all-jobs", "--json"], env)
    assert {each["job"] for each in json.loads(listed.stdout)} == {well.name}
    assert run_pgstash(["history", "--days", "0"], env).returncode == 2


def test_a_host_that_only_writes_records_failures_and_cannot_read_them(
    make_database: MakeDatabase, tmp_path: Path
) -> None:
    database = make_database()
    env = environment(
        database.bin_dir, **backups.settings(database, tmp_path), STORAGE_ROLE="writer"
    )
    assert run_pgstash(["once"], env | {"REQUIRE_TABLES": FAILED}).returncode == 51
    assert len(list((tmp_path / PREFIX).glob("backup_*.failure.json.gz"))) == 1
    refused = run_pgstash(["history"], env)
    assert refused.returncode == 1
    assert "pgstash history" in refused.stderr
