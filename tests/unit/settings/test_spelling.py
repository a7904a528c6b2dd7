"""Which variables are named if a required setting is missing."""

from __future__ import annotations

import pytest

from pgstash.settings import Settings
from pgstash.settings.spelling import near_misses


@pytest.mark.parametrize(
    ("setting", "name"),
    [
        ("S3_BUCKET", "S3_BUKET"),
        ("S3_BUCKET", "BUCKET_NAME"),
        ("S3_ENDPOINT", "AWS_ENDPOINT_URL_S3"),
        ("S3_ACCESS_KEY_ID", "AWS_ACCESS_KEY_ID"),
        ("S3_SECRET_ACCESS_KEY", "S3_SECRET_ACCESS_KEY_FIEL"),
        ("DATABASE_URL", "POSTGRES_URL"),
        ("DATABASE_URL", "database_url"),
        ("DATABASE_URL", "DATABASE_URI"),
        ("BACKUP_ENCRYPTION_KEY", "ENCRYPTION_KEY"),
        ("RESTORE_URL", "TARGET_DATABASE_URL"),
    ],
)
def test_a_near_miss(setting: str, name: str) -> None:
    assert near_misses(setting, {name: "Planted", "PATH": "/bin"}) == (
        f"{name} is set, which pgstash does not read. Rename it to {setting} if it fits."
    )
    assert near_misses(setting, {name: ""}) == ""


def test_several() -> None:
    names = {"DB_URL": "Planted", "DATABASE_URI": "Planted", "POSTGRES_URL": "Planted"}
    assert near_misses("DATABASE_URL", names) == (
        "DATABASE_URI, POSTGRES_URL and DB_URL are set, which pgstash does not read. Rename one to "
        "DATABASE_URL if it fits."
    )


def test_no_other_setting_is_one() -> None:
    names = {name.upper(): "x" for name in Settings.model_fields}
    for name in names:
        assert near_misses(name, {other: "x" for other in names if other != name}) == ""


def test_one_that_is_empty() -> None:
    assert near_misses("S3_BUCKET", {"S3_BUCKET": ""}) == "S3_BUCKET is set, but empty."
    assert near_misses("S3_BUCKET", {}) == ""
