"""After a restore the planner knows the tables: nobody has to wait for autovacuum."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from support.backups import back_up, settings
from support.cli import environment, restore_to, run_pgstash
from support.postgres import temporary_database
from support.proxy import REFUSE, TcpProxy

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator
    from pathlib import Path

    from support.postgres import Cluster, Database

# Nothing but the restore may analyse a table.
_ALONE = "WITH (autovacuum_enabled = false)"
SOURCE = f"""
    CREATE TABLE plain (n integer) {_ALONE};
    CREATE TABLE "odd "" name" (n integer) {_ALONE};
    CREATE TABLE parts (n integer) PARTITION BY RANGE (n);
    CREATE TABLE low PARTITION OF parts FOR VALUES FROM (0) TO (50) {_ALONE};
    CREATE TABLE high PARTITION OF parts FOR VALUES FROM (50) TO (1000) {_ALONE};
    CREATE MATERIALIZED VIEW seen {_ALONE} AS SELECT n FROM plain;
    INSERT INTO plain SELECT n FROM generate_series(1, 100) AS n;
    INSERT INTO "odd "" name" SELECT n FROM plain;
    INSERT INTO parts SELECT n FROM plain;
    REFRESH MATERIALIZED VIEW seen;
"""
ALL = {"plain", 'odd " name', "parts", "low", "high", "seen"}
ANALYSED = "SELECT DISTINCT tablename FROM pg_stats WHERE schemaname = 'public' AND attname = 'n'"


@pytest.fixture
def source(cluster: Cluster) -> Iterator[Database]:
    with temporary_database(cluster) as database:
        database.run_sql(SOURCE)
        yield database


@pytest.fixture
def target(cluster: Cluster) -> Iterator[Database]:
    with temporary_database(cluster) as database:
        yield database


def restore(
    source: Database, folder: Path, *arguments: str, jobs: int = 2, to: Database | None = None
) -> subprocess.CompletedProcess[str]:
    """Restore into a new database beside the source, or into an existing one."""
    env = environment(source.bin_dir, **settings(source, folder)) | {"RESTORE_JOBS": str(jobs)}
    env["RESTORE_URL"] = to.uri if to else source.cluster.maintenance.uri
    create = [] if to else ["--create", f"new_{source.name}"]
    return run_pgstash(restore_to(env, *create, *arguments), env)


@pytest.fixture
def new(source: Database) -> Iterator[Database]:
    database = type(source)(source.cluster, f"new_{source.name}")
    yield database
    database.drop()


def analysed(database: Database) -> set[str]:
    return set(database.run_sql(ANALYSED).splitlines())


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_new_database_has_statistics(
    source: Database, new: Database, tmp_path: Path, jobs: int
) -> None:
    back_up(source, tmp_path)
    done = restore(source, tmp_path, jobs=jobs)
    assert done.returncode == 0, done.stderr
    assert analysed(new) == ALL
    assert re.search(r" INFO Updating the statistics of 4 tables \(ANALYZE\)\n", done.stdout)
    assert done.stderr == ""


def test_an_existing_database_has_statistics(
    source: Database, target: Database, tmp_path: Path
) -> None:
    back_up(source, tmp_path)
    done = restore(source, tmp_path, to=target)
    assert done.returncode == 0, done.stderr
    assert analysed(target) == ALL


def test_of_some_tables_only_these_have_them(
    source: Database, target: Database, tmp_path: Path
) -> None:
    back_up(source, tmp_path)
    target.run_sql(SOURCE + "TRUNCATE plain, parts")
    rows = ["--data-only", "--table", "plain", "--table", "parts"]
    done = restore(source, tmp_path, *rows, to=target)
    assert done.returncode == 0, done.stderr
    assert analysed(target) == {"plain", "parts", "low", "high"}


def test_it_can_be_left_out(source: Database, new: Database, tmp_path: Path) -> None:
    back_up(source, tmp_path)
    done = restore(source, tmp_path, "--no-analyze")
    assert done.returncode == 0, done.stderr
    assert analysed(new) == set()
    assert "ANALYZE" not in done.stdout


@pytest.mark.newest_first
def test_what_cannot_be_analysed_is_a_warning(
    source: Database, new: Database, tmp_path: Path
) -> None:
    """The expression of the statistics is computed for the first time."""
    source.run_sql(
        f"CREATE TABLE breaks (n integer) {_ALONE}; INSERT INTO breaks VALUES (0), (1);"
        "CREATE STATISTICS of_breaks ON (1 / n) FROM breaks"
    )
    back_up(source, tmp_path)
    done = restore(source, tmp_path)
    assert done.returncode == 0, done.stderr
    assert analysed(new) == ALL
    assert re.search(
        r' WARNING Some statistics .* Run ANALYZE for:\n  "public"\."breaks": .*division by zero',
        done.stderr,
    )


@pytest.mark.newest_first
def test_foreign_servers_are_not_asked(source: Database, new: Database, tmp_path: Path) -> None:
    with TcpProxy(source.cluster.port) as foreign:
        foreign.behave(REFUSE)
        source.run_sql(
            "CREATE EXTENSION postgres_fdw; CREATE SERVER far FOREIGN DATA WRAPPER postgres_fdw"
            f" OPTIONS (host '127.0.0.1', port '{foreign.port}');"
            f"CREATE USER MAPPING FOR {source.cluster.user} SERVER far;"
            "CREATE FOREIGN TABLE far_part PARTITION OF parts"
            " FOR VALUES FROM (1000) TO (2000) SERVER far"
        )
        back_up(source, tmp_path)
        done = restore(source, tmp_path)
        assert foreign.accepted == 0
    assert done.returncode == 0, done.stderr
    assert analysed(new) == ALL - {"parts"}
    assert done.stderr == ""
    assert re.search(r' INFO Statistics were not updated for "public"\."parts": ', done.stdout)


def test_tables_of_others_are_left_to_them(
    source: Database, target: Database, tmp_path: Path
) -> None:
    """As when rows go into tables of the application."""
    back_up(source, tmp_path)
    role = f"loader_{source.name}"
    target.run_sql(
        f"{SOURCE} TRUNCATE plain; CREATE ROLE {role} LOGIN;GRANT INSERT, SELECT ON plain TO {role}"
    )
    try:
        env = environment(source.bin_dir, **settings(source, tmp_path))
        env["RESTORE_URL"] = target.uri.replace(f"//{source.cluster.user}", f"//{role}")
        done = run_pgstash(restore_to(env, "--data-only", "--table", "plain"), env)
    finally:
        target.run_sql(f"DROP OWNED BY {role}; DROP ROLE {role}")
    assert done.returncode == 0, done.stderr
    assert re.search(r'1 table of other roles: "public"\."plain"\n', done.stderr)
    assert analysed(target) == set()
