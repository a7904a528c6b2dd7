"""What several sessions dumped is the database again, by every way back."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import pytest

from integration.test_round_trip import real_counts
from support import databases, pieces
from support.backups import PASSPHRASE, back_up
from support.cli import environment, run_pgstash
from support.compare import compare
from support.postgres import Cluster, Database
from support.tiers import later

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.postgres import MakeDatabase

_NO_LOGICAL_CHANGES = "is insufficient to publish logical changes"
NEWEST_FIRST = pytest.mark.newest_first
ALL_SAMPLES = (*databases.ROUND_TRIPPING, "breaks_under_clean")
TO_BEGIN_WITH: dict[str, list[pytest.MarkDecorator]] = {
    "structure": [],
    "large_objects": [NEWEST_FIRST],
    "mixed": [NEWEST_FIRST],
    "odd_names": [NEWEST_FIRST],
}
SAMPLES = [
    pytest.param(each, marks=TO_BEGIN_WITH.get(each, [pytest.mark.long])) for each in ALL_SAMPLES
]


@pytest.fixture
def new_database(cluster: Cluster) -> Iterator[str]:
    name = "brought back"
    yield name
    cluster.drop_database(name)


def restore(folder: Path, on: Cluster, *arguments: str, jobs: int) -> None:
    env = environment(
        on.maintenance.bin_dir,
        STORAGE_URL=folder.as_uri(),
        RESTORE_URL=on.maintenance.uri,
        RESTORE_JOBS=str(jobs),
        BACKUP_ENCRYPTION_KEY=PASSPHRASE,
    )
    done = run_pgstash(["restore", *arguments], env)
    # Of publications the server warns, because these clusters have wal_level = minimal.
    said = [line for line in done.stderr.splitlines() if not line.endswith(_NO_LOGICAL_CHANGES)]
    assert (done.returncode, said) == (0, []), done.stdout


def differences(source: Database, name: str, on: Cluster) -> list[str]:
    return compare(source.conninfo, Database(on, name).conninfo, bin_dir=source.bin_dir)


def assert_restored(source: Database, folder: Path, name: str, *, jobs: int) -> None:
    """Restore the latest backup into a database of this name, compare, and drop it."""
    restore(folder, source.cluster, "--create", name, jobs=jobs)
    assert differences(source, name, source.cluster) == []
    source.cluster.drop_database(name)


@pytest.mark.parametrize(
    ("jobs", "encrypted"),
    [
        pytest.param(2, True, id="2 jobs, encrypted"),
        pytest.param(4, False, id="4 jobs, plain", marks=pytest.mark.long),
        pytest.param(2, False, id="2 jobs, plain", marks=pytest.mark.long),
        pytest.param(4, True, id="4 jobs, encrypted", marks=pytest.mark.long),
    ],
)
@pytest.mark.parametrize("sample", SAMPLES)
def test_every_way_back(
    sample: str,
    jobs: int,
    *,
    encrypted: bool,
    cluster: Cluster,
    make_database: MakeDatabase,
    new_database: str,
    tmp_path: Path,
) -> None:
    source = make_database(sample, on=cluster)
    backup = pieces.back_up(source, tmp_path, encrypted=encrypted, DUMP_JOBS=str(jobs))
    assert backup.manifest["schema_sha256"]
    counted = {table: n for table, n in backup.row_counts.items() if table[1] != "ext_config"}
    assert counted == real_counts(source)

    assert_restored(source, tmp_path, new_database, jobs=jobs)

    assert_restored(source, tmp_path, new_database, jobs=1)

    if sample in databases.ROUND_TRIPPING:  # the other one's own drops fail, as pg_dump's do
        cluster.create_database(new_database, encoding=databases.encoding(sample))
        backup.restore(Database(cluster, new_database))
        assert differences(source, new_database, cluster) == []


@pytest.mark.newest_first
def test_a_row_that_is_longer_than_members(
    cluster: Cluster, make_database: MakeDatabase, new_database: str, tmp_path: Path
) -> None:
    """A value is never loaded in two pieces, but it is stored in several."""
    source = make_database(on=cluster)
    source.run_sql(
        "CREATE TABLE wide (n int, content bytea);"
        "INSERT INTO wide SELECT n, decode(repeat(md5(n::text), n * 200000), 'hex')"
        " FROM generate_series(1, 4) AS n;"
        "CREATE TABLE narrow AS SELECT n, md5(n::text) FROM generate_series(1, 60000) AS n"
    )
    backup = back_up(source, tmp_path)
    members = [
        dict(zip(backup.manifest["members"]["columns"], row, strict=True))
        for row in backup.manifest["members"]["rows"]
    ]
    going_on = [each for each in members if each["table"] is not None and each["rows"] is None]
    assert going_on
    assert max(each["raw"] for each in members) < 20 * 1024 * 1024
    assert backup.row_counts == {("public", "wide"): 4, ("public", "narrow"): 60_000}
    assert_restored(source, tmp_path, new_database, jobs=2)
    cluster.create_database(new_database)
    backup.restore(Database(cluster, new_database))
    assert differences(source, new_database, cluster) == []


@pytest.mark.newest_first
def test_a_check_that_reads_another_table_meets_the_rows_that_are_before_its_own(
    cluster: Cluster, make_database: MakeDatabase, new_database: str, tmp_path: Path
) -> None:
    """pg_dump writes the limits first, and its script restores: so does ours, by all sessions."""
    source = make_database(on=cluster)
    source.run_sql(
        "CREATE TABLE a_limits (most int, why text);"
        "INSERT INTO a_limits SELECT n, md5(n::text) FROM generate_series(1, 200000) AS n;"
        "CREATE FUNCTION within(n int) RETURNS bool LANGUAGE sql"
        "    AS 'SELECT n <= max(most) FROM public.a_limits';"
        "CREATE TABLE b_checked (n int CONSTRAINT within CHECK (coalesce(within(n), false)));"
        "INSERT INTO b_checked VALUES (200000)"
    )
    backup = back_up(source, tmp_path)
    assert backup.manifest["schema_sha256"]
    for jobs in (4, 1):
        assert_restored(source, tmp_path, new_database, jobs=jobs)


@pytest.mark.newest_first
def test_partitions_whose_key_reads_another_table(
    cluster: Cluster, make_database: MakeDatabase, new_database: str, tmp_path: Path
) -> None:
    source = make_database(on=cluster)
    source.run_sql(
        "CREATE TABLE limits (most int, why text);"
        "INSERT INTO limits SELECT n, md5(n::text) FROM generate_series(1, 60000) AS n;"
        "CREATE FUNCTION own(n int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS"
        " 'BEGIN IF NOT EXISTS (SELECT FROM public.limits) THEN RAISE ''no limits''; END IF;"
        " RETURN n % 2; END';"
        "CREATE TABLE p (n int) PARTITION BY LIST (own(n));"
        "CREATE TABLE p0 PARTITION OF p FOR VALUES IN (0);"
        "CREATE TABLE p1 PARTITION OF p FOR VALUES IN (1);"
        "INSERT INTO p SELECT generate_series(1, 1000)"
    )
    back_up(source, tmp_path)
    assert_restored(source, tmp_path, new_database, jobs=4)


@pytest.mark.newest_first
def test_views_that_read_each_other_by_a_function(
    cluster: Cluster, make_database: MakeDatabase, new_database: str, tmp_path: Path
) -> None:
    """Nothing says that one depends on the other but the order in which pg_dump lists them."""
    source = make_database(on=cluster)
    source.run_sql(
        "CREATE TABLE big AS SELECT n, md5(n::text) AS t FROM generate_series(1, 60000) AS n;"
        "CREATE INDEX ON big (t);"
        "CREATE MATERIALIZED VIEW a0 AS SELECT count(*) AS n FROM big, generate_series(1, 50);"
        "CREATE MATERIALIZED VIEW a AS SELECT n FROM a0;"
        "CREATE FUNCTION f() RETURNS bigint LANGUAGE sql STABLE AS 'SELECT n FROM public.a';"
        "CREATE MATERIALIZED VIEW b AS SELECT f() AS n; CREATE UNIQUE INDEX ON b (n);"
        "CREATE MATERIALIZED VIEW c AS SELECT f() AS n WITH NO DATA"
    )
    back_up(source, tmp_path)
    assert_restored(source, tmp_path, new_database, jobs=4)


EXTENSION = """
    CREATE TABLE cfg.parent (id int PRIMARY KEY, t text);
    CREATE TABLE cfg.child (id int REFERENCES cfg.parent, t text);
    SELECT pg_catalog.pg_extension_config_dump('cfg.parent', '');
    SELECT pg_catalog.pg_extension_config_dump('cfg.child', '');
