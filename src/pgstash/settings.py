"""Every setting, declared once: variable, type, bounds, default, help, and whether it is secret.

``.env.example`` and ``docs/reference/settings.md`` are written from this table. A setting is
an environment variable of the field's name in upper case; a ``.env`` file in the working
directory fills in what the environment does not have. A secret may come from a file instead,
named by the variable with ``_FILE`` appended. An empty value means unset.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import unquote, urlsplit

from dotenv.parser import parse_stream
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from pgstash import schedule
from pgstash.errors import ConfigurationError
from pgstash.postgres import source

STRONG_KEY_LENGTH = 32
_LONGEST_SECRET_FILE = 64 * 1024
_TOKEN_LENGTH = 12  # shorter parts of a URL are words such as "services"

# libpq reads these itself; enough of them are there when one of the first group is set.
_LOCATING = ("PGHOST", "PGHOSTADDR", "PGSERVICE", "PGDATABASE")


@dataclass(frozen=True, slots=True)
class Variable:
    """What the reference says of a setting beside its type: the group, and what it expects."""

    group: str
    expected: str
    shown_default: str = ""


def _setting(group: str, expected: str, help_: str, *, shown_default: str = "", **rest: Any) -> Any:  # noqa: ANN401 - pydantic's Field is untyped too
    variable = Variable(group, expected, shown_default)
    return Field(description=help_, json_schema_extra={"variable": variable}, **rest)  # type: ignore[dict-item]


def _database_url(url: SecretStr) -> SecretStr:
    source.parse(url.get_secret_value())
    return url


def _web_url(url: SecretStr) -> SecretStr:
    try:
        parts = urlsplit(url.get_secret_value())
        _ = parts.port
    except ValueError:
        raise ValueError("is malformed") from None  # its text quotes it
    plain = url.get_secret_value().isprintable() and " " not in url.get_secret_value()
    if parts.scheme not in ("http", "https") or not parts.hostname or not plain:
        raise ValueError("is not such a URL")
    return url


def _endpoint(url: str) -> str:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise ValueError("is malformed") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("must begin with https:// (or http://) and a host")
    if parts.username or parts.password:
        raise ValueError(
            "must not hold credentials: they belong into S3_ACCESS_KEY_ID and S3_SECRET_ACCESS_KEY"
        )
    if parts.path.strip("/") or parts.query or parts.fragment:
        raise ValueError("must end after the host and the port")
    return url.rstrip("/")


def _bucket(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}", name):
        raise ValueError("must consist of letters, digits, '.', '-' and '_'")
    return name


def _prefix(prefix: str) -> str:
    prefix = prefix.strip("/")
    segments = prefix.split("/")
    if not prefix.isprintable() or any(part in ("", ".", "..") for part in segments):
        raise ValueError("must not have empty parts, '.', '..' or control characters")
    if len(prefix.encode()) > 512:  # noqa: PLR2004 - half of what S3 allows for a key
        raise ValueError("must be at most 512 bytes long")
    return prefix


def _storage_url(url: str) -> str:
    parts = urlsplit(url)
    folder = unquote(parts.path)
    if parts.scheme != "file" or parts.netloc not in ("", "localhost") or folder in ("", "/"):
        raise ValueError("must be file:// and the absolute path of a directory: file:///backups")
    return url


def _key(key: SecretStr) -> SecretStr:
    # openssl reads a passphrase from a file up to the first line end.
    if not key.get_secret_value().isprintable():
        raise ValueError("must be one line of printable characters")
    return key


def _cron(expression: str) -> str:
    schedule.Cron(expression)
    return expression


_Name = Annotated[str, AfterValidator(_bucket)]


class Settings(BaseModel):
    """All settings, checked. Its repr shows no secret."""

    model_config = ConfigDict(frozen=True, extra="ignore", validate_default=True)

    database_url: Annotated[SecretStr, AfterValidator(_database_url)] | None = _setting(
        "Database",
        "a URI such as postgresql://user@host:5432/database, with the password after the user "
        "and a colon",
        "The source database: a `postgresql://` or `postgres://` URI, with everything that libpq "
        "accepts. Or leave it out and set `PGHOST`, `PGPORT`, `PGUSER`, `PGPASSWORD` and "
        "`PGDATABASE`; other variables of libpq (`PGSSLMODE`, `PGPASSFILE`, `PGSERVICE`, …) are "
        "heard in both cases.",
        default=None,
    )
    lock_timeout: int = _setting(
        "Database",
        "a whole number of seconds from 1 to 86400",
        "How long pg_dump waits for a lock, in seconds, before the backup ends with an error.",
        default=60,
        ge=1,
        le=86_400,
    )
    dump_idle_timeout: int = _setting(
        "Database",
        "a whole number of seconds from 10 to 604800",
        "How long pg_dump may write nothing while pgstash waits for it, in seconds, before it is "
        "taken for stuck. A server that reads through a large empty table is silent too.",
        default=3600,
        ge=10,
        le=604_800,
    )
    storage_url: Annotated[str, AfterValidator(_storage_url)] | None = _setting(
        "Storage",
        "file:///directory",
        "A local directory to keep backups in instead of S3 (development, a NAS, the demo). It "
        "must exist.",
        default=None,
    )
    s3_endpoint: Annotated[str, AfterValidator(_endpoint)] | None = _setting(
        "Storage",
        "a URL without the bucket, such as https://s3.eu-central-1.amazonaws.com",
        "Where the S3-compatible store answers. Required unless `STORAGE_URL` is set.",
        default=None,
    )
    s3_bucket: _Name | None = _setting(
        "Storage",
        "the name of a bucket",
        "Where backups are kept. Required unless `STORAGE_URL` is set.",
        default=None,
    )
    s3_access_key_id: SecretStr | None = _setting(
        "Storage",
        "the ID of an access key",
        "Who signs the requests. Required unless `STORAGE_URL` is set.",
        default=None,
    )
    s3_secret_access_key: SecretStr | None = _setting(
        "Storage",
        "the secret of that access key",
        "What the requests are signed with. Required unless `STORAGE_URL` is set.",
        default=None,
    )
    s3_region: str = _setting(
        "Storage",
        "a name such as eu-central-1",
        "The region that requests are signed for.",
        default="us-east-1",
        pattern=r"^[A-Za-z0-9_-]+$",
    )
    s3_max_parts: int = _setting(
        "Storage",
        "a whole number from 2 to 10000",
        "How many parts the store allows for one upload. AWS and most others allow 10,000, a few "
        "1,000.",
        default=10_000,
        ge=2,
        le=10_000,
    )
    s3_part_size: int | None = _setting(
        "Storage",
        "a whole number of MiB from 5 to 5120",
        "Size of a part in MiB. Normally chosen by the size of the database, at least 8. Three "
        "parts are held in memory.",
        default=None,
        ge=5,
        le=5120,
        shown_default="chosen",
    )
    backup_prefix: Annotated[str, AfterValidator(_prefix)] = _setting(
        "Storage",
        "a path such as postgres-backups or team/database",
        "Keys of backups begin with this. Give each database a prefix of its own.",
        default="postgres-backups",
    )
    retry_attempts: int = _setting(
        "Storage",
        "a whole number from 0 to 20",
        "How often a failed request or part is tried again after the first try.",
        default=3,
        ge=0,
        le=20,
    )
    retry_delay: float = _setting(
        "Storage",
        "a number of seconds from 0.1 to 300",
        "Seconds before the first retry; doubled for each further one, with a little jitter.",
        default=5,
        ge=0.1,
        le=300,
        allow_inf_nan=False,
    )
    compression_level: int = _setting(
        "Backup",
        "a whole number from 1 to 9",
        "As for gzip: 1 is fastest, 9 smallest. 1 to 3 are the same; so are 4 to 6, where the data "
        "decide how they are compressed. 7, 8 and 9 differ, and each costs more CPU.",
        default=6,
        ge=1,
        le=9,
    )
    backup_encryption: bool = _setting(
        "Backup",
        "true or false",
        "Encrypt with AES-256-CBC, as `openssl enc -aes-256-cbc -pbkdf2` does.",
        default=False,
    )
    backup_encryption_key: Annotated[SecretStr, AfterValidator(_key)] | None = _setting(
        "Backup",
        "a passphrase of 32 characters or more",
        "What backups are encrypted with. Required when `BACKUP_ENCRYPTION` is true, and refused "
        "where that is not set at all. Without the passphrase nobody can restore: keep a copy away "
        "from the backups.",
        default=None,
    )
    backup_retention_days: int = _setting(
        "Retention",
        "a whole number of days, 1 or more",
        "Days to keep a backup, by the date in its name. Older ones are deleted after the next "
        "backup that succeeds, or by `pgstash prune`; the newest one never is.",
        default=7,
        ge=1,
    )
    retention_keep_last: int | None = _setting(
        "Retention",
        "a whole number, 1 or more",
        "Beside those, keep so many of the newest backups, however old.",
        default=None,
        ge=1,
    )
    retention_keep_daily: int | None = _setting(
        "Retention",
        "a whole number of days, 1 or more",
        "Keep the newest backup of each of the so many latest days (UTC) that have one.",
        default=None,
        ge=1,
    )
    retention_keep_weekly: int | None = _setting(
        "Retention",
        "a whole number of weeks, 1 or more",
        "The same for weeks, Monday to Sunday.",
        default=None,
        ge=1,
    )
    retention_keep_monthly: int | None = _setting(
        "Retention",
        "a whole number of months, 1 or more",
        "The same for months.",
        default=None,
        ge=1,
    )
    retention_keep_yearly: int | None = _setting(
        "Retention",
        "a whole number of years, 1 or more",
        "The same for years.",
        default=None,
        ge=1,
    )
    sweep_after_days: int = _setting(
        "Retention",
        "a whole number of days, 1 or more",
        "Days after which an upload that was never finished is taken for abandoned and removed. "
        "Must be longer than a backup takes: a running one would lose what it has sent.",
        default=7,
        ge=1,
    )
    backup_interval: int = _setting(
        "Service",
        "a whole number of seconds, 60 or more",
        "Seconds from the start of one backup of `pgstash backup` to the start of the next. Not "
        "heard where `BACKUP_SCHEDULE` is set.",
        default=3600,
        ge=60,
    )
    backup_schedule: Annotated[str, AfterValidator(_cron)] | None = _setting(
        "Service",
        "a cron expression of five fields, such as 0 3 * * *",
        "When `pgstash backup` makes a backup, after the one it begins with. Wins over "
        "`BACKUP_INTERVAL`; setting both is no mistake.",
        default=None,
    )
    tz: str = _setting(
        "Service",
        "the name of a time zone, such as Europe/Berlin",
        "The time zone of `BACKUP_SCHEDULE`. The log and the names of backups are in UTC always.",
        default="UTC",
    )
    webhook_url: Annotated[SecretStr, AfterValidator(_web_url)] | None = _setting(
        "Service",
        "an http:// or https:// URL",
        "Where results are posted as JSON. The whole URL is treated as a secret.",
        default=None,
    )
    webhook_on_success: bool = _setting(
        "Service", "true or false", "Post successes to the webhook.", default=False
    )
    webhook_on_failure: bool = _setting(
        "Service", "true or false", "Post failures to the webhook.", default=True
    )
    healthcheck_ping_url: Annotated[SecretStr, AfterValidator(_web_url)] | None = _setting(
        "Service",
        "an http:// or https:// URL",
        "A dead-man switch as Healthchecks.io has it: `<url>/start`, `<url>` and `<url>/fail` are "
        "asked for when a backup starts, succeeds or fails.",
        default=None,
    )
    log_format: Literal["text", "json"] = _setting(
        "Log",
        "text or json",
        "`text` for people, `json` for one JSON object a line.",
        default="text",
    )
    debug: bool = _setting("Log", "true or false", "Log details.", default=False)

    _misspelt: list[str] = PrivateAttr(default_factory=list)

    @field_validator("s3_endpoint", "s3_bucket", "s3_access_key_id", "s3_secret_access_key")
    @classmethod
    def _needed_for_s3(cls, value: object, info: ValidationInfo) -> object:
        if value is None and "storage_url" in info.data and info.data["storage_url"] is None:
            raise ValueError("is missing")
        return value

    @field_validator("s3_bucket")
    @classmethod
    def _not_in_endpoint(cls, bucket: str | None, info: ValidationInfo) -> str | None:
        host = urlsplit(info.data.get("s3_endpoint") or "").hostname or ""
        if bucket and host.startswith(f"{bucket.lower()}."):
            raise ValueError("stands in S3_ENDPOINT too, which must be a URL without the bucket")
        return bucket

    @field_validator("backup_encryption_key")
    @classmethod
    def _needed_for_encryption(
        cls, key: SecretStr | None, info: ValidationInfo
    ) -> SecretStr | None:
        if key is None and info.data.get("backup_encryption"):
            raise ValueError("is missing, and BACKUP_ENCRYPTION is on")
        return key

    @field_validator("tz")
    @classmethod
    def _zone_of_schedule(cls, name: str, info: ValidationInfo) -> str:
        # Containers set TZ for reasons of their own: it matters to a schedule alone.
        if info.data.get("backup_schedule", "wrong") is not None:
            schedule.check_zone(name)
        return name

    @property
    def source_url(self) -> str:
        """The connection string of the source; empty where libpq's own variables say it all."""
        return self.database_url.get_secret_value() if self.database_url else ""

    @property
    def storage_folder(self) -> Path | None:
        """The directory of ``STORAGE_URL``, if that is where backups go."""
        return Path(unquote(urlsplit(self.storage_url).path)) if self.storage_url else None

    @property
    def passphrase(self) -> str | None:
        """The passphrase if encryption is on."""
        if not self.backup_encryption or self.backup_encryption_key is None:
            return None
        return self.backup_encryption_key.get_secret_value()

    def secrets(self) -> list[str]:
        """Every configured secret, for the scrubber: also those that libpq's variables hold."""
        values = [getattr(self, name) for name in type(self).model_fields]
        found = [value.get_secret_value() for value in values if isinstance(value, SecretStr)]
        for url in (self.webhook_url, self.healthcheck_ping_url):
            if url is not None:
                found += _parts_of_url(url.get_secret_value())
        return found + source.secrets(self.source_url)

    def warnings(self) -> list[str]:
        """Return what is allowed and unwise, and what looks like a misspelt setting."""
        if self.passphrase is not None and len(self.passphrase) < STRONG_KEY_LENGTH:
            weak = (
                f"BACKUP_ENCRYPTION_KEY is shorter than {STRONG_KEY_LENGTH} characters: whoever "
                "gets hold of a backup can guess it. `openssl rand -hex 32` makes a strong one."
            )
            return [weak, *self._misspelt]
        return self._misspelt


