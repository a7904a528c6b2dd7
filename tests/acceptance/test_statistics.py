"""After a restore the planner knows the tables: nobody has to wait for autovacuum."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import re
from typing import TYPE_CHECKING

import pytest

from support.backups import PASSPHRASE, PREFIX, back_up, settings
from support.cli import TOOLS_ON_PATH_ALONE, environment, restore_to, run_pgstash
from support.postgres import temporary_database
from support.proxy import REFUSE, TcpProxy
from support.tiers import later

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
    env["BACKUP_ENCRYPTION_KEY"] = PASSPHRASE
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


@pytest.mark.parametrize("jobs", later([1, 2], 1))
def test_a_new_database_has_statistics(
    source: Database, new: Database, tmp_path: Path, jobs: int
) -> None:
    back_up(source, tmp_path)
    done = restore(source, tmp_path, jobs=jobs)
    assert done.returncode == 0, done.stderr
    assert analysed(new) == ALL
    assert re.search(r" INFO Updating the statistics of 4 tables \(ANALYZE\)\n", done.stdout)
    assert done.stderr == ""


@pytest.mark.newest_first
def test_an_existing_database_has_statistics(
    source: Database, target: Database, tmp_path: Path
) -> None:
    back_up(source, tmp_path)
    done = restore(source, tmp_path, to=target)
    assert done.returncode == 0, done.stderr
    assert analysed(target) == ALL


@pytest.mark.newest_first
def test_of_some_tables_only_these_have_them(
    source: Database, target: Database, tmp_path: Path
) -> None:
    back_up(source, tmp_path)
    target.run_sql(SOURCE + "TRUNCATE plain, parts")
    rows = ["--data-only", "--table", "plain", "--table", "parts"]
    done = restore(source, tmp_path, *rows, to=target)
    assert done.returncode == 0, done.stderr
    assert analysed(target) == {"plain", "parts", "low", "high"}


@pytest.mark.newest_first
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


@pytest.mark.newest_first
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


# A backup stores none of a small database.
LARGE = "from pgstash.postgres.dump import statistics; statistics._SMALLEST = 0"


@pytest.fixture
def newest_source(newest_cluster: Cluster) -> Iterator[Database]:
    with temporary_database(newest_cluster) as database:
        database.run_sql(SOURCE)
        yield database


@contextlib.contextmanager
def created_anew(source: Database) -> Iterator[Database]:
    database = type(source)(source.cluster, f"new_{source.name}")
    try:
        yield database
    finally:
        database.drop()


def replace_statistics(companion: Path, old: bytes, new: bytes) -> None:
    """Change the statistics of a backup, and their digest in its manifest."""
    before = gzip.decompress(companion.read_bytes())
    after = before.replace(old, new)
    assert after != before
    companion.write_bytes(gzip.compress(after))
    [manifest] = companion.parent.glob("backup_*.manifest.json.gz")
    text = gzip.decompress(manifest.read_bytes())
    was, now = (hashlib.sha256(each).hexdigest().encode() for each in (before, after))
    manifest.write_bytes(gzip.compress(text.replace(was, now)))


def back_up_statistics(
    source: Database,
    folder: Path,
    more: dict[str, str] | None = None,
    *,
    encrypted: bool = False,
) -> list[Path]:
    """Back up as if the database were large; return the companions with statistics."""
    given = settings(source, folder, encrypted=encrypted) | (more or {})
    done = run_pgstash(["once"], environment(source.bin_dir, **given), statements=[LARGE])
    assert done.returncode == 0, done.stderr
    return list((folder / PREFIX).glob("backup_*.statistics.sql.gz*"))


def described(database: Database) -> list[tuple[object, ...]]:
    """Return what the planner knows of the tables."""
    columns = """SELECT tablename, attname, inherited, null_frac, avg_width, n_distinct,
                 most_common_vals::text, most_common_freqs, histogram_bounds::text, correlation
                 FROM pg_stats WHERE schemaname = 'public' ORDER BY 1, 2, 3"""
    relations = """SELECT relname, reltuples, relpages FROM pg_class
                   WHERE relnamespace = 'public'::regnamespace AND relkind <> 'v' ORDER BY 1"""
    with database.connect() as session:
        return session.execute(columns).fetchall() + session.execute(relations).fetchall()


# The planner does not learn of the last rows, so that ANALYZE would find others.
_ANALYSED = (
    "CREATE INDEX of_half ON plain ((n / 2)); ANALYZE; INSERT INTO plain SELECT 7"
    " FROM generate_series(1, 50)"
)


@pytest.mark.parametrize(("jobs", "encrypted"), later([(1, False), (2, True)], (1, False)))
def test_those_of_the_source_come_back(
    newest_source: Database, tmp_path: Path, jobs: int, *, encrypted: bool
) -> None:
    newest_source.run_sql(_ANALYSED)
    assert len(back_up_statistics(newest_source, tmp_path, encrypted=encrypted)) == 1
    with created_anew(newest_source) as new:
        done = restore(newest_source, tmp_path, jobs=jobs)
        assert (done.returncode, done.stderr) == (0, "")
        assert described(new) == described(newest_source)
    assert "INFO Restoring the statistics of the source\n" in done.stdout
    assert "ANALYZE" not in done.stdout


def test_tables_without_any_and_extended_statistics_are_analysed(
    newest_source: Database, tmp_path: Path
) -> None:
    newest_source.run_sql(
        f"{_ANALYSED}; CREATE TABLE fresh (n integer) {_ALONE}; INSERT INTO fresh VALUES (1);"
        f"CREATE TABLE pairs (n integer, m integer) {_ALONE};"
        "INSERT INTO pairs SELECT i, i FROM generate_series(1, 9) AS i;"
        "CREATE STATISTICS of_pairs ON n, m FROM pairs; ANALYZE pairs"
    )
    back_up_statistics(newest_source, tmp_path)
    with created_anew(newest_source) as new:
        done = restore(newest_source, tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
        assert analysed(new) == {*ALL, "fresh", "pairs"}
        assert new.run_sql("SELECT count(*) FROM pg_statistic_ext_data") == "1\n"
    assert "Updating the statistics of 2 tables (ANALYZE)" in done.stdout


LACKING = ["damaged", "of a table that was dropped", "not there"]


@pytest.mark.parametrize("what", later(LACKING, *LACKING[1:]))
def test_what_cannot_be_restored_is_analysed(
    newest_source: Database, tmp_path: Path, what: str
) -> None:
    newest_source.run_sql(_ANALYSED)
    [companion] = back_up_statistics(newest_source, tmp_path)
    if what == "damaged":
        text = gzip.decompress(companion.read_bytes())
        companion.write_bytes(gzip.compress(text.replace(b"'n'", b"'m'")))
    elif what == "not there":
        companion.unlink()
    else:
        replace_statistics(companion, b"'relname', 'plain'", b"'relname', 'gone'")
    with created_anew(newest_source) as new:
        done = restore(newest_source, tmp_path)
        assert done.returncode == 0, done.stderr
        assert analysed(new) == ALL
    assert ("WARNING The statistics of the source are not used: " in done.stderr) == (
        what == "damaged"
    )
    some = {"of a table that was dropped": 1}.get(what, 4)
    assert re.search(rf"Updating the statistics of {some} tables? \(ANALYZE\)", done.stdout)


@pytest.mark.parametrize(
    "more",
    [{"EXCLUDE_TABLE_DATA": "plain"}, {"PG_DUMP_EXTRA_ARGS": "--no-statistics"}],
    ids=["rows are left out", "not wanted"],
)
def test_values_that_the_dump_leaves_out_are_not_stored(
    newest_source: Database, tmp_path: Path, more: dict[str, str]
) -> None:
    newest_source.run_sql(_ANALYSED)
    assert back_up_statistics(newest_source, tmp_path, more) == []


def test_a_backup_whose_statistics_are_refused_succeeds(
    newest_source: Database, tmp_path: Path
) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    for tool in ("pg_dump", "pg_dumpall", "pg_restore", "psql"):
        (tools / tool).symlink_to(newest_source.bin_dir / tool)
    (tools / "pg_dump").unlink()
    (tools / "pg_dump").write_text(
        "#!/bin/sh\n"
        'case "$*" in *--statistics-only*) echo "pg_dump: error: no" >&2; exit 1 ;; esac\n'
        f'exec {newest_source.bin_dir / "pg_dump"} "$@"\n'
    )
    (tools / "pg_dump").chmod(0o755)
    statements = [*TOOLS_ON_PATH_ALONE, LARGE]
    env = environment(tools, **settings(newest_source, tmp_path))
    done = run_pgstash(["once"], env, statements=statements)
    assert done.returncode == 0, done.stderr
    assert re.search(
        r"INFO The statistics for the planner are not stored: .*A restore runs ANALYZE instead",
        done.stdout,
        re.DOTALL,
    )
    assert list((tmp_path / PREFIX).glob("*statistics*")) == []
