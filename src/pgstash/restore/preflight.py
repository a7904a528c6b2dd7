"""Whether a target fits an archive: the tools, what it holds, its locks, its roles, its locale."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

from pgstash import events
from pgstash.archive import Archive
from pgstash.errors import ClientToolsError, StatementError, TargetNotEmptyError
from pgstash.manifest import Manifest
from pgstash.postgres import roles, target, tools
from pgstash.postgres.refusals import BROKEN_CONSTRAINT, LockTableFullError
from pgstash.postgres.source import Server
from pgstash.unpacking import KNOWN_FROM

# A table with a key and a serial column: itself, its index, its sequence, its TOAST table and the
# index of that.
_LOCKS_OF_A_TABLE = 5

_ROWS_IN_THE_WAY = (
    "The table has such rows already, or lacks rows of another that these refer to: delete the "
    "former first, or restore into a new database with --create, and copy what you need."
)
_OVERWRITE = (
    "Restore into an empty database, or into a new one with --create NAME. With --overwrite, what "
    "the backup holds replaces what has the same name there, all else in the target stays, and an "
    "object to be replaced that something else depends on stops the restore."
)
_OF_TABLES = (
    "Restore the tables into an empty database, or into a new one with --create NAME; or only add "
    "their rows to tables that are there, with --data-only."
)


def reads_archive(manifest: Manifest | None, found: tools.ClientTools, server: Server) -> bool:
    """Tell whether pg_restore can read what the pg_dump wrote, and the server what it makes of it.

    A newer one sets what an older server does not know, whoever wrote the archive, and stops there;
    what psql is told can be changed.
    """
    wrote = _wrote(manifest, server)
    knows = max(wrote, min(found.major, KNOWN_FROM))
    return found.major >= wrote and server.major >= knows


def look_for_roles(  # noqa: PLR0913 - what was asked for, and what is there
    server: Server,
    archive: Archive,
    manifest: Manifest,
    emit: events.Emit,
    *,
    create: bool,
    for_drill: bool,
    dry_run: bool,
) -> None:
    """Raise TargetLacksError where roles or extensions are lacking; make roles if asked to."""
    wanted = _roles_to_create(archive, manifest, emit) if create else None
    roles.refuse_lacking(server, manifest, wanted, emit, for_drill=for_drill, dry_run=dry_run)


def _roles_to_create(archive: Archive, manifest: Manifest, emit: events.Emit) -> list[str]:
    """Return all roles that the source had; where they are not stored, those that are needed."""
    script = archive.globals()
    if script is None:
        if manifest.globals_sha256:
            emit(events.Warned(f"The roles that were stored beside {archive.name} are gone"))
        return list(manifest.roles)
    return roles.named_in(script)


def client(
    manifest: Manifest | None, server: Server, environment: Mapping[str, str]
) -> tools.ClientTools:
    """Return tools that know the target, and what the pg_dump wrote that made the backup."""
    wrote = _wrote(manifest, server)
    path = environment.get("PATH", "")
    try:
        return tools.find(max(wrote, server.major), path, environment)
    except ClientToolsError:
        if wrote <= server.major:
            raise
        return tools.find(server.major, path, environment)


def _wrote(manifest: Manifest | None, server: Server) -> int:
    """Return the major of the pg_dump that made the backup; the server's where nobody knows."""
    return int(manifest.client.partition(".")[0]) if manifest else server.major


def refuse(  # noqa: PLR0913 - what was asked for, and what is there
    server: Server,
    manifest: Manifest | None,
    locks: target.LockTable,
    *,
    create: str | None,
    overwrite: bool,
    of_tables: bool,
    rows_only: bool,
) -> bool:
    """Raise where the target is not one to write to; tell whether it is empty."""
    if create:
        target.refuse_taken(server, create)
        return True
    if rows_only:
        return False
    found = target.contents(server)
    if found.count and not overwrite:
        some = ", ".join(found.some) + (", …" if found.count > len(found.some) else "")
        raise TargetNotEmptyError(
            f"the database {server.database.name} on {server.database.host} is not empty: it holds "
            f"{found.count} objects ({some})",
            hint=_OF_TABLES if of_tables else _OVERWRITE,
        )
    # Fewer than it will be: whatever a table brings along takes a lock too.
    if manifest and len(manifest.tables) > locks.capacity:
        message = f"one transaction cannot make {len(manifest.tables)} tables there"
        raise _too_many_locks(manifest, locks, message)
    return not found.count


def _too_many_locks(
    manifest: Manifest | None, locks: target.LockTable, message: str
) -> StatementError:
    objects = len(manifest.tables) * _LOCKS_OF_A_TABLE if manifest else 0
    enough = max(locks.needed(objects), 2 * locks.per_transaction)
    return StatementError(
        message,
        hint="Restore with --create NAME, which needs no single transaction. Or raise "
        f"max_locks_per_transaction on the target from {locks.per_transaction} to about {enough}, "
        "which needs a restart.",
    )


def lc_monetary(manifest: Manifest | None, server: Server, emit: events.Emit) -> str | None:
    """Return the locale that columns of type money were written in, if the target has it."""
    if manifest is None or manifest.database.lc_monetary == server.database.lc_monetary:
        return None
    wanted = manifest.database.lc_monetary
    if target.knows_locale(server, wanted):
        return wanted
    emit(
        events.Warned(
            f"The target has no locale {wanted}, in which columns of type money were written: "
            "check them if there are any"
        )
    )
    return None


@contextlib.contextmanager
def explained(
    manifest: Manifest | None, server: Server, locks: target.LockTable, *, rows_only: bool
) -> Iterator[None]:
    """Say of an error what it means for this restore."""
    try:
        yield
    except LockTableFullError as error:
        raise _too_many_locks(manifest, locks, error.message) from error
    except StatementError as error:
        if rows_only and error.hint == BROKEN_CONSTRAINT:
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
        f"The backup is of PostgreSQL {of} and the target is PostgreSQL {server.version}: compare "
        "what the release notes say of that statement."
    )
