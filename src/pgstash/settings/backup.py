"""Settings of a backup: the source, compression, the contents, hooks."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, SecretStr, ValidationInfo, field_validator

from pgstash.postgres.dump import required_tables
from pgstash.postgres.tools import pg_dump_options
from pgstash.settings import validators
from pgstash.settings.declaration import Group, setting

_Command = Annotated[str, AfterValidator(validators.command)]
_Patterns = Annotated[str, AfterValidator(validators.patterns)]


class DatabaseSettings(Group):
    """The source database, and how its rows are read."""

    database_url: Annotated[SecretStr, AfterValidator(validators.database_url)] | None = setting(
        "Database",
        "a URI such as postgresql://user@host:5432/database, with the password after the user "
        "and a colon",
        "The source database: a `postgresql://` or `postgres://` URI, with everything that libpq "
        "accepts. Parameters that only a framework needs (`pgbouncer`, `schema`, …) are ignored. "
        "Or leave it out and set `PGHOST`, `PGPORT`, `PGUSER`, `PGPASSWORD` and "
        "`PGDATABASE`. Other variables of libpq (`PGSSLMODE`, `PGPASSFILE`, `PGSERVICE`, …) are "
        "honoured in both cases.",
        default=None,
    )
    database_password_command: _Command | None = setting(
        "Database",
        "a command line; write sh -c '…' for a shell",
        "A command that prints the password of the source. It runs for each login, because tokens "
        "of cloud services expire. A password in `DATABASE_URL` takes precedence.",
        default=None,
    )
    lock_timeout: int = setting(
        "Database",
        "a whole number of seconds from 1 to 86400",
        "Seconds that pg_dump waits for a lock before the backup fails. If another session "
        "rewrites a table just when the dump starts, the dump is restarted for as long.",
        default=60,
        ge=1,
        le=86_400,
    )
    dump_jobs: int = setting(
        "Database",
        "a whole number from 1 to 64",
        "Number of sessions that read rows in parallel, large tables in pieces, all from one "
        "snapshot. Each takes up to 64 MiB of memory. With 1, a single pg_dump makes the backup; "
        "such a backup cannot be restored in parallel or by single tables.",
        default=2,
        ge=1,
        le=64,
    )
    dump_idle_timeout: int = setting(
        "Database",
        "a whole number of seconds from 10 to 604800",
        "Seconds that pg_dump may write nothing, while pgstash waits for it, before it is "
        "considered stuck. It is also silent while the server reads through a large table without "
        "live rows.",
        default=3600,
        ge=10,
        le=604_800,
    )


class BackupSettings(Group):
    """How a backup is compressed, and whether it holds passwords of roles."""

    compression_level: int = setting(
        "Backup",
        "a whole number from 1 to 9",
        "As for gzip: 1 is fastest, 9 is smallest. Levels 1 to 3 are the same. So are 4 to 6, "
        "which adapt to the data. 7, 8 and 9 differ; each costs more CPU.",
        default=6,
        ge=1,
        le=9,
    )
    globals_passwords: bool = setting(
        "Backup",
        "true or false",
        "Store the hashes of passwords with the roles of the server, so that `pgstash restore "
        "--create-roles` brings roles back with their logins. Requires `BACKUP_ENCRYPTION`, and a "
        "login that may read `pg_authid`: a superuser, a member of `pg_read_all_data`, or a role "
        "that was granted `SELECT` on it. Any other login stores the roles without passwords, with "
        "a warning.",
        default=False,
    )

    @field_validator("globals_passwords")
    @classmethod
    def _only_encrypted(cls, wanted: bool, info: ValidationInfo) -> bool:  # noqa: FBT001 - pydantic passes the value by position
        writes = info.context is None or "source" in info.context
        if writes and wanted and info.data.get("backup_encryption") is False:
            raise validators.ExplainedError(
                "is true, but BACKUP_ENCRYPTION is not: anyone who can read the store could attack "
                "the passwords of all roles. Turn BACKUP_ENCRYPTION on, or GLOBALS_PASSWORDS off"
            )
        return wanted


class ContentsSettings(Group):
    """What a backup contains."""

    exclude_tables: _Patterns | None = setting(
        "Contents",
        "patterns such as public.log_*, separated by commas",
        "Tables to leave out, as for pg_dump's `--exclude-table`.",
        default=None,
    )
    exclude_table_data: _Patterns | None = setting(
        "Contents",
        "patterns such as public.log_*, separated by commas",
        "Tables to dump without their rows; definitions are kept (`--exclude-table-data`).",
        default=None,
    )
    exclude_schemas: _Patterns | None = setting(
        "Contents",
        "patterns such as temp_*, separated by commas",
        "Schemas to leave out, with everything in them (`--exclude-schema`).",
        default=None,
    )
    pg_dump_extra_args: Annotated[str, AfterValidator(validators.extra_options)] | None = setting(
        "Contents",
        "options of pg_dump that leave a complete dump of the database as plain SQL",
        "More options for pg_dump, split like in a shell, but not run by one. Options that would "
        "break the format or leave an incomplete database are refused.",
        default=None,
    )
    require_tables: Annotated[str, AfterValidator(validators.required_tables)] | None = setting(
        "Contents",
        "names of tables such as public.users:nonempty,public.plans, as in SQL",
        "Tables that must be in the dump; with `:nonempty`, they must have at least one row. "
        "Otherwise the backup fails, and nothing is stored.",
        default=None,
    )
    anomaly_ratio: float = setting(
        "Contents",
        "a number from 0 to 0.99",
        "Warn if a backup has less than this fraction of the bytes, tables or rows of earlier "
        "backups (the median of the last 7). The backup is stored anyway. 0 turns the warning off.",
        default=0.5,
        ge=0,
        le=0.99,
        allow_inf_nan=False,
    )

    @field_validator("require_tables")
    @classmethod
    def _not_excluded(cls, tables: str | None, info: ValidationInfo) -> str | None:
        excluded = {
            name: pg_dump_options.split_list(text) if (text := info.data.get(name)) else []
            for name in ("exclude_tables", "exclude_table_data", "exclude_schemas")
        }
        both = required_tables.contradictions(
            required_tables.parse(tables) if tables else [],
            [*excluded["exclude_tables"], *excluded["exclude_table_data"]],
            excluded["exclude_schemas"],
        )
        if both:
            names = ", ".join(map(str, both))
            raise ValueError(f"names {names}, which an EXCLUDE_… setting leaves out")
        return tables


class HookSettings(Group):
    """Commands that run before, during and after a backup."""

    hook_before_backup: _Command | None = setting(
        "Hooks",
        "a command line; write sh -c '…' for a shell",
        "A command that runs before a backup. If it fails, no backup is made.",
        default=None,
    )
    hook_after_backup: _Command | None = setting(
        "Hooks",
        "a command line; write sh -c '…' for a shell",
        "A command that runs after a backup, whether that succeeded or failed. If the command "
        "fails, it is a warning.",
        default=None,
    )
    hook_verify: _Command | None = setting(
        "Hooks",
        "a command line; write sh -c '…' for a shell",
        "A command that reads the plain SQL of each backup from its stdin. If the command fails, "
        "nothing is stored.",
        default=None,
    )
    hook_timeout: int = setting(
        "Hooks",
        "a whole number of seconds from 1 to 86400",
        "Seconds that a hook may take. For `HOOK_VERIFY`: seconds that it may read nothing, and "
        "that it may take after the last byte.",
        default=600,
        ge=1,
        le=86_400,
    )
