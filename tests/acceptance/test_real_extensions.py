"""Databases with the extensions that people use come back as they were, and are proven.

The servers are Debian's PostgreSQL 15, with the packages of these extensions: scripts/test --all
installs them.
"""

from __future__ import annotations

import gzip
import json
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from support import pieces
from support.backups import PREFIX
from support.cli import environment, run_pgstash
from support.compare import compare
from support.postgres import (
    Cluster,
    Database,
    folder_for_throwaway_servers,
    temporary_database,
)

if TYPE_CHECKING:
    import subprocess

pytestmark = pytest.mark.long

PROGRAMS = Path("/usr/lib/postgresql/15/bin")
NEW = "restored_with_extensions"
TIMES = 5

POSTGIS = """
CREATE EXTENSION postgis;
INSERT INTO spatial_ref_sys (srid, auth_name, auth_srid, srtext, proj4text)
    SELECT 990001, 'own', 990001, srtext, proj4text FROM spatial_ref_sys WHERE srid = 32633;
CREATE TABLE a_places (
    id serial PRIMARY KEY,
    geom geometry(Point, 990001) CHECK (ST_X(ST_Transform(geom, 4326)) < 90),
    wgs84 geometry(Point, 4326) GENERATED ALWAYS AS (ST_Transform(geom, 4326)) STORED
);
INSERT INTO a_places (geom)
    SELECT ST_SetSRID(ST_MakePoint(400000 + n, 5000000 + n), 990001)
    FROM generate_series(1, 20000) AS n;
CREATE INDEX ON a_places USING gist (wgs84);
CREATE TABLE a_parts (geom geometry(Point, 990001))
    PARTITION BY RANGE (ST_X(ST_Transform(geom, 4326)));
CREATE TABLE a_west PARTITION OF a_parts FOR VALUES FROM (-180) TO (14);
CREATE TABLE a_east PARTITION OF a_parts FOR VALUES FROM (14) TO (180);
INSERT INTO a_parts SELECT ST_SetSRID(ST_MakePoint(400000 + 10 * n, 5000000), 990001)
    FROM generate_series(1, 5000) AS n;
"""

TOPOLOGY = """
CREATE EXTENSION postgis;
CREATE EXTENSION postgis_topology;
SELECT topology.CreateTopology('streets', 4326);
SELECT topology.CreateTopology('rivers', 4326);
SELECT topology.DropTopology('rivers');
SELECT topology.AddNode('streets', ST_SetSRID(ST_MakePoint(n, n), 4326))
    FROM generate_series(1, 50) AS n;
CREATE TABLE roads (id serial PRIMARY KEY);
SELECT topology.AddTopoGeometryColumn('streets', 'public', 'roads', 'topo', 'POINT');
INSERT INTO roads (topo) SELECT topology.CreateTopoGeom('streets', 1, 1, '{{1,1}}');
"""

PARTMAN = """
CREATE SCHEMA partman;
CREATE EXTENSION pg_partman SCHEMA partman;
CREATE TABLE public.events (id bigserial, at timestamptz NOT NULL, what text)
    PARTITION BY RANGE (at);
SELECT partman.create_parent('public.events', 'at', 'native', 'daily',
    p_start_partition := to_char(now() - interval '5 days', 'YYYY-MM-DD'));
INSERT INTO public.events (at, what)
    SELECT now() - (n % 4) * interval '1 day', 'event ' || n FROM generate_series(1, 5000) AS n;
UPDATE partman.part_config SET retention = '30 days', infinite_time_partitions = true;
"""

PGQ = """
CREATE EXTENSION pgq;
SELECT pgq.create_queue('orders');
SELECT pgq.create_queue('bills');
SELECT pgq.register_consumer('orders', 'shop');
SELECT pgq.register_consumer('bills', 'shop');
SELECT pgq.drop_queue('bills', true);
SELECT pgq.insert_event('orders', 'sold', n::text) FROM generate_series(1, 2000) AS n;
SELECT pgq.ticker();
"""

