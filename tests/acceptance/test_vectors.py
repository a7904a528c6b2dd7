"""Backups that earlier versions stored are read by this one: the sets in ``tests/vectors``."""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from pgstash.format import manifest as manifests
from pgstash.format import names
from support import backups
from support.cli import environment, run_pgstash
from support.postgres import REPOSITORY, Database, bin_dir, temporary_database
from vectors.make import KEY, READING, SHELL, SUMS, digests

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from support.postgres import Cluster

VECTORS = REPOSITORY / "tests" / "vectors"
SETS = sorted(path.name for path in VECTORS.iterdir() if path.name[0].isdigit())
STORED = [
    (name, prefix) for name in SETS for prefix in READING if (VECTORS / name / prefix).is_dir()
]


def archives_in(folder: Path) -> list[str]:
    """Return the names of the archives, the newest first."""
    found = [path.name for path in folder.glob("backup_*")]
    return sorted(filter(names.ARCHIVE_NAME.fullmatch, found), reverse=True)


ARCHIVES = [
    pytest.param(
        *(name, folder.name, archive),
        id=f"{name}-{folder.name}-{archive}",
        marks=pytest.mark.long if number else (),  # one database is in all of a folder
    )
    for name in SETS
    for folder in sorted(path for path in (VECTORS / name).iterdir() if path.is_dir())
    for number, archive in enumerate(archives_in(folder))
]
FILLED = ("host", "client", "tool")


def store(name: str, prefix: str, *, with_key: bool = True) -> dict[str, str]:
    settings = {"STORAGE_URL": (VECTORS / name).as_uri(), "BACKUP_PREFIX": prefix}
    return {**settings, **(READING.get(prefix, KEY) if with_key else {})}


