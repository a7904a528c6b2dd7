"""Both ways back are proven by drills, and that of several sessions keeps its memory bounded."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from acceptance.test_resources import MEASURE
from pgstash import events
from pgstash.drill import run as drill
from pgstash.drill.checks import Expected
from pgstash.drill.scratch import Place
from pgstash.errors import CorruptedError
from pgstash.format.proof import Proof
from pgstash.repository import archive, catalog
from pgstash.repository.access import Access
from pgstash.runtime import Runtime
from pgstash.storage.directory.storage import DirectoryStorage
from support import backups, pieces
from support.backups import PASSPHRASE, PREFIX
from support.cli import COMMAND, environment, run_pgstash
from support.fake_tools import MIB
from support.postgres import Cluster, Database, clean_environment
from support.tiers import ENCRYPTED_FIRST

if TYPE_CHECKING:
    from support.postgres import MakeDatabase

CEILING = 256 * MIB
PLAIN_WAY, BY_SESSIONS = 0, 255
WITH_PASSPHRASE = Access(PASSPHRASE, unverified=False, only_encrypted=False)


def drilled(
    folder: Path,
    on: Cluster,
    chance: int,
    *,
    path: str | None = None,
    emit: events.Emit = events.ignore,
    access: Access = WITH_PASSPHRASE,
) -> Proof:
    """Drill the latest backup on a server; ``chance`` is what each random byte is.

    ``path`` replaces PATH where it is given.
    """
    found = clean_environment(on.maintenance.bin_dir)
    storage = DirectoryStorage(folder)

    def find() -> drill.Found:
        backup = catalog.find(catalog.read(storage, PREFIX), "latest", datetime.now(UTC))
        return drill.Found(backup.name, lambda: archive.open_stored(storage, backup, access))

    plan = drill.Plan(
        prefix=PREFIX,
        place=Place(scratch_url=on.maintenance.uri, source_url=None),
        jobs=2,
        expected=Expected(min_tables=None, statements=None),
        environment=found if path is None else found | {"PATH": path},
    )
    runtime = Runtime(emit, random=lambda count: bytes([chance]) * count)
    return drill.run(plan, storage, "latest", find, runtime)


@pytest.mark.parametrize("encrypted", ENCRYPTED_FIRST)
@pytest.mark.parametrize(
    ("chance", "way"),
    [
        (PLAIN_WAY, ", and of the archive, read as one script"),
        pytest.param(31, ", and of the archive, read as one script", marks=pytest.mark.long),
        pytest.param(32, ", read by 2 sessions", marks=pytest.mark.long),
        (BY_SESSIONS, ", read by 2 sessions"),
    ],
)
def test_the_proof_says_which_way_it_was(
    chance: int,
    way: str,
    newest_cluster: Cluster,
    mixed: dict[bool, Path],
    *,
    encrypted: bool,
) -> None:
    proof = drilled(mixed[encrypted], newest_cluster, chance)
    found = {check.name: check.found for check in proof.checks}
    assert found["digests"].endswith(way)
    assert all(check.passed for check in proof.checks)
    looked_at = {"digests", "restore", "rows", "indexes", "constraints", "sequences"}
    looked_at.add("owners and privileges")
    assert set(found) == looked_at | ({"standard tools"} if "one script" in way else set())
    assert proof.rows > 0
    assert proof.warnings == []
    assert left(newest_cluster) == ""


@pytest.fixture(scope="module")
def mixed(
    newest_cluster: Cluster, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[bool, Path]]:
    """Two folders, each with a backup of several sessions; only the second is encrypted."""
    source = newest_cluster.load_sample("mixed", f"drilled_{os.getpid()}")
    folders = {encrypted: tmp_path_factory.mktemp("mixed") for encrypted in (False, True)}
    for encrypted, folder in folders.items():
        pieces.back_up(source, folder, encrypted=encrypted)
    yield folders
    source.drop()


def left(on: Cluster) -> str:
    return on.maintenance.run_sql(
        r"SELECT datname FROM pg_database WHERE datname LIKE 'pgstash\_drill\_%'"
    )


@pytest.mark.parametrize("chance", [PLAIN_WAY, BY_SESSIONS], ids=["plain way", "by sessions"])
def test_a_schema_that_is_gone_fails_the_drill(
    chance: int, newest_cluster: Cluster, make_database: MakeDatabase, tmp_path: Path
) -> None:
    pieces.back_up(make_database("mixed"), tmp_path)
    [schema] = (tmp_path / PREFIX).glob("backup_*.schema.gz")
    schema.unlink()
    with pytest.raises(CorruptedError, match=r"the schema companion of backup_.* is missing"):
        drilled(tmp_path, newest_cluster, chance)
    assert list((tmp_path / PREFIX).glob("*.proof_*")) == []
    assert left(newest_cluster) == ""
    env = environment(
        newest_cluster.maintenance.bin_dir,
        STORAGE_URL=tmp_path.as_uri(),
        VERIFY_DATABASE_URL=newest_cluster.maintenance.uri,
    )
    done = run_pgstash(["drill"], env)
    assert done.returncode == CorruptedError.exit_code == 31
    assert "with RESTORE_JOBS=1" in done.stderr


@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "encrypted"])
@pytest.mark.long
def test_memory_of_several_sessions_is_bounded(
    newest_cluster: Cluster, make_database: MakeDatabase, tmp_path: Path, *, encrypted: bool
) -> None:
    """Members of full size, several times as large together as what may be held."""
    source = make_database()
    for number in range(4):
        source.run_sql(
            f"CREATE TABLE wide_{number} AS SELECT n, (SELECT string_agg(md5((n * {number + 1}"
            " + i * 1000000)::text), '') FROM generate_series(1, 300) i) AS line"
            " FROM generate_series(1, 16000) n"
        )
        source.run_sql(f"ALTER TABLE wide_{number} ADD PRIMARY KEY (n)")
    backup = backups.back_up(source, tmp_path, encrypted=encrypted, COMPRESSION_LEVEL="1")
    assert backup.manifest["schema_sha256"]
    assert backup.manifest["raw_bytes"] > 2 * CEILING
    made = Database(newest_cluster, f"bounded_{os.getpid()}")
    env = environment(
        source.bin_dir,
        STORAGE_URL=tmp_path.as_uri(),
        RESTORE_URL=newest_cluster.maintenance.uri,
        RESTORE_JOBS="2",
        BACKUP_ENCRYPTION_KEY=PASSPHRASE,
    )
    command: list[str | Path] = [COMMAND, "restore", "--create", made.name]
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", MEASURE, *command],
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            check=True,
        )
        assert made.run_sql("SELECT count(*) FROM wide_3") == "16000\n"
    finally:
        newest_cluster.drop_database(made.name)
    assert int(done.stderr) <= CEILING
