"""Gives a new database and its objects the owners and privileges of the source."""

from __future__ import annotations

from pgstash import events
from pgstash.counting import counted
from pgstash.postgres.restore import owners_and_privileges
from pgstash.postgres.restore.request import Request
from pgstash.postgres.server.connection import Server
from pgstash.postgres.tools.tool_run import ToolRun
from pgstash.restore.administrator_file import AdministratorFile

_PURPOSE = "give the database and its objects their owners and privileges"


def give(
    into: Server,
    script: bytes,
    request: Request,
    tool_run: ToolRun,
    administrator: AdministratorFile,
) -> bool:
    """Give the objects of a new database, and then itself, owners and privileges; warn of the rest.

    The database is opened to other roles only if each object has its owner: a function that still
    belongs to the restoring role would give its caller the rights of that role. What is refused or
    left out is for the ``administrator``. Returns whether nothing was refused or left out, apart
    from the owner of the database itself if the restoring role may not give it away.
    """
    if not script:
        return False
    tool_run.emit(events.PhaseStarted("owners and privileges"))
    objects, of_database = owners_and_privileges.parts(script)
    owners, privileges = not request.no_owner, not request.no_privileges
    wanted = owners_and_privileges.chosen(objects, owners=owners, privileges=privileges)
    refused = owners_and_privileges.apply(into, wanted, tool_run)
    rest = refused.statements
    if refused.total or not owners:
        consequence = (
            "The owner, privileges and settings of the database itself are left out. Only the "
            "restoring role and superusers can connect"
        )
    else:
        # Who gives a database away may not be able to name it afterwards.
        owners = owners_and_privileges.may_give_database(into, of_database)
        wanted = owners_and_privileges.chosen(of_database, owners=owners, privileges=privileges)
        refused = owners_and_privileges.apply(into, wanted, tool_run)
        if owners and not refused.total:
            return privileges
        consequence = "The database itself may still belong to the restoring role"
    if not request.no_owner:  # all of them: a new owner changes what was granted by the old one
        wanted = owners_and_privileges.chosen(of_database, owners=True, privileges=privileges)
        rest = [*rest, *owners_and_privileges.statements_of(wanted)]
    remedy = "A superuser can apply all: docs/how-to/restore-without-pgstash.md, step 5"
    if rest:
        remedy = administrator.add(_PURPOSE, owners_and_privileges.session_of(script), rest)
    lines = [f"{reason} ({counted(n, 'statement')})" for reason, n in refused.reasons.items()]
    if refused.total:
        count = counted(refused.total, "statement")
        lines.insert(0, f"The target refused {count} for owners and privileges:")
    if refused.more:
        lines.append("…")
    administrator.warn("\n".join([*lines, consequence, remedy]))
    return not refused.total and privileges and not request.no_owner