def expected(name: str, prefix: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((VECTORS / name / "expected.json").read_text())[prefix]
    return found


def run(arguments: list[str], env: Mapping[str, str]) -> str:
    done = run_pgstash(arguments, env)
    assert done.returncode == 0, done.stderr
    return done.stdout


def holds(found: Any, wanted: Any) -> bool:
    """Tell whether all that was recorded is there: a later version may print more."""
    if isinstance(wanted, dict) and wanted.keys() == {"columns", "rows"}:
        at = [found["columns"].index(column) for column in wanted["columns"]]
        found, wanted = [[row[each] for each in at] for row in found["rows"]], wanted["rows"]
    if isinstance(wanted, dict):
        return found.keys() >= wanted.keys() and all(
            holds(found[key], each) for key, each in wanted.items()
        )
    if isinstance(wanted, list):
        return len(found) == len(wanted) and all(map(holds, found, wanted))
    return bool(found == wanted)


def changes(folder: Path) -> set[tuple[str, str]]:
    """Return which files are not those that were stored: what ``sha256sum --check`` would say."""
    lines = (folder / SUMS).read_text().splitlines()
    listed = {path: digest for digest, path in (line.split("  ", 1) for line in lines)}
    return set(listed.items()) ^ set(digests(folder).items())


def test_there_is_a_set_of_each_format() -> None:
    formats = {int(name.partition(".")[0]) for name in SETS}
    assert formats == set(range(1, manifests.NEWEST + 1))


@pytest.mark.parametrize("name", SETS)
def test_no_byte_of_a_set_has_changed(name: str) -> None:
    assert changes(VECTORS / name) == set()


@pytest.mark.parametrize("name", SETS)
def test_a_changed_byte_of_a_set_is_noticed(name: str, tmp_path: Path) -> None:
    copy = shutil.copytree(VECTORS / name, tmp_path / "copy")
    files = sorted(path for path in copy.rglob("*") if path.is_file() and path.name != SUMS)
    assert len(files) > len(ARCHIVES) // len(SETS) * 3
    for path in files:
        data = path.read_bytes()
        path.write_bytes(bytes([data[0] ^ 1]) + data[1:])
        assert {changed for changed, _ in changes(copy)} == {str(path.relative_to(copy))}
        path.unlink()
        assert {changed for changed, _ in changes(copy)} == {str(path.relative_to(copy))}
        path.write_bytes(data)
    (copy / "encrypted" / "another").touch()
    assert {changed for changed, _ in changes(copy)} == {"encrypted/another"}


@pytest.mark.parametrize(("name", "prefix"), STORED)
def test_they_are_listed_without_the_key(name: str, prefix: str) -> None:
    env = environment(**store(name, prefix, with_key=False))
    listed = {each["name"]: each for each in json.loads(run(["list", "--json"], env))}
    wanted = expected(name, prefix)["list"]
    assert listed.keys() == {each["name"] for each in wanted}
    for each in wanted:
        assert each["proven"]
        # Earlier versions did not read the metadata that these are in.
        recorded = {key: each[key] for key in each if key not in FILLED or each[key] is not None}
        assert holds(listed[each["name"]], recorded), (listed[each["name"]], recorded)
        shown = expected(name, prefix)["show"][each["name"]]
        filled = {key: listed[each["name"]][key] for key in FILLED}
        assert filled == {
            "host": shown["database"]["host"],
            "client": shown["client"],
            "tool": shown["tool"],
        }


@pytest.mark.parametrize(("name", "prefix", "archive"), ARCHIVES)
def test_each_is_shown_and_written_out(name: str, prefix: str, archive: str) -> None:
    env = environment(**store(name, prefix))
    if prefix == SHELL:
        data = (VECTORS / name / prefix / archive).read_bytes()
        script = gzip.decompress(backups.decrypted(data) if archive.endswith(".enc") else data)
        wanted = hashlib.sha256(script).hexdigest()
        assert archive in run(["list"], env)
        assert run_pgstash(["show", archive], env).returncode == 32
        unverified = ["--unverified"]
    else:
        shown, recorded = json.loads(run(["show", archive, "--json"], env)), expected(name, prefix)
        assert holds(shown, recorded["show"][archive]), (shown, recorded["show"][archive])
        wanted = recorded["script_sha256"][archive]
        unverified = []
    written = run(["cat", archive, *unverified], env)
    assert hashlib.sha256(written.encode()).hexdigest() == wanted


@pytest.fixture
def server(cluster: Cluster) -> Iterator[Cluster]:
    """A server without the role that the backups name."""
    yield cluster
    cluster.drop_database("vectors")
    cluster.maintenance.run_sql("DROP ROLE IF EXISTS vectors_reader, vectors_other")


@pytest.mark.newest_first
@pytest.mark.parametrize(("name", "prefix", "archive"), ARCHIVES)
def test_each_is_restored(server: Cluster, name: str, prefix: str, archive: str) -> None:
    env = environment(
        bin_dir(server.major), RESTORE_URL=server.maintenance.uri, **store(name, prefix)
    )
    folder = VECTORS / name
    if prefix == SHELL:
        server.maintenance.run_sql("CREATE ROLE vectors_reader")
        target = server.create_database("vectors")
        into = ["--to", target.uri, "--unverified"]
    else:
        into = ["--create", "vectors", "--create-roles"]
    run(["restore", archive, *into], env)
    target = Database(server, "vectors")
    assert target.run_sql(folder / "contents.sql") == (folder / "contents.txt").read_text()
    if prefix != SHELL:
        assert target.run_sql("SHOW DateStyle") == "ISO, DMY\n"


@pytest.mark.parametrize(("name", "prefix"), STORED)
def test_one_table_of_each_is_restored(newest_cluster: Cluster, name: str, prefix: str) -> None:
    shown = expected(name, prefix)["show"]
    [by_several] = [each for each in shown if shown[each]["schema_sha256"]]
    env = environment(bin_dir(newest_cluster.major), **store(name, prefix))
    with temporary_database(newest_cluster) as target:
        target.run_sql("CREATE TABLE events_2025 (id integer, at date, what text)")
        into = ["--to", target.uri, "--table", "public.events_2025", "--data-only"]
        run(["restore", by_several, *into], env)
        rows = target.run_sql("SELECT 'events_2025', * FROM events_2025 ORDER BY id")
    assert rows.count("\n") == 30
    assert rows in (VECTORS / name / "contents.txt").read_text()