PERIODS = """
CREATE EXTENSION periods CASCADE;
CREATE TABLE prices (id int, price int, starts date, ends date);
SELECT periods.add_period('prices', 'p', 'starts', 'ends');
SELECT periods.add_unique_key('prices', ARRAY['id'], 'p', key_name => 'one_price');
INSERT INTO prices SELECT n, n * 2, '2026-01-01', '2027-01-01' FROM generate_series(1, 3000) AS n;
CREATE TABLE sold (id int, n int, starts date, ends date);
SELECT periods.add_period('sold', 'p', 'starts', 'ends');
SELECT periods.add_foreign_key('sold', ARRAY['id'], 'p', 'one_price', key_name => 'of_price');

CREATE TABLE kept (id int PRIMARY KEY, what text);
SELECT periods.add_system_time_period('kept');
SELECT periods.add_system_versioning('kept');
INSERT INTO kept SELECT n, 'first' FROM generate_series(1, 500) AS n;
UPDATE kept SET what = 'second' WHERE id < 100;
"""

CRON_APP = "cron_app"
CRON = """
CREATE EXTENSION pg_cron;
SELECT cron.schedule('nightly', '0 3 * * *', 'VACUUM');
SELECT cron.schedule('gone', '0 4 * * *', 'VACUUM');
SELECT cron.unschedule('gone');
SELECT cron.schedule('every minute', '* * * * *', 'INSERT INTO public.ran DEFAULT VALUES');
UPDATE cron.job SET active = false WHERE jobname = 'nightly';
INSERT INTO cron.job_run_details (jobid, runid, command)
    SELECT 1, n, 'VACUUM' FROM generate_series(1000001, 1003000) AS n;
CREATE TABLE public.ran (at timestamptz DEFAULT now());
CREATE VIEW public.jobs AS SELECT jobid, schedule FROM cron.job;
"""

SOURCES = {
    "postgis": POSTGIS,
    "topology": TOPOLOGY,
    "partman": PARTMAN,
    "pgq": PGQ,
    "periods": PERIODS,
}


@pytest.fixture(scope="module")
def debian() -> Iterator[Cluster]:
    with Cluster(15, programs=PROGRAMS) as cluster:
        yield cluster


@dataclass(frozen=True)
class Stored:
    source: Database
    folder: Path


@pytest.fixture(scope="module", params=SOURCES)
def stored(
    request: pytest.FixtureRequest, debian: Cluster, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stored]:
    with temporary_database(debian) as source:
        source.run_sql(SOURCES[request.param])
        folder = tmp_path_factory.mktemp(request.param)
        pieces.back_up(source, folder)
        yield Stored(source, folder)


