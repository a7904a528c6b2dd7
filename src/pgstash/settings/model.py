"""The table: every setting, declared once, with its type, bounds, default, help and secrecy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import unquote, urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    SecretStr,
    ValidationInfo,
    field_validator,
)

from pgstash import schedule
from pgstash.postgres import address, options, required
from pgstash.settings import values

STRONG_KEY_LENGTH = 32
_TOKEN_LENGTH = 12  # shorter parts of a URL are words such as "services"


Need = Literal["source", "storage", "target"]
"""What a command cannot do without, and must be configured for it."""


@dataclass(frozen=True, slots=True)
class Variable:
    """What the reference says of a setting beside its type: the group, and what it expects."""

    group: str
    expected: str
    shown_default: str = ""


def _setting(group: str, expected: str, help_: str, *, shown_default: str = "", **rest: Any) -> Any:  # noqa: ANN401 - pydantic's Field is untyped too
    variable = Variable(group, expected, shown_default)
    return Field(description=help_, json_schema_extra={"variable": variable}, **rest)  # type: ignore[dict-item]


_Name = Annotated[str, AfterValidator(values.bucket)]
_Command = Annotated[str, AfterValidator(values.command)]
_Patterns = Annotated[str, AfterValidator(values.patterns)]
_Key = Annotated[SecretStr, AfterValidator(values.encryption_key)]


class Settings(BaseModel):
    """All settings, checked. Its repr shows no secret."""

    model_config = ConfigDict(frozen=True, extra="ignore", validate_default=True)

    database_url: Annotated[SecretStr, AfterValidator(values.database_url)] | None = _setting(
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
        "How long pg_dump waits for a lock, in seconds, before the backup ends with an error. A "
        "dump whose tables others rewrite just when it begins is begun anew for as long.",
        default=60,
        ge=1,
        le=86_400,
    )
    dump_jobs: int = _setting(
        "Database",
        "a whole number from 1 to 64",
        "How many sessions read rows at once, of big tables in pieces, all as of one moment; each "
        "takes up to 64 MiB of memory. With 1 one pg_dump does it all, and its backup cannot be "
        "restored by several sessions, or one table of it.",
        default=2,
        ge=1,
        le=64,
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
    storage_url: Annotated[str, AfterValidator(values.storage_url)] | None = _setting(
        "Storage",
        "file:///directory",
        "A local directory to keep backups in instead of S3 (development, a NAS, the demo). It "
        "must exist.",
        default=None,
    )
    s3_endpoint: Annotated[str, AfterValidator(values.endpoint)] | None = _setting(
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
        "Size of all parts in MiB. Normally chosen by what the last backups stored, or by the size "
        "of the database, at least 8. Three parts are held in memory.",
        default=None,
        ge=5,
        le=5120,
        shown_default="chosen",
    )
    backup_prefix: Annotated[str, AfterValidator(values.prefix)] = _setting(
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
    backup_encryption_key: _Key | None = _setting(
        "Backup",
        "a passphrase of 32 characters or more",
        "What backups are encrypted with. Required when `BACKUP_ENCRYPTION` is true, and refused "
        "where that is not set at all. Without the passphrase nobody can restore: keep a copy away "
        "from the backups.",
        default=None,
    )
    exclude_tables: _Patterns | None = _setting(
        "Contents",
        "patterns such as public.log_*, separated by commas",
        "Tables to leave out, as pg_dump's `--exclude-table` takes them.",
        default=None,
    )
    exclude_table_data: _Patterns | None = _setting(
        "Contents",
        "patterns such as public.log_*, separated by commas",
        "Tables whose rows to leave out, and not their definitions (`--exclude-table-data`).",
        default=None,
    )
    exclude_schemas: _Patterns | None = _setting(
        "Contents",
        "patterns such as temp_*, separated by commas",
        "Schemas to leave out, with all that is in them (`--exclude-schema`).",
        default=None,
    )
    pg_dump_extra_args: Annotated[str, AfterValidator(values.extra_options)] | None = _setting(
        "Contents",
        "options of pg_dump that leave a complete dump of the database as plain SQL",
        "More options for pg_dump, split like a shell does and given to none. What would break the "
        "format, or leave half of a database, is refused.",
        default=None,
    )
    require_tables: Annotated[str, AfterValidator(values.required_tables)] | None = _setting(
        "Contents",
        "names of tables such as public.users:nonempty,public.plans, as in SQL",
        "Tables that must be in the dump, and have a row where `:nonempty` is added. Otherwise the "
        "backup fails, and nothing is stored.",
        default=None,
    )
    anomaly_ratio: float = _setting(
        "Contents",
        "a number from 0 to 0.99",
        "A backup with less than this part of the bytes, tables or rows that the backups before it "
        "had (the median of the last 7) is stored and warned of. 0 turns it off.",
        default=0.5,
        ge=0,
        le=0.99,
        allow_inf_nan=False,
    )
    hook_before_backup: _Command | None = _setting(
        "Hooks",
        "a command line; write sh -c '…' for a shell",
        "A command that runs before a backup. Where it fails, there is no backup.",
        default=None,
    )
    hook_after_backup: _Command | None = _setting(
        "Hooks",
        "a command line; write sh -c '…' for a shell",
        "A command that runs after a backup, whether that succeeded or failed. Where the command "
        "fails, it is a warning.",
        default=None,
    )
    hook_verify: _Command | None = _setting(
        "Hooks",
        "a command line; write sh -c '…' for a shell",
        "A command that reads the plain SQL from its stdin while it streams. Where the command "
        "fails, nothing is stored.",
        default=None,
    )
    hook_timeout: int = _setting(
        "Hooks",
        "a whole number of seconds from 1 to 86400",
        "How long a hook may take, in seconds; for `HOOK_VERIFY`, how long it may read nothing, "
        "and how long it may take after the last byte.",
        default=600,
        ge=1,
        le=86_400,
    )
    backup_retention_days: int = _setting(
        "Retention",
        "a whole number of days, 1 or more",
        "Days to keep a backup, by the date in its name. Older ones are deleted after the next "
        "backup that succeeds, or by `pgstash prune`; the newest one never is, nor the newest that "
        "is proven to restore.",
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
        "Must be longer than a backup from a standby, or of another source, takes under the same "
        "prefix: a running one would lose what it has sent.",
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
    backup_schedule: Annotated[str, AfterValidator(values.cron)] | None = _setting(
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
    webhook_url: Annotated[SecretStr, AfterValidator(values.web_url)] | None = _setting(
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
    healthcheck_ping_url: Annotated[SecretStr, AfterValidator(values.web_url)] | None = _setting(
        "Service",
        "an http:// or https:// URL",
        "A dead-man switch as Healthchecks.io has it: `<url>/start`, `<url>` and `<url>/fail` are "
        "asked for when a backup starts, succeeds or fails.",
        default=None,
    )
    health_port: int | None = _setting(
        "Service",
        "a port, a whole number from 1 to 65535",
        "Where `pgstash backup` serves `/healthz` and `/readyz` while it runs: HTTP, on all "
        "interfaces. Off unless it is set.",
        default=None,
        ge=1,
        le=65_535,
    )
    restore_url: Annotated[SecretStr, AfterValidator(values.target_url)] | None = _setting(
        "Restore",
        "a URI such as postgresql://user@host:5432/database that names the database",
        "The target of `pgstash restore` where `--to` does not say it: keeps its password out of "
        "argument lists. Variables of libpq that say where the source is and who logs in there "
        "(`PGHOST`, `PGUSER`, `PGPASSWORD`, …) are not heard for it; `PGPASSFILE` and the TLS ones "
        "are.",
        default=None,
    )
    restore_jobs: int = _setting(
        "Restore",
        "a whole number from 1 to 64",
        "How many sessions restore into a new database (--create), drills among them; each takes "
        "up to 64 MiB of memory. With 1 the script runs from its beginning to its end.",
        default=2,
        ge=1,
        le=64,
    )
    verify_database_url: Annotated[SecretStr, AfterValidator(values.target_url)] | None = _setting(
        "Drill",
        "a URI such as postgresql://user@host:5432/postgres that names a database",
        "Where a drill makes a database to restore into, and drops it: a server other than the "
        "source, and a role with CREATEDB. Left out, a drill starts a throwaway server of its own, "
        "which the server's programs must be installed for. Variables of libpq that say where the "
        "source is and who logs in there are not heard for it.",
        default=None,
        shown_default="a throwaway server",
    )
    verify_interval: (
        Annotated[int | Literal["after-backup"], BeforeValidator(values.interval)] | None
    ) = _setting(
        "Drill",
        "a whole number of seconds, 60 or more, or after-backup",
        "How often `pgstash backup` proves the newest backup: after the first run that ends so "
        "many seconds after the last proof, or with `after-backup` after each backup.",
        default=None,
        shown_default="off",
    )
    verify_sql: Annotated[str, AfterValidator(values.statements)] | None = _setting(
        "Drill",
        "SQL such as SELECT count(*) > 0 FROM users, or the path of a file of it",
        "Checks of your own that a drill runs in the restored database. Each statement must "
        "succeed; one that returns rows must return at least one, and true where it is a single "
        "boolean.",
        default=None,
    )
    min_table_count: int | None = _setting(
        "Drill",
        "a whole number, 1 or more",
        "The fewest tables that a restored database may have.",
        default=None,
        ge=1,
    )
    verify_webhook_url: Annotated[SecretStr, AfterValidator(values.web_url)] | None = _setting(
        "Drill",
        "an http:// or https:// URL",
        "Where results of drills are posted, instead of to `WEBHOOK_URL`; `WEBHOOK_ON_SUCCESS` and "
        "`WEBHOOK_ON_FAILURE` count for both. The whole URL is treated as a secret.",
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
    _has_source: bool = PrivateAttr(default=False)
    _source_variables: Mapping[str, str] = PrivateAttr(default_factory=dict)

    @field_validator("s3_endpoint", "s3_bucket", "s3_access_key_id", "s3_secret_access_key")
    @classmethod
    def _needed_for_s3(cls, value: object, info: ValidationInfo) -> object:
        needed = info.context is None or "storage" in info.context
        if needed and value is None and info.data.get("storage_url", "wrong") is None:
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
        writes = info.context is None or "source" in info.context
        if writes and key is None and info.data.get("backup_encryption"):
            raise ValueError("is missing, and BACKUP_ENCRYPTION is on")
        return key

    @field_validator("require_tables")
    @classmethod
    def _not_excluded(cls, tables: str | None, info: ValidationInfo) -> str | None:
        excluded = {
            name: options.split_list(text) if (text := info.data.get(name)) else []
            for name in ("exclude_tables", "exclude_table_data", "exclude_schemas")
        }
        both = required.contradictions(
            required.parse(tables) if tables else [],
            [*excluded["exclude_tables"], *excluded["exclude_table_data"]],
            excluded["exclude_schemas"],
        )
        if both:
            names = ", ".join(map(str, both))
            raise ValueError(f"names {names}, which an EXCLUDE_… setting leaves out")
        return tables

    @field_validator("tz")
    @classmethod
    def _zone_of_schedule(cls, name: str, info: ValidationInfo) -> str:
        # Containers set TZ for reasons of their own: it matters to a schedule alone.
        if info.data.get("backup_schedule", "wrong") is not None:
            schedule.check_zone(name)
        return name

    @property
    def has_source(self) -> bool:
        """Whether a source database is configured, by ``DATABASE_URL`` or libpq's variables."""
        return self._has_source

    @property
    def source_variables(self) -> Mapping[str, str]:
        """The variables of libpq that locate the source, even where they are withheld from it."""
        return self._source_variables

    @property
    def source_url(self) -> str:
        """The connection string of the source; empty where libpq's own variables say it all."""
        return self.database_url.get_secret_value() if self.database_url else ""

    @property
    def storage_folder(self) -> Path | None:
        """The directory of ``STORAGE_URL``, if that is where backups go."""
        return Path(unquote(urlsplit(self.storage_url).path)) if self.storage_url else None

    @property
    def part_size(self) -> int | None:
        """The size of a part in bytes, where it is set."""
        return self.s3_part_size * 1024 * 1024 if self.s3_part_size else None

    @property
    def passphrase(self) -> str | None:
        """The passphrase if encryption is on."""
        if not self.backup_encryption or self.backup_encryption_key is None:
            return None
        return self.backup_encryption_key.get_secret_value()

    @property
    def target_url(self) -> str:
        """The connection string of the target; empty where none is given."""
        return self.restore_url.get_secret_value() if self.restore_url else ""

    @property
    def scratch_url(self) -> str | None:
        """The connection string of the server for drills; None for a throwaway one."""
        return self.verify_database_url.get_secret_value() if self.verify_database_url else None

    @property
    def reading_passphrase(self) -> str | None:
        """The passphrase if there is one, whether new backups are encrypted or not."""
        key = self.backup_encryption_key
        return key.get_secret_value() if key else None

    @property
    def only_reads_with_key(self) -> bool:
        """Whether there is a key, and nothing that says how backups are made: as where to restore.

        Then it is not known whether backups have to be encrypted.
        """
        told = self._has_source or "backup_encryption" in self.model_fields_set
        return self.backup_encryption_key is not None and not told

    def secrets(self) -> list[str]:
        """Every configured secret, for the scrubber: also those that libpq's variables hold."""
        every = [getattr(self, name) for name in type(self).model_fields]
        found = [value.get_secret_value() for value in every if isinstance(value, SecretStr)]
        for web in (self.webhook_url, self.verify_webhook_url, self.healthcheck_ping_url):
            if web is not None:
                found += _parts_of_url(web.get_secret_value())
        for url in (self.source_url, self.target_url, self.scratch_url or ""):
            found += address.secrets(url)
        return found

    @property
    def weak_key(self) -> str:
        """What is unwise about the passphrase; empty where it is strong, or not used."""
        if self.passphrase is None or len(self.passphrase) >= STRONG_KEY_LENGTH:
            return ""
        return (
            f"BACKUP_ENCRYPTION_KEY is shorter than {STRONG_KEY_LENGTH} characters: whoever "
            "gets hold of a backup can guess it. `openssl rand -hex 32` makes a strong one."
        )

    @property
    def misspelt(self) -> list[str]:
        """What was set and looks like a misspelt setting, in sentences."""
        return self._misspelt

    def warnings(self) -> list[str]:
        """Return what is allowed and unwise, and what looks like a misspelt setting."""
        return [self.weak_key, *self._misspelt] if self.weak_key else self._misspelt


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
