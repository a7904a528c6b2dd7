"""Every way in which pgstash can fail, on one page.

::

    PgstashError
    ├── ConfigurationError             1   settings missing, malformed or out of bounds
    ├── DatabaseError
    │   ├── TableRewrittenError        9   a table was rewritten each time that a dump began
    │   ├── DatabaseUnreachableError  10   no server answers
    │   ├── DatabaseLoginError        11   the server answers, and refuses the login
    │   ├── ClientToolsError          12   no pg_dump that fits the server
    │   ├── DumpError                 13   pg_dump failed, stalled or ended early
    │   ├── LockTimeoutError          14   a table stayed locked for too long
    │   ├── WriterBusyError           15   another backup of this source to this place runs
    │   ├── WriterLostError           16   nobody can tell that no other one began meanwhile
    │   ├── PoolerError               17   a pooler in between swaps sessions, or loses settings
    │   ├── PoolTooSmallError         18   a pooler in between has no session for us
    │   └── RoleRefusedError          19   the role of --role does not exist, or is not granted
    ├── StorageError
    │   ├── StorageUnreachableError   20   the store does not answer, or answers 5xx
    │   ├── StorageRefusedError       21   the store answers, and refuses
    │   ├── UploadError               22   the archive could not be stored
    │   ├── ObjectExistsError         23   the name is taken; nothing is overwritten
    │   ├── ObjectNotFoundError       24   no such object
    │   ├── BackupNotFoundError       25   no such backup
    │   ├── ObjectDamagedError        26   an object is shorter than it should be, or unreadable
    │   └── SourceUnclearError        27   backups of several sources, and none was named
    ├── PipelineError
    │   ├── EncryptionError           30   encryption could not be set up
    │   ├── CorruptedError            31   stored bytes are damaged, or the key is wrong
    │   ├── UnverifiedError           32   nothing vouches for the backup
    │   └── NewerFormatError          33   a newer pgstash is needed to read the backup
    ├── HealthError
    │   ├── CheckFailedError          40   the preflight found something that does not work
    │   ├── StaleBackupError          41   the newest backup is older than the schedule allows
    │   ├── DrillFailedError          42   a restored backup is not what it should be
    │   ├── ScratchError              43   there is no place to try a restore in
    │   └── WrongClockError           44   a clock is wrong, and what is newest or old depends on it
    ├── HookError                     50   a hook failed or took too long
    ├── RequiredTableError            51   a required table is missing or empty
    ├── OutputError                   52   what was asked for cannot be written to stdout
    └── RestoreError
        ├── TargetNotEmptyError       60   the target holds objects, and nobody said to replace them
        ├── TargetDatabaseError       61   the new database could not be made
        ├── StatementError            62   the target refused a statement
        ├── TargetLostError           63   psql or the connection ended before the restore did
        ├── TargetLacksError          59   the target has not the roles or extensions that it takes
        └── TableNotStoredError       58   no such table, or the backup is not read by tables

    Interrupted                    128+n   SIGINT or SIGTERM (not a failure of pgstash)

The number is the exit status of the command. Exit status 1 means a configuration
error and nothing else; 2 is a wrong command line; 70 (``EX_SOFTWARE``) is an error
that nobody foresaw.
"""

from __future__ import annotations

import signal
from typing import ClassVar

EXIT_USAGE = 2
EXIT_UNFORESEEN = 70


class PgstashError(Exception):
    """Base of every failure that pgstash foresees.

    ``message`` says what is wrong, ``hint`` what the user can do about it. Neither
    may hold a secret, although the log scrubs them all the same.
    """

    exit_code: ClassVar[int] = EXIT_UNFORESEEN
    retryable: ClassVar[bool] = False
    default_hint: ClassVar[str] = ""

    def __init__(self, message: str, *, hint: str = "") -> None:
        """Keep the message and the hint, or the hint of the class."""
        super().__init__(message)
        self.message = message
        self.hint = hint or self.default_hint


class ConfigurationError(PgstashError):
    """Settings are missing, malformed or out of bounds; lists every problem."""

    exit_code = 1

    def __init__(self, problems: list[str]) -> None:
        """Keep the problems, each a full sentence that names its variable."""
        super().__init__("\n".join(problems))
        self.problems = problems


class DatabaseError(PgstashError):
    """Something between pgstash and the source database went wrong."""


