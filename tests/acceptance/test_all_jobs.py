"""One command for all databases of a server: --all-jobs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from support import backups
from support.backups import PREFIX
from support.cli import environment, run_pgstash
from support.postgres import Database

if TYPE_CHECKING:
    from pathlib import Path

    from support.postgres import Cluster, MakeDatabase


@dataclass
class Server:
    """A server with two databases that have backups, of which the first is gone."""

    names: list[str]
    env: dict[str, str]
    folder: Path
    cluster: Cluster

    def archive(self, name: str) -> Path:
        return next((self.folder / PREFIX / name).glob("backup_????????_??????.sql.gz"))


@pytest.fixture
def server(make_database: MakeDatabase, tmp_path: Path) -> Server:
    here = make_database()
    maintenance = Database(here.cluster, "postgres")
    gone = f"a_{here.name}"
    env = environment(
        here.bin_dir,
        **backups.settings(maintenance, tmp_path),
        DATABASES=f"*{here.name}",
        VERIFY_DATABASE_URL=maintenance.uri,
        DUMP_JOBS="1",
    )
    maintenance.run_sql(f"CREATE DATABASE {gone}")
    try:
        for name in (gone, here.name):
            made = run_pgstash(["once", "--job", name], env)
            assert made.returncode == 0, made.stderr
    finally:
        maintenance.run_sql(f"DROP DATABASE {gone}")
    return Server([gone, here.name], env, tmp_path, here.cluster)


def test_listing_and_pruning(server: Server) -> None:
    gone, here = server.names
    listed = run_pgstash(["list", "--all-jobs", "--json"], server.env)
    assert [(each["job"], each["database"]) for each in json.loads(listed.stdout)] == [
        (gone, gone),
        (here, here),
    ]
    head, *lines = run_pgstash(["list", "--all-jobs"], server.env).stdout.splitlines()
    assert head.split()[:2] == ["JOB", "NAME"]
    assert [line.split()[0] for line in lines] == server.names

    # Only old backups: the newest of each stays, also that of the database that is gone.
    for name in server.names:
        base = server.archive(name).name.partition(".")[0]
        for year in ("2020", "2019"):
            for file in (server.folder / PREFIX / name).glob(f"*{base}*"):
                copy = file.with_name(file.name.replace(base, f"backup_{year}0101_000000"))
                copy.write_bytes(file.read_bytes())
        for file in (server.folder / PREFIX / name).glob(f"*{base}*"):
            file.unlink()
    pruned = run_pgstash(["prune", "--all-jobs"], server.env)
    assert pruned.returncode == 0, pruned.stderr
    for name in server.names:
        assert server.archive(name).name == "backup_20200101_000000.sql.gz"
        assert f"Job {name}" in pruned.stdout
        assert len(list((server.folder / PREFIX / name).glob("backup_????????_??????.sql.gz"))) == 1

    checked = run_pgstash(["check", "storage", "--all-jobs", "--json"], server.env)
    assert checked.returncode == 0
    assert [each["job"] for each in json.loads(checked.stdout)["jobs"]] == [here]


def test_a_failure_does_not_stop_the_others(server: Server) -> None:
    gone, here = server.names
    archive = server.archive(gone)
    archive.write_bytes(archive.read_bytes()[:-10])
    drilled = run_pgstash(["drill", "--all-jobs", "--json"], server.env)
    assert drilled.returncode == 31, drilled.stderr
    outcomes = [json.loads(line) for line in drilled.stdout.splitlines()]
    assert [(each["job"], each["status"]) for each in outcomes] == [
        (gone, "failure"),
        (here, "success"),
    ]
    assert f"1 of 2 jobs failed: {gone}" in drilled.stderr
    proven = json.loads(run_pgstash(["list", "--all-jobs", "--json"], server.env).stdout)
    assert [bool(each["proven"]) for each in proven] == [False, True]


def test_what_is_refused(server: Server) -> None:
    for command in ("list", "drill", "prune", "check"):
        both = run_pgstash([command, "--all-jobs", "--job", server.names[0]], server.env)
        assert (both.returncode, "--all-jobs" in both.stderr) == (2, True)
        one = run_pgstash([command, "--all-jobs"], server.env | {"DATABASES": ""})
        assert one.returncode == 1
        assert "--all-jobs is given, but there is one job only" in one.stderr


def test_the_jobs_of_several_servers(server: Server) -> None:
    """A server that does not answer is an error for check; the others need only the store."""
    here = server.names[1]
    file = server.folder / "pgstash.toml"
    file.write_text(
        f"""
        [defaults]
        backup_prefix = "{PREFIX}"
        [servers.a]
        database_url = "{server.env["DATABASE_URL"]}"
        databases = ["{here}"]
        backup_prefix = "{PREFIX}"
        [servers.b]
        database_url = "postgresql://nobody@127.0.0.1:1/postgres"
        databases = ["*"]
        """
    )
    env = {name: value for name, value in server.env.items() if name != "DATABASES"}
    env["PGSTASH_CONFIG"] = str(file)
    listed = run_pgstash(["list", "--all-jobs", "--json"], env)
    assert listed.returncode == 0, listed.stderr
    names = [f"a/{name}" for name in server.names]
    assert [each["job"] for each in json.loads(listed.stdout)] == names
    checked = run_pgstash(["check", "storage", "--all-jobs", "--json"], env)
    assert checked.returncode == 10, checked.stderr
    found = json.loads(checked.stdout)
    assert [each["job"] for each in found["jobs"]] == [f"a/{here}"]
    assert list(found["unreachable"]) == ["b"]


def test_databases_that_are_not_there(server: Server) -> None:
    """A misspelt name, pattern or section is reported: otherwise a database has no backup."""
    here = server.names[1]
    named = run_pgstash(
        ["check", "storage", "--all-jobs", "--json"], server.env | {"DATABASES": f"{here},shp"}
    )
    assert named.returncode == 40, named.stderr
    assert json.loads(named.stdout)["missing"] == ["shp"]
    assert "The server does not have shp." in named.stderr
    of_server = Database(server.cluster, "postgres")
    change = "UPDATE pg_database SET {} WHERE datname = '" + here + "'"
    for broken, mended, words in (
        ("datallowconn = false", "datallowconn = true", "it takes no connections"),
        ("datconnlimit = -2", "datconnlimit = -1", "An interrupted DROP DATABASE left"),
    ):
        of_server.run_sql(change.format(broken))
        try:
            checked = run_pgstash(["check", "storage", "--all-jobs", "--json"], server.env)
        finally:
            of_server.run_sql(change.format(mended))
        assert (checked.returncode, words in checked.stderr) == (40, True), checked.stderr
        facts = json.loads(checked.stdout)
        assert facts["closed"] + facts["invalid"] == [here]
    nothing = server.env | {"DATABASES": "shp*"}
    checked = run_pgstash(["check", "storage", "--all-jobs"], nothing)
    assert (checked.returncode, "No database of the server is" in checked.stderr) == (40, True)
    state = run_pgstash(["status", "--json"], nothing)
    assert state.returncode == 41, state.stderr
    worst = json.loads(state.stdout)["jobs"][0]
    assert (worst["job"], worst["state"]) == ("*", "never")

    file = server.folder / "pgstash.toml"
    file.write_text(
        f"""
        [servers.a]
        database_url = "{server.env["DATABASE_URL"]}"
        databases = ["{here[:-1]}?"]
        backup_prefix = "{PREFIX}"
        [servers.a.database."{here[:-1]}+"]
        dump_jobs = 2
        """
    )
    env = {name: value for name, value in server.env.items() if name != "DATABASES"}
    shown = run_pgstash(["config", "show"], env | {"PGSTASH_CONFIG": str(file)})
    assert f"a/{here[:-1]}+ is in the file, but not on the server." in shown.stderr
    checked = run_pgstash(["check", "storage", "--all-jobs"], env | {"PGSTASH_CONFIG": str(file)})
    assert checked.returncode == 0, checked.stderr
    assert f"Not backed up: a/{here[:-1]}+." in checked.stderr


def test_a_store_that_fails_hides_no_other(server: Server) -> None:
    gone, here = server.names
    file = server.folder / "pgstash.toml"
    file.write_text(
        f"""
        [servers.a]
        database_url = "postgresql://127.0.0.1:1"
        databases = ["*"]
        storage_url = "{(server.folder / "none").as_uri()}"
        [servers.b]
        database_url = "postgresql://127.0.0.1:1"
        databases = ["*"]
        backup_prefix = "{PREFIX}"
        """
    )
    env = server.env | {"PGSTASH_CONFIG": str(file), "DATABASES": "", "DATABASE_URL": ""}
    listed = run_pgstash(["list", "--all-jobs", "--json"], env)
    assert listed.returncode == 20, listed.stderr
    assert [each["job"] for each in json.loads(listed.stdout)] == [f"b/{gone}", f"b/{here}"]
    assert "1 of 3 jobs failed: a/*" in listed.stderr
    pruned = run_pgstash(["prune", "--all-jobs"], env)
    assert pruned.returncode == 20, pruned.stderr
    assert f"Job b/{here}" in pruned.stdout
