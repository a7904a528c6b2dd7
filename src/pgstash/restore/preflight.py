"""Checks that a target may and can take an archive: name, client tools, contents, locks, roles."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterator, Mapping, Sequence

from pgstash import events
from pgstash.errors import (
    ClientToolsError,
    StatementError,
    TargetNotEmptyError,
    WrongTargetError,
)
from pgstash.format.manifest import Manifest
from pgstash.postgres.dump import globals as globals_dump
from pgstash.postgres.restore import logins, memberships, new_database, role_settings, roles, target
from pgstash.postgres.restore.hints import BROKEN_CONSTRAINT
from pgstash.postgres.restore.refusals import LockTableFullError
from pgstash.postgres.restore.request import Request
from pgstash.postgres.server import conninfo, disk_room
from pgstash.postgres.server.connection import Server
from pgstash.postgres.tools import installed
from pgstash.repository.archive import Archive
from pgstash.repository.script import KNOWN_FROM, without_settings_unknown_to

# A table with a key and a serial column takes five: the table, its index, its sequence, its TOAST
# table and the index of that one.
_LOCKS_OF_A_TABLE = 5

MAINTENANCE = frozenset({"postgres", "template0", "template1"})
"""initdb makes them: https://www.postgresql.org/docs/current/manage-ag-templatedbs.html"""

_ROWS_IN_THE_WAY = (
    "The table already has such rows, or another table does not have the rows that these refer to. "
    "Delete the existing rows first; or restore into a new database with --create, and copy what "
    "you need from there."
)
_OVERWRITE = (
    "Restore into an empty database, or into a new one with --create NAME. With --overwrite, the "
    "objects of the backup replace those of the same name; everything else in the target stays. If "
    "another object depends on one that is to be replaced, the restore stops."
)
_OF_TABLES = (
    "Restore the tables into an empty database, or into a new one with --create NAME. Or put them "
    "next to what this database holds, with --into-existing. Or add only their rows to existing "
    "tables, with --data-only."
)


def refuse_unnamed_target(url: str, database: str, archive: Archive, *, request: Request) -> None:
    """Raise WrongTargetError if a restore might write to a database that nobody meant.

    ``url`` leads to the ``database``. It is a setting, and may be meant for another restore, or for
    logging in only. So it is enough for the database that the backup is of. Any other one, and one
    for maintenance, must have been named for this restore; so must any database if the backup does
    not record the name of its own.
    """
    if request.create is not None or request.any_name:
        return
    own = archive.manifest.database.name if archive.manifest else None
    if database == own and database not in MAINTENANCE:
        return
    to = f"RESTORE_URL leads to the database {database} on {conninfo.address(url)}"
    if own is None:
        of = "and the backup does not record which database it is of"
    elif own == database:
        of = "which is for maintenance, although the backup is of a database with that name"
    else:
        of = f"but the backup is of the database {own}"
    raise WrongTargetError(
        f"{to}, {of}", hint=_how_to_name_target(url, database, own, request=request)
    )


def _how_to_name_target(url: str, database: str, own: str | None, *, request: Request) -> str:
    """Return what to add to the command line, for each database that may be meant."""
    meant = [] if own is None else [own]
    if database not in MAINTENANCE | set(meant):
        meant.append(database)
    options = [
        f"--to {shlex.quote(conninfo.login_uri(url, name))} for an existing database"
        for name in meant or ["NAME"]
    ]
    if not request.overwrite and not request.rows_only and not request.into_existing:
        new = own if own and own not in {database, *MAINTENANCE} else "NAME"
        options.insert(0, f"--create {shlex.quote(new)} for a new database")
    lines = "".join(f"\n{option}" for option in options)
    return (
        "Name the target in the command by adding one of these; a password in RESTORE_URL still "
        f"applies:{lines}"
    )


def reads_archive(manifest: Manifest | None, found: installed.ClientTools, server: Server) -> bool:
    """Return whether pg_restore can read the archive, and the server accepts what pg_restore sends.

    pg_restore 17 and newer always sets transaction_timeout, whichever pg_dump wrote the archive,
    and older servers refuse that. A script for psql can be edited; what pg_restore sends cannot.
    """
    wrote = _wrote(manifest, server)
    knows = max(wrote, min(found.major, KNOWN_FROM))
    return found.major >= wrote and server.major >= knows


def look_for_roles(
    server: Server, archive: Archive, request: Request, emit: events.Emit
) -> Sequence[str]:
    """Raise TargetLacksError if roles or extensions are missing; create roles if requested.

    Returns the created roles that could log in on the source, and cannot on the target.
    """
    manifest = archive.manifest
    if manifest is None or request.rows_only or request.into_existing:
        return ()
    if not request.create_roles:
        return roles.refuse_missing(server, manifest, {}, request, emit).closed
    script = archive.globals()
    of_source = _roles_of_source(archive, manifest, script, emit)
    created = roles.refuse_missing(server, manifest, of_source, request, emit)
    if script and created.names and not request.for_drill:
        memberships.give(server, memberships.read(script), created.names, emit)
        role_settings.give(server, role_settings.read(script), created.names, emit)
    return created.closed


def _roles_of_source(
    archive: Archive, manifest: Manifest, script: bytes | None, emit: events.Emit
) -> Mapping[str, logins.Login]:
    """Return all roles of the source if they are stored, otherwise those that are required."""
    if script is None:
        if manifest.globals_sha256:
            emit(events.Warned(f"The roles companion of {archive.name} is missing"))
        return dict.fromkeys([*manifest.roles, *manifest.privilege_roles], logins.UNKNOWN)
    # Without encryption, anyone who can write to the store could have put a login there.
    passwords = manifest.globals_passwords and manifest.encryption is not None
    found = logins.read(script, passwords=passwords)
    return {name: found.get(name, logins.UNKNOWN) for name in globals_dump.roles_in(script)}


