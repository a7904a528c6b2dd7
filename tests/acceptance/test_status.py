"""`pgstash status`: the state of one database, and of all databases of a server."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import time
from typing import TYPE_CHECKING, Any

from support import backups
from support.backups import PREFIX
from support.cli import COMMAND, NO_DOTENV, environment, run_pgstash
from support.postgres import Database

if TYPE_CHECKING:
    from pathlib import Path

    from support.postgres import MakeDatabase


def states(env: dict[str, str], *arguments: str) -> tuple[int, dict[str, Any]]:
    ran = run_pgstash(["status", *arguments, "--json"], env)
    return ran.returncode, json.loads(ran.stdout)


def test_all_databases_of_a_server(make_database: MakeDatabase, tmp_path: Path) -> None:
    here, late = make_database(), make_database()
    server = Database(here.cluster, "postgres")
    gone = f"{here.name}_Gone"
    server.run_sql(f'CREATE DATABASE "{gone}"')
    env = environment(
        server.bin_dir,
        **backups.settings(server, tmp_path),
        DATABASES=f"{here.name}*,{late.name}",
        DUMP_JOBS="1",
    )
    try:
        for name in (here.name, gone):
            made = run_pgstash(["once", "--job", name], env)
            assert made.returncode == 0, made.stderr
        assert states(env, "--job", gone)[0] == 0
    finally:
        server.run_sql(f'DROP DATABASE "{gone}"')

    status, found = states(env)
    assert status == 41
    assert [(each["job"], each["state"]) for each in found["jobs"]] == [
        (late.name, "never"),
        (here.name, "ok"),
        (gone, "gone"),
    ]
    assert [each["reason"] for each in found["jobs"]] == [None, None, "not on the server"]
    assert found["server_error"] is None
    archive = next((tmp_path / PREFIX / here.name).glob("backup_????????_??????.sql.gz"))
    assert found["jobs"][1]["name"] == archive.name
    assert found["jobs"][1]["size"] == archive.stat().st_size

    shown = run_pgstash(["status"], env)
    assert shown.returncode == 41
    head, *lines = shown.stdout.splitlines()
    assert head.split()[:3] == ["JOB", "STATE", "AGE"]
    assert [line.split()[1] for line in lines] == ["never", "ok", "gone"]
    assert f"1 of 3 jobs has no recent backup: {late.name}" in shown.stderr
    narrow = run_pgstash(["status"], env | {"COLUMNS": "60"})
    assert "JOB" in narrow.stdout
    assert "LAST" not in narrow.stdout
    assert max(map(len, narrow.stdout.splitlines())) <= 60

    # The server is gone: the store alone knows the databases.
    down = env | {"DATABASE_URL": "postgresql://nobody@127.0.0.1:1/postgres"}
    status, found = states(down)
    assert status == 41
    assert {each["job"]: each["state"] for each in found["jobs"]} == {
        late.name: "never",
        here.name: "ok",
        gone: "ok",
    }
    assert "127.0.0.1" in found["server_error"]


def test_one_database(make_database: MakeDatabase, tmp_path: Path) -> None:
    database = make_database()
    env = environment(database.bin_dir, **backups.settings(database, tmp_path), DUMP_JOBS="1")
    assert states(env)[0] == 41
    assert run_pgstash(["once"], env).returncode == 0
    status, found = states(env)
    assert status == 0
    [job] = found["jobs"]
    assert (job["job"], job["state"], job["proven"]) == (database.name, "ok", None)
    base = next((tmp_path / PREFIX).glob("backup_????????_??????.sql.gz")).name.partition(".")[0]
    for file in (tmp_path / PREFIX).iterdir():
        file.rename(file.with_name(file.name.replace(base, "backup_20200101_000000")))
    status, found = states(env)
    assert (status, found["jobs"][0]["state"]) == (41, "stale")
    refused = run_pgstash(["status", "--watch"], env)
    assert refused.returncode == 2
    assert "--watch" in refused.stderr


def test_watching_ends_with_ctrl_c(make_database: MakeDatabase, tmp_path: Path) -> None:
    database = make_database()
    env = environment(database.bin_dir, **backups.settings(database, tmp_path))
    terminal, end = pty.openpty()
    with subprocess.Popen(
        [COMMAND, "status", "--watch", "--every", "1"],
        env=env,
        cwd=NO_DOTENV,
        stdin=end,
        stdout=end,
        stderr=end,
        start_new_session=True,
    ) as process:
        os.close(end)
        try:
            shown = b""
            give_up = time.monotonic() + 120
            while shown.count(b"\x1b[2J") < 2 and time.monotonic() < give_up:
                if select.select([terminal], [], [], 1)[0]:
                    shown += os.read(terminal, 65536)
            assert shown.count(b"never") >= 1
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == -signal.SIGINT
        finally:
            process.kill()
            os.close(terminal)
