"""Every failure of pgstash, on one page.

::

    PgstashError
    ├── ConfigurationError             1   settings missing, malformed or out of bounds
    ├── DatabaseError
    │   ├── TableRewrittenError        9   a table was rewritten whenever a dump started
    │   ├── DatabaseUnreachableError  10   no server answers
    │   ├── DatabaseLoginError        11   the server answers, but refuses the login
    │   ├── ClientToolsError          12   no suitable pg_dump is installed
    │   ├── DumpError                 13   pg_dump failed, stalled or ended early
    │   ├── LockTimeoutError          14   a table stayed locked for too long
    │   ├── WriterBusyError           15   another backup of this source to this prefix is running
    │   ├── WriterLostError           16   the writer lock was lost; another backup may have started
    │   ├── PoolerError               17   a connection pooler swaps sessions or loses settings
    │   ├── PoolTooSmallError         18   a connection pooler has no free session
    │   └── RoleRefusedError          19   the role of --role does not exist or is not granted
    ├── StorageError
    │   ├── StorageUnreachableError   20   the store does not answer, or answers 5xx
    │   ├── StorageRefusedError       21   the store refuses the request
    │   ├── UploadError               22   the archive could not be stored
    │   ├── ObjectExistsError         23   the name is taken; nothing is overwritten
    │   ├── ObjectNotFoundError       24   no such object
    │   ├── BackupNotFoundError       25   no such backup
    │   ├── ObjectDamagedError        26   an object is too short or unreadable
    │   └── SourceUnclearError        27   backups of several sources, none selected
    ├── PipelineError
    │   ├── EncryptionError           30   encryption could not be set up
    │   ├── CorruptedError            31   stored bytes are damaged, or the key is wrong
    │   ├── UnverifiedError           32   no manifest, or not encrypted as new backups are
    │   └── NewerFormatError          33   reading the backup requires a newer pgstash
    ├── HealthError
    │   ├── CheckFailedError          40   a check failed
    │   ├── StaleBackupError          41   the newest backup is older than the schedule allows
    │   ├── DrillFailedError          42   a restored backup did not pass a check
    │   ├── ScratchError              43   there is no place to restore into for a drill
    │   └── WrongClockError           44   a clock is wrong, so the age of backups is uncertain
    ├── HookError                     50   a hook failed or took too long
    ├── RequiredTableError            51   a required table is missing or empty
    ├── OutputError                   52   the output cannot be written to stdout
    ├── JobsFailedError               53   at least one of several jobs failed
    └── RestoreError
        ├── TargetNotEmptyError       60   the target is not empty, and --overwrite was not given
        ├── TargetDatabaseError       61   the new database could not be created or put in place
        ├── StatementError            62   the target refused a statement
        ├── TargetLostError           63   psql or the connection ended before the restore did
        ├── TargetLacksError          59   the target is missing roles, extensions or objects
        ├── TableNotStoredError       58   no such table, or no restore of single tables
        ├── WrongTargetError          57   RESTORE_URL leads to another database than the backup's
        ├── SuperuserRequiredError    56   the role may not create all objects of the backup
        └── NotAllRecoveredError      55   not all databases of a server are back

    Interrupted                    128+n   SIGINT or SIGTERM (not a failure of pgstash)

The number is the exit status of the command. Exit status 1 means a configuration
error and nothing else; 2 is a wrong command line; 70 (``EX_SOFTWARE``) is an
unexpected error.
"""

from __future__ import annotations

import signal
from typing import ClassVar

EXIT_USAGE = 2
EXIT_UNEXPECTED = 70


class PgstashError(Exception):
    """Base of every expected failure.

    ``message`` is the problem, ``hint`` what the user can do about it. Neither may contain a
    secret, although the log scrubs both anyway. ``retryable`` is whether the same command may
    succeed soon with nothing changed: the service tries only those again before the next run.
    """

    exit_code: ClassVar[int] = EXIT_UNEXPECTED
    retryable: bool = False
    default_hint: ClassVar[str] = ""

    def __init_subclass__(
        cls, *, exit_code: int | None = None, retryable: bool | None = None
    ) -> None:
        """Set what a class differs in from its parent."""
        super().__init_subclass__()
        cls.exit_code = cls.exit_code if exit_code is None else exit_code
        cls.retryable = cls.retryable if retryable is None else retryable

    def __init__(self, message: str, *, hint: str = "", retryable: bool | None = None) -> None:
        """Store what is given, or else the hint and the judgement of the class."""
        super().__init__(message)
        self.message = message
        self.hint = hint or self.default_hint
        if retryable is not None:
            self.retryable = retryable


class ConfigurationError(PgstashError, exit_code=1):
    """Settings are missing, malformed or out of bounds; lists every problem."""

    def __init__(self, problems: list[str]) -> None:
        """Store the problems, each a full sentence that names its variable."""
        super().__init__("\n".join(problems))
        self.problems = problems


