"""Which databases DATABASES selects, and the settings of each job."""

from __future__ import annotations

from pathlib import Path

import pytest
from psycopg.conninfo import conninfo_to_dict

from pgstash import settings
from pgstash.errors import ConfigurationError
from pgstash.settings import databases, jobs

BASE = {
    "DATABASE_URL": "postgresql://u:p%40ss@db.example.com:5433/app?sslmode=require",
    "STORAGE_URL": "file:///tmp",
    "BACKUP_ENCRYPTION": "false",
    "DATABASES": "*,!test_*",
}


def load(**different: str) -> settings.Settings:
    return settings.load(BASE | different, Path("/none"))


@pytest.mark.parametrize(
    ("patterns", "selected"),
    [
        ("*", ["shop", "Shop", "shop[1]", "test_1", "a,b"]),
        ("*,!test_*", ["shop", "Shop", "shop[1]", "a,b"]),
        ("!test_*, !a?b", ["shop", "Shop", "shop[1]"]),
        ("shop", ["shop"]),
        ("s*,rdsadmin", ["shop", "shop[1]", "rdsadmin"]),
        ("rds*", []),
        ("[ab],b*", ["a,b"][:0]),
        ("shop[1]", ["shop[1]"]),
        ("*,!shop[1]", ["shop", "Shop", "test_1", "a,b"]),
    ],
)
def test_what_is_selected(patterns: str, selected: list[str]) -> None:
    there = ["shop", "Shop", "shop[1]", "test_1", "a,b", "rdsadmin"]
    chosen = databases.parse(patterns)
    assert [name for name in there if chosen.has(name)] == selected


def test_databases_that_are_named() -> None:
    assert databases.parse("shop,blog*,!x,rdsadmin").named == ["shop", "rdsadmin"]
    assert databases.parse("shop,!s*").named == []
    assert databases.parse("shop[1]").named == ["shop[1]"]


@pytest.mark.parametrize("wrong", [",", "shop,", "!", "shop, ! ,x"])
def test_an_empty_pattern_is_refused(wrong: str) -> None:
    with pytest.raises(ConfigurationError, match="DATABASES has an empty pattern"):
        load(DATABASES=wrong)


def test_the_settings_of_a_job() -> None:
    job = jobs.of_job(load(), "Shop", may_be_all=False)
    assert conninfo_to_dict(job.source_url) == {
        "user": "u",
        "password": "p@ss",
        "host": "db.example.com",
        "port": "5433",
        "sslmode": "require",
        "dbname": "Shop",
    }
    assert job.backup_prefix == "postgres-backups/=53hop"
    assert job.job == "Shop"
    assert "p@ss" in job.secrets()
    assert "p@ss" not in repr(job)


def test_a_job_by_the_variables_of_libpq() -> None:
    server = load(DATABASE_URL="", PGHOST="db.example.com", PGUSER="u")
    assert conninfo_to_dict(jobs.server_url(server)) == {"dbname": "postgres"}
    job = jobs.of_job(server, "sh op", may_be_all=False)
    assert conninfo_to_dict(job.source_url) == {"dbname": "sh op"}
    named = load(DATABASE_URL="", PGHOST="db.example.com", PGDATABASE="app")
    assert jobs.server_url(named) == ""


def test_the_database_that_lists_the_others() -> None:
    assert jobs.server_url(load()) == BASE["DATABASE_URL"]
    unnamed = jobs.server_url(load(DATABASE_URL="postgresql://u@db.example.com"))
    assert conninfo_to_dict(unnamed)["dbname"] == "postgres"


def test_a_copy_has_the_prefix_of_the_job() -> None:
    of_all = load(
        COPY_TO="disk,own", COPY_DISK_STORAGE_URL="file:///var", COPY_OWN_STORAGE_URL="file:///usr",
        COPY_OWN_BACKUP_PREFIX="mine",
    )  # fmt: skip
    job = jobs.of_job(of_all, "shop", may_be_all=False)
    assert job.of_copy("disk").backup_prefix == "postgres-backups/shop"
    assert job.of_copy("own").backup_prefix == "mine/shop"
    assert of_all.of_copy("own").backup_prefix == "mine"


@pytest.mark.parametrize(
    ("patterns", "name", "problem"),
    [
        ("*", None, "DATABASES is set, so there are several jobs. Name a database with --job."),
        ("", "shop", "--job shop is given, but DATABASES is not set."),
        ("*,!shop", "shop", r"--job shop is not in DATABASES=\*,!shop\."),
    ],
)
def test_a_job_that_there_is_not(patterns: str, name: str | None, problem: str) -> None:
    with pytest.raises(ConfigurationError, match=problem):
        jobs.of_job(load(DATABASES=patterns), name, may_be_all=False)


def test_a_job_without_a_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An unset variable of a script is no job: its prefix would be the one above all jobs."""
    monkeypatch.chdir(tmp_path)
    for name, value in BASE.items():
        monkeypatch.setenv(name, value)
    assert jobs.chosen(settings.Request(), "shop", may_be_all=True).job == "shop"
    with pytest.raises(ConfigurationError, match="--job is empty"):
        jobs.chosen(settings.Request(), "", may_be_all=True)


def test_without_a_job() -> None:
    assert jobs.of_job(load(DATABASES=""), None, may_be_all=False).job == ""
    assert jobs.of_job(load(), None, may_be_all=True).backup_prefix == "postgres-backups"