def owners_and_privileges(
    server: Server, archive: Archive, request: Request, emit: events.Emit
) -> bytes:
    """Return the stored script of owners and privileges; empty if none are wanted or stored.

    Raises CorruptedError, StorageError.
    """
    manifest = archive.manifest
    if manifest is None or not request.gives_privileges:
        return b""
    script = archive.privileges()
    if script is None:
        so = "everything will belong to the restoring role, and " + (
            "nothing is granted to others"
            if request.create is None
            else "only that role and superusers can connect"
        )
        if manifest.privileges_sha256:
            emit(events.Warned(f"The privileges companion of {archive.name} is missing: {so}"))
        else:  # of pgstash 0.2 or older, or the backup warned of it
            emit(events.Notice(f"No owners and privileges are stored with {archive.name}: {so}"))
        return b""
    return b"".join(without_settings_unknown_to(server.major, iter([script])))


def client(
    manifest: Manifest | None, server: Server, environment: Mapping[str, str]
) -> installed.ClientTools:
    """Return client tools for the target, of at least the major whose pg_dump made the backup.

    Raises ClientToolsError.
    """
    wrote = _wrote(manifest, server)
    path = environment.get("PATH", "")
    try:
        return installed.find(max(wrote, server.major), path, environment)
    except ClientToolsError:
        if wrote <= server.major:
            raise
        return installed.find(server.major, path, environment)


def _wrote(manifest: Manifest | None, server: Server) -> int:
    """Return the major of the pg_dump that made the backup; without a manifest, the server's."""
    return int(manifest.client.partition(".")[0]) if manifest else server.major


def _warn_of_room(
    server: Server, manifest: Manifest | None, request: Request, emit: events.Emit
) -> None:
    """Warn if the target's disk has less room than the source took, where that can be known."""
    if manifest is None or request.tables or request.rows_only:
        return
    free = disk_room.free(server)
    if free is not None and free < manifest.database.bytes:
        emit(
            events.Warned(
                f"The disk of the target has {free / 1e9:.1f} GB free, and the source took "
                f"{manifest.database.bytes / 1e9:.1f} GB at the time of the backup. Free some "
                "space, or the restore may fail"
            )
        )


def refuse(
    server: Server,
    manifest: Manifest | None,
    locks: target.LockTable,
    request: Request,
    emit: events.Emit,
) -> bool:
    """Raise an error if the target must not be written to; return whether it is empty.

    Raises TargetDatabaseError, TargetNotEmptyError, StatementError, TargetLostError.
    """
    _warn_of_room(server, manifest, request, emit)
    if request.create is not None:
        target.refuse_unusable(server, request.create)
        like = manifest.database if manifest else None
        new_database.refuse(server, request, request.create, like)
        return True
    if request.rows_only or request.into_existing:
        return False
    found = target.contents(server)
    if found.count and not request.overwrite:
        some = ", ".join(found.some) + (", …" if found.count > len(found.some) else "")
        raise TargetNotEmptyError(
            f"the database {server.database.name} on {server.database.host} is not empty: it holds "
            f"{found.count:,} object{'s'[: found.count != 1]} ({some})",
            hint=_OF_TABLES if request.tables else _OVERWRITE,
        )
    # This underestimates: indexes, sequences and TOAST tables take locks as well.
    if manifest and len(manifest.tables) > locks.capacity:
        message = f"one transaction cannot create {len(manifest.tables):,} tables in the target"
        raise _too_many_locks(manifest, locks, message)
    return not found.count


def _too_many_locks(
    manifest: Manifest | None, locks: target.LockTable, message: str
) -> StatementError:
    objects = len(manifest.tables) * _LOCKS_OF_A_TABLE if manifest else 0
    enough = max(locks.needed(objects), 2 * locks.per_transaction)
    return StatementError(
        message,
        hint="Restore with --create NAME, which does not need a single transaction. Or raise "
        f"max_locks_per_transaction on the target from {locks.per_transaction} to about {enough}; "
        "that needs a restart.",
    )


def lc_monetary(manifest: Manifest | None, server: Server, emit: events.Emit) -> str | None:
    """Return the source's lc_monetary if the restore has to set it, and the target has it."""
    if manifest is None or manifest.database.lc_monetary == server.database.lc_monetary:
        return None
    wanted = manifest.database.lc_monetary
    if target.knows_locale(server, wanted):
        return wanted
    emit(
        events.Warned(
            f"The target does not have the locale {wanted}, in which columns of type money were "
            "written. Check such columns, if there are any"
        )
    )
    return None


@contextlib.contextmanager
def explained(
    manifest: Manifest | None, server: Server, locks: target.LockTable, request: Request
) -> Iterator[None]:
    """Give an error of the block the hint that fits this restore."""
    try:
        yield
    except LockTableFullError as error:
        raise _too_many_locks(manifest, locks, error.message) from error
    except StatementError as error:
        if request.rows_only and error.hint == BROKEN_CONSTRAINT:
            raise StatementError(error.message, hint=_ROWS_IN_THE_WAY) from error
        if error.hint == StatementError.default_hint and _of_other_major(manifest, server):
            hint = f"{_versions(manifest, server)} {error.hint}"
            raise StatementError(error.message, hint=hint) from error
        raise


def _of_other_major(manifest: Manifest | None, server: Server) -> bool:
    return manifest is not None and manifest.server.partition(".")[0] != str(server.major)


def _versions(manifest: Manifest | None, server: Server) -> str:
    of = manifest.server if manifest else "unknown"
    return (
        f"The backup is of PostgreSQL {of}, and the target is PostgreSQL {server.version}. Check "
        "the release notes in between for that statement."
    )
