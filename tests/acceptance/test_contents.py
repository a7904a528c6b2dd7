"""What goes into a backup and what must be in it, through the installed command."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING

import pytest

from faults.scene import Bucket, Folder, Scene, archives_in, assert_failed, complete_archives
from support.backups import PASSPHRASE, PREFIX, StoredBackup, back_up, stored
from support.cli import environment, run_pgstash
from support.hooks import Receiver, receiving

if TYPE_CHECKING:
    from pathlib import Path

    from support.postgres import Database, MakeDatabase
    from support.swift import SwiftServer

SCHEMA = """
    CREATE TABLE users AS SELECT generate_series(1, 100) AS id;
    CREATE TABLE plans (id int);
    CREATE TABLE log_1 AS SELECT generate_series(1, 1000) AS id;
    CREATE TABLE log_2 AS SELECT generate_series(1, 1000) AS id;
    CREATE SCHEMA temp; CREATE TABLE temp.t AS SELECT 1;
"""


@pytest.fixture
def database(make_database: MakeDatabase) -> Database:
    database = make_database()
    database.run_sql(SCHEMA)
    return database


@pytest.fixture
def scene(database: Database, tmp_path: Path) -> Scene:
    root = tmp_path / "storage"
    root.mkdir()
    return Scene(database, Folder(root, {"STORAGE_URL": root.as_uri()}), database.bin_dir)


def test_what_is_left_out_and_what_the_manifest_says_of_it(
    database: Database, make_database: MakeDatabase, tmp_path: Path
) -> None:
    backup: StoredBackup = back_up(
        database,
        tmp_path,
        EXCLUDE_TABLES="log_1, nothing_like_this",
        EXCLUDE_TABLE_DATA="public.log_2",
        EXCLUDE_SCHEMAS="temp*",
        PG_DUMP_EXTRA_ARGS="-v --no-comments -T 'no such'",
        REQUIRE_TABLES="users:nonempty,plans",
    )
    assert backup.row_counts == {("public", "users"): 100, ("public", "plans"): 0}
    assert backup.manifest["options"] == [
        "--exclude-table=log_1",
        "--exclude-table=nothing_like_this",
        "--exclude-table-data=public.log_2",
        "--exclude-schema=temp*",
        "-v",
        "--no-comments",
        "--exclude-table=no such",
    ]
    reader = environment(database.bin_dir, STORAGE_URL=tmp_path.as_uri())
    shown = run_pgstash(["show"], reader).stdout
    assert re.findall(r"^option +(.+)$", shown, re.MULTILINE) == backup.manifest["options"]

    target = make_database()
    done = run_pgstash(["restore", "--to", target.uri], reader)
    assert done.returncode == 0, done.stderr
    assert (
        f"WARNING {backup.archive.name} may be a partial backup: it was made with "
        "--exclude-table=log_1 --exclude-table=nothing_like_this --exclude-table-data=public.log_2 "
        "'--exclude-schema=temp*' --no-comments '--exclude-table=no such'\n"
    ) in done.stderr
    tables = target.run_sql("SELECT relname FROM pg_stat_user_tables ORDER BY 1").split()
    assert tables == ["log_2", "plans", "users"]


def test_nothing_is_left_out_unless_it_is_asked_for(database: Database, tmp_path: Path) -> None:
    backup = back_up(database, tmp_path)
    assert len(backup.row_counts) == 5
    assert backup.manifest["options"] == []


def test_options_that_would_break_a_backup_are_refused(scene: Scene) -> None:
    done = scene.once(PG_DUMP_EXTRA_ARGS="-vFc --jobs=4 other_database", EXCLUDE_TABLES='"a')
    assert done.returncode == 1
    said = done.stderr
    assert "PG_DUMP_EXTRA_ARGS cannot be used: -F (an archive is plain SQL on one stream); " in said
    assert "--jobs (one stream has no parallel jobs); other_database (not an option)" in said
    assert "EXCLUDE_TABLES lacks a closing double quote" in said
    assert scene.place.objects() == {}


@pytest.mark.parametrize(
    ("required", "words"),
    [
        ("users, orders, shop.orders", ["public.orders does not", "shop.orders does not exist"]),
        ("plans:nonempty,users", ["public.plans is empty"]),
        ("log_1,users", ["public.log_1 is not in the dump"]),
    ],
)
def test_a_required_table_that_is_missing_or_empty(
    required: str, words: list[str], scene: Scene
) -> None:
    done = scene.once(REQUIRE_TABLES=required, EXCLUDE_TABLES="log_*")
    assert_failed(done, 51, "REQUIRE_TABLES is not met", *words, nothing_left=scene)


@pytest.fixture
def bucket(swift_server: SwiftServer, s3_bucket: str) -> Bucket:
    settings = {
        "S3_ENDPOINT": swift_server.endpoint,
        "S3_BUCKET": s3_bucket,
        "S3_ACCESS_KEY_ID": swift_server.access_key_id,
        "S3_SECRET_ACCESS_KEY": swift_server.secret_access_key,
    }
    return Bucket(swift_server.client, s3_bucket, settings)


def test_a_backup_that_shrank_is_stored_and_warned_of(scene: Scene, bucket: Bucket) -> None:
    scene.place = bucket
    encryption = {"BACKUP_ENCRYPTION": "true", "BACKUP_ENCRYPTION_KEY": PASSPHRASE}
    for _ in range(2):
        assert "much smaller" not in scene.once(**encryption).stderr
    scene.database.run_sql("TRUNCATE log_1, log_2")
    # Two before it are too few to know what is usual.
    assert "much smaller" not in scene.once().stderr
    with receiving(Receiver()) as receiver:
        hook = {"WEBHOOK_URL": receiver.url(), "WEBHOOK_ON_SUCCESS": "true"}
        done = scene.once(**hook)
        [posted] = receiver.wait_for(1)
    assert done.returncode == 0
    rows = "rows: 101, median of the last 3 backups: 2,101"
    assert rows in done.stderr
    assert "WARNING" in done.stderr
    assert "is much smaller than usual: " in done.stderr
    assert "tables:" not in done.stderr
    assert "SUCCESS" in done.stdout
    [warning] = posted.json["extra"]["warnings"]
    assert rows in warning
    assert posted.json["status"] == "success"
    assert len(archives_in(bucket.objects())) == 4
    assert "much smaller" not in scene.once(ANOMALY_RATIO="0").stderr


def test_facts_are_readable_without_the_key(scene: Scene) -> None:
    began = time.monotonic()
    done = scene.once(BACKUP_ENCRYPTION="true", BACKUP_ENCRYPTION_KEY=PASSPHRASE)
    took = time.monotonic() - began
    assert done.returncode == 0
    [key] = [key for key in scene.place.objects() if ".manifest." in key]
    metadata = scene.place.metadata(key)
    assert isinstance(scene.place, Folder)
    [backup] = stored(scene.place.root)
    manifest = backup.manifest
    assert 0 <= float(metadata.pop("seconds")) <= took
    assert re.fullmatch("[0-9a-f]{16}:[0-9a-f]{16}", metadata.pop("key-id"))
    assert metadata == {
        "id": manifest["id"],
        "raw-bytes": str(manifest["raw_bytes"]),
        "stored-bytes": str(manifest["stored_bytes"]),
        "sha256": manifest["sha256"],
        "tables": "5",
        "rows": "2101",
        "server": manifest["server"],
        "database": scene.database.name,
        "system": manifest["database"]["system"],
        "host": scene.database.cluster.host,
        "port": str(scene.database.cluster.port),
    }
    assert key.startswith(f"{PREFIX}/backup_")


def test_sizes_that_cannot_be_read_are_no_reason_to_fail(scene: Scene) -> None:
    assert scene.once().returncode == 0
    assert isinstance(scene.place, Folder)
    for file in scene.place.root.rglob(".*.manifest.json.gz.metadata.json"):
        file.write_text("not JSON")
    done = scene.once(DEBUG="true")
    assert done.returncode == 0, done.stderr
    assert "The size of earlier backups is not known" in done.stdout
    assert len(complete_archives(scene.place)) == 2
