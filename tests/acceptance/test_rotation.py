"""A new passphrase, and more rounds of PBKDF2: older backups are still read."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from support.backups import PASSPHRASE, PREFIX, back_up
from support.cli import environment, run_pgstash
from support.compare import compare
from support.postgres import Cluster, MakeDatabase, clean_environment

NEW = "the new passphrase, of more than thirty-two characters"
ROUNDS = "30000"


@pytest.mark.long
def test_a_changed_key_reads_old_and_new_backups(
    make_database: MakeDatabase, newest_cluster: Cluster, tmp_path: Path
) -> None:
    source = make_database("mixed")
    folder = tmp_path / "store"
    folder.mkdir()
    old = back_up(source, folder, encrypted=True)
    changed = {
        "BACKUP_ENCRYPTION_KEY": NEW,
        "BACKUP_ENCRYPTION_OLD_KEYS": f"never used\n{PASSPHRASE}",
        "BACKUP_ENCRYPTION_ITERATIONS": ROUNDS,
    }
    once = run_pgstash(
        ["once"],
        environment(
            source.bin_dir,
            DATABASE_URL=source.uri,
            STORAGE_URL=folder.as_uri(),
            BACKUP_ENCRYPTION="true",
            **changed,
        ),
    )
    assert once.returncode == 0, once.stdout + once.stderr
    *_, new = sorted((folder / PREFIX).glob("backup_????????_??????.sql.gz.enc"))
    metadata = json.loads(new.with_name(f".{new.name}.metadata.json").read_text())
    assert (metadata["format"], metadata["reader"]) == ("2", "0.3.0")
    assert metadata["encryption"] == f"aes-256-cbc pbkdf2 {ROUNDS}"
    assert (old.metadata["format"], old.metadata["reader"]) == ("1", "0.2.0")

    reading = environment(source.bin_dir, STORAGE_URL=folder.as_uri(), **changed)
    # Neither the setting nor its absence matters: each backup names its rounds.
    reading.pop("BACKUP_ENCRYPTION_ITERATIONS")
    shown = run_pgstash(["show"], reading)
    assert f"pbkdf2-hmac-sha256, {ROUNDS} rounds (-iter)" in shown.stdout, shown.stderr
    for name in (old.archive.name, new.name):
        target = make_database()
        done = run_pgstash(["restore", name, "--to", target.uri], reading)
        assert done.returncode == 0, done.stdout + done.stderr
        assert compare(source.conninfo, target.conninfo, bin_dir=source.bin_dir) == []
        drilled = run_pgstash(
            ["drill", name], reading | {"VERIFY_DATABASE_URL": newest_cluster.maintenance.uri}
        )
        assert drilled.returncode == 0, drilled.stdout + drilled.stderr

    wrong = reading | {"BACKUP_ENCRYPTION_OLD_KEYS": ""}
    refused = run_pgstash(["show", old.archive.name], wrong)
    assert refused.returncode == 31, refused.stderr
    assert f"encrypted with another key (id {old.metadata['key-id']})" in refused.stderr
    assert "BACKUP_ENCRYPTION_OLD_KEYS" in refused.stderr

    decrypt = f'openssl enc -d -aes-256-cbc -pbkdf2 -iter {ROUNDS} -pass env:KEY -in "$ARCHIVE"'
    opened = subprocess.run(
        ["bash", "-o", "pipefail", "-c", f"{decrypt} | gunzip"],
        env=clean_environment() | {"KEY": NEW, "ARCHIVE": str(new)},
        capture_output=True,
        check=False,
    )
    assert opened.returncode == 0, opened.stderr
    assert b"PostgreSQL database dump complete" in opened.stdout[-300:]