def _parts_of_url(url: str) -> list[str]:
    """Return what is secret of a URL by itself: a library's message may quote it in parts."""
    parts = urlsplit(url)
    target = f"{parts.path}?{parts.query}" if parts.query else parts.path
    longer = [part for part in (target, *parts.path.split("/")) if len(part) >= _TOKEN_LENGTH]
    return longer + [part for part in (parts.password, unquote(parts.password or "")) if part]


def is_secret(name: str) -> bool:
    """Tell whether a field of Settings holds a secret."""
    return "SecretStr" in repr(Settings.model_fields[name].annotation)


def variable_of(name: str) -> Variable:
    """Return what is declared of a field beside its type."""
    extra = Settings.model_fields[name].json_schema_extra
    variable: object = extra.get("variable") if isinstance(extra, dict) else None
    if not isinstance(variable, Variable):
        raise TypeError(f"{name} is not declared by _setting")
    return variable


def load(environ: MutableMapping[str, str] = os.environ, dotenv: Path = Path(".env")) -> Settings:
    """Read the settings from the environment and a ``.env`` file.

    libpq's own variables of the ``.env`` file are put into ``environ``, where libpq looks for
    them. Raises ConfigurationError that lists every problem, and no value of a secret.
    """
    problems: list[str] = []
    values = _read_dotenv(dotenv, problems) | {k: v for k, v in environ.items() if v}
    secret_names = [name.upper() for name in Settings.model_fields if is_secret(name)]
    unreadable = {
        variable
        for variable in (*secret_names, "PGPASSWORD")
        if not _read_secret_file(variable, values, problems)
    }
    for variable, value in values.items():
        if variable.startswith("PG") and variable != "PGPASSWORD_FILE":
            environ[variable] = value
    located = any(name in values for name in ("DATABASE_URL", *_LOCATING))
    if not located and "DATABASE_URL" not in unreadable:
        problems.append(
            f"DATABASE_URL is missing: {variable_of('database_url').expected} (or set PGHOST, "
            "PGPORT, PGUSER, PGPASSWORD and PGDATABASE instead)"
        )
    if "BACKUP_ENCRYPTION_KEY" in values and "BACKUP_ENCRYPTION" not in values:
        problems.append(
            "BACKUP_ENCRYPTION is missing, and BACKUP_ENCRYPTION_KEY is set: set "
            "BACKUP_ENCRYPTION=true to encrypt, or BACKUP_ENCRYPTION=false to store plain backups"
        )
    try:
        settings = Settings.model_validate(
            {name: values[name.upper()] for name in Settings.model_fields if name.upper() in values}
        )
    except ValidationError as error:
        problems += [
            _problem(detail)
            for detail in error.errors(include_input=False)
            if str(detail["loc"][0]).upper() not in unreadable
        ]
        raise ConfigurationError(problems) from None  # its text quotes the values
    if problems:
        raise ConfigurationError(problems)
    settings._misspelt = misspelt(values)  # noqa: SLF001 - it is of the module, not of the class
    return settings