def run(folder: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    env = environment(PROGRAMS, **{"STORAGE_URL": folder.as_uri()} | more)
    done = run_pgstash(arguments, env, timeout=300)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    return done


@pytest.mark.parametrize("jobs", ["1", "2", "4"])
def test_restored(jobs: str, stored: Stored) -> None:
    on = stored.source.cluster
    try:
        url = on.maintenance.uri
        run(stored.folder, "restore", "--create", NEW, RESTORE_URL=url, RESTORE_JOBS=jobs)
        new = Database(on, NEW)
        assert compare(stored.source.conninfo, new.conninfo, bin_dir=PROGRAMS) == []
    finally:
        on.drop_database(NEW)


def test_restored_by_standard_tools(stored: Stored) -> None:
    [archive] = (stored.folder / PREFIX).glob("backup_????????_??????.sql.gz")
    with temporary_database(stored.source.cluster) as target:
        target.run_sql(gzip.decompress(archive.read_bytes()))
        assert compare(stored.source.conninfo, target.conninfo, bin_dir=PROGRAMS) == []


def test_restored_by_a_role_that_does_not_own_postgis(debian: Cluster, tmp_path: Path) -> None:
    """Into a database that has PostGIS, as managed servers have it, and nothing else."""
    with temporary_database(debian) as source, temporary_database(debian) as target:
        source.run_sql(POSTGIS)
        pieces.back_up(source, tmp_path)
        target.run_sql(
            f"CREATE EXTENSION postgis; CREATE ROLE tenant LOGIN;"
            f"ALTER DATABASE {target.name} OWNER TO tenant"
        )
        url = target.uri.replace(f"//{debian.user}", "//tenant", 1)
        env = environment(PROGRAMS, STORAGE_URL=tmp_path.as_uri(), RESTORE_URL=url)
        try:
            refused = run_pgstash(["restore", "--to", url], env, cwd=tmp_path)
            assert refused.returncode == 56, refused.stderr
            grant = 'GRANT INSERT ON "public"."spatial_ref_sys" TO "tenant";'
            assert grant in refused.stderr
            target.run_sql(grant)
            done = run_pgstash(["restore", "--to", url], env, cwd=tmp_path)
            assert done.returncode == 0, done.stderr
            target.run_sql("REVOKE INSERT ON spatial_ref_sys FROM tenant")
            assert compare(source.conninfo, target.conninfo, bin_dir=PROGRAMS) == []
        finally:
            target.run_sql(
                f"ALTER DATABASE {target.name} OWNER TO {debian.user};"
                f"REASSIGN OWNED BY tenant TO {debian.user}; DROP OWNED BY tenant; DROP ROLE tenant"
            )


@pytest.fixture(scope="module")
def cron(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stored]:
    """A backup whose database was renamed: the server wants another one by its name."""
    settings = {
        "shared_preload_libraries": "pg_cron",
        "cron.database_name": CRON_APP,
        # No job changes a database that is compared: none can log in, and no try is written down.
        "cron.host": "/nowhere",
        "cron.log_run": "off",
    }
    with Cluster(15, programs=PROGRAMS, settings=settings) as cluster:
        source = cluster.create_database("template_of_cron")
        was = Database(cluster, CRON_APP)
        cluster.maintenance.run_sql(f"ALTER DATABASE template_of_cron RENAME TO {CRON_APP}")
        was.run_sql(CRON)
        folder = tmp_path_factory.mktemp("cron")
        pieces.back_up(was, folder)
        cluster.stop(signal.SIGINT)
        cluster.settings = {**settings, "cron.database_name": "nobody"}
        cluster.start()
        cluster.maintenance.run_sql(f"ALTER DATABASE {CRON_APP} RENAME TO {source.name}")
        cluster.stop(signal.SIGINT)
        cluster.settings = settings
        cluster.start()
        yield Stored(source, folder)


@pytest.mark.parametrize("jobs", ["1", "2", "4"])
def test_cron_restored(jobs: str, cron: Stored) -> None:
    on = cron.source.cluster
    env = environment(
        PROGRAMS,
        STORAGE_URL=cron.folder.as_uri(),
        RESTORE_URL=on.maintenance.uri,
        RESTORE_JOBS=jobs,
    )
    try:
        done = run_pgstash(["restore", "--create", CRON_APP], env)
        assert done.returncode == 0, done.stdout + done.stderr
        assert f"1 cron job is active and runs from now on: 1 in {CRON_APP} on " in done.stderr
        new = Database(on, CRON_APP)
        assert compare(cron.source.conninfo, new.conninfo, bin_dir=PROGRAMS) == []
    finally:
        on.stop(signal.SIGINT)
        settings, on.settings = on.settings, {}
        on.start()
        on.drop_database(CRON_APP)
        on.stop(signal.SIGINT)
        on.settings = settings
        on.start()


def test_drilled(stored: Stored) -> None:
    drill(stored)


def test_cron_drilled(cron: Stored) -> None:
    drill(cron)


def drill(stored: Stored) -> None:
    with folder_for_throwaway_servers() as scratch:
        for _ in range(TIMES):
            run(stored.folder, "drill", TMPDIR=str(scratch), RESTORE_JOBS="2")
    for proof in (stored.folder / PREFIX).glob("backup_*.proof_*"):
        assert json.loads(gzip.decompress(proof.read_bytes()))["warnings"] == []
