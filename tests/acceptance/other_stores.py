"""The life of a backup in a store other than S3, through the command line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from pgstash import events, settings
from pgstash.commands.storage import open_storage
from support.cli import run_pgstash
from support.compare import compare
from support.postgres import Database

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pgstash.storage.interface import Storage

NO_FILE = Path("/nonexistent/.env")
OLD = "backup_20200101_000000"


def opened(env: Mapping[str, str]) -> Storage:
    """Return the store of the settings."""
    return open_storage(
        settings.load(dict(env), NO_FILE, needs=["storage"], only_reads=True), events.ignore
    )


def store_an_old_copy(storage: Storage) -> list[str]:
    """Store the objects of the only backup again, as an old one; return the keys."""
    made = []
    for found in list(storage.list("")):
        with storage.read(found.key) as chunks:
            data = b"".join(chunks)
        made.append(re.sub(r"backup_\d{8}_\d{6}", OLD, found.key))
        storage.put(made[-1], data, storage.head(found.key).metadata)
    return made


def assert_read_proven_and_pruned(env: dict[str, str], source: Database) -> str:
    """Read, restore and drill the only backup, and prune an older one; return what was printed."""
    storage = opened(env)
    printed = []

    def run(*arguments: str, **more: str) -> str:
        done = run_pgstash(arguments, env | more)
        assert done.returncode == 0, done.stdout + done.stderr
        printed.append(done.stdout + done.stderr)
        return done.stdout

    assert source.name in run("show")
    assert "PostgreSQL database dump complete" in run("cat")

    maintenance = source.cluster.maintenance.uri
    name = f"{source.name}_again"
    try:
        run("restore", "--create", name, "--to", maintenance)
        target = Database(source.cluster, name)
        assert compare(source.conninfo, target.conninfo, bin_dir=source.bin_dir) == []
    finally:
        source.cluster.drop_database(name)

    run("drill", VERIFY_DATABASE_URL=maintenance)
    old = store_an_old_copy(storage)
    assert len(re.findall(r"backup_\d{8}_\d{6}\.sql\.gz", run("list"))) == 2
    [proof] = [each.key for each in storage.list("") if _is_proof(each.key) and each.key not in old]
    storage.delete([proof])
    run("prune", BACKUP_RETENTION_DAYS="7")  # the old one is the only one that is proven
    assert set(old) <= {found.key for found in storage.list("")}
    run("drill", VERIFY_DATABASE_URL=maintenance)
    before = {found.key for found in storage.list("")}
    run("prune", BACKUP_RETENTION_DAYS="7")
    left = {found.key for found in storage.list("")}
    assert left == {key for key in before if OLD not in key}
    assert any(map(_is_proof, left))
    return "".join(printed)


def _is_proof(key: str) -> bool:
    return ".proof_" in key
