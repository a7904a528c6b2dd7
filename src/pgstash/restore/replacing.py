"""Finds the database that a restored one is to replace, before anything is restored."""

from __future__ import annotations

from pgstash import events
from pgstash.errors import TargetDatabaseError
from pgstash.postgres.restore import replaceable, target
from pgstash.postgres.restore.request import Request
from pgstash.postgres.server.connection import Server
from pgstash.restore import preflight
from pgstash.runtime import Runtime


def planned(server: Server, request: Request, runtime: Runtime) -> int | None:
    """Return the OID of the database to replace; None if there is none, or none is to be.

    Raises TargetDatabaseError if it cannot be replaced, TargetLostError.
    """
    if request.create is None or not request.replace:
        return None
    if request.create in preflight.MAINTENANCE:
        raise TargetDatabaseError(
            f"the database {request.create} is for maintenance, and is never replaced",
            hint="Restore under another name, without --replace.",
        )
    with target.connected(server) as session:
        found = replaceable.find(session, request.create)
        kept = replaceable.kept_name(session, request.create, runtime.now()) if found else ""
    if not found:
        news = f"There is no database {request.create} to replace: --replace changes nothing"
    else:
        news = (
            f"The database {request.create} exists: it is replaced at the end of the restore, and "
            f"kept under a name with the time of that, such as {kept}"
        )
    runtime.emit(events.Informed(news))
    return found


def refuse_closed(replaced: int | None, name: str, given: bytes) -> None:
    """Raise TargetDatabaseError if a backup without owners and privileges would replace a database.

    ``name`` is that of the backup, and ``given`` its script of owners and privileges.
    """
    if replaced is not None and not given:
        raise TargetDatabaseError(
            f"{name} has no owners and privileges, so the restored database would be closed to "
            "all applications",
            hint="Restore under another name, without --replace; then give owners and privileges, "
            "and rename the databases yourself.",
        )