def misspelt(names: Mapping[str, str]) -> list[str]:
    """Return warnings for variables whose names are almost, and not quite, a setting's."""
    known = [name.upper() for name in Settings.model_fields]
    known += [f"{name.upper()}_FILE" for name in Settings.model_fields if is_secret(name)]
    return [
        f"{name} is not a setting: did you mean {close[0]}?"
        for name in names
        if name not in known
        and (close := difflib.get_close_matches(name, known, n=1, cutoff=0.92))
        and close[0] not in names
    ]


def _read_dotenv(path: Path, problems: list[str]) -> dict[str, str]:
    try:
        if not path.is_file():
            return {}
        with path.open(encoding="utf-8-sig") as file:
            # The parser does not interpolate: a "$" in a password is a "$".
            bindings = list(parse_stream(file))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        problems.append(f"{path} cannot be read: {reason}")
        return {}
    values = {}
    for binding in bindings:
        text = binding.original.string
        blank = text[: len(text) - len(text.lstrip())]
        where = f"{path}, line {binding.original.line + blank.count(chr(10))},"
        if binding.error or (binding.key and binding.value is None):
            # Skipped, it might be the line that turns encryption on.
            problems.append(f"{where} is not NAME=value, or lacks a quote")
        elif binding.key and _is_ours(binding.key) and "\n" in text.strip():
            # A quote that is missing here may end at one of a later line, and hide what is between.
            problems.append(f"{where} begins a value of several lines, or lacks a quote")
        elif binding.key:
            values[binding.key] = binding.value or ""
    return {name: value for name, value in values.items() if value}