class TableRewrittenError(DatabaseError):
    """A table was rewritten or replaced each time that a dump began, for ``LOCK_TIMEOUT``."""

    exit_code = 9  # none is left from 10 to 19
    retryable = True
    default_hint = (
        "TRUNCATE, VACUUM FULL, CLUSTER, a rewriting ALTER TABLE or another table of its name: let "
        "the backup run when that rests, raise LOCK_TIMEOUT, or empty the table with DELETE. "
        "EXCLUDE_TABLE_DATA leaves its rows out."
    )


class DatabaseUnreachableError(DatabaseError):
    """No server answers at the address."""

    exit_code = 10
    retryable = True
    default_hint = "Check host and port, that the server runs, and the network in between."


class DatabaseLoginError(DatabaseError):
    """The server answers, and does not let us in."""

    exit_code = 11
    default_hint = "Check user, password, database name and the server's pg_hba.conf."


class ClientToolsError(DatabaseError):
    """No installed pg_dump fits the server."""

    exit_code = 12


class DumpError(DatabaseError):
    """pg_dump failed, stalled, or ended before the dump was complete."""

    exit_code = 13
    retryable = True


class LockTimeoutError(DatabaseError):
    """A table stayed locked by somebody else for longer than ``LOCK_TIMEOUT``."""

    exit_code = 14
    retryable = True
    default_hint = (
        "Something holds or waits for an exclusive lock (ALTER TABLE, VACUUM FULL, a forgotten "
        "transaction): look for it in pg_locks, or raise LOCK_TIMEOUT."
    )


class WriterBusyError(DatabaseError):
    """Another backup of the same source to the same place runs, and was not waited for."""

    exit_code = 15
    retryable = True
    default_hint = (
        "Another backup of the same source to the same BACKUP_PREFIX runs, or pgstash prune sweeps "
        "there: let it finish. If two services are set up alike, stop one of them. If nothing runs "
        "any more, end that session with pg_terminate_backend."
    )


class WriterLostError(DatabaseError):
    """The writer lock was lost on the way, so that another backup may have begun."""

    exit_code = 16
    retryable = True
    default_hint = (
        "Its session must live as long as the backup: was the server restarted, the session "
        "ended, or does a pooler or firewall in between cut idle connections?"
    )


class PoolerError(DatabaseError):
    """A connection pooler in between swaps the server's sessions, or loses their settings."""

    exit_code = 17
    default_hint = (
        "Connect to the server itself, or to the pooler's session mode. For example: Supabase has "
        "port 5432 for it, Neon the host without -pooler, PgBouncer pool_mode = session."
    )


class PoolTooSmallError(DatabaseError):
    """A connection pooler in between has no session of the server left for pgstash."""

    exit_code = 18
    retryable = True
    default_hint = (
        "A backup needs up to DUMP_JOBS + 4 sessions at a time, a restore RESTORE_JOBS + 3: raise "
        "the size of the pool (PgBouncer: default_pool_size), or connect to the server itself."
    )


class RoleRefusedError(DatabaseError):
    """The role that ``--role`` names does not exist, or the login may not take it."""

    exit_code = 19
    default_hint = (
        "Check --role in PG_DUMP_EXTRA_ARGS: `\\du` in psql lists the roles. Upper and lower case "
        "matter."
    )


class StorageError(PgstashError):
    """Something between pgstash and the store went wrong."""


class StorageUnreachableError(StorageError):
    """The store does not answer, or answers that it cannot serve now."""

    exit_code = 20
    retryable = True
    default_hint = "Check S3_ENDPOINT and the network; the store may be down or overloaded."


class StorageRefusedError(StorageError):
    """The store answers, and refuses: credentials, permissions, bucket, quota."""

    exit_code = 21
    default_hint = (
        "Check S3_BUCKET, S3_ACCESS_KEY_ID, S3_SECRET_ACCESS_KEY, S3_REGION "
        "and what the key is allowed to do."
    )


class UploadError(StorageError):
    """The archive could not be stored whole."""

    exit_code = 22
    retryable = True


class ObjectExistsError(StorageError):
    """The key is taken, and pgstash overwrites nothing."""

    exit_code = 23
    default_hint = "Another pgstash may be writing under the same BACKUP_PREFIX."


class ObjectNotFoundError(StorageError):
    """There is no object of that key."""

    exit_code = 24


class BackupNotFoundError(StorageError):
    """There is no backup of that name or time."""

    exit_code = 25
    default_hint = "`pgstash list --all` shows the backups under BACKUP_PREFIX."


