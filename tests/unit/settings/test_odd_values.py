"""Blanks, ends of lines and quotes around values: which are problems, which are warnings."""

from __future__ import annotations

from pathlib import Path

import pytest

from pgstash import settings
from pgstash.errors import ConfigurationError
from pgstash.settings import Settings
from pgstash.settings.sources import log_format

NO_FILE = Path("/nonexistent/.env")
BASE = {"DATABASE_URL": "postgresql://u@h/d", "STORAGE_URL": "file:///backups"}
ENCRYPTED = {"BACKUP_ENCRYPTION": "true"}
KEY = "k" * 32


def load(more: dict[str, str], dotenv: Path = NO_FILE) -> Settings:
    return settings.load(BASE | more, dotenv)


def problems(more: dict[str, str], dotenv: Path = NO_FILE) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        load(more, dotenv)
    return caught.value.problems


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"S3_BUCKET": "b "}, "S3_BUCKET ends in a blank. Remove it."),
        ({"S3_BUCKET": " b\r"}, "S3_BUCKET begins with a blank and ends in a carriage return "),
        ({"S3_ACCESS_KEY_ID": "a\r\n"}, "S3_ACCESS_KEY_ID ends in a carriage return "),
        ({"S3_SECRET_ACCESS_KEY": "\ta"}, "S3_SECRET_ACCESS_KEY begins with a tab. Remove it."),
        (
            {"BACKUP_PREFIX": "a\n"},
            "BACKUP_PREFIX ends in a line feed (a line ending). Remove it.",
        ),
        ({"STORAGE_URL": "file:///b\r"}, "STORAGE_URL ends in a carriage return "),
        ({"WEBHOOK_URL": "https://h/a "}, "WEBHOOK_URL ends in a blank. Remove it."),
        ({"DEBUG": "true "}, "DEBUG ends in a blank. Remove it."),
        ({"LOG_FORMAT": "json\r"}, "LOG_FORMAT ends in a carriage return "),
        ({"LOCK_TIMEOUT": "\r"}, "LOCK_TIMEOUT contains nothing but a carriage return "),
        ({"VERIFY_INTERVAL": "3600 "}, "VERIFY_INTERVAL ends in a blank. Remove it."),
        ({"PGHOST": "h\r"}, "PGHOST ends in a carriage return "),
        ({"PGPASSWORD": "a\n"}, "PGPASSWORD ends in a line feed "),
        ({"PGHOST": "'h'"}, "PGHOST is wrapped in quotes, "),
        ({"S3_BUCKET": "${{a.B}}"}, "S3_BUCKET may only contain letters, "),
        ({"BACKUP_PREFIX": "\u00a0"}, "BACKUP_PREFIX contains nothing but white space. "),
    ],
)
def test_problems(more: dict[str, str], expected: str) -> None:
    [problem] = problems(more)
    assert problem.startswith(expected)


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"LOCK_TIMEOUT": "60 "}, "LOCK_TIMEOUT ends in a blank."),
        ({"LOCK_TIMEOUT": "60\r"}, "LOCK_TIMEOUT ends in a carriage return "),
        ({"EXCLUDE_TABLES": "a\r"}, "EXCLUDE_TABLES ends in a carriage return "),
        ({"BACKUP_SCHEDULE": " 0 3 * * *"}, "BACKUP_SCHEDULE begins with a blank."),
        ({"PGUSER": "u "}, "PGUSER ends in a blank."),
        ({"PGHOST": "${{Postgres.PGHOST}}"}, "PGHOST contains ${{…}}, a reference that was not "),
        ({"S3_SECRET_ACCESS_KEY": "${{a.B}}"}, "S3_SECRET_ACCESS_KEY contains ${{…}}, "),
        ({"PGDATABASE": '"d"'}, "PGDATABASE is wrapped in quotes, "),
        ({"EXCLUDE_TABLES": "'log'"}, "EXCLUDE_TABLES is wrapped in quotes, "),
        (ENCRYPTED | {"BACKUP_ENCRYPTION_KEY": f"{KEY} "}, "BACKUP_ENCRYPTION_KEY ends in a blank"),
    ],
)
def test_warnings(more: dict[str, str], expected: str) -> None:
    [warning] = load(more).warnings()
    assert warning.startswith(expected)
    assert warning.endswith("Correct it, unless it is meant.")


@pytest.mark.parametrize(
    "more",
    [
        {"VERIFY_SQL": "SELECT 1;\n"},
        {"HOOK_BEFORE_BACKUP": "true\n"},
        {"EXCLUDE_TABLES": '"Order"'},
        {"HOOK_BEFORE_BACKUP": '"true"'},
        {"PGDATA": '"/var/lib/postgresql"\r'},
        {"SHELL": "/bin/sh\r"},
    ],
)
def test_what_is_usual_or_of_others(more: dict[str, str]) -> None:
    assert load(more).warnings() == []


def test_a_value_that_is_wrong_without_its_blank_too() -> None:
    found = problems({"S3_BUCKET": "-b "})
    assert [problem.split()[1] for problem in found] == ["ends", "may"]
    # A blank is not what is wrong with a number.
    [problem] = problems({"LOCK_TIMEOUT": "0 "})
    assert problem.startswith("LOCK_TIMEOUT must be ")


def test_quotes_in_a_dotenv_file_mean_what_they_hold(tmp_path: Path) -> None:
    dotenv = tmp_path / ".env"
    dotenv.write_text(f"BACKUP_ENCRYPTION=true\nBACKUP_ENCRYPTION_KEY='{KEY} '\n")
    values = load({}, dotenv)
    assert (values.passphrase, values.warnings()) == (f"{KEY} ", [])


def test_the_file_of_a_secret(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(f"{KEY} \r\n")
    values = load(ENCRYPTED | {"BACKUP_ENCRYPTION_KEY_FILE": str(file)})
    assert values.passphrase == f"{KEY} "
    assert [warning.split(".")[0] for warning in values.warnings()] == [
        "BACKUP_ENCRYPTION_KEY ends in a blank"
    ]
    [problem] = problems(ENCRYPTED | {"BACKUP_ENCRYPTION_KEY_FILE": f"{file} "})
    assert problem == "BACKUP_ENCRYPTION_KEY_FILE ends in a blank. Remove it."


def test_the_variables_of_the_source_do_not_matter_to_a_target() -> None:
    environ = BASE | {"PGHOST": "h\r", "RESTORE_URL": "postgresql:///d"}
    assert settings.load(environ, NO_FILE, needs=["target"], only_reads=True).warnings() == []


@pytest.mark.parametrize(
    ("environ", "text", "expected"),
    [
        ({}, "", "text"),
        ({"LOG_FORMAT": "json"}, "", "json"),
        ({"LOG_FORMAT": '"json"\r'}, "", "json"),
        ({"LOG_FORMAT": "xml"}, "LOG_FORMAT=json", "text"),
        ({"LOG_FORMAT": ""}, "LOG_FORMAT=json", "json"),
    ],
)
def test_the_format_of_the_log(
    environ: dict[str, str], text: str, expected: str, tmp_path: Path
) -> None:
    (tmp_path / ".env").write_text(f"{text}\n")
    assert log_format(environ, tmp_path / ".env") == expected
