"""`pgstash copy` to stores on other servers: for one job, for all of them, and after a kill."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from acceptance.other_stores import opened
from pgstash.storage.directory.storage import DirectoryStorage
from support.cli import environment, run_pgstash, started_pgstash
from support.proxy import Hang, HttpProxy
from support.stored import CLOSING, make

if TYPE_CHECKING:
    from pathlib import Path

    from pgstash.storage.interface import Storage
    from support.azurite import AzuriteServer
    from support.fake_gcs import FakeGcsServer
    from support.swift import SwiftServer

FIRST, SECOND = "backup_20260131_020000", "backup_20260201_020000"
# More than one request of an upload to Google takes.
LARGE = bytes(range(256)) * (17 * 4096)


def store(storage: Storage, prefix: str, base: str, database: str, archive: bytes = b"") -> str:
    """Store a backup of a database; return the name of its archive."""
    made = make(CLOSING, base=base)
    id_ = {"id": made.manifest.id}
    data_of_archive = archive or made.archive
    digest = {"sha256": hashlib.sha256(data_of_archive).hexdigest()}
    source = {"database": database, "host": "db.internal", "port": "5432", "system": "7301"}
    for key, data, facts in (
        (made.manifest_key, made.packed_manifest(), id_ | digest),
        (made.key, data_of_archive, id_ | source),
    ):
        storage.put(key.replace("p/", f"{prefix}/"), data, facts)
    return made.manifest.archive


def objects(storage: Storage, prefix: str) -> dict[str, tuple[bytes, dict[str, str]]]:
    """Return the objects under a prefix, without it, with their metadata."""
    found = {}
    for each in storage.list(f"{prefix}/"):
        with storage.read(each.key) as chunks:
            data = b"".join(chunks)
        found[each.key.removeprefix(f"{prefix}/")] = (data, dict(storage.head(each.key).metadata))
    return found


@dataclass
class Other:
    """A store to copy to: its URL, and the settings that open it."""

    url: str
    settings: dict[str, str]

    def opened(self) -> Storage:
        return opened(environment(**self.settings | {"STORAGE_URL": self.url}))


@pytest.fixture(params=["azure", "gs"])
def other(request: pytest.FixtureRequest) -> Other:
    if request.param == "azure":
        azurite: AzuriteServer = request.getfixturevalue("azurite_server")
        found = azurite.settings(request.getfixturevalue("azure_container"))
    else:
        gcs: FakeGcsServer = request.getfixturevalue("fake_gcs_server")
        found = gcs.settings(gcs.create_bucket())
    return Other(found.pop("STORAGE_URL"), found)


def run(env: dict[str, str], *arguments: str, status: int = 0) -> str:
    done = run_pgstash(arguments, env)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


def outcomes(env: dict[str, str], *arguments: str, status: int = 0) -> list[dict[str, Any]]:
    done = run_pgstash([*arguments, "--json"], env)
    assert done.returncode == status, done.stdout + done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_one_job_then_all_jobs(other: Other, tmp_path: Path) -> None:
    primary = DirectoryStorage(tmp_path)
    store(primary, "p/shop", FIRST, "shop", LARGE)
    newest = store(primary, "p/shop", SECOND, "shop")
    store(primary, "p/blog", FIRST, "blog")
    env = environment(
        STORAGE_URL=tmp_path.as_uri(), BACKUP_PREFIX="p", DATABASES="shop", **other.settings
    )
    place = f"{other.url}/copies"
    printed = run(env, "copy", FIRST, "--to", place, "--job", "shop")
    assert f"Copy location: {place}/shop/{FIRST}.sql.gz" in printed
    there = other.opened()
    first = {name: each for name, each in objects(primary, "p/shop").items() if FIRST in name}
    assert objects(there, "copies/shop") == first
    run(env, "copy", "--to", place, status=1)  # of which job?

    # The latest of each, also of a database that is selected no more; then what is missing.
    blog, shop = outcomes(env, "copy", "--to", place, "--all-jobs")
    assert [(each["job"], each["status"]) for each in (blog, shop)] == [
        ("blog", "success"),
        ("shop", "success"),
    ]
    assert [each["backup"] for each in shop["copies"]] == [newest]
    for job in ("shop", "blog"):
        assert objects(there, f"copies/{job}") == objects(primary, f"p/{job}")
    again = run(env, "copy", "--to", place, "--all-jobs", "--all")
    assert again.count("has every backup") == 2

    listed = run_pgstash(["list", "--from", place, "--all-jobs", "--json"], env)
    assert [each["job"] for each in json.loads(listed.stdout)] == ["blog", "shop", "shop"]
    script = run(env, "cat", SECOND, "--from", place, "--job", "shop")
    assert script == CLOSING.decode()


def test_what_fails_leaves_nothing_half_and_stops_no_other_job(
    other: Other, tmp_path: Path
) -> None:
    primary = DirectoryStorage(tmp_path)
    store(primary, "p/shop", FIRST, "shop")
    name = store(primary, "p/blog", FIRST, "blog")
    archive = tmp_path / "p/blog" / name
    archive.write_bytes(archive.read_bytes()[:-1] + b"?")
    env = environment(
        STORAGE_URL=tmp_path.as_uri(), BACKUP_PREFIX="p", DATABASES="*", **other.settings
    )
    printed = run(env, "copy", "--to", f"{other.url}/copies", "--all-jobs", status=31)
    assert f"{name} is damaged in {tmp_path.as_uri()}/p/blog" in printed
    assert "1 of 2 jobs failed: blog" in printed
    there = other.opened()
    assert objects(there, "copies/shop") == objects(primary, "p/shop")
    assert objects(there, "copies/blog") == {}
    assert not list(there.pending("copies/"))
    missing = f"{other.url}-missing"
    printed = run(env, "copy", "--to", missing, "--all-jobs", status=21)
    assert "2 of 2 jobs failed: blog, shop" in printed
    key = other.settings.get("AZURE_STORAGE_KEY")
    assert key is None or key not in printed


def test_jobs_of_a_configuration_file(
    azurite_server: AzuriteServer, azure_container: str, tmp_path: Path
) -> None:
    """The key of the store is in the file, and none is in the environment."""
    settings = azurite_server.settings(azure_container)
    settings["AZURE_STORAGE_KEY_FILE"] = str(tmp_path / "key")
    (tmp_path / "key").write_text(settings.pop("AZURE_STORAGE_KEY"))
    here = opened(environment(**settings))
    for prefix in ("p/eu/shop", "p/us/shop", "own/shop"):
        store(here, prefix, FIRST, "shop")
    copies = azurite_server.create_container()
    file = tmp_path / "pgstash.toml"
    file.write_text(
        f"""
        [defaults]
        storage_url = "{settings["STORAGE_URL"]}"
        azure_storage_endpoint = "{settings["AZURE_STORAGE_ENDPOINT"]}"
        azure_storage_key = {{ file = "{tmp_path / "key"}" }}
        backup_prefix = "p"
        databases = "*"
        [servers.eu]
        database_url = "postgresql://127.0.0.1:1"
        [servers.us]
        database_url = "postgresql://127.0.0.1:1"
        """
    )
    env = environment(PGSTASH_CONFIG=str(file))
    place = f"azure://{azurite_server.account}/{copies}/copies"
    made = outcomes(env, "copy", "--to", place, "--all-jobs")
    assert [each["job"] for each in made] == ["eu/shop", "us/shop"]
    assert [each["copies"][0]["location"] for each in made] == [
        f"{place}/{job}/{FIRST}.sql.gz" for job in ("eu/shop", "us/shop")
    ]
    listed = run_pgstash(["list", "--from", place, "--all-jobs", "--json"], env)
    assert [each["job"] for each in json.loads(listed.stdout)] == ["eu/shop", "us/shop"]

    # A prefix of a server itself has no folder of the server.
    own = 'databases = "*"\nbackup_prefix = "own"\n[servers.us]\nbackup_prefix = "p/us"'
    file.write_text(file.read_text().replace("[servers.us]", own))
    refused = run(env, "copy", "--to", f"{place}/again", "--all-jobs", status=1)
    assert "eu/shop and us/shop would be copied to the same place" in refused
    there = opened(
        environment(**settings | {"STORAGE_URL": f"azure://{azurite_server.account}/{copies}"})
    )
    assert not list(there.list("copies/again"))


def test_a_copy_that_was_killed_goes_on_where_it_stopped(
    swift_server: SwiftServer, s3_bucket: str, tmp_path: Path
) -> None:
    large = bytes(range(256)) * (11 * 4096)
    name = store(DirectoryStorage(tmp_path), "p", FIRST, "shop", large)
    client = swift_server.client
    key = f"copies/{name}"

    def sent(proxy: HttpProxy) -> list[int]:
        return sorted(each.size for each in proxy.requests if each.operation == "UploadPart")

    def parts() -> int:
        uploads = client.list_multipart_uploads(Bucket=s3_bucket).get("Uploads", [])
        listed = [
            client.list_parts(Bucket=s3_bucket, Key=key, UploadId=each["UploadId"])
            for each in uploads
        ]
        return sum(len(each.get("Parts", [])) for each in listed)

    with HttpProxy(swift_server.port) as proxy:
        env = environment(
            STORAGE_URL=tmp_path.as_uri(),
            BACKUP_PREFIX="p",
            COPY_TO="offsite",
            COPY_OFFSITE_STORAGE_URL=f"s3://{s3_bucket}/copies",
            COPY_OFFSITE_S3_ENDPOINT=proxy.endpoint,
            COPY_OFFSITE_S3_ACCESS_KEY_ID=swift_server.access_key_id,
            COPY_OFFSITE_S3_SECRET_ACCESS_KEY=swift_server.secret_access_key,
            COPY_OFFSITE_S3_PART_SIZE="5",
        )
        hanging = proxy.rule("UploadPart", Hang(), skip=2)
        with started_pgstash(["copy"], env) as process:
            until = time.monotonic() + 60
            while parts() < 2 or proxy.count("UploadPart") < 3:
                assert time.monotonic() < until
                time.sleep(0.05)
            process.kill()
            process.communicate(timeout=60)
        assert key not in [each.key for each in opened(env_of_copy(env)).list("copies/")]
        proxy.rules.remove(hanging)
        proxy.requests.clear()
        printed = run(env, "copy")
        assert sent(proxy) == [len(large) - 2 * 5 * 1024 * 1024]
        assert "Going on with an interrupted upload to s3://" in printed
        assert "which has 2 parts" in printed
    assert client.get_object(Bucket=s3_bucket, Key=key)["Body"].read() == large
    assert parts() == 0


def env_of_copy(env: dict[str, str]) -> dict[str, str]:
    """Return settings that have the copy as their primary."""
    own = {
        name.removeprefix("COPY_OFFSITE_"): value
        for name, value in env.items()
        if name.startswith("COPY_OFFSITE_")
    }
    return environment(**own)


def test_what_is_refused(tmp_path: Path) -> None:
    primary = DirectoryStorage(tmp_path)
    store(primary, "p/shop", FIRST, "shop")
    env = environment(STORAGE_URL=tmp_path.as_uri(), BACKUP_PREFIX="p", DATABASES="*")
    assert "--all-jobs" in run(env, "copy", "--all-jobs", "--job", "shop", status=2)
    assert "--all-jobs" in run(env, "copy", FIRST, "--all-jobs", status=2)
    nowhere = run(env, "copy", "--all-jobs", status=1)
    assert "It is not known where to copy the backups of shop to." in nowhere
    one = run(env | {"DATABASES": ""}, "copy", "--all-jobs", "--to", "/mnt", status=1)
    assert "--all-jobs is given, but there is one job only" in one
