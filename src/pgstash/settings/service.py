"""Settings of the service, of restores and drills, and of the log."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, SecretStr, ValidationInfo, field_validator

from pgstash.format import kms
from pgstash.monitoring import messages
from pgstash.service import schedule
from pgstash.settings import notify, validators
from pgstash.settings.declaration import Group, setting

_Command = Annotated[str, AfterValidator(validators.command)]


class ServiceSettings(Group):
    """When the service runs, and what it notifies."""

    backup_interval: int = setting(
        "Service",
        "a whole number of seconds, 60 or more",
        "Seconds from the start of one backup of `pgstash backup` to the start of the next. "
        "Ignored if `BACKUP_SCHEDULE` is set.",
        default=3600,
        ge=60,
    )
    backup_schedule: Annotated[str, AfterValidator(validators.cron)] | None = setting(
        "Service",
        "a cron expression of five fields, such as 0 3 * * *",
        "When `pgstash backup` makes a backup, after the first one at its start. Takes precedence "
        "over `BACKUP_INTERVAL`; you may set both.",
        default=None,
    )
    backup_on_start: bool = setting(
        "Service",
        "true or false",
        "Make a backup whenever `pgstash backup` starts. With `false`, the first one is due when "
        "the newest stored backup of the source is as old as the schedule allows; if there is "
        "none, at once. For platforms that deploy often. With `DATABASES`, `false` is the default.",
        default=True,
    )
    exit_on_first_failure: bool = setting(
        "Service",
        "true or false",
        "End `pgstash backup` with the exit status of the failure if a backup fails before one "
        "has succeeded, and another try would not fix it: a refused login, a wrong key, a missing "
        "privilege. For platforms that limit restarts and show that a service has ended.",
        default=False,
    )
    tz: str = setting(
        "Service",
        "the name of a time zone, such as Europe/Berlin",
        "The time zone of `BACKUP_SCHEDULE`, of `BLACKOUT`, and of `--at` if no offset is given. "
        "The log and the names of backups are always in UTC.",
        default="UTC",
    )
    blackout: Annotated[str, AfterValidator(validators.blackout)] | None = setting(
        "Service",
        "times of the day such as 22:00-06:00, separated by commas",
        "When `pgstash backup` starts nothing, in the time zone `TZ`: no backup, no drill, and no "
        "further attempt. What is due then starts at the end of it. What runs already goes on.",
        default=None,
    )
    webhook_url: Annotated[SecretStr, AfterValidator(validators.web_url)] | None = setting(
        "Service",
        "a valid http:// or https:// URL",
        "The URL that results are posted to as JSON. The whole URL is treated as a secret.",
        default=None,
    )
    webhook_format: Literal["json", "slack", "discord"] | None = setting(
        "Service",
        "json, slack or discord",
        "The shape of what is posted. By default Slack's and Discord's own URLs get messages as "
        "these show them, and all others JSON. Mattermost and Rocket.Chat take `slack`.",
        default=None,
    )
    webhook_secret: Annotated[SecretStr, AfterValidator(validators.signing_secret)] | None = (
        setting(
            "Service",
            "text",
            "Signs what is posted, as Standard Webhooks describes (HMAC-SHA256), so that the "
            "receiver knows who sent it. A key after `whsec_` is base64.",
            default=None,
        )
    )
    webhook_on_success: bool = setting(
        "Service", "true or false", "Post successes to the webhook.", default=False
    )
    webhook_on_failure: bool = setting(
        "Service", "true or false", "Post failures to the webhook.", default=True
    )
    notify_urls: Annotated[SecretStr, AfterValidator(notify.addresses)] | None = setting(
        "Service",
        "URLs as Apprise reads them, separated by blanks, such as json://alerts.example.com/pgstash",
        "Where messages go by e-mail, chat or pager. Needs the extra `pgstash[notify]`.",
        default=None,
    )
    notify_on: Annotated[str, AfterValidator(notify.kinds)] = setting(
        "Service",
        f"some of {', '.join(messages.KINDS)}, separated by commas",
        "Which messages go to `NOTIFY_URLS`. A failure is sent when it begins, and a recovery when "
        "it ends.",
        default="failure,recovery,drill-failed,shrunk,pruning-failed,copy-failed",
    )
    healthcheck_ping_url: Annotated[SecretStr, AfterValidator(validators.web_url)] | None = setting(
        "Service",
        "a valid http:// or https:// URL",
        "A dead-man switch like Healthchecks.io: `<url>/start`, `<url>` or `<url>/fail` is "
        "requested when a backup starts, succeeds or fails. With `DATABASES`, `{job}` in it stands "
        "for the folder of the database.",
        default=None,
    )
    health_port: int | None = setting(
        "Service",
        "a port, a whole number from 1 to 65535",
        "The port where `pgstash backup` serves `/healthz`, `/readyz` and `/metrics`, by "
        "HTTP on all interfaces. Off unless set.",
        default=None,
        ge=1,
        le=65_535,
    )
    metrics_file: Annotated[str, AfterValidator(validators.file_to_write)] | None = setting(
        "Service",
        "an absolute path that ends in .prom",
        "A file of metrics for the textfile collector of Prometheus' node exporter, which each "
        "backup and drill updates. Its folder must exist. Requires the extra `metrics`.",
        default=None,
    )
    metrics_pushgateway: Annotated[SecretStr, AfterValidator(validators.web_url)] | None = setting(
        "Service",
        "a valid http:// or https:// URL",
        "A Pushgateway of Prometheus that each backup and drill sends its metrics to. The whole "
        "URL is treated as a secret. Requires the extra `metrics`.",
        default=None,
    )

    @field_validator("tz")
    @classmethod
    def _zone_of_schedule(cls, name: str, info: ValidationInfo) -> str:
        # Containers set TZ for other reasons: it only matters to a schedule.
        if info.data.get("backup_schedule", "wrong") is not None:
            schedule.check_zone(name)
        return name

    @field_validator("blackout")
    @classmethod
    def _in_a_zone(cls, windows: str | None, info: ValidationInfo) -> str | None:
        if windows is not None and "tz" in info.data:
            try:
                schedule.check_zone(info.data["tz"])
            except ValueError as error:
                raise validators.ExplainedError(str(error), variable="TZ") from None
        return windows

    @property
    def notify_addresses(self) -> list[str]:
        """The addresses of Apprise, which are secrets."""
        return self.notify_urls.get_secret_value().split() if self.notify_urls else []

    @property
    def notify_kinds(self) -> frozenset[str]:
        """The kinds of messages that are sent."""
        return frozenset(each.strip() for each in self.notify_on.split(","))


class RestoreSettings(Group):
    """Where a restore goes, and how."""

    restore_url: Annotated[SecretStr, AfterValidator(validators.target_url)] | None = setting(
        "Restore",
        "a URI such as postgresql://user@host:5432/database that names the database",
        "The target of `pgstash restore`; keeps its password out of argument lists. Without `--to` "
        "and `--create`, the database must have the name of the database that the backup is of. "
        "`--to` takes what it lacks from here, if user, host and port are the same. "
        "Variables of libpq for the address and the login of the source (`PGHOST`, `PGUSER`, "
        "`PGPASSWORD`, …) are ignored for the target; `PGPASSFILE` and the TLS variables are "
        "honoured.",
        default=None,
    )
    restore_password_command: _Command | None = setting(
        "Restore",
        "a command line; write sh -c '…' for a shell",
        "A command that prints the password of the target, for each login. A password in "
        "`RESTORE_URL` or `--to` takes precedence.",
        default=None,
    )
    restore_jobs: int = setting(
        "Restore",
        "a whole number from 1 to 64",
        "Number of sessions that restore into a new database (`--create`), also in drills. Each "
        "takes up to 64 MiB of memory. With 1, the script runs from beginning to end in one "
        "session.",
        default=2,
        ge=1,
        le=64,
    )


class DrillSettings(Group):
    """When and where drills run, and what they check."""

    verify_database_url: Annotated[SecretStr, AfterValidator(validators.target_url)] | None = (
        setting(
            "Drill",
            "a URI such as postgresql://user@host:5432/postgres that names a database",
            "The server where a drill creates a database to restore into, and drops it afterwards: "
            "not the server of the source; its role needs CREATEDB. If this is not set, a drill "
            "starts a throwaway server, which requires the PostgreSQL server programs to be "
            "installed. Variables of libpq for the address and login of the source are ignored.",
            default=None,
            shown_default="a throwaway server",
        )
    )
    verify_interval: (
        Annotated[int | Literal["after-backup"], BeforeValidator(validators.interval)] | None
    ) = setting(
        "Drill",
        "a whole number of seconds, 60 or more, or after-backup",
        "How often `pgstash backup` drills the newest backup: after the first run that ends N "
        "seconds or more after the last proof, or with `after-backup` after each backup.",
        default=None,
        shown_default="off",
    )
    verify_sql: Annotated[str, AfterValidator(validators.statements)] | None = setting(
        "Drill",
        "SQL such as SELECT count(*) > 0 FROM users, or the path of a file of it",
        "Your own checks, which a drill runs in the restored database. Each statement must "
        "succeed. A query must return at least one row, and true if it returns a single boolean.",
        default=None,
    )
    min_table_count: int | None = setting(
        "Drill",
        "a whole number, 1 or more",
        "The minimum number of tables in a restored database.",
        default=None,
        ge=1,
    )
    verify_webhook_url: Annotated[SecretStr, AfterValidator(validators.web_url)] | None = setting(
        "Drill",
        "a valid http:// or https:// URL",
        "The URL that results of drills are posted to, instead of `WEBHOOK_URL`. "
        "`WEBHOOK_ON_SUCCESS` and `WEBHOOK_ON_FAILURE` apply to both. The whole URL is treated as "
        "a secret.",
        default=None,
    )

    @field_validator("verify_interval")
    @classmethod
    def _readable(cls, interval: object, info: ValidationInfo) -> object:
        recipients = info.data.get("backup_encryption_recipients") or ""
        unreadable = (
            info.data.get("backup_encryption")
            and recipients
            and not any(map(kms.is_arn, recipients.splitlines()))
            and info.data.get("backup_decryption_identity", "wrong") is None
        )
        if interval is not None and unreadable:
            raise validators.ExplainedError(
                "is set, but a drill could not read the backups: they are encrypted for "
                "BACKUP_ENCRYPTION_RECIPIENTS, and BACKUP_DECRYPTION_IDENTITY is not set. Run "
                "drills with `pgstash drill` on a machine that has an identity"
            )
        return interval


class LogSettings(Group):
    """The format and the detail of the log."""

    log_format: Literal["text", "json"] = setting(
        "Log",
        "text or json",
        "`text` for people, `json` for one JSON object per line.",
        default="text",
    )
    debug: bool = setting("Log", "true or false", "Log details.", default=False)
