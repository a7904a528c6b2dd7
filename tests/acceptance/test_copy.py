"""`pgstash copy`: backups in another place, as a user makes and reads them."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import shutil
import signal
import socket
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pgstash.storage.directory.storage import DirectoryStorage
from support.backups import PREFIX
from support.backups import settings as local
from support.cli import environment, run_pgstash, started_pgstash
from support.proxy import Hang, HttpProxy
from support.stored import CLOSING, make

if TYPE_CHECKING:
    from support.postgres import MakeDatabase
    from support.swift import SwiftServer

ABORT_SECONDS = 10  # what a container has

SHOP = {"database": "shop", "host": "db.internal", "port": "5432", "system": "7301"}
BLOG = {"database": "blog", "host": "db.internal", "port": "5432", "system": "7301"}
FIRST, SECOND = "backup_20260131_020000", "backup_20260201_020000"


def store(folder: Path, base: str, source: dict[str, str] = SHOP, script: bytes = CLOSING) -> str:
    """Store a backup of a source; return the name of its archive."""
    storage, made = DirectoryStorage(folder), make(script, base=base)
    id_ = {"id": made.manifest.id}
    for key, data, facts in (
        (made.manifest_key, made.packed_manifest(), {"sha256": made.manifest.sha256}),
        (made.key, made.archive, {}),
    ):
        storage.put(key.replace("p/", f"{PREFIX}/"), data, id_ | source | facts)
    return made.manifest.archive


@pytest.fixture
def primary(tmp_path: Path) -> Path:
    folder = tmp_path / "primary"
    folder.mkdir()
    return folder


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    folder = tmp_path / "disk"
    folder.mkdir()
    return folder


def reader(folder: Path, **more: str) -> dict[str, str]:
    return environment(STORAGE_URL=folder.as_uri(), **more)


def stored(folder: Path) -> list[str]:
    return sorted(each.name for each in (folder / PREFIX).glob("backup_????????_??????.sql.gz"))


def test_the_latest_backup_is_copied_to_a_disk_and_read_there(primary: Path, disk: Path) -> None:
    store(primary, FIRST)
    name = store(primary, SECOND, script=b"SELECT 1;\n" + CLOSING)
    done = run_pgstash(["copy", "--to", disk], reader(primary))
    assert done.returncode == 0, done.stderr
    assert f"Copied {name} to {disk}" in done.stdout
    assert f"Copy location: {disk.as_uri()}/{PREFIX}/{name}" in done.stdout
    assert stored(disk) == [name]
    script = run_pgstash(["cat"], reader(disk))
    assert (script.returncode, script.stdout) == (0, "SELECT 1;\n" + CLOSING.decode())

    again = run_pgstash(["copy", "--to", disk.as_uri(), "--json"], reader(primary))
    facts = json.loads(again.stdout)
    assert (facts["status"], facts["exit_code"]) == ("success", 0)
    [copy] = facts["copies"]
    assert (copy["backup"], copy["status"], copy["sent_bytes"]) == (name, "present", 0)
    assert copy["verified"] is None


def test_all_backups_of_the_source_are_copied_and_no_others(primary: Path, disk: Path) -> None:
    mine = [store(primary, FIRST), store(primary, SECOND)]
    store(primary, "backup_20260202_020000", BLOG)
    env = reader(primary)
    unclear = run_pgstash(["copy", "--all", "--to", disk], env)
    assert unclear.returncode == 27
    assert not (disk / PREFIX).exists()
    done = run_pgstash(["copy", "--all", "--source", "shop", "--to", disk, "--json"], env)
    assert done.returncode == 0, done.stderr
    assert [each["backup"] for each in json.loads(done.stdout)["copies"]] == mine[::-1]
    assert stored(disk) == mine
    again = run_pgstash(["copy", "--all", "--source", "shop", "--to", disk], env)
    assert again.returncode == 0
    assert f"{disk} has every backup" in again.stdout


def test_one_place_that_fails_does_not_keep_back_the_others(primary: Path, disk: Path) -> None:
    name = store(primary, FIRST)
    missing = disk / "not-mounted"
    done = run_pgstash(["copy", "--to", missing, "--to", disk, "--json"], reader(primary))
    failed, copied = json.loads(done.stdout)["copies"]
    assert (failed["status"], failed["copy"]) == ("failed", str(missing))
    assert copied["status"] == "copied"
    assert done.returncode == failed["exit_code"] == json.loads(done.stdout)["exit_code"] != 0
    assert stored(disk) == [name]
    assert not missing.exists()
    assert "FAILURE" in done.stderr or "ERROR" in done.stderr
    assert f"No backup was copied to {missing}" in done.stderr


def test_a_damaged_backup_is_not_copied(primary: Path, disk: Path) -> None:
    good = store(primary, FIRST)
    bad = store(primary, SECOND)
    archive = primary / PREFIX / bad
    archive.write_bytes(archive.read_bytes()[:-1] + b"?")
    done = run_pgstash(["copy", "--all", "--to", disk], reader(primary))
    assert done.returncode == 31
    assert f"{bad} is damaged in {primary.as_uri()}/{PREFIX}" in done.stderr
    assert "BACKUP_ENCRYPTION_KEY" not in done.stderr
    assert stored(disk) == [good]


@pytest.mark.parametrize(
    ("to", "problem"),
    [
        ([], "--to"),
        (["--to", "offsite"], "offsite is not in COPY_TO"),
        (["--to", "s3://bucket/prefix"], "COPY_<NAME>_STORAGE_URL"),
        (["--to", "s3://bucket/prefix"], "S3_ACCESS_KEY_ID is missing"),
        (["--to", "s3://me:hunter2@bucket"], "--to must not contain credentials"),
        (["--to", "ftp://host/x"], "--to does not begin with file://"),
        (["--to", "file://host/x"], "absolute path"),
    ],
)
def test_a_place_that_cannot_be_used_is_explained(
    primary: Path, to: list[str], problem: str
) -> None:
    store(primary, FIRST)
    done = run_pgstash(["copy", *to], reader(primary))
    assert done.returncode == 1
    assert problem in done.stderr
    assert "hunter2" not in done.stderr


def test_the_primary_is_no_place_for_a_copy(primary: Path, tmp_path: Path) -> None:
    store(primary, FIRST)
    link = tmp_path / "link"
    link.symlink_to(primary)
    done = run_pgstash(["copy", "--to", link], reader(primary))
    assert done.returncode == 1
    assert "the folder that the backups are in" in done.stderr


def test_a_full_disk_gets_nothing_half(primary: Path, disk: Path) -> None:
    """A limit for files has the same effect as a full disk: a write that fails midway."""
    name = store(primary, FIRST, script=bytes(range(256)) * 8000 + CLOSING)
    limit = [
        "import resource, signal",
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)",
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))",
    ]
    size = (primary / PREFIX / name).stat().st_size
    assert size > 4096
    done = run_pgstash(["copy", "--to", disk], reader(primary), statements=limit)
    assert done.returncode == 21, done.stderr
    assert "ulimit -f" in done.stderr
    assert [each.name for each in (disk / PREFIX).iterdir()] == []
    shutil.rmtree(disk / PREFIX)
    assert run_pgstash(["copy", "--to", disk], reader(primary)).returncode == 0


def test_a_backup_that_does_not_exist(primary: Path, disk: Path) -> None:
    assert run_pgstash(["copy", "--to", disk], reader(primary)).returncode == 25
    store(primary, FIRST)
    done = run_pgstash(["copy", "backup_20200101_000000", "--to", disk], reader(primary))
    assert done.returncode == 25
    both = run_pgstash(["copy", FIRST, "--all", "--to", disk], reader(primary))
    assert both.returncode == 2


def test_the_copies_of_copy_to_are_the_places_unless_one_is_named(
    primary: Path, disk: Path, tmp_path: Path
) -> None:
    name = store(primary, FIRST)
    nas = tmp_path / "nas"
    nas.mkdir()
    env = reader(
        primary,
        COPY_TO="offsite,nas",
        COPY_OFFSITE_STORAGE_URL=disk.as_uri(),
        COPY_OFFSITE_BACKUP_PREFIX="shop/copies",
        COPY_NAS_STORAGE_URL=nas.as_uri(),
    )
    done = run_pgstash(["copy", "--to", "nas"], env)
    assert done.returncode == 0, done.stderr
    assert f"Copied {name} to nas" in done.stdout
    assert (stored(nas), list(disk.iterdir())) == ([name], [])
    done = run_pgstash(["copy"], env)
    assert done.returncode == 0, done.stderr
    assert f"{name} is complete in nas already" in done.stdout
    assert (disk / "shop/copies" / name).exists()


def test_a_wrong_setting_of_a_copy_matters_only_if_that_copy_is_wanted(
    primary: Path, disk: Path
) -> None:
    store(primary, FIRST)
    env = reader(primary, COPY_TO="offsite", COPY_OFFSITE_S3_BUCKET="copies")
    assert run_pgstash(["copy", "--to", disk], env).returncode == 0
    done = run_pgstash(["copy"], env)
    assert done.returncode == 1
    assert "COPY_OFFSITE_S3_ENDPOINT" in done.stderr


def test_once_copies_what_it_made_and_a_copy_that_fails_is_a_warning(
    make_database: MakeDatabase, primary: Path, disk: Path
) -> None:
    source = make_database("mixed")
    env = environment(source.bin_dir, **local(source, primary)) | {
        "COPY_TO": "missing,disk",
        "COPY_DISK_STORAGE_URL": disk.as_uri(),
        "COPY_MISSING_STORAGE_URL": (disk / "not-mounted").as_uri(),
    }
    done = run_pgstash(["once"], env)
    assert done.returncode == 0, done.stderr
    assert stored(disk) == stored(primary) != []
    [name] = stored(disk)
    assert re.search(rf"SUCCESS Copied {name} to disk in ", done.stdout)
    assert "WARNING No backup was copied to missing: " in done.stderr
    assert "FAILURE" not in done.stderr
    listed = run_pgstash(["list"], env)
    assert listed.stdout.splitlines()[0].endswith("COPIES")
    assert listed.stdout.splitlines()[1].endswith("  missing?, disk")
    assert listed.stderr.count("WARNING The copy missing cannot be read") == 1
    copies = json.loads(run_pgstash(["list", "--json"], env).stdout)[0]["copies"]
    assert copies == {"missing": None, "disk": True}
    (disk / PREFIX / name).unlink()
    assert json.loads(run_pgstash(["list", "--json"], env).stdout)[0]["copies"]["disk"] is False


def test_the_service_waits_for_no_copy_and_ends_at_once_while_one_hangs(
    make_database: MakeDatabase, primary: Path
) -> None:
    source = make_database()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(60)
        env = environment(source.bin_dir, **local(source, primary)) | {
            "COPY_TO": "offsite",
            "COPY_OFFSITE_S3_ENDPOINT": f"http://127.0.0.1:{silent.getsockname()[1]}",
            "COPY_OFFSITE_S3_BUCKET": "copies",
            "COPY_OFFSITE_S3_ACCESS_KEY_ID": "key",
            "COPY_OFFSITE_S3_SECRET_ACCESS_KEY": "secret",
        }
        with started_pgstash(["backup"], env) as process:
            connection, _ = silent.accept()  # it never answers
            assert process.stdout
            assert any("Next run at" in line for line in process.stdout)
            process.send_signal(signal.SIGTERM)
            began = time.monotonic()
            process.communicate(timeout=60)
            assert time.monotonic() - began < ABORT_SECONDS
        connection.close()
    assert process.returncode == -signal.SIGTERM
    assert len(stored(primary)) == 1


def to(endpoint: str, server: SwiftServer, bucket: str, before: str = "") -> dict[str, str]:
    """Return the settings of a bucket, for a copy with its name ``before`` them."""
    return {
        f"{before}S3_ENDPOINT": endpoint,
        f"{before}S3_BUCKET": bucket,
        f"{before}S3_ACCESS_KEY_ID": server.access_key_id,
        f"{before}S3_SECRET_ACCESS_KEY": server.secret_access_key,
    }


@pytest.mark.long
def test_a_backup_sends_the_same_while_a_copy_hangs_and_the_end_removes_its_upload(
    make_database: MakeDatabase, swift_server: SwiftServer, s3_bucket: str, tmp_path: Path
) -> None:
    source, copies = make_database("mixed"), swift_server.create_bucket()
    base = environment(source.bin_dir, DATABASE_URL=source.uri)
    hanging = tmp_path / "hanging"
    wait = f"until [ -e {hanging} ]; do sleep 0.05; done"

    def written(proxy: HttpProxy) -> tuple[Counter[str], int]:
        """Return the requests that write, and the bytes of the archive."""
        writing = [each for each in proxy.requests if each.method in ("PUT", "POST", "DELETE")]
        parts = (each.size for each in writing if each.operation == "UploadPart")
        return Counter(each.operation for each in writing), sum(parts)

    with HttpProxy(swift_server.port) as proxy:
        env = base | to(proxy.endpoint, swift_server, s3_bucket)
        assert run_pgstash(["once"], env).returncode == 0
        alone = written(proxy)
    with HttpProxy(swift_server.port) as proxy, HttpProxy(swift_server.port) as stalled:
        stalled.rule("UploadPart", Hang())
        env = base | to(proxy.endpoint, swift_server, s3_bucket)
        env |= to(stalled.endpoint, swift_server, copies, "COPY_OFFSITE_")
        env |= {"COPY_TO": "offsite", "HOOK_BEFORE_BACKUP": shlex.join(["sh", "-c", wait])}
        with started_pgstash(["backup"], env) as process:
            until = time.monotonic() + 60
            while not stalled.count("UploadPart"):
                assert time.monotonic() < until
                time.sleep(0.05)
            hanging.touch()
            assert process.stdout
            assert any("Next run at" in line for line in process.stdout)
            requests, sent = written(proxy)
            assert requests == alone[0]
            # A dump holds a random word (of \restrict), which is not always compressed as well.
            assert sent == pytest.approx(alone[1], abs=100)
            process.send_signal(signal.SIGTERM)
            began = time.monotonic()
            _, errors = process.communicate(timeout=60)
            assert time.monotonic() - began < ABORT_SECONDS
        assert process.returncode == -signal.SIGTERM, errors
        assert stalled.count("CompleteMultipartUpload") == 0
    client = swift_server.client
    assert not [
        each["Key"]
        for each in client.list_objects_v2(Bucket=copies).get("Contents", [])
        if each["Key"].endswith(".sql.gz") and "privileges" not in each["Key"]
    ]
    assert "Uploads" not in client.list_multipart_uploads(Bucket=copies)


def test_another_bucket_is_named_by_its_url_and_gets_the_bytes_inside_the_store(
    swift_server: SwiftServer, s3_bucket: str
) -> None:
    copies, client = swift_server.create_bucket(), swift_server.client
    made = make(CLOSING, base=FIRST)
    large = bytes(range(256)) * (11 * 4096)
    digest = hashlib.sha256(large).hexdigest()
    id_ = {"id": made.manifest.id}
    for key, data, facts in (
        (made.manifest_key, made.packed_manifest(), id_ | {"sha256": digest}),
        (made.key, large, id_ | SHOP),
    ):
        own = key.replace("p/", "shop/")
        client.put_object(Bucket=s3_bucket, Key=own, Body=data, Metadata=facts)

    with HttpProxy(swift_server.port) as proxy:
        env = environment(**to(proxy.endpoint, swift_server, s3_bucket))
        env |= {"STORAGE_URL": f"s3://{s3_bucket}/shop", "S3_PART_SIZE": "5"}
        del env["S3_BUCKET"]
        done = run_pgstash(["copy", "--to", f"s3://{copies}/other/place", "--json"], env)
        assert done.returncode == 0, done.stderr
        [copy] = json.loads(done.stdout)["copies"]
        assert copy["location"] == f"s3://{copies}/other/place/{made.manifest.archive}"
        assert copy["inside_bytes"] == len(large)
        assert copy["sent_bytes"] == len(made.packed_manifest())
        assert sum(each.size for each in proxy.requests) < 10_000

        own_prefix = run_pgstash(["copy", "--all", "--to", f"s3://{copies}"], env)
        assert own_prefix.returncode == 0, own_prefix.stderr
        assert "sent, 12MB copied inside the store)" in own_prefix.stdout
        same = run_pgstash(["copy", "--to", f"s3://{s3_bucket}/shop"], env)
        assert same.returncode == 1
        assert "is the place that the backups are in" in same.stderr
        listed = run_pgstash(["list", "--from", f"s3://{copies}/shop"], env)
        assert FIRST in listed.stdout
    for prefix in ("other/place", "shop"):
        found = client.get_object(Bucket=copies, Key=f"{prefix}/{made.manifest.archive}")
        assert found["Body"].read() == large
        assert found["Metadata"] == id_ | SHOP
