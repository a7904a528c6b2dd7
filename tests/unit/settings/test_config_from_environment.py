"""A file that is made from the environment means the same, and its schema knows all keys."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from pgstash import settings
from pgstash.errors import ConfigurationError
from pgstash.settings import Request, Settings, jobs
from pgstash.settings.config import file, from_environment
from pgstash.settings.config.schema import schema
from pgstash.settings.config.sections import SETTINGS, Depth

ENVIRONMENT = {
    "DATABASE_URL": "postgresql://u:hidden@h/My%20Shop",
    "STORAGE_URL": "s3://bucket/p",
    "S3_ENDPOINT": "https://s3.example.com",
    "S3_ACCESS_KEY_ID": "id",
    "S3_SECRET_ACCESS_KEY": "hidden",
    "BACKUP_ENCRYPTION": "true",
    "BACKUP_ENCRYPTION_KEY": "hidden passphrase of more than 32 characters",
    "BACKUP_INTERVAL": "700",
    "RETRY_DELAY": "2.5",
    "EXCLUDE_TABLES": 'log_*,"a b"',
    "VERIFY_SQL": "SELECT 'a\\b'\n",
    "HOOK_BEFORE_BACKUP": "sh -c 'echo \"$X\"'",
    "WEBHOOK_URL": "https://hooks.example.com/hidden",
    "BACKUP_RETENTION_DAYS": "30",
    "COPY_TO": "off,disk",
    "COPY_OFF_STORAGE_URL": "s3://copies/q",
    "COPY_OFF_S3_ENDPOINT": "https://s3.example.com",
    "COPY_OFF_S3_ACCESS_KEY_ID": "id",
    "COPY_OFF_S3_SECRET_ACCESS_KEY": "hidden",
    "COPY_DISK_STORAGE_URL": "file:///var",
    "LOG_FORMAT": "json",
    "PATH": "/usr/bin:/bin",
}  # fmt: skip


def read(environ: dict[str, str], folder: Path) -> file.Config:
    """Return the file that is made from an environment, which is read with that environment."""
    path = folder / "pgstash.toml"
    text = from_environment.text(environ, Path("/none"))
    assert "hidden" not in text
    path.write_text(text, encoding="utf-8")
    found = file.opened(Request(), environ | {"PGSTASH_CONFIG": str(path)}, Path("/none"))
    assert found is not None
    found.check()
    return found


def facts(found: Settings) -> dict[str, Any]:
    own = found.model_dump(exclude={"pgstash_config"})
    return own | {name: found.of_copy(name).model_dump() for name in found.copy_names}


def same(one: Settings, other: Settings) -> None:
    left, right = facts(one), facts(other)
    for name in one.copy_names:
        del left[name]["pgstash_config"], right[name]["pgstash_config"]
    assert left == right


@pytest.mark.parametrize(
    "different",
    [
        {},
        {"STORAGE_URL": "file:///tmp"},
        {"S3_TAGS": "a=b", "COPY_TO": "main,off", "COPY_MAIN_STORAGE_URL": "file:///var"},
        {"BACKUP_PREFIX": "p", "COPY_OFF_BACKUP_PREFIX": "q"},
        {"STORAGE_URL": "", "S3_BUCKET": "bucket", "BACKUP_PREFIX": "a/b"},
        {"COPY_TO": "", "STORAGE_ROLE": "writer"},
        {"DATABASE_URL": "", "PGHOST": "h", "PGDATABASE": "shop"},
        {"DATABASE_URL": "postgresql://u@h/shop?pgbouncer=true"},
    ],
)
def test_the_job_is_that_of_the_environment(different: dict[str, str], tmp_path: Path) -> None:
    environ = ENVIRONMENT | different
    config = read(environ, tmp_path)
    found = config.only_job()
    assert found is not None
    same(found, settings.load(environ, Path("/none")))


def test_files_of_secrets(tmp_path: Path) -> None:
    (tmp_path / "url").write_text("postgresql://u:hidden@h/shop\n")
    environ = ENVIRONMENT | {"DATABASE_URL": "", "DATABASE_URL_FILE": str(tmp_path / "url")}
    environ |= {"COPY_OFF_S3_SECRET_ACCESS_KEY": ""}
    environ |= {"COPY_OFF_S3_SECRET_ACCESS_KEY_FILE": str(tmp_path / "url")}
    found = read(environ, tmp_path).only_job()
    assert found is not None
    same(found, settings.load(environ, Path("/none")))


def test_jobs_of_many_databases(tmp_path: Path) -> None:
    environ = ENVIRONMENT | {"DATABASES": "*,!test_*"}
    of_all = settings.load(environ, Path("/none"))
    config = read(environ, tmp_path)
    same(config.job("main/shop"), jobs.of_job(of_all, "shop", may_be_all=False))


def test_a_source_without_a_name() -> None:
    with pytest.raises(ConfigurationError, match="names no database"):
        from_environment.text({"DATABASE_URL": "postgresql://u@h"}, Path("/none"))


def test_the_schema_has_what_the_file_may_have() -> None:
    made = schema()
    sections = made["properties"]
    server = sections["servers"]["additionalProperties"]
    for found, depth, others in (
        (sections["defaults"], Depth.DEFAULTS, {"store"}),
        (sections["stores"]["additionalProperties"], Depth.STORE, set()),
        (server, Depth.SERVER, {"store", "labels", "database"}),
        (
            server["properties"]["database"]["additionalProperties"],
            Depth.DATABASE,
            {"store", "labels"},
        ),
    ):
        assert found["properties"].keys() == SETTINGS[depth] | others
    definitions = made["$defs"]
    assert definitions.keys() == SETTINGS[Depth.DEFAULTS] | {"reference"}
    assert definitions["lock_timeout"]["anyOf"][0] == {
        "type": "integer",
        "minimum": 1,
        "maximum": 86_400,
    }
    assert {"type": "array", "items": {"type": "string"}} in definitions["databases"]["anyOf"]
    assert all(definitions[name]["anyOf"][0] for name in SETTINGS[Depth.DEFAULTS])
    assert tomllib.loads(from_environment.text(ENVIRONMENT, Path("/none")))["servers"]