class ObjectDamagedError(StorageError):
    """A stored object is shorter than it should be, or what is stored about it is unreadable."""

    exit_code = 26
    default_hint = (
        "Was it cut short, replaced or edited in the store? Restore another backup, and take a new "
        "one."
    )


class SourceUnclearError(StorageError):
    """The prefix holds backups of several sources, and nothing says which one is meant."""

    exit_code = 27
    default_hint = (
        "Name the source with --source, or a backup by its name. Give each database a "
        "BACKUP_PREFIX of its own."
    )


class PipelineError(PgstashError):
    """Compression or encryption went wrong."""


class EncryptionError(PipelineError):
    """Encryption could not be set up."""

    exit_code = 30


class CorruptedError(PipelineError):
    """Stored bytes are not what was written, or the key is not the one they were written with."""

    exit_code = 31
    default_hint = "Check BACKUP_ENCRYPTION_KEY; if it is right, the stored object is damaged."


class UnverifiedError(PipelineError):
    """There is nothing to check a backup with, and nobody said to do without."""

    exit_code = 32


class NewerFormatError(PipelineError):
    """The backup has a format that this version does not know: a newer one wrote it."""

    exit_code = 33


class HealthError(PgstashError):
    """Somebody asked whether all is well, and it is not."""


class CheckFailedError(HealthError):
    """The preflight found something that does not work."""

    exit_code = 40
    default_hint = "Each line that FAILED says what to do."


class StaleBackupError(HealthError):
    """The newest backup is older than the schedule allows, or there is none."""

    exit_code = 41
    retryable = True
    default_hint = "Is the service running, and does its log tell of failed backups?"


class DrillFailedError(HealthError):
    """A backup was restored, and what came out does not pass the checks of a drill."""

    exit_code = 42
    default_hint = (
        "Do not rely on this backup before the reason is known: look at the tables that are named, "
        "in the source and in the backup (pgstash restore --create NAME)."
    )


class ScratchError(HealthError):
    """There is no place to restore into and to throw away: no server, no room, no rights."""

    exit_code = 43
    default_hint = (
        "Check VERIFY_DATABASE_URL, whose role needs CREATEDB; or leave it out, and install the "
        "server's package here for a throwaway server."
    )


class WrongClockError(HealthError):
    """A clock is wrong by an hour or more, and what is the newest or outdated depends on it."""

    exit_code = 44
    default_hint = "Set the clock right that is wrong."


class HookError(PgstashError):
    """A hook could not be started, failed, or took longer than ``HOOK_TIMEOUT``."""

    exit_code = 50
    default_hint = (
        "The log has what the command wrote. Run it by hand; if it only needs longer, raise "
        "HOOK_TIMEOUT."
    )


class RequiredTableError(PgstashError):
    """A table that ``REQUIRE_TABLES`` names is missing or empty; nothing was stored."""

    exit_code = 51
    default_hint = (
        "Look whether the database is the right one and still whole; where the table is gone for "
        "good, change REQUIRE_TABLES."
    )


class OutputError(PgstashError):
    """What was asked for could not be written to stdout; do not use what came of it."""

    exit_code = 52
    default_hint = "Is the disk full that it goes to?"


class RestoreError(PgstashError):
    """A backup could not be put back."""


class TargetNotEmptyError(RestoreError):
    """The target holds objects of a user, and nothing is replaced unless somebody says so."""

    exit_code = 60


class TargetDatabaseError(RestoreError):
    """The database to restore into could not be made."""

    exit_code = 61


class StatementError(RestoreError):
    """The target refused a statement of the script."""

    exit_code = 62
    default_hint = (
        "Run the statement by itself in the target to see what it lacks there. If the reason is "
        "in the source, fix it there and back up again."
    )


class TargetLostError(RestoreError):
    """psql, or its connection to the target, ended before the restore did."""

    exit_code = 63
    default_hint = "Look into the target server's log for that time, and restore again."


class TargetLacksError(RestoreError):
    """The target's server lacks roles that the backup names, or extensions that it uses."""

    exit_code = 59  # from 64 on, sysexits.h has other meanings


class TableNotStoredError(RestoreError):
    """The backup has no such table, or cannot be read table by table."""

    exit_code = 58


class Interrupted(BaseException):
    """SIGINT or SIGTERM asks the process to stop; unwinds like KeyboardInterrupt."""

    def __init__(self, signum: int) -> None:
        """Keep the number of the signal."""
        super().__init__(f"interrupted by {signal.Signals(signum).name}")
        self.signum = signum
        self.exit_code = 128 + signum
