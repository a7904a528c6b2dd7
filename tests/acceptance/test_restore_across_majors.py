"""A backup is the database again on a newer server, and whatever databases are called.

Majors word one schema in different ways. So the schema is compared with that of a database which
psql alone made on the same server, from a dump that pgstash never saw; rows, sequences and large
objects with the source itself.
"""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING

import pytest

from support import databases
from support.backups import PASSPHRASE, back_up
from support.cli import environment, restore_to, run_pgstash
from support.compare import compare
from support.postgres import Clusters, Database, MakeDatabase, beside_publications
from support.postgres import test_majors as majors_under_test
from support.tiers import later

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.postgres import Cluster

SAMPLES = (*databases.ROUND_TRIPPING, "breaks_under_clean")
MAJORS = majors_under_test()
FARTHEST = (MAJORS[0], MAJORS[-1])
# Of the first tier, between the majors that are farthest apart; all else is long.
TO_BEGIN_WITH = ("structure", "large_objects")
# What libpq, a shell, a URI, psql or a file name could take for something else.
ODD = 'o\'dd "na=me" %41/\\ $(x)`x` :x #?&@ ü😀'


@pytest.fixture
def drop_later() -> Iterator[list[Database]]:
    made: list[Database] = []
    yield made
    for database in made:
        database.drop()


def restore(folder: Path, target: Database, *arguments: str) -> None:
    """Restore with pgstash, which says nothing but what it did."""
    env = environment(
        target.bin_dir,
        STORAGE_URL=folder.as_uri(),
        RESTORE_URL=target.uri,
        BACKUP_ENCRYPTION_KEY=PASSPHRASE,
    )
    done = run_pgstash(restore_to(env, *arguments), env)
    assert (done.returncode, beside_publications(done.stderr)) == (0, []), done.stdout


def by_psql_alone(source: Database, target: Database) -> Database:
    target.run_sql(source.plain_dump("--no-owner", "--no-acl"))
    return target


def beside_schema(source: Database, target: Database) -> list[str]:
    found = compare(source.conninfo, target.conninfo, bin_dir=target.bin_dir)
    return [line for line in found if not line.startswith("schema: ")]


def upgrades() -> list[object]:
    """Return every sample on every newer major for every major."""
    return [
        pytest.param(
            older,
            newer,
            sample,
            id=f"{sample}-pg{older}-pg{newer}",
            marks=()
            if (older, newer) == FARTHEST and sample in TO_BEGIN_WITH
            else pytest.mark.long,
        )
        for older, newer in combinations(MAJORS, 2)
        for sample in SAMPLES
    ]


@pytest.mark.parametrize(("older", "newer", "sample"), upgrades())
def test_on_a_newer_server(
    *,
    older: int,
    newer: int,
    sample: str,
    clusters: Clusters,
    make_database: MakeDatabase,
    drop_later: list[Database],
    tmp_path: Path,
) -> None:
    source, on = make_database(sample, on=clusters.get(older)), clusters.get(newer)
    encoding = databases.encoding(sample)
    reference, target = (
        on.create_database(f"{which}_{source.name}", encoding=encoding)
        for which in ("psql", "ours")
    )
    drop_later += [reference, target]
    back_up(source, tmp_path, encrypted=True)
    restore(tmp_path, target)
    by_psql_alone(source, reference)
    assert compare(reference.conninfo, target.conninfo, bin_dir=target.bin_dir) == []
    assert beside_schema(source, target) == []


@pytest.mark.newest_first
@pytest.mark.parametrize(
    "case", later(databases.BREAKING_UNDER_CLEAN, "domain", "inherited default")
)
@pytest.mark.parametrize("into", ["empty", pytest.param("new", marks=pytest.mark.long)])
def test_what_breaks_under_clean(
    *,
    into: str,
    case: str,
    cluster: Cluster,
    make_database: MakeDatabase,
    drop_later: list[Database],
    tmp_path: Path,
) -> None:
    source = make_database(on=cluster)
    source.run_sql(databases.BREAKING_UNDER_CLEAN[case])
    back_up(source, tmp_path)
    target = make_database(on=cluster)
    if into == "empty":
        restore(tmp_path, target)
    else:
        restored = Database(cluster, f"new_{source.name}")
        drop_later.append(restored)
        restore(tmp_path, target, "--create", restored.name)
        target = restored
    assert compare(source.conninfo, target.conninfo, bin_dir=source.bin_dir) == []


@pytest.mark.newest_first
@pytest.mark.parametrize("sample", later(["odd_names", "large_objects"], "large_objects"))
def test_odd_names_of_databases(
    sample: str, cluster: Cluster, drop_later: list[Database], tmp_path: Path
) -> None:
    source = cluster.load_sample(sample, f"from {ODD}")
    drop_later.append(source)
    target = cluster.create_database(f"into {ODD}")
    drop_later.append(target)
    backup = back_up(source, tmp_path, encrypted=True)
    assert backup.manifest["database"]["name"] == source.name
    restore(tmp_path, target)
    assert compare(source.conninfo, target.conninfo, bin_dir=source.bin_dir) == []
    made = Database(cluster, f"made {ODD}")
    drop_later.append(made)
    restore(tmp_path, target, "--create", made.name)
    assert compare(source.conninfo, made.conninfo, bin_dir=source.bin_dir) == []