class DatabaseError(PgstashError):
    """A failure between pgstash and the source database."""


class TableRewrittenError(DatabaseError, exit_code=9, retryable=True):  # 10 to 19 are taken
    """A table was rewritten or replaced whenever a dump started, for ``LOCK_TIMEOUT`` seconds."""

    default_hint = (
        "The cause is TRUNCATE, VACUUM FULL, CLUSTER, a rewriting ALTER TABLE, or a new table of "
        "the same name. Run the backup when that does not happen, raise LOCK_TIMEOUT, empty the "
        "table with DELETE, or leave its rows out with EXCLUDE_TABLE_DATA."
    )


class DatabaseUnreachableError(DatabaseError, exit_code=10, retryable=True):
    """No server answers at the address."""

    default_hint = "Check the host, the port, the network, and whether the server is running."


class DatabaseLoginError(DatabaseError, exit_code=11):
    """The server answers, but refuses the login."""

    default_hint = "Check the user, the password, the database name and the server's pg_hba.conf."


class ClientToolsError(DatabaseError, exit_code=12):
    """No installed pg_dump suits the server."""


class DumpError(DatabaseError, exit_code=13, retryable=True):
    """pg_dump failed, stalled, or ended before the dump was complete."""


class LockTimeoutError(DatabaseError, exit_code=14, retryable=True):
    """Another session kept a table locked for longer than ``LOCK_TIMEOUT``."""

    default_hint = (
        "Another session holds or waits for an exclusive lock (ALTER TABLE, VACUUM FULL, a "
        "forgotten transaction). Find it in pg_locks, or raise LOCK_TIMEOUT."
    )


class WriterBusyError(DatabaseError, exit_code=15, retryable=True):
    """Another backup of the same source to the same prefix is running."""

    default_hint = (
        "Another backup of the same source to the same BACKUP_PREFIX is running, or pgstash prune "
        "is sweeping there: wait until it finishes. If two services have the same settings, stop "
        "one of them. If neither is running any more, end that session with pg_terminate_backend."
    )


class WriterLostError(DatabaseError, exit_code=16, retryable=True):
    """The writer lock was lost during the backup, so another backup may have started."""

    default_hint = (
        "The session that holds it must last as long as the backup. Was the server restarted, was "
        "the session terminated, or does a pooler or firewall close idle connections?"
    )


class PoolerError(DatabaseError, exit_code=17):
    """A connection pooler swaps the server's sessions, or loses their settings."""

    default_hint = (
        "Connect to the server directly, or use the pooler's session mode: port 5432 at Supabase, "
        "the host without -pooler at Neon, pool_mode = session in PgBouncer."
    )


class PoolTooSmallError(DatabaseError, exit_code=18, retryable=True):
    """A connection pooler has no session of the server left for pgstash."""

    default_hint = (
        "A backup needs up to DUMP_JOBS + 4 sessions at a time, a restore RESTORE_JOBS + 3. Raise "
        "the size of the pool (PgBouncer: default_pool_size), or connect to the server directly."
    )


class RoleRefusedError(DatabaseError, exit_code=19):
    """The role given by ``--role`` does not exist, or is not granted to the login."""

    default_hint = (
        "Check --role in PG_DUMP_EXTRA_ARGS: `\\du` in psql lists the roles. Names are "
        "case-sensitive."
    )


class StorageError(PgstashError):
    """A failure between pgstash and the store."""


class StorageUnreachableError(StorageError, exit_code=20, retryable=True):
    """The store does not answer, or answers that it is unavailable."""

    default_hint = "Check S3_ENDPOINT and the network. The store may be down or overloaded."


class StorageRefusedError(StorageError, exit_code=21):
    """The store refuses the request: credentials, permissions, bucket, quota."""

    default_hint = (
        "Check S3_BUCKET, S3_ACCESS_KEY_ID, S3_SECRET_ACCESS_KEY, S3_REGION and the permissions of "
        "the key."
    )
    locked: bool = False
    """Whether a lock of the store protects the object, which is a normal state."""


class UploadError(StorageError, exit_code=22, retryable=True):
    """The archive could not be stored completely."""


class ObjectExistsError(StorageError, exit_code=23):
    """The key exists already, and pgstash overwrites nothing."""

    default_hint = "Another pgstash may be writing under the same BACKUP_PREFIX."


class ObjectNotFoundError(StorageError, exit_code=24):
    """There is no object with that key."""


class BackupNotFoundError(StorageError, exit_code=25):
    """There is no backup of that name or time."""

    default_hint = "`pgstash list --all` shows the backups under BACKUP_PREFIX."


