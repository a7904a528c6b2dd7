"""A configuration file: jobs of several servers, by the installed command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from support.cli import environment, run_pgstash
from support.postgres import Database

if TYPE_CHECKING:
    from support.postgres import MakeDatabase


def test_jobs_of_two_servers(make_database: MakeDatabase, tmp_path: Path) -> None:
    one, two = make_database(), make_database()
    for rows, database in enumerate((one, two), 1):
        database.run_sql(f"CREATE TABLE t AS SELECT n FROM generate_series(1, {rows}) n")
    server = Database(one.cluster, "postgres")
    store = tmp_path / "store"
    store.mkdir()
    path = tmp_path / "pgstash.toml"
    path.write_text(
        f"""
        [defaults]
        store = "main"
        dump_jobs = 1
        [stores.main]
        storage_url = "{store.as_uri()}"
        [servers.eu]
        database_url = {{ env = "EU_URL" }}
        databases = ["{one.name}"]
        labels = ["near"]
        [servers.us]
        database_url = {{ env = "US_URL" }}
        [servers.us.database."{two.name}"]
        exclude_table_data = "t"
        """
    )
    env = environment(one.bin_dir, EU_URL=server.uri, US_URL=two.uri, PGSTASH_CONFIG=str(path))
    checked = run_pgstash(["config", "check"], env)
    assert checked.returncode == 0, checked.stderr
    assert checked.stdout == f"{path}: 2 servers, 1 database section, no problems\n"
    shown = json.loads(run_pgstash(["config", "show", "--json"], env).stdout)
    assert [each["name"] for each in shown] == [f"eu/{one.name}", f"us/{two.name}"]
    assert [each["labels"] for each in shown] == [["near"], []]
    assert shown[1]["settings"]["exclude_table_data"] == "t"
    assert shown[0]["settings"]["database_url"] == "***"
    for job, rows in ((f"eu/{one.name}", 1), (f"us/{two.name}", 0)):
        made = run_pgstash(["once", "--job", job], env)
        assert made.returncode == 0, made.stderr
        assert list((store / "postgres-backups" / job).glob("backup_*"))
        counted = run_pgstash(["show", "--job", job, "--json"], env)
        assert json.loads(counted.stdout)["tables"]["rows"] == (
            [["public", "t", 1]] if rows else []
        )
    state = json.loads(run_pgstash(["status", "--json"], env).stdout)
    assert {each["job"]: each["state"] for each in state["jobs"]} == {
        f"eu/{one.name}": "ok",
        f"us/{two.name}": "ok",
    }
    refused = run_pgstash(["show"], env)
    assert refused.returncode == 1
    assert "Name one with --job SERVER/DATABASE." in refused.stderr

    # A server that is down: its databases are not known, but their backups are listed.
    down = env | {"EU_URL": "postgresql://127.0.0.1:1/postgres"}
    listed = run_pgstash(["list", "--job", f"eu/{one.name}", "--json"], down)
    assert [each["database"] for each in json.loads(listed.stdout)] == [one.name]
    shown_down = run_pgstash(["config", "show"], down)
    assert shown_down.returncode == 0
    assert "The databases of eu are not known" in shown_down.stderr
    assert f"us/{two.name}" in shown_down.stdout


def test_a_file_with_problems(tmp_path: Path) -> None:
    path = tmp_path / "pgstash.toml"
    path.write_text(
        """
        [servers.eu]
        database_url = "postgresql://u:hidden-secret@h/shop"
        backup_intervall = 60
        storage_url = "file:///nowhere"
        [servers.us]
        database_url = "postgresql://h/shop"
        storage_url = "ftp://x"
        """
    )
    env = environment()
    refused = run_pgstash(["--config", path, "config", "check"], env)
    assert refused.returncode == 1
    for problem in (
        "servers.eu.database_url holds a secret. Write { env = … }",
        "servers.eu.backup_intervall is not a setting. Did you mean backup_interval?",
        "servers.us.storage_url does not begin with file://",
        "Invalid configuration: 3 problems. Nothing was done.",
    ):
        assert problem in refused.stderr
    assert "hidden-secret" not in refused.stderr + refused.stdout
    without = run_pgstash(["config", "check"], env | {"DATABASE_URL": "postgresql://h/d"})
    assert without.returncode == 1


def test_a_file_from_the_environment(make_database: MakeDatabase, tmp_path: Path) -> None:
    """Its job has the backups that were made before."""
    database = make_database()
    store, path = tmp_path / "store", tmp_path / "pgstash.toml"
    store.mkdir()
    env = environment(
        database.bin_dir, DATABASE_URL=database.uri, STORAGE_URL=store.as_uri(), DUMP_JOBS="1"
    )
    made = run_pgstash(["once"], env)
    assert made.returncode == 0, made.stderr
    printed = run_pgstash(["config", "from-env"], env)
    assert printed.returncode == 0, printed.stderr
    path.write_text(printed.stdout)
    arguments: list[str | Path] = [
        "--config",
        path,
        "list",
        "--job",
        f"main/{database.name}",
        "--json",
    ]
    listed = run_pgstash(arguments, env)
    assert [each["database"] for each in json.loads(listed.stdout)] == [database.name]
    schema = run_pgstash(["config", "schema"], environment())
    assert json.loads(schema.stdout)["required"] == ["servers"]
