"""Restores by a role that is no superuser, as managed servers have, with extensions of others."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from support import backups, extension, pieces
from support.cli import environment, restore_to, run_pgstash
from support.postgres import Cluster, Database, temporary_database

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator

    from support.postgres import MakeDatabase

OWNER = "tenant"
"""May create databases, and is no superuser."""

# dblink has composite types, the tests' own extension has sequences of identity columns. Only a
# superuser may create pg_buffercache.
EXTENSIONS = "CREATE EXTENSION dblink; CREATE EXTENSION hstore; CREATE EXTENSION pg_buffercache;"
COMMENT = "COMMENT ON EXTENSION hstore IS 'Stores ''pairs'' \\ and \"more\"';"
# The line of a dump stands in a row and in a function too, where it stays.
SAMPLE = f"""
{EXTENSIONS} {COMMENT}
CREATE TABLE orders (id serial PRIMARY KEY, more hstore, t text);
INSERT INTO orders (more, t)
    SELECT hstore('n', n::text), $t$
{COMMENT}
$t$ FROM generate_series(1, 3000) AS n;
CREATE FUNCTION says() RETURNS text LANGUAGE sql AS $f$ SELECT $t$
{COMMENT}
$t$ $f$;
"""
OBJECTS = "SELECT says(), count(*), min(t), max(more->'n') FROM orders"


@dataclass(frozen=True)
class Stored:
    source: Database
    folder: Path


@pytest.fixture(scope="module")
def owner(cluster: Cluster) -> Iterator[str]:
    cluster.maintenance.run_sql(f"CREATE ROLE {OWNER} LOGIN CREATEDB")
    yield OWNER
    cluster.maintenance.run_sql(f"DROP ROLE {OWNER}")


@pytest.fixture(scope="module")
def stored(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stored]:
    """A backup by several sessions, of a database that no test changes."""
    with temporary_database(cluster) as source:
        source.run_sql(SAMPLE)
        folder = tmp_path_factory.mktemp("managed")
        pieces.back_up(source, folder)
        yield Stored(source, folder)


@pytest.fixture
def target(cluster: Cluster, owner: str, make_database: MakeDatabase) -> Iterator[Database]:
    """An empty database of the role, in which a superuser has created the extensions."""
    database = make_database(on=cluster)
    cluster.maintenance.run_sql(f"ALTER DATABASE {database.name} OWNER TO {owner}")
    database.run_sql(f"{EXTENSIONS} {COMMENT}")
    yield database
    database.drop()


def as_owner(database: Database) -> str:
    return database.uri.replace(f"//{database.cluster.user}", f"//{OWNER}", 1)


def restore(
    folder: Path, target: Database, *arguments: str, **more: str
) -> subprocess.CompletedProcess[str]:
    env = environment(
        target.bin_dir, STORAGE_URL=folder.as_uri(), RESTORE_URL=as_owner(target), **more
    )
    without = ("--no-owner", "--no-privileges")  # the role may not give away what it restores
    return run_pgstash(restore_to(env, *without, *arguments), env)


def assert_restored(
    done: subprocess.CompletedProcess[str], source: Database, target: Database
) -> None:
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    assert target.run_sql(OBJECTS) == source.run_sql(OBJECTS)
    comments = "SELECT extname, obj_description(oid, 'pg_extension') FROM pg_extension ORDER BY 1"
    assert target.run_sql(comments) == source.run_sql(comments)
    owned = "SELECT count(*) FROM pg_extension WHERE extowner = 'tenant'::regrole"
    assert target.run_sql(owned) == "0\n"


@pytest.mark.newest_first
def test_extensions_of_a_superuser_are_met(stored: Stored, target: Database) -> None:
    """The role may neither create, drop nor comment on them."""
    assert_restored(restore(stored.folder, target), stored.source, target)
    # What is there is restored again, and the extensions stay.
    refused = restore(stored.folder, target)
    assert (refused.returncode, "table public.orders" in refused.stderr) == (60, True), (
        refused.stderr
    )
    assert_restored(restore(stored.folder, target, "--overwrite"), stored.source, target)


@pytest.mark.parametrize("unverified", [False, pytest.param(True, marks=pytest.mark.long)])
def test_a_backup_by_one_session(
    *, unverified: bool, stored: Stored, target: Database, tmp_path: Path
) -> None:
    backup = backups.back_up(stored.source, tmp_path, DUMP_JOBS="1")
    given = []
    if unverified:
        backup.manifest_file.unlink()
        given = ["--unverified"]
    assert_restored(restore(tmp_path, target, *given), stored.source, target)


@pytest.mark.newest_first
def test_tables_of_extensions_that_the_role_may_not_fill(
    cluster: Cluster, target: Database, make_database: MakeDatabase, tmp_path: Path
) -> None:
    """As spatial_ref_sys of PostGIS: they are found before the restore, if they have rows."""
    source = make_database(on=cluster)
    name = extension.install(cluster.major)
    source.run_sql(f"CREATE EXTENSION {name}; INSERT INTO kit.keyed (what) VALUES ('own')")
    backups.back_up(source, tmp_path)
    target.run_sql(
        f"CREATE EXTENSION {name}; TRUNCATE kit.units, kit.rates, kit.systems, kit.notes"
    )
    done = restore(tmp_path, target)
    assert done.returncode == 56, done.stdout + done.stderr
    grants = re.findall(r"GRANT [^;]*;", done.stderr)
    assert 'GRANT INSERT ON "kit"."keyed" TO "tenant";' in grants
    assert "numbered" not in done.stderr  # it has no rows
    more = (
        "GRANT USAGE ON SCHEMA kit TO tenant;"
        "GRANT SELECT ON ALL TABLES IN SCHEMA kit TO tenant;"
        "GRANT UPDATE ON ALL SEQUENCES IN SCHEMA kit TO tenant;"
    )
    target.run_sql("".join([more, *grants]))
    done = restore(tmp_path, target)
    assert done.returncode == 0, done.stdout + done.stderr
    assert target.run_sql("SELECT what FROM kit.keyed") == "own\n"


@pytest.mark.newest_first
def test_a_single_table(stored: Stored, target: Database) -> None:
    done = restore(stored.folder, target, "--table", "orders")
    assert_restored(done, stored.source, target)
