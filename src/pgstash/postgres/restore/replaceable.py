"""Whether an existing database can be replaced by a restored one, and what it is called then."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime

from psycopg import sql

from pgstash.counting import counted
from pgstash.errors import TargetDatabaseError
from pgstash.postgres.restore.target import LONGEST_NAME
from pgstash.postgres.server.query import Connection

_MOST_NAMED = 5
_LAST_SUFFIX = 9

# Who may end a session: pg_signal_backend() in signalfuncs.c. A session without a role is one of
# autovacuum, which the server itself ends. The role that the login sets need not be the login.
_FOUND = """
    SELECT d.oid, d.datistemplate, d.datname = pg_catalog.current_database(),
        owner.rolname, me.rolname, me.rolsuper OR owner.oid = me.oid,
        ARRAY(SELECT slot_name::text FROM pg_catalog.pg_replication_slots WHERE datoid = d.oid),
        ARRAY(SELECT gid FROM pg_catalog.pg_prepared_xacts WHERE database = d.datname),
        ARRAY(SELECT subname::text FROM pg_catalog.pg_subscription
              WHERE subdbid = d.oid AND subenabled),
        ARRAY(SELECT DISTINCT of_other.rolname::text FROM pg_catalog.pg_stat_activity a
              JOIN pg_catalog.pg_roles of_other ON of_other.oid = a.usesysid
              WHERE a.datid = d.oid AND NOT EXISTS (
                  SELECT FROM pg_catalog.pg_roles ending
                  WHERE ending.rolname IN (session_user, current_user) AND (ending.rolsuper OR
                      NOT of_other.rolsuper AND (
                          pg_catalog.pg_has_role(ending.oid, of_other.oid, 'USAGE')
                          OR pg_catalog.pg_has_role(ending.oid, 'pg_signal_backend', 'USAGE')))))
    FROM pg_catalog.pg_database d
    JOIN pg_catalog.pg_roles owner ON owner.oid = d.datdba
    JOIN pg_catalog.pg_roles me ON me.rolname = current_user
    WHERE d.datname = %s
"""
_TAKEN = "SELECT FROM pg_catalog.pg_database WHERE datname = %s"


def find(session: Connection, name: str) -> int | None:
    """Return the OID of the database to replace, or None if it does not exist.

    Raises TargetDatabaseError if the role cannot rename it, or cannot end its sessions, or if it
    has something that does not survive a replacement.
    """
    row = session.execute(_FOUND, [name]).fetchone()
    if row is None:
        return None
    oid, is_template, is_own, owner, role, may_rename, slots, prepared, subscriptions, others = row
    if is_own:
        raise _refused(
            name,
            "it is the database of this login",
            "Let RESTORE_URL or --to name another database of that server, such as postgres.",
        )
    if is_template:
        raise _refused(
            name,
            "it is a template",
            f"If it need not be one, run ALTER DATABASE {_quoted(name)} IS_TEMPLATE false;",
        )
    if not may_rename:
        # A member of the owner could rename it, but not give the new database to the owner.
        raise _refused(
            name,
            f"it belongs to the role {owner}, and {role} is neither that role nor a superuser",
            f"Restore as {owner} or as a superuser.",
        )
    if slots:
        raise _refused(
            name,
            f"it has {_named(slots, 'logical replication slot')}",
            "A slot cannot be moved to another database. Drop it when its consumer is stopped "
            "(SELECT pg_drop_replication_slot('…')), and create it again in the new database.",
        )
    if prepared:
        raise _refused(
            name,
            f"it has {_named(prepared, 'prepared transaction')}",
            "Finish it there: COMMIT PREPARED '…' or ROLLBACK PREPARED '…'.",
        )
    if subscriptions:
        raise _refused(
            name,
            f"it has {_named(subscriptions, 'active subscription')}",
            "Disable it there: ALTER SUBSCRIPTION … DISABLE.",
        )
    if others:
        raise _refused(
            name,
            f"{role} may not end sessions in it of {_named(others, 'role')}",
            f"Restore as a superuser; or run GRANT pg_signal_backend TO {_quoted(role)}, and let "
            "sessions of superusers end by themselves.",
        )
    return int(oid)


def kept_name(session: Connection, name: str, at: datetime) -> str:
    """Return the name under which a database is kept that is replaced ``at`` a time in UTC.

    Raises TargetDatabaseError if databases have all such names.
    """
    for kept in kept_names(name, at):
        if session.execute(_TAKEN, [kept]).fetchone() is None:
            return kept
    raise _refused(
        name, f"databases have the names from {next(kept_names(name, at))} on", "Try again later."
    )


def kept_names(name: str, at: datetime) -> Iterator[str]:
    """Yield names for a database that is replaced ``at`` a time in UTC, the best one first."""
    for number in range(1, _LAST_SUFFIX + 1):
        suffix = f"_before_{at:%Y%m%d_%H%M%S}" + (f"_{number}" if number > 1 else "")
        # A character that is cut in half is left out.
        yield name.encode()[: LONGEST_NAME - len(suffix)].decode(errors="ignore") + suffix


def _quoted(name: str) -> str:
    return sql.Identifier(name).as_string()


def _named(names: Sequence[str], what: str) -> str:
    some = ", ".join(names[:_MOST_NAMED]) + (", …" if len(names) > _MOST_NAMED else "")
    return f"{counted(len(names), what)}: {some}"


def _refused(name: str, why: str, hint: str) -> TargetDatabaseError:
    return TargetDatabaseError(f"the database {name} cannot be replaced: {why}", hint=hint)