class ObjectDamagedError(StorageError, exit_code=26):
    """A stored object is too short, or its metadata or manifest are unreadable."""

    default_hint = (
        "It was probably truncated, replaced or edited in the store. Restore another backup, and "
        "make a new one."
    )


class SourceUnclearError(StorageError, exit_code=27):
    """The prefix contains backups of several sources, and none of them is selected."""

    default_hint = (
        "Name the source with --source, or a backup by its name. Give each database a "
        "BACKUP_PREFIX of its own."
    )


class PipelineError(PgstashError):
    """A failure of compression or encryption."""


class EncryptionError(PipelineError, exit_code=30):
    """Encryption could not be set up."""


class CorruptedError(PipelineError, exit_code=31):
    """Stored bytes differ from what was written, or were written with another key."""

    default_hint = "Check BACKUP_ENCRYPTION_KEY. If it is correct, the stored object is damaged."


class UnverifiedError(PipelineError, exit_code=32):
    """The backup has no manifest, or is not encrypted as new ones; see ``--unverified``."""


class NewerFormatError(PipelineError, exit_code=33):
    """The backup has a format that only newer versions of pgstash read."""


class HealthError(PgstashError):
    """A check of health failed."""


class CheckFailedError(HealthError, exit_code=40):
    """A check of ``pgstash check`` failed."""

    default_hint = "The lines below each FAILED show what to do."


class StaleBackupError(HealthError, exit_code=41, retryable=True):
    """The newest backup is older than the schedule allows, or there is none."""

    default_hint = "Check that the service is running, and read its log for failed backups."


class DrillFailedError(HealthError, exit_code=42):
    """A backup was restored, but the result did not pass the checks of a drill."""

    default_hint = (
        "Do not rely on this backup until the reason is known. Compare the named tables in the "
        "source and in the backup (pgstash restore --create NAME)."
    )


class ScratchError(HealthError, exit_code=43):
    """A drill has no place to restore into: no server, no space, no privileges."""

    default_hint = (
        "Check VERIFY_DATABASE_URL: its role needs CREATEDB. Or leave it out, and install the "
        "PostgreSQL server package on this machine, so that a drill can start a throwaway server."
    )


class WrongClockError(HealthError, exit_code=44):
    """A clock is wrong by an hour or more, so the age of backups is uncertain."""

    default_hint = "Correct the wrong clock."


class HookError(PgstashError, exit_code=50):
    """A hook could not be started, failed, or took longer than ``HOOK_TIMEOUT``."""

    default_hint = "Run the command in the log by hand. If it needs more time, raise HOOK_TIMEOUT."


class RequiredTableError(PgstashError, exit_code=51):
    """A table of ``REQUIRE_TABLES`` is missing or empty; nothing was stored."""

    default_hint = (
        "Check that this is the right database and that it is intact. If the table was removed on "
        "purpose, change REQUIRE_TABLES."
    )


class OutputError(PgstashError, exit_code=52):
    """The output could not be written to stdout; what was written is incomplete."""

    default_hint = "Is the destination disk full?"


class JobsFailedError(PgstashError, exit_code=53):
    """At least one job of several failed; the others ran anyway. The log shows why."""


class RestoreError(PgstashError):
    """A backup could not be restored."""


class TargetNotEmptyError(RestoreError, exit_code=60):
    """The target contains objects of a user, and ``--overwrite`` was not given."""


class TargetDatabaseError(RestoreError, exit_code=61):
    """The new database could not be created, or cannot replace the existing one."""


class StatementError(RestoreError, exit_code=62):
    """The target refused a statement of the script."""

    default_hint = (
        "Run the statement by itself in the target to see what is missing there. If the cause is "
        "in the source, fix it there and back up again."
    )


class TargetLostError(RestoreError, exit_code=63):
    """psql, or its connection to the target, ended before the restore did."""

    default_hint = "Check the target server's log for that time, then restore again."


class TargetLacksError(RestoreError, exit_code=59):  # sysexits.h uses 64 and above
    """The target is missing roles, extensions or objects that the backup refers to."""


class TableNotStoredError(RestoreError, exit_code=58):
    """The backup has no such table, or single tables cannot be restored from it."""


class WrongTargetError(RestoreError, exit_code=57):
    """``RESTORE_URL`` leads to another database than the backup's; no option names the target."""


class SuperuserRequiredError(RestoreError, exit_code=56):
    """The role may not create all objects of the backup, and they are not left out."""


class NotAllRecoveredError(RestoreError, exit_code=55):
    """A recovery of a whole server did not bring all databases and roles back."""


class Interrupted(BaseException):
    """SIGINT, SIGTERM or SIGHUP asks the process to stop; unwinds like KeyboardInterrupt."""

    def __init__(self, signum: int) -> None:
        """Store the number of the signal."""
        super().__init__(f"interrupted by {signal.Signals(signum).name}")
        self.signum = signum
        self.exit_code = 128 + signum
