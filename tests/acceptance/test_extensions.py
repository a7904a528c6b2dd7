"""Tables of extensions come back as they were, whoever restores; what no dump holds is named."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from support import backups, extension, pieces
from support.backups import PREFIX
from support.cli import TOOLS_ON_PATH_ALONE, environment, restore_to, run_pgstash
from support.compare import compare
from support.postgres import Cluster, Database, temporary_database
from support.tiers import later

if TYPE_CHECKING:
    from support.postgres import MakeDatabase

NEW = "extensions_restored"


@dataclass(frozen=True)
class Stored:
    source: Database
    folder: Path
    archive: Path


@pytest.fixture
def source(cluster: Cluster, make_database: MakeDatabase) -> Database:
    database = make_database(on=cluster)
    extension.fill(database)
    return database


@pytest.fixture(scope="module")
def stored(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stored]:
    """A backup by several sessions, of a database that no test changes."""
    with temporary_database(cluster) as database:
        extension.fill(database)
        folder = tmp_path_factory.mktemp("stored")
        yield Stored(database, folder, pieces.back_up(database, folder).archive)


@pytest.fixture
def created(cluster: Cluster) -> Iterator[Database]:
    """A database that the test makes, and leaves."""
    yield Database(cluster, NEW)
    cluster.drop_database(NEW)


def restored(folder: Path, on: Cluster, *arguments: str, **more: str) -> None:
    env = environment(
        on.maintenance.bin_dir,
        **{"STORAGE_URL": folder.as_uri(), "RESTORE_URL": on.maintenance.uri} | more,
    )
    done = run_pgstash(["restore", "--create", NEW, *arguments], env)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr


def assert_same(source: Database, target: Database) -> None:
    assert compare(source.conninfo, target.conninfo, bin_dir=target.bin_dir) == []


@pytest.mark.newest_first
@pytest.mark.parametrize("jobs", later(["1", "2", "4"], "4"))
def test_restored_by_any_number_of_sessions(jobs: str, stored: Stored, created: Database) -> None:
    restored(stored.folder, created.cluster, RESTORE_JOBS=jobs)
    assert_same(stored.source, created)


@pytest.mark.long
@pytest.mark.newest_first
def test_dumped_by_one_session(source: Database, created: Database, tmp_path: Path) -> None:
    # pg_dump's own order is that of names, whatever the rows need.
    source.run_sql("ALTER SCHEMA before_kit RENAME TO z")
    backup = backups.back_up(source, tmp_path, DUMP_JOBS="1")
    script = gzip.decompress(backup.archive.read_bytes())
    assert backup.manifest["raw_bytes"] == len(script)
    restored(tmp_path, source.cluster)
    assert_same(source, created)
    # And over what is there, by the drops.
    created.run_sql(script)
    assert_same(source, created)


@pytest.mark.newest_first
def test_standard_tools(stored: Stored, make_database: MakeDatabase) -> None:
    target = make_database(on=stored.source.cluster)
    target.run_sql(gzip.decompress(stored.archive.read_bytes()))
    assert_same(stored.source, target)


@pytest.mark.newest_first
def test_rows_of_the_target_stay(stored: Stored, make_database: MakeDatabase) -> None:
    """CREATE EXTENSION made none of them: they are somebody's."""
    target = make_database(on=stored.source.cluster)
    name = extension.install(target.cluster.major)
    target.run_sql(f"CREATE EXTENSION {name}; UPDATE kit.units SET factor = 2 WHERE name = 'foot'")
    env = environment(target.bin_dir, STORAGE_URL=stored.folder.as_uri(), RESTORE_URL=target.uri)
    done = run_pgstash(restore_to(env), env)
    assert done.returncode == 62, done.stdout
    assert "units_pkey" in done.stderr
    assert target.run_sql("SELECT factor FROM kit.units WHERE name = 'foot'").strip() == "2"


@pytest.mark.newest_first
def test_a_single_table_has_the_rows_that_it_needs(stored: Stored, created: Database) -> None:
    restored(stored.folder, created.cluster, "--table", "before_kit.measures")
    for table in ("before_kit.measures", "kit.units", "kit.rates"):
        rows = f"SELECT * FROM {table} ORDER BY 1, 2"
        assert created.run_sql(rows) == stored.source.run_sql(rows)
    assert created.run_sql("SELECT count(*) FROM before_kit.ells").strip() == "0"


