"""Gives a new database and its objects the owners and privileges of the source."""

from __future__ import annotations

from pgstash import events
from pgstash.counting import counted
from pgstash.postgres.restore import owners_and_privileges
from pgstash.postgres.restore.request import Request
from pgstash.postgres.server.connection import Server
from pgstash.postgres.tools.tool_run import ToolRun


def give(server: Server, into: Server, script: bytes, request: Request, tool_run: ToolRun) -> bool:
    """Give the objects of a new database, and then itself, owners and privileges; warn of the rest.

    The database is opened to other roles only if each object has its owner: a function that still
    belongs to the restoring role would give its caller the rights of that role. Returns whether
    nothing was refused or left out, apart from the owner of the database itself if the restoring
    role is no superuser.
    """
    if not script:
        return False
    objects, of_database = owners_and_privileges.parts(script)
    privileges = not request.no_privileges
    wanted = owners_and_privileges.chosen(
        objects, owners=not request.no_owner, privileges=privileges
    )
    refused = owners_and_privileges.apply(into, wanted, tool_run)
    if not refused.total and not request.no_owner:
        # Who gives a database away may not be able to name it afterwards.
        owners = owners_and_privileges.is_superuser(server)
        wanted = owners_and_privileges.chosen(of_database, owners=owners, privileges=privileges)
        refused = owners_and_privileges.apply(into, wanted, tool_run)
        if refused.total or not owners:
            _warn_of_refused(refused, "", tool_run.emit)
        return not refused.total and privileges
    _warn_of_refused(
        refused,
        "The owner, privileges and settings of the database itself are left out. Only the "
        "restoring role and superusers can connect",
        tool_run.emit,
    )
    return False


def _warn_of_refused(
    refused: owners_and_privileges.Refusals, consequence: str, emit: events.Emit
) -> None:
    lines = [f"{reason} ({counted(n, 'statement')})" for reason, n in refused.reasons.items()]
    if refused.total:
        count = counted(refused.total, "statement")
        lines.insert(0, f"The target refused {count} for owners and privileges:")
    if refused.more:
        lines.append("…")
    lines.append(consequence or "The database itself may still belong to the restoring role")
    lines.append("A superuser can apply all: docs/how-to/restore-without-pgstash.md, step 5")
    emit(events.Warned("\n".join(lines), to_do=True))
