"""A server that speaks German or French: each failure is of the same kind, with the same remedy."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from faults.scene import Folder, Scene, assert_failed
from support.backups import back_up
from support.cli import environment, run_pgstash
from support.postgres import Cluster

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.postgres import Database

pytestmark = pytest.mark.long

PROGRAMS = Path("/usr/lib/postgresql/15/bin")  # with catalogs of messages: scripts/setup
WORDS = {"de_DE": ("FEHLER", "keine Berechtigung"), "fr_FR": ("ERREUR", "droit refusé")}


@dataclass
class Speaking(Cluster):
    """A cluster whose messages are in the language of a locale that was compiled for it."""

    locales: Path = Path()

    def _environment(self) -> dict[str, str]:
        return super()._environment() | {"LOCPATH": str(self.locales)}


@pytest.fixture(scope="module", params=WORDS)
def language(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def speaking(language: str) -> Iterator[Cluster]:
    folder = Path(tempfile.mkdtemp(prefix="pgstash-locales-", dir="/tmp"))
    folder.chmod(0o755)
    try:
        subprocess.run(
            ["localedef", "-i", language, "-f", "UTF-8", str(folder / f"{language}.UTF-8")],
            check=True,
        )
        settings = {"lc_messages": f"{language}.UTF-8"}
        with Speaking(15, settings=settings, programs=PROGRAMS, locales=folder) as cluster:
            cluster.maintenance.run_sql("CREATE ROLE reader LOGIN")
            yield cluster
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def scene(speaking: Cluster, tmp_path: Path) -> Iterator[Scene]:
    database = speaking.load_sample("empty")
    database.run_sql(
        "CREATE TABLE a_first AS SELECT generate_series(1, 1000) n; GRANT SELECT ON a_first"
        " TO reader"
    )
    yield Scene(database, Folder(tmp_path, {"STORAGE_URL": tmp_path.as_uri()}), PROGRAMS)
    database.drop()


FORBIDDEN = {
    "table": ("CREATE TABLE b (a int)", "pg_read_all_data"),
    "schema": ("CREATE SCHEMA s; CREATE TABLE s.t (); GRANT SELECT ON s.t TO reader", "USAGE on"),
    "sequence": ("CREATE SEQUENCE b", "SELECT on the table or sequence"),
    "row security": (
        """
        CREATE TABLE b (a int); GRANT SELECT ON b TO reader;
        ALTER TABLE b ENABLE ROW LEVEL SECURITY
        """,
        "BYPASSRLS",
    ),
    "large object": ("SELECT lo_from_bytea(4711, 'secret')", "SELECT ON LARGE OBJECT"),
}


@pytest.mark.parametrize("jobs", ["1", "2"])
@pytest.mark.parametrize("what", FORBIDDEN)
def test_what_the_role_may_not_read(what: str, jobs: str, scene: Scene, language: str) -> None:
    statements, remedy = FORBIDDEN[what]
    scene.database.run_sql(statements)
    url = scene.database.uri.replace("//admin@", "//reader@")
    done = scene.once(DATABASE_URL=url, DUMP_JOBS=jobs)
    assert_failed(done, 13, WORDS[language][0], remedy, nothing_left=scene)
    scene.database.run_sql("SELECT lo_unlink(oid) FROM pg_largeobject_metadata")


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_a_locked_table(jobs: str, scene: Scene, language: str) -> None:
    with scene.database.connect() as holder, holder.transaction():
        holder.execute("LOCK TABLE a_first IN ACCESS EXCLUSIVE MODE")
        done = scene.once(LOCK_TIMEOUT="1", DUMP_JOBS=jobs)
    assert_failed(done, 14, WORDS[language][0], "LOCK_TIMEOUT", nothing_left=scene)


def test_a_role_and_a_login(scene: Scene) -> None:
    done = scene.once(PG_DUMP_EXTRA_ARGS="--role=nobody_here")
    assert done.returncode == 19, done.stderr
    maintenance = scene.database.cluster.maintenance
    maintenance.run_sql(f"ALTER DATABASE {scene.database.name} ALLOW_CONNECTIONS false")
    done = scene.once()
    assert done.returncode == 11
    assert "accepts no connections" in done.stderr


CASTS = """
    CREATE DOMAIN d AS int;
    CREATE FUNCTION f(d) RETURNS text LANGUAGE sql AS 'SELECT ''''';
    CREATE CAST (d AS text) WITH FUNCTION f(d);
"""
BROKEN = {
    "before the rows": (
        f"""{CASTS}
        CREATE FUNCTION z() RETURNS language_handler LANGUAGE c
            AS '$libdir/plpgsql', 'plpgsql_call_handler';
        UPDATE pg_proc SET probin = '/nowhere/lib' WHERE proname = 'z';
        """,
        ["(SQLSTATE 58P01)", "does not have the library /nowhere/lib"],
    ),
    "after the rows": (
        f"""{CASTS}
        CREATE TABLE k (n int PRIMARY KEY); CREATE TABLE r (n int REFERENCES k);
        ALTER TABLE r DISABLE TRIGGER ALL; INSERT INTO r VALUES (1);
        """,
        ["(SQLSTATE 23503)", "violate a constraint"],
    ),
}


@pytest.mark.parametrize("jobs", ["1", "2"])
@pytest.mark.parametrize("what", BROKEN)
def test_a_restore(what: str, jobs: str, scene: Scene, tmp_path: Path) -> None:
    made, words = BROKEN[what]
    source: Database = scene.database
    source.run_sql(made)
    back_up(source, tmp_path, DUMP_JOBS="2")
    env = environment(
        PROGRAMS,
        STORAGE_URL=tmp_path.as_uri(),
        RESTORE_URL=source.cluster.maintenance.uri,
        RESTORE_JOBS=jobs,
    )
    done = run_pgstash(["restore", "--create", "never_made"], env)
    assert done.returncode == 62, done.stderr
    failure = done.stderr.partition("FAILURE ")[2]
    first = failure.partition("\n")[0]
    assert words[0] in first, done.stderr
    assert words[1] in failure, done.stderr