@pytest.mark.newest_first
@pytest.mark.parametrize("jobs", later(["1", "2"], "1"))
def test_drilled(jobs: str, stored: Stored, scratch: Path) -> None:
    proof = drilled(stored.folder, scratch, stored.source, RESTORE_JOBS=jobs)
    assert proof["warnings"] == []


def drilled(folder: Path, scratch: Path, source: Database, **more: str) -> dict[str, object]:
    env = environment(
        source.bin_dir, **{"STORAGE_URL": folder.as_uri(), "TMPDIR": str(scratch)} | more
    )
    # No other server has the extension.
    done = run_pgstash(["drill"], env, statements=TOOLS_ON_PATH_ALONE)
    assert done.returncode == 0, done.stdout + done.stderr
    *_, proof = sorted((folder / PREFIX).glob("backup_*.proof_*"))
    found: dict[str, object] = json.loads(gzip.decompress(proof.read_bytes()))
    return found


LEFT_OUT = (
    r"pg_dump leaves out the rows of 2 tables that belong to extensions: "
    r"kit\.log \(about \d rows, extension (pgstash_\w+)\), "
    r"public\.mine \(about \d rows, extension \1\)"
)


@pytest.mark.long
@pytest.mark.newest_first
def test_what_no_dump_holds_is_named(source: Database, tmp_path: Path, scratch: Path) -> None:
    name = extension.install(source.cluster.major)
    source.run_sql(
        "INSERT INTO kit.log (what) VALUES ('a'), ('b');"
        "CREATE TABLE mine (n int); INSERT INTO mine VALUES (1), (2), (3);"
        "CREATE TABLE empty (n int);"
        f"ALTER EXTENSION {name} ADD TABLE mine; ALTER EXTENSION {name} ADD TABLE empty;"
        "ANALYZE kit.log; ANALYZE mine"
    )
    env = environment(source.bin_dir, **backups.settings(source, tmp_path))
    done = run_pgstash(["check"], env)
    assert re.search(r"warning +extensions +" + LEFT_OUT, done.stdout), done.stdout
    assert "ALTER EXTENSION … DROP TABLE" in done.stdout
    done = run_pgstash(["once"], env)
    assert done.returncode == 0
    assert re.search("WARNING " + LEFT_OUT, done.stderr), done.stderr
    [backup] = backups.stored(tmp_path)
    assert [(each["name"], each["extension"]) for each in backup.manifest["left_out"]] == [
        ("log", name),
        ("mine", name),
    ]
    warnings = drilled(tmp_path, scratch, source)["warnings"]
    assert isinstance(warnings, list)
    assert len(warnings) == 1
    assert re.search(LEFT_OUT.replace("pg_dump leaves out", "does not contain"), warnings[0])
    # Who left them out on purpose knows.
    only = run_pgstash(["once"], env | {"PG_DUMP_EXTRA_ARGS": "-T public.mine -T kit.log"})
    assert "kit.log" not in only.stderr


@pytest.mark.newest_first
def test_a_sequence_that_may_not_be_read_is_named(source: Database, tmp_path: Path) -> None:
    source.run_sql(
        "DROP ROLE IF EXISTS reader_of_kit; CREATE ROLE reader_of_kit LOGIN;"
        "GRANT USAGE ON SCHEMA kit, before_kit TO reader_of_kit;"
        "GRANT SELECT ON ALL TABLES IN SCHEMA kit, before_kit TO reader_of_kit;"
        "GRANT SELECT ON SEQUENCE kit.numbers, kit.keyed_n_seq TO reader_of_kit"
    )
    uri = source.uri.replace("admin@", "reader_of_kit@")
    env = environment(source.bin_dir, DATABASE_URL=uri, STORAGE_URL=tmp_path.as_uri())
    try:
        for command in ("check", "once"):
            done = run_pgstash([command], env)
            assert (
                'reader_of_kit may not read 1 sequence of an extension: "kit"."rates_id_seq"'
                in (done.stdout + done.stderr)
            )
            assert 'GRANT SELECT ON SEQUENCE "kit"."rates_id_seq" TO reader_of_kit;' in (
                done.stdout + done.stderr
            )
        assert done.returncode == 0
    finally:
        source.run_sql("DROP OWNED BY reader_of_kit; DROP ROLE reader_of_kit")
