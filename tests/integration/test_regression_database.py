"""The database that PostgreSQL's own regression tests leave behind comes back.

Its scripts come from the source of Debian's PostgreSQL 15 (``scripts/setup --regress``), and run
on every major. They make whatever their authors could think of. Functions of theirs in C are not
compiled: what needs them fails there, and is not in the database.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from integration.test_parallel_round_trip import differences, restore
from integration.test_round_trip import real_counts
from support import pieces
from support.postgres import Cluster, Database, clean_environment
from support.postgres import test_majors as majors_under_test

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.long

FOLDER = Path(__file__).parents[2] / ".cache" / "postgresql-regress"

# What pg_dump itself brings back otherwise. PostgreSQL's own test of pg_upgrade says so of these
# tables: their columns come in another order than their parents' (002_pg_upgrade.pl). And what a
# materialized view shows is refreshed.
ALIKE = """
    DROP TABLE gtestxx_4, test_type_diff2_c1, test_type_diff2_c2 CASCADE;
    SELECT format('REFRESH MATERIALIZED VIEW %s', oid::regclass) FROM pg_class
    WHERE relkind = 'm' AND relispopulated \\gexec
"""


@pytest.fixture(scope="module", params=majors_under_test(), ids=lambda major: f"pg{major}")
def regression(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Database]:
    """A database in which all of PostgreSQL's regression tests have run."""
    results = tmp_path_factory.mktemp("regress") / "results"
    results.mkdir()
    with Cluster(request.param) as cluster:
        database = cluster.create_database("regression")
        # As pg_regress sets them (initialize_environment() in pg_regress.c).
        env = clean_environment(database.bin_dir) | {
            "PGTZ": "PST8PDT",
            "PGDATESTYLE": "Postgres, MDY",
            "PGOPTIONS": "-c intervalstyle=postgres_verbose",
            "PG_ABS_SRCDIR": str(FOLDER),
            "PG_ABS_BUILDDIR": str(results.parent),
            "PG_LIBDIR": str(database.bin_dir.parent / "lib"),
            "PG_DLSUFFIX": ".so",
        }
        for line in (FOLDER / "parallel_schedule").read_text().splitlines():
            for name in line.removeprefix("test: ").split() if line.startswith("test: ") else ():
                subprocess.run(
                    ["psql", "-Xq", "-d", database.conninfo, "-f", FOLDER / "sql" / f"{name}.sql"],
                    env=env,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    check=True,
                    timeout=300,
                )
        database.run_sql(ALIKE)
        yield database


def test_it_is_there_by_every_way_back(regression: Database, tmp_path: Path) -> None:
    cluster = regression.cluster
    backup = pieces.back_up(regression, tmp_path, encrypted=True, DUMP_JOBS="2")
    assert len(backup.row_counts) > 500
    assert backup.row_counts == real_counts(regression)
    for jobs in (2, 1):
        restore(tmp_path, cluster, "--create", "back", jobs=jobs)
        assert differences(regression, "back", cluster) == []
        cluster.drop_database("back")
    target = cluster.create_database("back")
    # Not to be stopped by the first error: into an empty database pg_dump's own drops fail.
    subprocess.run(
        [target.bin_dir / "psql", "-Xq", "-d", target.conninfo],
        env=clean_environment(),
        input=backup.script(),
        capture_output=True,
        check=True,
    )
    assert differences(regression, "back", cluster) == []
