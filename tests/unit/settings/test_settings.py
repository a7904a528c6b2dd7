"""Settings are checked whole: every problem at once, by name, and never with a secret in it."""

from __future__ import annotations

import ast
import os
import re
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pgstash import settings
from pgstash.errors import ConfigurationError
from pgstash.monitoring.redaction import Scrubber
from pgstash.settings import Settings, is_secret, misspelt, variable_of
from support.age_keys import person

SOURCE = {"DATABASE_URL": "postgresql://backup:PlantedPassword1@db.example.com:5432/shop"}
S3 = {
    "S3_ENDPOINT": "https://s3.example.com",
    "S3_BUCKET": "backups",
    "S3_ACCESS_KEY_ID": "PlantedAccessKey1",
    "S3_SECRET_ACCESS_KEY": "PlantedSecretKey1",
}
VALID = SOURCE | S3
LOCAL = SOURCE | {"STORAGE_URL": "file:///backups"}
REPOSITORY = Path(__file__).resolve().parents[2]
NO_FILE = Path("/nonexistent/.env")
SECRETS = ("PlantedPassword1", "PlantedAccessKey1", "PlantedSecretKey1")


@pytest.fixture(autouse=True)
def _nothing_of_the_developers(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("PG"):
            monkeypatch.delenv(name)


def load(values: dict[str, str], dotenv: Path = NO_FILE) -> Settings:
    return settings.load(dict(values), dotenv)


def problems(values: dict[str, str], dotenv: Path = NO_FILE) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        load(values, dotenv)
    assert caught.value.exit_code == 1
    # What a traceback would show as well: pydantic's text quotes the values.
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None or caught.value.__suppress_context__
    return caught.value.problems


def complaint(values: dict[str, str]) -> str:
    """Return what is said of these values; nothing if they are right."""
    try:
        load(values)
    except ConfigurationError as error:
        return str(error)
    return ""


def env_file(folder: Path, text: str | bytes) -> Path:
    path = folder / ".env"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_defaults() -> None:
    values = load(VALID).model_dump()
    given_ = {name.lower() for name in VALID}
    assert {name: value for name, value in values.items() if name not in given_} == {
        "lock_timeout": 60,
        "dump_idle_timeout": 3600,
        "dump_jobs": 2,
        "storage_url": None,
        "databases": None,
        "pgstash_config": None,
        "azure_storage_connection_string": None,
        "azure_storage_key": None,
        "azure_storage_sas_token": None,
        "azure_storage_endpoint": None,
        "s3_role_arn": None,
        "storage_role": "full",
        "s3_object_lock_days": None,
        "s3_object_lock_mode": "governance",
        "storage_emulator_host": None,
        "copy_to": None,
        "s3_storage_class": None,
        "s3_sse": None,
        "s3_sse_kms_key_id": None,
        "s3_tags": None,
        "s3_addressing": "auto",
        "s3_ca_file": None,
        "s3_use_proxy": True,
        "s3_region": "us-east-1",
        "s3_max_parts": 10_000,
        "s3_part_size": None,
        "backup_prefix": "postgres-backups",
        "retry_attempts": 3,
        "retry_delay": 5,
        "compression_level": 6,
        "backup_encryption": False,
        "backup_encryption_recipients": None,
        "backup_encryption_key": None,
        "backup_encryption_old_keys": None,
        "backup_encryption_iterations": 10_000,
        "backup_decryption_identity": None,
        "globals_passwords": False,
        "exclude_tables": None,
        "exclude_table_data": None,
        "exclude_schemas": None,
        "pg_dump_extra_args": None,
        "require_tables": None,
        "anomaly_ratio": 0.5,
        "hook_before_backup": None,
        "hook_after_backup": None,
        "hook_verify": None,
        "database_password_command": None,
        "restore_password_command": None,
        "hook_timeout": 600,
        "backup_interval": 3600,
        "queue_url": None,
        "worker_grace": 8,
        "worker_labels": None,
        "worker_timeout": 60,
        "verify_database_url": None,
        "verify_interval": None,
        "verify_sql": None,
        "min_table_count": None,
        "backup_schedule": None,
        "backup_on_start": True,
        "exit_on_first_failure": False,
        "tz": "UTC",
        "blackout": None,
        "workers": 2,
        "max_backups": 1,
        "backup_retention_days": 7,
        "retention_keep_last": None,
        "retention_keep_daily": None,
        "retention_keep_weekly": None,
        "retention_keep_monthly": None,
        "retention_keep_yearly": None,
        "prune_versions": False,
        "sweep_after_days": 7,
        "webhook_url": None,
        "webhook_on_success": False,
        "webhook_on_failure": True,
        "webhook_format": None,
        "webhook_secret": None,
        "notify_urls": None,
        "notify_on": "failure,recovery,drill-failed,shrunk,pruning-failed,copy-failed",
        "healthcheck_ping_url": None,
        "health_port": None,
        "metrics_file": None,
        "metrics_pushgateway": None,
        "restore_url": None,
        "restore_jobs": 2,
        "verify_webhook_url": None,
        "log_format": "text",
        "debug": False,
    }


# Values just inside and just outside of what each setting allows.
BOUNDS: list[tuple[str, list[str], list[str]]] = [
    ("LOCK_TIMEOUT", ["1", "86400"], ["0", "86401", "-1", "1.5", "a", "1 s"]),
    ("DUMP_JOBS", ["1", "64"], ["0", "65", "two"]),
    ("RESTORE_JOBS", ["1", "64"], ["0", "65", "2.5"]),
    ("BACKUP_ENCRYPTION_ITERATIONS", ["10000", "10000000"], ["9999", "10000001", "1e5"]),
    ("DUMP_IDLE_TIMEOUT", ["10", "604800"], ["9", "604801", "x"]),
    ("S3_MAX_PARTS", ["2", "10000"], ["1", "10001"]),
    ("S3_PART_SIZE", ["5", "5120"], ["4", "5121", "8MiB"]),
    ("RETRY_ATTEMPTS", ["0", "20"], ["-1", "21"]),
    ("RETRY_DELAY", ["0.1", "300", "2.5"], ["0.09", "300.1", "nan", "inf", "-inf", "5s"]),
    ("COMPRESSION_LEVEL", ["1", "9"], ["0", "10", "6.5"]),
    (
        "RESTORE_URL",
        ["postgresql://user@host/database", "postgres:///database", "postgresql://?dbname=a"],
        ["postgresql://user@host", "postgresql:///", "host=localhost dbname=a", "mysql://a/b"],
    ),
    ("BACKUP_INTERVAL", ["60", "31536000"], ["59", "0", "1h"]),
    ("VERIFY_INTERVAL", ["60", "31536000", "after-backup"], ["59", "-60", "1h", "always"]),
    (
        "VERIFY_DATABASE_URL",
        ["postgresql://user@host/postgres"],
        ["postgresql://user@host", "host=localhost dbname=a"],
    ),
    ("VERIFY_SQL", ["SELECT 1", "SELECT 'a.sql'"], ["/nonexistent", "gone.sql", "./gone"]),
    ("MIN_TABLE_COUNT", ["1", "100000"], ["0", "-1", "some"]),
    ("HEALTH_PORT", ["1", "65535"], ["0", "65536", "-1", "http"]),
    ("METRICS_FILE", ["/metrics/shop.prom"], ["shop.prom", "/metrics/shop", "/a\nb.prom"]),
    ("METRICS_PUSHGATEWAY", ["http://u:p@gateway:9091/x"], ["gateway:9091", "ftp://gateway"]),
    ("BACKUP_RETENTION_DAYS", ["1", "36500", "9" * 20], ["0", "-7", "7d"]),
    ("RETENTION_KEEP_LAST", ["1", "100"], ["0", "-1", "all"]),
    ("RETENTION_KEEP_DAILY", ["1", "7"], ["0"]),
    ("RETENTION_KEEP_WEEKLY", ["1", "4"], ["0"]),
    ("RETENTION_KEEP_MONTHLY", ["1", "12"], ["0"]),
    ("RETENTION_KEEP_YEARLY", ["1", "10"], ["0"]),
    ("SWEEP_AFTER_DAYS", ["1", "30"], ["0", "0.5"]),
    ("ANOMALY_RATIO", ["0", "0.5", "0.99"], ["1", "-0.1", "nan", "50%"]),
    ("EXCLUDE_TABLES", ["log_*", 'public."a,b",c', "a,"], ['"a', ",", " , "]),
    ("EXCLUDE_TABLE_DATA", ["*.log"], ['a"']),
    ("EXCLUDE_SCHEMAS", ["temp_*"], [","]),
    ("PG_DUMP_EXTRA_ARGS", ["-v", "--no-comments --role='a b'"], ["-Fc", "'", "--no-comm"]),
    (
        "REQUIRE_TABLES",
        ["users", 'public.users:nonempty, s."A.b,c"', "täg$1 : NONEMPTY"],
        ["a.b.c", "a b", "a:full", "1a", '"a', ",", "a.*"],
    ),
    ("HOOK_BEFORE_BACKUP", ["true", "sh -c 'exit 1'"], ["'", "''", "no-such-program", "/etc"]),
    ("HOOK_AFTER_BACKUP", ["/bin/sh"], ["VARIABLE=value sh"]),
    ("HOOK_VERIFY", ["grep -q x"], ['"']),
    ("DATABASE_PASSWORD_COMMAND", ["sh -c 'echo x'"], ["'", "no-such-program-12345"]),
    ("RESTORE_PASSWORD_COMMAND", ["echo x"], ['"', "/nonexistent"]),
    ("HOOK_TIMEOUT", ["1", "86400"], ["0", "86401", "1m"]),
    ("WEBHOOK_ON_SUCCESS", ["true", "FALSE", "1", "0", "yes", "no"], ["2", "maybe"]),
    ("GLOBALS_PASSWORDS", ["false", "0"], ["2", "maybe"]),
    ("BACKUP_ON_START", ["true", "FALSE", "1", "0", "yes", "no"], ["2", "maybe"]),
    ("BLACKOUT", ["22:00-06:00", "00:00-23:59, 09:30-10:00"], ["22-6", ","]),
    ("BLACKOUT", [], ["00:00-00:00", "06:00-18:00,18:00-06:00"]),
    ("DATABASES", ["*,!test_*", "shop"], [",", "!"]),
    ("WORKERS", ["1", "64"], ["0", "65", "all"]),
    ("MAX_BACKUPS", ["1", "64"], ["0", "65", "1.5"]),
    ("QUEUE_URL", ["postgresql://q@db/queue"], ["postgresql://q@db", "mysql://q@db/queue"]),
    ("WORKER_LABELS", ["eu", "eu, near-db_1.x"], ["EU", "eu,", "-", "a" * 31, "eu west"]),
    ("WORKER_TIMEOUT", ["3", "3600"], ["2", "3601", "soon"]),
    ("WORKER_GRACE", ["2", "86400"], ["1", "86401"]),
    ("EXIT_ON_FIRST_FAILURE", ["true", "FALSE", "1", "0", "yes", "no"], ["2", "maybe"]),
    ("WEBHOOK_ON_FAILURE", ["on", "off"], ["ja"]),
    ("WEBHOOK_FORMAT", ["json", "slack", "discord"], ["Slack", "teams"]),
    (
        "NOTIFY_URLS",
        ["json://localhost", "slack://a/b/c  mailto://u:p@example.com?to=x,y"],
        ["localhost", "json://", "json://a, b"],
    ),
    ("NOTIFY_ON", ["failure", "success, drill-failed"], ["failures", "failure,,success"]),
    ("WEBHOOK_SECRET", ["a", "whsec_a2V5"], ["whsec_", "whsec_a2V", "whsec_?2V5"]),
    ("DEBUG", ["true", "false"], ["debug"]),
    ("LOG_FORMAT", ["text", "json"], ["JSON", "xml"]),
    ("S3_OBJECT_LOCK_DAYS", ["1", "36500"], ["0", "36501", "x"]),
    ("S3_OBJECT_LOCK_MODE", ["governance", "compliance"], ["GOVERNANCE", "none"]),
    ("STORAGE_ROLE", ["full", "writer"], ["Writer", "reader"]),
    (
        "S3_ROLE_ARN",
        ["arn:aws:iam::123456789012:role/backup", "arn:aws-cn:iam::123456789012:role/team/a.b+c@d"],
        ["backup", "arn:aws:iam::123456789012:user/a", "arn:aws:iam::1:role/", "arn:aws:s3:::b"],
    ),
    ("S3_STORAGE_CLASS", ["STANDARD_IA", "COLD-LINE2"], ["standard", "A B", "x" * 65]),
    ("S3_SSE", ["AES256", "aws:kms:dsse"], ["aes256", "kms"]),
    ("S3_SSE_KMS_KEY_ID", [], ["a b", "a;b"]),
    ("S3_TAGS", ["team=data,cost=42"], ["team", "a=x,a=y"]),
    ("S3_ADDRESSING", ["auto", "path", "virtual"], ["host"]),
    ("S3_CA_FILE", [ssl.get_default_verify_paths().cafile or ""], ["/nonexistent", "/", __file__]),
    ("PRUNE_VERSIONS", ["true", "false"], ["all"]),
    ("S3_USE_PROXY", ["true", "false"], ["http://proxy"]),
    ("S3_REGION", ["eu-central-1", "auto", "fsn1"], ["eu central", "eu/1", "é", "a\nb"]),
    (
        "BACKUP_PREFIX",
        ["a", "a/b", "/a/b/", "x" * 512],
        ["/", "a//b", "a/../b", ".", "x" * 513],
    ),
    ("BACKUP_PREFIX", ["ä" * 256], ["ä" * 257, "a\nb", "a\x1bb", "\udc80"]),
    ("S3_BUCKET", ["b", "my.bucket-1_2", "B" * 255], ["-b", "a/b", "a b", "b" * 256, "ä"]),
    (
        "S3_ENDPOINT",
        ["http://localhost:9000", "https://s3.example.com/", "http://[::1]:9000"],
        [
            "s3.example.com",
            "ftp://s3.example.com",
            "https://",
            "https://h:port",
            "https://h:99999",
        ],
    ),
    (
        "S3_ENDPOINT",
        ["https://s3.example.com"],
        ["https://s3.example.com/backups", "https://h?x=1", "https://h#x", "https://[h"],
    ),
    (
        "STORAGE_URL",
        ["file:///backups", "file://localhost/backups", "azure://account/container/a b"],
        [
            "/backups",
            "file://backups",
            "file:///",
            "file://nas/backups",
            "ftp://b/p",
            "file://[x",
        ],
    ),
    ("STORAGE_EMULATOR_HOST", ["http://127.0.0.1:4443", "localhost:4443"], ["h:port", "ftp://h"]),
    (
        "AZURE_STORAGE_ENDPOINT",
        ["https://account.blob.core.chinacloudapi.cn/", "http://127.0.0.1:10000/account"],
        ["account.blob.core.windows.net", "https://h?sig=x", "https://u:p@h", "https://[h"],
    ),
    (
        "WEBHOOK_URL",
        ["https://hooks.example.com/T0/B0?x=1", "http://localhost"],
        [
            "hooks.example.com",
            "ftp://h",
            "https://",
            "https://[h",
            "http://h:99999",
            "http://h/a b",
        ],
    ),
    ("VERIFY_WEBHOOK_URL", ["https://hooks.example.com/T0"], ["hooks.example.com", "https://"]),
    (
        "HEALTHCHECK_PING_URL",
        ["https://hc-ping.com/7a1c", "http://hc.example:8000/ping/key/slug?create=1"],
        ["hc-ping.com/7a1c", "https://", "http://h/a\nb"],
    ),
    (
        "BACKUP_SCHEDULE",
        ["0 3 * * *", "*/15 * * * *", "30 2 1 * sun", "0 0 L * *"],
        ["3600", "@daily", "60 3 * * *", "0 0 31 2 *", "0 0 0 3 * *", "täglich um 3 Uhr"],
    ),
    (
        "DATABASE_URL",
        [
            "postgres://h/d",
            "postgresql://",
            "postgresql:///d?host=/tmp&user=a@b",
            "postgresql://u:p@h1:1,h2:2/d?sslmode=require",
            "postgresql://u:p%40%2F%3A@[::1]/d%40e",
            "postgresql://u:p@%40abstract/d",
        ],
        ["h", "host=h", "mysql://h/d", "postgresql://u:%zz@h/d"],
    ),
]


@pytest.mark.parametrize(("variable", "accepted", "refused"), BOUNDS)
def test_bounds(variable: str, accepted: list[str], refused: list[str]) -> None:
    base = {name: value for name, value in VALID.items() if name != variable}
    for value in accepted:
        assert getattr(load(base | {variable: value}), variable.lower()) is not None
    for value in refused:
        found = problems(base | {variable: value})
        assert len(found) == 1, value
        assert found[0].startswith(f"{variable} "), value
        assert variable_of(variable.lower()).expected in found[0]


@pytest.mark.parametrize(
    "address",
    [
        "tgram://1234567890:PlantedToken-0123/chat",
        "pover://PlantedToken-0123@PlantedToken-0123",
        "mailtos://smtp.example.com?user=a&pass=PlantedToken%2D0123",
        "slack://PlantedToken-0123/b/c",
    ],
)
def test_a_token_anywhere_in_an_address_of_apprise_is_a_secret(address: str) -> None:
    scrubber = Scrubber(load(VALID | {"NOTIFY_URLS": f"json://a {address}"}).secrets())
    assert "PlantedToken" not in scrubber.scrub("it refused PlantedToken-0123 of smtp.example.com")
    assert "smtp.example.com" in scrubber.scrub("no answer of smtp.example.com")


def test_every_setting_with_bounds_has_a_test_above() -> None:
    """A new setting must not slip in without its bounds being tried."""
    free_text = {
        "AZURE_STORAGE_CONNECTION_STRING",
        "AZURE_STORAGE_KEY",
        "AZURE_STORAGE_SAS_TOKEN",
        "S3_ACCESS_KEY_ID",
        "S3_SECRET_ACCESS_KEY",
    }
    elsewhere = {"BACKUP_ENCRYPTION", "BACKUP_ENCRYPTION_KEY", "TZ"}
    elsewhere |= {"BACKUP_ENCRYPTION_RECIPIENTS", "BACKUP_DECRYPTION_IDENTITY"}
    elsewhere |= {"BACKUP_ENCRYPTION_OLD_KEYS"}  # test_encryption_settings.py
    elsewhere |= {"COPY_TO"}  # test_copies.py
    elsewhere |= {"DATABASES", "PGSTASH_CONFIG"}  # test_databases.py, test_config_file.py
    tried = {variable for variable, _, _ in BOUNDS}
    assert tried | free_text | elsewhere == {name.upper() for name in Settings.model_fields}


@pytest.mark.parametrize(
    ("excluded", "required"),
    [
        ({"EXCLUDE_TABLES": "log_*,users"}, "public.users"),
        ({"EXCLUDE_TABLES": 'shop."Users"'}, 'shop."Users":nonempty'),
        ({"EXCLUDE_TABLE_DATA": "public.USERS"}, "users"),
        ({"EXCLUDE_SCHEMAS": "shop"}, "shop.orders,public.users"),
    ],
)
def test_what_is_required_is_not_excluded(excluded: dict[str, str], required: str) -> None:
    [said] = problems(VALID | excluded | {"REQUIRE_TABLES": required})
    assert re.match(r"REQUIRE_TABLES names \w+\.\w+, which an EXCLUDE_… setting leaves out", said)
    assert complaint(VALID | excluded | {"REQUIRE_TABLES": "public.others"}) == ""


def test_a_value_in_front_of_a_hook_is_not_shown() -> None:
    [said] = problems(VALID | {"HOOK_VERIFY": "TOKEN=Planted1 notify"})
    assert said.startswith("HOOK_VERIFY names TOKEN, which is not on PATH")
    assert "Planted1" not in said


def test_each_command_wants_what_it_needs() -> None:
    encrypted = {"BACKUP_ENCRYPTION_KEY": "Planted"}
    read = settings.load(S3 | encrypted, NO_FILE, needs=["storage"])
    assert (read.reading_passphrase, read.passphrase) == ("Planted", None)
    assert not read.backup_encryption
    for found in ({"BACKUP_ENCRYPTION": "true"}, {}):
        assert settings.load(LOCAL | found, NO_FILE, needs=["storage"]).reading_passphrase is None
    assert settings.load({}, NO_FILE, needs=[]).storage_folder is None
    for needs, missing in (
        ("storage", "S3_ENDPOINT"),
        ("source", "DATABASE_URL"),
        ("target", "--to"),
    ):
        with pytest.raises(ConfigurationError, match=f"^{missing} is missing"):
            settings.load({}, NO_FILE, needs=[needs])  # type: ignore[list-item]


def test_what_the_command_line_gives_wins() -> None:
    given = {"RESTORE_URL": "postgresql://u:PlantedTarget1@host/new"}
    environ = {"RESTORE_URL_FILE": "/nowhere"}
    values = settings.load(environ, NO_FILE, needs=["target"], given=given)
    assert values.target_url == given["RESTORE_URL"]
    assert "PlantedTarget1" in values.secrets()


def test_what_the_command_line_gives_is_completed_for_the_same_login(tmp_path: Path) -> None:
    """Wherever RESTORE_URL comes from, its password stays out of the argument list."""
    secret = "postgresql://u:PlantedTarget1@host/old"
    file, dotenv = tmp_path / "url", tmp_path / ".env"
    file.write_text(secret + "\n")
    dotenv.write_text(f"RESTORE_URL={secret}\n")
    for environ, read in (
        ({"RESTORE_URL": secret}, NO_FILE),
        ({"RESTORE_URL_FILE": str(file)}, NO_FILE),
        ({}, dotenv),
    ):
        given = {"RESTORE_URL": "postgresql://u@host/new"}
        values = settings.load(environ, read, needs=["target"], given=given)
        assert values.target_url == "postgresql://u@host/new?password=PlantedTarget1"
        assert "PlantedTarget1" in values.secrets()
        given = {"RESTORE_URL": "postgresql://u@other/new"}
        values = settings.load(environ, read, needs=["target"], given=given)
        assert values.target_url == given["RESTORE_URL"]


def test_the_variables_of_the_source_do_not_complete_a_target(tmp_path: Path) -> None:
    dotenv = tmp_path / ".env"
    dotenv.write_text("PGHOST=production\nPGPASSFILE=/run/pgpass\n")
    environ = {"PGPASSWORD": "a", "PGHOSTADDR": "192.0.2.1", "PGDATABASE": "shop", "PGUSER": "b"}
    target = {"RESTORE_URL": "postgresql:///new"}
    settings.load(environ, dotenv, needs=["target"], given=target)
    assert environ == {"PGPASSFILE": "/run/pgpass"}


def test_the_time_zone_matters_to_a_schedule_alone() -> None:
    scheduled = VALID | {"BACKUP_SCHEDULE": "0 3 * * *"}
    assert load(scheduled | {"TZ": "Europe/Berlin"}).tz == "Europe/Berlin"
    [said] = problems(scheduled | {"TZ": "Mars/Olympus"})
    assert said.startswith("TZ is not the name of a time zone")
    assert load(VALID | {"TZ": ":/etc/localtime"}).tz == ":/etc/localtime"
    [said] = problems(VALID | {"BLACKOUT": "22:00-06:00", "TZ": "Mars/Olympus"})
    assert said.startswith("TZ is not the name of a time zone")
    both = problems(VALID | {"BACKUP_SCHEDULE": "daily", "TZ": "Mars/Olympus"})
    assert [problem.split()[0] for problem in both] == ["BACKUP_SCHEDULE", "TZ"]


def test_interval_and_schedule_together_are_no_mistake() -> None:
    values = load(VALID | {"BACKUP_SCHEDULE": "0 3 * * *", "BACKUP_INTERVAL": "600"})
    assert (values.backup_schedule, values.backup_interval) == ("0 3 * * *", 600)


def test_values_are_normalised() -> None:
    values = load(VALID | {"S3_ENDPOINT": "https://s3.example.com/", "BACKUP_PREFIX": "/a/b/"})
    assert (values.s3_endpoint, values.backup_prefix) == ("https://s3.example.com", "a/b")
    assert load(LOCAL | {"STORAGE_URL": "file:///my%20backups"}).storage_folder == Path(
        "/my backups"
    )


def test_all_problems_come_at_once_and_each_names_its_variable() -> None:
    found = problems(
        {"LOCK_TIMEOUT": "0", "DEBUG": "?", "BACKUP_ENCRYPTION": "1", "LOG_FORMAT": "x"}
    )
    names = [problem.split()[0] for problem in found]
    assert names == [
        "DATABASE_URL",
        "LOCK_TIMEOUT",
        "S3_ENDPOINT",
        "S3_BUCKET",
        "S3_ACCESS_KEY_ID",
        "S3_SECRET_ACCESS_KEY",
        "BACKUP_ENCRYPTION_KEY",
        "LOG_FORMAT",
        "DEBUG",
    ]


def test_no_problem_is_disfigured_by_the_scrubber(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    files = {
        f"{name.upper()}_FILE": str(missing) for name in Settings.model_fields if is_secret(name)
    }
    found = problems({}) + problems(files) + problems(VALID | {"S3_BUCKET": "a/b", "DEBUG": "?"})
    assert len(found) > 10
    for problem in found:
        assert Scrubber().scrub(problem) == problem


def test_no_help_and_no_hint_is_disfigured_by_the_scrubber() -> None:
    """Neither what settings expect nor any hint in the code shows a mask where an example was."""
    texts = [field.description or "" for field in Settings.model_fields.values()]
    texts += [variable_of(name).expected for name in Settings.model_fields]
    for file in sorted((REPOSITORY / "src").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            is_hint = isinstance(node, ast.keyword) and node.arg == "hint"
            is_default = isinstance(node, ast.AnnAssign) and "default_hint" in ast.unparse(node)
            if is_hint or is_default:
                texts += [
                    part.value
                    for part in ast.walk(node)
                    if isinstance(part, ast.Constant) and isinstance(part.value, str)
                ]
    assert len(texts) > 60
    for text in texts:
        assert Scrubber().scrub(text) == text


@pytest.mark.parametrize("sse", ["aws:kms", "aws:kms:dsse"])
def test_a_key_of_kms_needs_kms(sse: str) -> None:
    key = {"S3_SSE_KMS_KEY_ID": "arn:aws:kms:a-1:123456789012:key/1-2"}
    assert complaint(VALID | key | {"S3_SSE": sse}) == ""
    for other in ({}, {"S3_SSE": "AES256"}):
        [problem] = problems(VALID | key | other)
        assert problem == "S3_SSE_KMS_KEY_ID is set, but S3_SSE is not aws:kms. Set both, or none."


@pytest.mark.parametrize("name", list(S3))
def test_a_storage_url_makes_s3_optional(name: str) -> None:
    assert load(LOCAL).s3_endpoint is None
    without = {key: value for key, value in VALID.items() if key != name}
    assert [problem.split(".")[0] for problem in problems(without)] == [f"{name} is missing"]


def test_a_wrong_storage_url_does_not_complain_of_s3_too() -> None:
    assert len(problems(SOURCE | {"STORAGE_URL": "backups"})) == 1


@pytest.mark.parametrize(
    ("endpoint", "bucket"),
    [("https://s3.example.com/backups", "backups"), ("https://backups.s3.example.com", "Backups")],
)
def test_the_bucket_does_not_belong_into_the_endpoint(endpoint: str, bucket: str) -> None:
    (problem,) = problems(VALID | {"S3_ENDPOINT": endpoint, "S3_BUCKET": bucket})
    assert problem.startswith("S3_ENDPOINT ")
    assert "without" in problem


def test_a_bucket_that_only_begins_like_the_host_is_fine() -> None:
    assert load(VALID | {"S3_ENDPOINT": "https://backups-eu.example.com"}).s3_bucket == "backups"


def test_empty_is_unset() -> None:
    values = load(VALID | {"LOCK_TIMEOUT": "", "DEBUG": "", "WEBHOOK_URL": "", "S3_PART_SIZE": ""})
    assert values == load(VALID)
    assert problems(VALID | {"S3_BUCKET": ""})


def test_unknown_variables_are_none_of_our_business() -> None:
    assert load(VALID | {"PATH": "/bin", "SECRET": "x"}) == load(VALID)


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError):
        load(VALID).debug = True


class TestEncryption:
    def test_it_needs_a_key(self) -> None:
        (problem,) = problems(VALID | {"BACKUP_ENCRYPTION": "true"})
        assert problem.startswith("BACKUP_ENCRYPTION_KEY is missing")

    @pytest.mark.parametrize("off", [{}, {"BACKUP_ENCRYPTION": "false"}])
    def test_passwords_of_roles_need_it(self, off: dict[str, str]) -> None:
        wanted = VALID | {"GLOBALS_PASSWORDS": "true"} | off
        (problem,) = problems(wanted)
        assert problem.startswith("GLOBALS_PASSWORDS is true, but BACKUP_ENCRYPTION is not")
        (_, second) = sorted(problems(wanted | {"DUMP_JOBS": "0"}), reverse=True)
        assert second.startswith("DUMP_JOBS ")

    def test_passwords_of_roles_with_it(self) -> None:
        on = {"BACKUP_ENCRYPTION": "true", "BACKUP_ENCRYPTION_KEY": "k" * 32}
        assert load(VALID | on | {"GLOBALS_PASSWORDS": "true"}).globals_passwords
        (problem,) = problems(VALID | {"BACKUP_ENCRYPTION": "1x", "GLOBALS_PASSWORDS": "true"})
        assert problem.startswith("BACKUP_ENCRYPTION ")

    @pytest.mark.parametrize("unset", [{}, {"BACKUP_ENCRYPTION": ""}])
    def test_a_key_that_nothing_says_to_use_is_a_problem(self, unset: dict[str, str]) -> None:
        (problem,) = problems(VALID | {"BACKUP_ENCRYPTION_KEY": "Planted" * 5} | unset)
        assert problem.startswith("BACKUP_ENCRYPTION is missing")
        assert "BACKUP_ENCRYPTION=true" in problem
        assert "BACKUP_ENCRYPTION=false" in problem
        assert "Planted" not in problem

    def test_a_key_file_too(self, tmp_path: Path) -> None:
        file = tmp_path / "key"
        file.write_text("k" * 32)
        (problem,) = problems(VALID | {"BACKUP_ENCRYPTION_KEY_FILE": str(file)})
        assert problem.startswith("BACKUP_ENCRYPTION is missing")

    def test_a_key_may_rest_while_encryption_is_off(self) -> None:
        off = {"BACKUP_ENCRYPTION": "false", "BACKUP_ENCRYPTION_KEY": "k" * 32}
        assert load(VALID | off).passphrase is None

    @pytest.mark.parametrize("key", ["a\nb", "a\0b", "tab\tbed", "k\udc80"])
    def test_a_key_is_one_printable_line(self, key: str) -> None:
        (problem,) = problems(VALID | {"BACKUP_ENCRYPTION": "on", "BACKUP_ENCRYPTION_KEY": key})
        assert problem.startswith("BACKUP_ENCRYPTION_KEY ")
        assert key not in problem

    @pytest.mark.parametrize(
        ("key", "warned"), [("k" * 31, True), ("k" * 32, False), ("é" * 32, False)]
    )
    def test_a_short_key_is_warned_about(self, key: str, *, warned: bool) -> None:
        values = load(VALID | {"BACKUP_ENCRYPTION": "on", "BACKUP_ENCRYPTION_KEY": key})
        assert values.passphrase == key
        assert bool(values.warnings()) == warned
        assert not any(key in warning for warning in values.warnings())

    def test_nothing_else_is_warned_about(self) -> None:
        assert load(VALID).warnings() == []
        off = {"BACKUP_ENCRYPTION": "false", "BACKUP_ENCRYPTION_KEY": "short"}
        assert load(VALID | off).warnings() == []


class TestNoSecretIsShown:
    def test_in_repr_or_str(self) -> None:
        key, hook = "PlantedPassphrase1", "https://hooks.example.com/PlantedHook1"
        values = load(
            VALID | {"BACKUP_ENCRYPTION": "on", "BACKUP_ENCRYPTION_KEY": key, "WEBHOOK_URL": hook}
        )
        shown = f"{values!r} {values} {values.model_dump()} {values.model_dump_json()}"
        assert not [secret for secret in (*SECRETS, key, "PlantedHook1") if secret in shown]

    @pytest.mark.parametrize(
        "name", [name.upper() for name in Settings.model_fields if is_secret(name)]
    )
    @pytest.mark.parametrize(
        "value",
        [
            "Planted\n1",
            "Planted\x001",
            "Planted\udc801",
            "https://Planted:1Planted@[2Planted]/",
            "https://u:Planted@h]",
            "https://Planted\uff201.example.com",
            "https://[Planted]/",
            "postgresql://u:Planted[1@h:x/d",
            "postgresql://u:Planted1@h/d?nonsense=Planted2",
            "postgresql://h/d?password=Planted1&Planted2=3",
            "postgresql://h/d?sslpassword=a&Planted2",
            "postgresql://h/d?sslmode=Planted",
            "postgresql://h/d?ssl=Planted",
            "postgresql://${{Planted}}/d",
            " Planted\r",
        ],
    )
    def test_in_the_problem_of_a_malformed_secret(self, name: str, value: str) -> None:
        encrypted = {"BACKUP_ENCRYPTION": "on", "BACKUP_ENCRYPTION_KEY": "k"}
        said = complaint(VALID | encrypted | {name: value})
        assert "Planted" not in said
        assert not said or said.startswith(f"{name} ")

    @pytest.mark.parametrize(
        "refused",
        [
            "Planted/1",
            "/Planted1",
            "Planted1/",
            "5432/Planted1",
            "Planted@1",
            "@Planted1",
            "Planted%1",
            "Planted%zz",
            "Planted 1",
            "Planted@[1",
            "Planted@[::1]x",
            "Planted@:1x",
            "Planted@/1",
            "Planted@1?2",
            "Planted/1?2",
            "Planted/1?sslmode=2",
            "Planted@1@2/3",
        ],
    )
    def test_in_the_problem_of_a_uri_that_the_password_breaks(self, refused: str) -> None:
        url = f"postgresql://backup:{refused}@db.example.com:5432/shop"
        (problem,) = problems(S3 | {"DATABASE_URL": url})
        assert "Planted" not in problem
        assert "Percent-encode" in problem

    @given(st.text(st.sampled_from("Pw1@/:?#[]%&= +,;'\"\\é"), min_size=1))
    def test_whatever_the_password_is(self, password: str) -> None:
        """Every URI is refused, or libpq got exactly this password and nothing of it elsewhere."""
        url = f"postgresql://backup:zq{password}zq@db.example.com:5432/shop?schema=a&pool=1"
        said = complaint(S3 | {"DATABASE_URL": url})
        assert "zq" not in said
        if not said:
            found = load(S3 | {"DATABASE_URL": url}).secrets()
            assert any(secret.startswith("zq") and secret.endswith("zq") for secret in found)
            assert "zq" not in Scrubber(found).scrub(f"failed: {url}")

    @given(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1))
    def test_a_quoted_password_is_a_secret_in_both_forms(self, password: str) -> None:
        url = f"postgresql://backup:{quote(password, safe='')}@db.example.com/shop"
        found = load(S3 | {"DATABASE_URL": url}).secrets()
        assert password in found
        assert quote(password, safe="") in found


class TestSecrets:
    def test_all_of_them_are_known(self) -> None:
        hook = "https://hooks.example.com/T0"
        encrypted = {"BACKUP_ENCRYPTION": "on", "BACKUP_ENCRYPTION_KEY": "PlantedKey"}
        values = load(VALID | encrypted | {"WEBHOOK_URL": hook})
        expected = {*SECRETS, "PlantedKey", hook, SOURCE["DATABASE_URL"]}
        assert set(values.secrets()) == expected

    def test_what_is_secret_of_a_url_is_known_in_parts(self) -> None:
        """Libraries quote the path without the host, or another form of the whole."""
        hook = "https://u:Planted%2F1@hooks.example.com/services/T000/planted-webhook-token?k=v"
        ping = "https://hc-ping.com/7a1c0000-planted-uuid"
        drills = "https://drills.example.com/services/T000/planted-token-of-drills"
        urls = {
            "WEBHOOK_URL": hook,
            "VERIFY_WEBHOOK_URL": drills,
            "HEALTHCHECK_PING_URL": ping,
        }
        scrub = Scrubber(load(VALID | urls).secrets()).scrub
        for said in (
            hook,
            f"{ping}/start",
            drills,
            "Max retries exceeded with url: /services/T000/planted-token-of-drills",
            "Max retries exceeded with url: /services/T000/planted-webhook-token?k=v",
            "https://hooks.example.com:443/services/T000/planted-webhook-token",
            "/7a1c0000-planted-uuid/fail",
            "login u and Planted/1",
        ):
            assert "lanted" not in scrub(said), said
        assert scrub("services at hooks.example.com") == "services at hooks.example.com"

    def test_parameters_of_the_uri(self) -> None:
        url = "postgresql://h/d?user=u&password=Planted%2F1&sslpassword=Planted2&sslmode=require"
        found = load(S3 | {"DATABASE_URL": url}).secrets()
        assert {"Planted/1", "Planted%2F1", "Planted2"} <= set(found)
        assert not {"u", "require", "h", "d"} & set(found)

    def test_a_uri_without_a_secret_may_be_shown(self) -> None:
        urls = {"DATABASE_URL": "postgresql://u@h/d", "RESTORE_URL": "postgresql://u@h/e"}
        scrub = Scrubber(load(S3 | urls).secrets()).scrub
        assert scrub("--to postgresql://u@h/e_new") == "--to postgresql://u@h/e_new"
        urls["RESTORE_URL"] = "postgresql://u:PlantedTarget1@h/e"
        assert urls["RESTORE_URL"] in load(S3 | urls).secrets()
        assert urls["DATABASE_URL"] not in load(S3 | urls).secrets()

    def test_variables_of_libpq(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PGPASSWORD", "PlantedPg1")
        assert "PlantedPg1" in load(VALID).secrets()

    def test_a_password_that_is_not_utf_8(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PGPASSWORD", "caf\udce9-au-lait")
        found = load(VALID).secrets()
        assert "caf\udce9-au-lait" in found
        assert Scrubber(found).scrub("x caf\udce9-au-lait y") == "x *** y"


class TestEnvFile:
    def test_it_fills_in_what_the_environment_does_not_have(self, tmp_path: Path) -> None:
        text = "\n".join(f"{name}={value}" for name, value in VALID.items())
        dotenv = env_file(tmp_path, f"{text}\nLOCK_TIMEOUT=7\nRETRY_ATTEMPTS=8\n")
        values = load({"LOCK_TIMEOUT": "9", "RETRY_ATTEMPTS": ""}, dotenv)
        assert (values.lock_timeout, values.retry_attempts) == (9, 8)
        assert values.s3_bucket == "backups"

    @pytest.mark.parametrize(
        ("line", "value"),
        [
            ("S3_SECRET_ACCESS_KEY=plain", "plain"),
            ("export S3_SECRET_ACCESS_KEY=plain", "plain"),
            ("S3_SECRET_ACCESS_KEY='single # quoted'", "single # quoted"),
            ('S3_SECRET_ACCESS_KEY="double quoted"', "double quoted"),
            ("S3_SECRET_ACCESS_KEY=a$HOME${PATH}b$", "a$HOME${PATH}b$"),
            ("S3_SECRET_ACCESS_KEY='$x'", "$x"),
            ("S3_SECRET_ACCESS_KEY=with#hash # comment", "with#hash"),
            ("S3_SECRET_ACCESS_KEY=ünïcödé", "ünïcödé"),
            ("S3_SECRET_ACCESS_KEY=crlf\r", "crlf"),
            ("\ufeffS3_SECRET_ACCESS_KEY=after-a-mark", "after-a-mark"),
            ("# a comment's quote\n\nS3_SECRET_ACCESS_KEY=plain", "plain"),
            ("OTHER='one\ntwo'\nS3_SECRET_ACCESS_KEY=plain", "plain"),
        ],
    )
    def test_quotes_and_dollars(self, tmp_path: Path, line: str, value: str) -> None:
        others = {name: other for name, other in VALID.items() if name != "S3_SECRET_ACCESS_KEY"}
        found = load(others, env_file(tmp_path, line + "\n")).s3_secret_access_key
        assert found is not None
        assert found.get_secret_value() == value

    @pytest.mark.parametrize(
        ("text", "lines"),
        [
            ("BACKUP_ENCRYPTION='true\n", [1]),
            ('DEBUG=1\n\n\n  BACKUP_ENCRYPTION="true\n', [4]),
            ("BACKUP_ENCRYPTION='true\nBACKUP_ENCRYPTION_KEY='Planted'\n", [1]),
            ("BACKUP_ENCRYPTION 'true'\nDEBUG='1' 2\n", [1, 2]),
            ("BACKUP_ENCRYPTION: true\n", [1]),
            ("# fine\nBACKUP_ENCRYPTION:true\n", [2]),
            ("BACKUP_ENCRYPTION\n", [1]),
            ("=true\n", [1]),
            ("- BACKUP_ENCRYPTION=true\r\n", [1]),
        ],
    )
    def test_a_line_that_cannot_be_read_is_a_problem(
        self, tmp_path: Path, text: str, lines: list[int]
    ) -> None:
        """Skipped, it would leave a backup unencrypted, for one."""
        dotenv = env_file(tmp_path, text)
        expected = [
            f"{dotenv}, line {line}, is not NAME=value, or a quote is missing." for line in lines
        ]
        assert problems(VALID, dotenv) == expected

    @pytest.mark.parametrize("name", ["S3_SECRET_ACCESS_KEY", "PGPASSWORD", "DATABASE_URL_FILE"])
    def test_a_value_that_swallows_the_next_lines_is_a_problem(
        self, tmp_path: Path, name: str
    ) -> None:
        text = f"\n{name}='Planted\nBACKUP_ENCRYPTION=true\nOTHER=Planted'\n"
        dotenv = env_file(tmp_path, text)
        (problem,) = problems(VALID, dotenv)
        assert problem == (
            f"{dotenv}, line 2, starts a value of several lines, or a quote is missing."
        )

    def test_a_misspelt_name_in_it_is_warned_of(self, tmp_path: Path) -> None:
        (warning,) = load(VALID, env_file(tmp_path, "COMPRESION_LEVEL=9\n")).warnings()
        assert (
            warning == "COMPRESION_LEVEL is not a pgstash setting. Did you mean COMPRESSION_LEVEL?"
        )

    def test_not_utf_8(self, tmp_path: Path) -> None:
        dotenv = env_file(tmp_path, b"S3_SECRET_ACCESS_KEY=caf\xe9Planted\n")
        (problem,) = problems(VALID, dotenv)
        assert problem == f"{dotenv} cannot be read: it is not UTF-8 text"

    @pytest.mark.parametrize("locked", [".env", "."], ids=["file", "folder"])
    def test_unreadable(self, locked: str) -> None:
        with TemporaryDirectory() as name:  # all may look into it, which they may not into tmp_path
            folder = Path(name)
            folder.chmod(0o755)
            dotenv = env_file(folder, "DEBUG=true\n")
            assert load(VALID, dotenv).debug
            (folder / locked).chmod(0)
            with as_nobody():
                (problem,) = problems(VALID, dotenv)
            folder.chmod(0o700)
        assert problem == f"{dotenv} cannot be read: Permission denied"

    def test_a_directory_of_that_name_is_none(self, tmp_path: Path) -> None:
        (tmp_path / ".env").mkdir()
        assert load(VALID, tmp_path / ".env") == load(VALID)

    def test_variables_of_libpq_go_where_libpq_looks(self, tmp_path: Path) -> None:
        dotenv = env_file(tmp_path, "PGHOST=db\nPGPORT=1\nPGUSER=u\nPGSSLMODE=require\nDEBUG=1\n")
        environ = S3 | {"PGUSER": "mine", "PGPORT": ""}
        assert settings.load(environ, dotenv).source_url == ""
        assert {
            name: environ.get(name) for name in ("PGHOST", "PGPORT", "PGUSER", "PGSSLMODE")
        } == {
            "PGHOST": "db",
            "PGPORT": "1",
            "PGUSER": "mine",
            "PGSSLMODE": "require",
        }
        assert "DEBUG" not in environ


@contextmanager
def as_nobody() -> Iterator[None]:
    """Be somebody for whom permissions count: they mean nothing to root."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        if user == 0:
            os.seteuid(0)


class TestSecretFiles:
    @pytest.mark.parametrize(
        "name", [name.upper() for name in Settings.model_fields if is_secret(name)]
    )
    def test_each_secret_may_come_from_a_file(self, tmp_path: Path, name: str) -> None:
        value = VALID.get(name, "https://hooks.example.com/Planted")
        if name in ("QUEUE_URL", "RESTORE_URL", "VERIFY_DATABASE_URL"):
            value = VALID["DATABASE_URL"]
        if name == "BACKUP_DECRYPTION_IDENTITY":
            value = person("ann").identity
        file = tmp_path / "secret"
        file.write_text(f"{value}\r\n")
        others = {key: other for key, other in VALID.items() if key != name}
        others["BACKUP_ENCRYPTION"] = str(name == "BACKUP_ENCRYPTION_KEY")
        found: Any = getattr(load(others | {f"{name}_FILE": str(file)}), name.lower())
        assert found.get_secret_value() == value

    def test_what_is_no_secret_may_not(self, tmp_path: Path) -> None:
        file = tmp_path / "bucket"
        file.write_text("backups")
        others = {key: value for key, value in VALID.items() if key != "S3_BUCKET"}
        assert problems(others | {"S3_BUCKET_FILE": str(file)})

    def test_only_line_ends_are_taken_off(self, tmp_path: Path) -> None:
        file = tmp_path / "secret"
        file.write_text("  two words \n\n")
        values = load(VALID | {"BACKUP_ENCRYPTION": "1", "BACKUP_ENCRYPTION_KEY_FILE": str(file)})
        assert values.passphrase == "  two words "

    def test_both(self, tmp_path: Path) -> None:
        pointer = {"S3_SECRET_ACCESS_KEY_FILE": str(tmp_path / "secret")}
        (problem,) = problems(VALID | pointer)
        assert problem.startswith("S3_SECRET_ACCESS_KEY and S3_SECRET_ACCESS_KEY_FILE are both set")

    @pytest.mark.parametrize(
        ("content", "reason"),
        [
            (None, "cannot be read: No such file or directory"),
            (b"", "is empty"),
            (b"\n", "is empty"),
            (b"Planted" + b"x" * 65536, "is too large for a secret"),
            (b"Planted\xff", "is not UTF-8 text"),
        ],
        ids=["missing", "empty", "empty line", "large", "binary"],
    )
    @pytest.mark.parametrize("name", ["S3_SECRET_ACCESS_KEY", "DATABASE_URL"])
    def test_a_file_that_is_no_secret_is_one_problem(
        self, tmp_path: Path, name: str, content: bytes | None, reason: str
    ) -> None:
        file = tmp_path / "secret"
        if content is not None:
            file.write_bytes(content)
        others = {key: value for key, value in VALID.items() if key != name}
        (problem,) = problems(others | {f"{name}_FILE": str(file)})
        assert problem == f"{name}_FILE names {file}, which {reason}"

    def test_a_directory(self, tmp_path: Path) -> None:
        others = {key: value for key, value in VALID.items() if key != "DATABASE_URL"}
        (problem,) = problems(others | {"DATABASE_URL_FILE": str(tmp_path)})
        assert problem.endswith("which cannot be read: Is a directory")

    def test_the_largest(self, tmp_path: Path) -> None:
        file = tmp_path / "secret"
        file.write_bytes(b"x" * 65536)
        others = {key: value for key, value in VALID.items() if key != "S3_SECRET_ACCESS_KEY"}
        assert "x" * 65536 in load(others | {"S3_SECRET_ACCESS_KEY_FILE": str(file)}).secrets()

    def test_libpqs_password(self, tmp_path: Path) -> None:
        file = tmp_path / "secret"
        file.write_text("PlantedPg1\n")
        environ = S3 | {"PGHOST": "db", "PGPASSWORD_FILE": str(file)}
        settings.load(environ, NO_FILE)
        assert environ["PGPASSWORD"] == "PlantedPg1"


class TestSource:
    @pytest.mark.parametrize("name", ["PGHOST", "PGHOSTADDR", "PGSERVICE", "PGDATABASE"])
    def test_libpqs_variables_are_enough(self, name: str) -> None:
        assert load(S3 | {name: "x"}).source_url == ""

    def test_without_any_the_missing_one_is_named(self) -> None:
        (problem,) = problems(S3 | {"PGUSER": "u", "PGPASSWORD": "Planted"})
        assert problem.startswith("DATABASE_URL is missing")
        assert "PGHOST" in problem
        assert "Planted" not in problem

    def test_a_command_that_needs_none_does_without(self) -> None:
        found = settings.load(dict(S3), NO_FILE, needs=())
        assert (found.has_source, found.source_url) == (False, "")
        for source in (SOURCE, {"PGHOST": "x"}):
            assert settings.load(S3 | source, NO_FILE, needs=()).has_source
            assert load(S3 | source).has_source

    def test_one_that_is_given_must_be_right_even_so(self) -> None:
        with pytest.raises(ConfigurationError, match="DATABASE_URL"):
            settings.load(S3 | {"DATABASE_URL": "mysql://x"}, NO_FILE, needs=())

    def test_the_url_is_kept_as_it_is(self) -> None:
        assert load(VALID).source_url == SOURCE["DATABASE_URL"]


class TestWhatOnlyReads:
    """At 3 a.m. the ``.env`` of the source is on a machine that has nothing else of it."""

    ELSEWHERE: ClassVar[dict[str, str]] = {
        "HOOK_BEFORE_BACKUP": "/not/here/pause-imports --now",
        "VERIFY_SQL": "/not/here.sql",
        "DATABASE_URL": "mysql://u:Planted@x",
        "DATABASE_URL_FILE": "/not/here",
        "WEBHOOK_URL_FILE": "/not/here",
        "PGPASSWORD_FILE": "/not/here",
        "EXCLUDE_TABLES": '"a',
        "BACKUP_SCHEDULE": "never",
        "DUMP_JOBS": "many",
    }

    @pytest.mark.parametrize("name", ELSEWHERE)
    def test_minds_no_setting_of_others(self, name: str) -> None:
        values = {**S3, **SOURCE, name: self.ELSEWHERE[name]}
        if name == "DATABASE_URL_FILE":
            del values["DATABASE_URL"]
        settings.load(dict(values), NO_FILE, needs=["storage"], only_reads=True)
        with pytest.raises(ConfigurationError, match=name):
            settings.load(dict(values), NO_FILE, needs=["storage"])

    def test_minds_its_own(self) -> None:
        wrong = {"S3_ENDPOINT": "x", "RESTORE_JOBS": "0", "BACKUP_ENCRYPTION_KEY_FILE": "/not/here"}
        with pytest.raises(ConfigurationError) as caught:
            settings.load(
                S3 | self.ELSEWHERE | wrong, NO_FILE, needs=["storage", "target"], only_reads=True
            )
        names = {problem.split()[0] for problem in caught.value.problems}
        assert names == {*wrong, "--to"}

    def test_scrubs_the_secrets_of_others(self) -> None:
        others = SOURCE | {"WEBHOOK_URL": "https://example.com/PlantedLongToken", "DUMP_JOBS": "x"}
        found = settings.load(S3 | others, NO_FILE, needs=["storage"], only_reads=True)
        assert "PlantedLongToken" in found.secrets()


class TestQuotes:
    """``docker run --env-file`` hands on what a shell, and a ``.env`` reader, take off."""

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("BACKUP_ENCRYPTION_KEY", '"Planted-Planted"'),
            ("S3_REGION", "'eu'"),
            ("VERIFY_SQL", '"SELECT 1"'),
            ("WEBHOOK_URL", "'https://example.com/Planted'"),
        ],
    )
    def test_around_a_value_are_a_problem(self, tmp_path: Path, name: str, value: str) -> None:
        values = {**VALID, "BACKUP_ENCRYPTION": "false", name: value}
        (problem,) = problems(values)
        assert problem.startswith(f"{name} is wrapped in quotes")
        assert "Planted" not in problem
        dotenv = env_file(tmp_path, f"{name}={value}\nBACKUP_ENCRYPTION=false\n")
        load({key: each for key, each in VALID.items() if key != name}, dotenv)

    @pytest.mark.parametrize("value", ['"', '""a"', "'a\"", '"a" "b"'])
    def test_others_may_be_meant(self, value: str) -> None:
        assert value in load({**VALID, "S3_SECRET_ACCESS_KEY": value}).secrets()

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("EXCLUDE_TABLES", '"Order"'),
            ("EXCLUDE_SCHEMAS", '"Odd Schema"'),
            ("REQUIRE_TABLES", '"Order"'),
            ("PG_DUMP_EXTRA_ARGS", "'--no-comments'"),
            ("PGPASSWORD", '"Planted"'),
        ],
    )
    def test_around_what_may_be_quoted_are_kept(self, name: str, value: str) -> None:
        found = load({**VALID, name: value})
        assert name == "PGPASSWORD" or getattr(found, name.lower()) == value

    @pytest.mark.parametrize(
        "quoted", [{"RESTORE_URL": '"postgresql://x/y"'}, {"RESTORE_URL_FILE": '"/not/here"'}]
    )
    def test_around_what_the_command_line_replaces_matter_to_nobody(
        self, quoted: dict[str, str]
    ) -> None:
        found = settings.load(
            S3 | quoted,
            NO_FILE,
            needs=["storage", "target"],
            given={"RESTORE_URL": "postgresql://a/b"},
            only_reads=True,
        )
        assert found.target_url == "postgresql://a/b"

    def test_a_hook_that_is_quoted_as_a_whole(self) -> None:
        (problem,) = problems({**VALID, "HOOK_VERIFY": "\"grep -q 'COPY users'\""})
        assert "grep -q 'COPY users' (quoted as one word), which is not on PATH" in problem


class TestMisspelt:
    @pytest.mark.parametrize(
        ("name", "meant"),
        [
            ("BACKUP_ENCRYPTION_KEYS", "BACKUP_ENCRYPTION_KEY"),
            ("S3_ACCES_KEY_ID", "S3_ACCESS_KEY_ID"),
            ("DATABASE_URI", None),
            ("BACKUP_RETENTION_DAY", "BACKUP_RETENTION_DAYS"),
            ("S3_SECRET_ACCESS_KEY_FIEL", "S3_SECRET_ACCESS_KEY_FILE"),
            ("AWS_SECRET_ACCESS_KEY", "S3_SECRET_ACCESS_KEY"),
            ("PATH", None),
            ("BACKUP_RETENTION", "BACKUP_RETENTION_DAYS"),
            ("BACKUP_ENCRYPT", "BACKUP_ENCRYPTION"),
            ("RETENTION_DAYS", "BACKUP_RETENTION_DAYS"),
            ("ENCRYPTION_KEY", None),
            ("S3_ACCESS_KEY", None),
            ("WEBHOOK_TOKEN", None),
            ("VERIFY_SSL", None),
            ("BACKUP_SERVICE_HOST", None),
            ("BACKUP_SERVICE_PORT_HTTP", None),
            ("BACKUP_PORT_80_TCP_ADDR", None),
            ("BACKUP_PORT", None),
        ],
    )
    def test_a_name_that_is_almost_one(self, name: str, meant: str | None) -> None:
        expected = [f"{name} is not a pgstash setting. Did you mean {meant}?"] if meant else []
        assert misspelt({name: "Planted"}) == expected

    def test_no_setting_is_taken_for_another(self) -> None:
        names = {name.upper(): "x" for name in Settings.model_fields}
        files = {f"{name.upper()}_FILE": "x" for name in Settings.model_fields if is_secret(name)}
        assert misspelt(names | files) == []
        for name in names | files:
            assert misspelt({name: "x"}) == []

    @pytest.mark.parametrize(
        ("name", "meant"),
        [
            ("ENCRYPTION_KEY", "BACKUP_ENCRYPTION_KEY"),
            ("S3_ACCESS_KEY", "S3_ACCESS_KEY_ID"),
            ("VERIFY_SSL", "VERIFY_SQL"),
            ("URL", None),
            ("PATH", None),
            ("NODE_ENV", None),
        ],
    )
    def test_more_names_in_a_file_of_ours(
        self, tmp_path: Path, name: str, meant: str | None
    ) -> None:
        """The environment is shared with others, who have names of their own."""
        found = load(VALID, env_file(tmp_path, f"{name}=x\n")).warnings()
        assert found == (
            [f"{name} is not a pgstash setting. Did you mean {meant}?"] if meant else []
        )
        assert load(VALID | {name: "x"}).warnings() == []

    def test_a_name_that_begins_as_ours_and_is_like_none(self) -> None:
        assert misspelt({"BACKUP_CRON": "Planted"}) == [
            "BACKUP_CRON is not a pgstash setting; it is ignored."
        ]

    def test_not_where_the_right_one_is_set_too(self) -> None:
        assert misspelt({"BACKUP_PREFIXX": "x", "BACKUP_PREFIX": "y"}) == []


def test_a_short_name_for_the_role_of_a_writer() -> None:
    settings = load(VALID | {"ROLE": "writer"})
    assert settings.only_writes
    [note] = settings.notes
    assert "set STORAGE_ROLE=full" in note
    assert not load(VALID | {"ROLE": "web"}).only_writes
    settings = load(VALID | {"ROLE": "writer", "STORAGE_ROLE": "full"})
    assert (settings.only_writes, settings.notes) == (False, [])


def test_a_writer_cannot_drill() -> None:
    for role in ("ROLE", "STORAGE_ROLE"):
        with pytest.raises(ConfigurationError) as caught:
            load(VALID | {role: "writer", "VERIFY_INTERVAL": "86400"})
        [problem] = caught.value.problems
        assert problem.startswith("VERIFY_INTERVAL is set, but with STORAGE_ROLE=writer ")