"""


def test_tables_of_an_extension_that_refer_to_each_other(tmp_path: Path) -> None:
    """CREATE EXTENSION makes their foreign keys before the rows come, as nothing else does."""
    with TemporaryDirectory() as name:  # the server may look into it, which it may not into others
        (folder := Path(name) / "extension").mkdir()
        Path(name).chmod(0o755)
        (folder / "cfg.control").write_text("default_version = '1'\nschema = cfg\n")
        (folder / "cfg--1.sql").write_text(EXTENSION)
        with Cluster(18, settings={"extension_control_path": f"{name}:$system"}) as cluster:
            source = cluster.create_database("source")
            source.run_sql(
                "CREATE EXTENSION cfg;"
                "INSERT INTO cfg.parent SELECT n, md5(n::text) FROM generate_series(1, 20000) AS n;"
                "INSERT INTO cfg.child SELECT n, 'x' FROM generate_series(1, 20000, 400) AS n"
            )
            back_up(source, tmp_path)
            assert_restored(source, tmp_path, "again", jobs=4)


@pytest.mark.newest_first
@pytest.mark.parametrize("jobs", later([1, 2], 1))
def test_an_array_with_null_whatever_is_planted(
    jobs: int, cluster: Cluster, make_database: MakeDatabase, new_database: str, tmp_path: Path
) -> None:
    source = make_database(on=cluster)
    source.run_sql(
        "CREATE TABLE t (a text[]); INSERT INTO t VALUES (ARRAY['x', NULL, 'NULL']);"
        f"ALTER DATABASE {source.name} SET array_nulls = off"
    )
    back_up(source, tmp_path)
    restore(tmp_path, cluster, "--create", new_database, jobs=jobs)
    restored = Database(cluster, new_database)
    assert restored.run_sql("SELECT a[2] IS NULL, a[3] = 'NULL' FROM t").strip() == "t|t"
    assert restored.run_sql("SHOW array_nulls").strip() == "off"


OF_ROWS = ["--verbose", "-v", "--disable-triggers --superuser=admin", "--statistics"]


@pytest.mark.newest_first
@pytest.mark.parametrize("options", later(OF_ROWS, "--verbose", "-v"))
def test_options_that_mean_more_to_a_dump_of_rows_alone(
    options: str, cluster: Cluster, make_database: MakeDatabase, new_database: str, tmp_path: Path
) -> None:
    """The pg_dump that writes the rows of the rest may take itself for one; here it has none."""
    if options == "--statistics" and cluster.major < 18:
        options = "--no-sync"
    source = make_database(on=cluster)
    source.run_sql(
        "CREATE TABLE t AS SELECT generate_series(1, 5000) n; ANALYZE t;"
        "CREATE MATERIALIZED VIEW m AS SELECT n FROM t; ANALYZE m"
    )
    pieces.back_up(source, tmp_path, PG_DUMP_EXTRA_ARGS=options)
    source.run_sql("CREATE TABLE empty (n int)")
    pieces.back_up(source, tmp_path, PG_DUMP_EXTRA_ARGS=options)
    assert_restored(source, tmp_path, new_database, jobs=2)


def test_a_role_that_alone_may_look_into_a_schema(
    cluster: Cluster, make_database: MakeDatabase, tmp_path: Path
) -> None:
    """Who logs in may become it, and may nothing by itself."""
    source = make_database(on=cluster)
    source.run_sql(
        "DROP ROLE IF EXISTS holder, outsider; CREATE ROLE holder;"
        "CREATE ROLE outsider LOGIN NOINHERIT; GRANT holder TO outsider;"
        "CREATE SCHEMA app AUTHORIZATION holder;"
        "CREATE TABLE app.t AS SELECT n, md5(n::text) FROM generate_series(1, 60000) AS n;"
        "ALTER TABLE app.t OWNER TO holder"
    )
    uri = source.uri.replace(f"{cluster.user}@", "outsider@")
    backup = back_up(source, tmp_path, DATABASE_URL=uri, PG_DUMP_EXTRA_ARGS="--role=holder")
    assert backup.manifest["schema_sha256"]
    assert backup.row_counts == {("app", "t"): 60_000}
    source.run_sql("REASSIGN OWNED BY holder TO CURRENT_USER; DROP ROLE holder, outsider")
