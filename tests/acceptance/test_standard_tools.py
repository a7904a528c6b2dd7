"""A drill that reads the script as standard tools do has these read it, and believes them."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from acceptance.test_loading import PLAIN_WAY, drilled, left
from pgstash import events
from pgstash.errors import CorruptedError, DrillFailedError
from support import pieces
from support.backups import PASSPHRASE, PREFIX, StoredBackup
from support.postgres import SYSTEM_PATH, Cluster
from support.tiers import later

ENCRYPTED = pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "encrypted"])
NAMES = {False: "gunzip", True: "openssl and gunzip"}


@pytest.fixture(scope="module")
def stored(
    newest_cluster: Cluster, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[bool, StoredBackup]]:
    """Two backups of several sessions; only the second is encrypted."""
    source = newest_cluster.load_sample("structure", f"opened_{os.getpid()}")
    yield {
        encrypted: pieces.back_up(source, tmp_path_factory.mktemp("stored"), encrypted=encrypted)
        for encrypted in (False, True)
    }
    source.drop()


def folder(backup: StoredBackup) -> Path:
    return backup.archive.parent.parent


def proofs(backup: StoredBackup) -> set[Path]:
    return set(backup.archive.parent.glob("*.proof_*"))


def path_with(cluster: Cluster, tools: Path, *, without: str = "") -> str:
    """Return a PATH that begins with the folder of these tools; one tool may be nowhere on it."""
    system = [str(cluster.maintenance.bin_dir), *SYSTEM_PATH]
    if without:
        for name in {"sh", "cat", "wc", "gunzip", "gzip", "openssl"} - {without}:
            tools.joinpath(name).symlink_to(str(shutil.which(name)))
        system = system[:1]
    return os.pathsep.join([str(tools), *system])


def fake(tools: Path, name: str, script: str) -> None:
    path = tools / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)


@ENCRYPTED
def test_openssl_and_gunzip_read_it_to_its_end(
    stored: dict[bool, StoredBackup], newest_cluster: Cluster, *, encrypted: bool
) -> None:
    said: list[events.Event] = []
    proof = drilled(folder(stored[encrypted]), newest_cluster, PLAIN_WAY, emit=said.append)
    found = {check.name: check.found for check in proof.checks}
    size = stored[encrypted].manifest["raw_bytes"]
    assert found["standard tools"] == f"{NAMES[encrypted]} wrote {size} bytes"
    tools = {event.tool for event in said if isinstance(event, events.ToolSaid)}
    assert tools <= {"psql"}  # the server warns of publications


REAL = f'PATH={os.pathsep.join(SYSTEM_PATH)} exec {{}} "$@"'
FAULTS = {
    "fails at once": ("exit 7", "\nfailed\n"),
    "fails after it wrote everything": ("{}; exit 7", "\nfailed\n"),
    "says why": ("echo 'no such cipher' >&2; exit 7", "no such cipher"),
    "stops in the middle, and is content": ("head -c 3000 | {}", ""),
    "is killed": ("kill -9 $$", "\nfailed\n"),
}


@pytest.mark.parametrize("fault", later(FAULTS, "fails at once", "is killed"))
@pytest.mark.parametrize("tool", later(["openssl", "gunzip"], "gunzip"))
def test_what_the_tools_do_not_open_is_not_proven(
    tool: str,
    fault: str,
    stored: dict[bool, StoredBackup],
    newest_cluster: Cluster,
    tmp_path: Path,
) -> None:
    script, why = FAULTS[fault]
    real = REAL.format(tool)
    fake(tmp_path, tool, script.format(f"( {real} )"))
    path = path_with(newest_cluster, tmp_path)
    before = proofs(stored[True])
    with pytest.raises(DrillFailedError) as caught:
        drilled(folder(stored[True]), newest_cluster, PLAIN_WAY, path=path)
    assert str(caught.value).startswith("1 of 8 checks failed:\nstandard tools: openssl and gunzip")
    assert why in str(caught.value)
    assert PASSPHRASE not in str(caught.value)
    assert proofs(stored[True]) == before
    assert left(newest_cluster) == ""


def test_what_is_one_byte_short_is_noticed(
    stored: dict[bool, StoredBackup], newest_cluster: Cluster, tmp_path: Path
) -> None:
    fake(tmp_path, "gunzip", f"( {REAL.format('gunzip')} ) | head -c -1")
    size = stored[False].manifest["raw_bytes"]
    path = path_with(newest_cluster, tmp_path)
    with pytest.raises(DrillFailedError, match=rf"\n{size - 1}\Z"):
        drilled(folder(stored[False]), newest_cluster, PLAIN_WAY, path=path)


@ENCRYPTED
def test_damage_is_told_as_damage(
    stored: dict[bool, StoredBackup],
    newest_cluster: Cluster,
    tmp_path: Path,
    *,
    encrypted: bool,
) -> None:
    """The tools meet it too, maybe sooner: what they say of it is less."""
    shutil.copytree(folder(stored[encrypted]), tmp_path, dirs_exist_ok=True)
    copy = tmp_path / PREFIX / stored[encrypted].archive.name
    data = bytearray(copy.read_bytes())
    data[len(data) // 2] ^= 1
    copy.write_bytes(data)
    with pytest.raises(CorruptedError, match="is not what was stored"):
        drilled(tmp_path, newest_cluster, PLAIN_WAY)
    assert left(newest_cluster) == ""


@pytest.mark.parametrize("tool", later(["openssl", "gunzip"], "gunzip"))
def test_without_the_tools_a_drill_does_without(
    tool: str, stored: dict[bool, StoredBackup], newest_cluster: Cluster, tmp_path: Path
) -> None:
    said: list[events.Event] = []
    path = path_with(newest_cluster, tmp_path, without=tool)
    proof = drilled(folder(stored[True]), newest_cluster, PLAIN_WAY, path=path, emit=said.append)
    assert "standard tools" not in {check.name for check in proof.checks}
    notices = [event.message for event in said if isinstance(event, events.Notice)]
    assert f"Skipping the standard tools: not found on PATH: {tool}" in notices
