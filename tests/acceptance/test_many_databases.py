"""Several databases of one server: each is a job with a prefix, a list and restores of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from support import backups
from support.backups import PREFIX
from support.cli import environment, run_pgstash
from support.postgres import Database

if TYPE_CHECKING:
    from support.postgres import MakeDatabase


@pytest.fixture
def two(make_database: MakeDatabase) -> list[Database]:
    made = [make_database(), make_database()]
    for number, database in enumerate(made, 1):
        database.run_sql(f"CREATE TABLE t AS SELECT n FROM generate_series(1, {number}) n")
    return made


def test_a_job_of_its_own(two: list[Database], tmp_path: Path) -> None:
    """Each has its backups under its own prefix, and --job chooses them."""
    names = ",".join(each.name for each in two)
    server = Database(two[0].cluster, "postgres")
    env = environment(
        server.bin_dir, **backups.settings(server, tmp_path), DATABASES=names, DUMP_JOBS="1"
    )
    for database in two:
        made = run_pgstash(["once", "--job", database.name], env)
        assert made.returncode == 0, made.stderr
    assert {path.name for path in (tmp_path / PREFIX).iterdir()} == {each.name for each in two}
    for rows, database in enumerate(two, 1):
        job = ["--job", database.name]
        listed = run_pgstash(["list", *job, "--json"], env)
        assert [each["database"] for each in json.loads(listed.stdout)] == [database.name]
        shown = run_pgstash(["show", *job, "--json"], env)
        assert json.loads(shown.stdout)["tables"]["rows"] == [["public", "t", rows]]
        printed = run_pgstash(["cat", *job], env)
        assert "CREATE TABLE public.t" in printed.stdout
        assert run_pgstash(["healthcheck", *job], env).returncode == 0


def test_which_job(two: list[Database], tmp_path: Path) -> None:
    database = two[0]
    env = environment(database.bin_dir, **backups.settings(database, tmp_path))
    for settings, arguments, problem in (
        ({"DATABASES": "*"}, ["list"], "DATABASES is set, so there are several jobs"),
        ({"DATABASES": "x*"}, ["once", "--job", database.name], "is not in DATABASES=x*."),
        ({}, ["drill", "--job", database.name], "but DATABASES is not set."),
    ):
        refused = run_pgstash(arguments, env | settings)
        assert refused.returncode == 1
        assert problem in refused.stderr
    assert not list(tmp_path.iterdir())


def test_the_policy_of_all_of_them() -> None:
    """A policy is for the prefix with the folders of all databases, or for that of one."""
    settings = {"S3_BUCKET": "shop", "S3_REGION": "eu-central-1", "DATABASES": "*"}
    for job, resource in (
        ([], "arn:aws:s3:::shop/postgres-backups/*/backup_*.proof_*"),
        (["--job", "shop"], "arn:aws:s3:::shop/postgres-backups/shop/backup_*.proof_*"),
    ):
        printed = run_pgstash(["policy", "reader", *job], environment(**settings))
        statements = json.loads(printed.stdout)["Statement"]
        assert resource in [each["Resource"] for each in statements]