def _is_ours(variable: str) -> bool:
    name = variable.removesuffix("_FILE").lower()
    return name in Settings.model_fields or variable.startswith("PG")


def _read_secret_file(variable: str, values: dict[str, str], problems: list[str]) -> bool:
    """Take a secret from the file that ``…_FILE`` names; tell whether nothing went wrong."""
    pointer = f"{variable}_FILE"
    if pointer not in values:
        return True
    if variable in values:
        problems.append(f"{variable} and {pointer} are both set: set one of them")
        return True
    path = Path(values[pointer])
    try:
        with path.open("rb") as file:
            content = file.read(_LONGEST_SECRET_FILE + 1)
        secret = content.decode().rstrip("\r\n")
    except UnicodeDecodeError:
        problems.append(f"{pointer} names {path}, which is not UTF-8 text")
    except OSError as error:
        problems.append(f"{pointer} names {path}, which cannot be read: {error.strerror}")
    else:
        if secret and len(content) <= _LONGEST_SECRET_FILE:
            values[variable] = secret
            return True
        reason = "too large for a secret" if secret else "empty"
        problems.append(f"{pointer} names {path}, which is {reason}")
    return False


def _problem(detail: Any) -> str:  # noqa: ANN401 - pydantic's error details
    name = str(detail["loc"][0])
    expected = variable_of(name).expected
    if detail["type"] == "value_error":
        return f"{name.upper()} {detail['ctx']['error']} (expected: {expected})"
    return f"{name.upper()} must be {expected}"


def environment() -> dict[str, str]:
    """Return the process's environment, for child processes to choose from."""
    return dict(os.environ)
