"""Gives a new database and its objects, or those of another one, owners and privileges."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from pgstash import events
from pgstash.counting import counted
from pgstash.postgres.restore import owners_and_privileges
from pgstash.postgres.restore.owners_in_transaction import Giving
from pgstash.postgres.restore.request import Request
from pgstash.postgres.server.connection import Server
from pgstash.postgres.tools.tool_run import ToolRun
from pgstash.restore.administrator_file import AdministratorFile

_PURPOSE = "give the database and its objects their owners and privileges"
_PURPOSE_OF_OBJECTS = "give objects of the database their owners and privileges"
_MOST_REASONS = 5


class Owners:
    """The stored ``script`` of owners and privileges, and how it is given to a target.

    The objects of an existing database get theirs in the transaction of the restore, from
    ``giving``. A new database gets all that is wanted at the end. What is refused or left out is
    for the ``administrator``.
    """

    def __init__(
        self,
        script: bytes,
        request: Request,
        tool_run: ToolRun,
        administrator: AdministratorFile,
    ) -> None:
        """Give nothing yet."""
        self._script = script
        self._request = request
        self._tool_run = tool_run
        self._administrator = administrator
        self._objects, self._of_database = owners_and_privileges.parts(script)
        self._session = owners_and_privileges.session_of(script)
        units = owners_and_privileges.units_of(self._chosen(self._objects))
        self.giving = Giving(self._session, units if request.create is None else ())

    def complete(self, into: Server) -> bool:
        """Give a new database what is wanted; warn of all that was refused or left out.

        Returns whether nothing was refused or left out, apart from the owner of the database itself
        if the restoring role may not give it away. Raises TargetLostError.
        """
        if not self._script:
            return False
        if self._request.create is not None:
            return self._give(into)
        refused = self.giving.refused
        if refused:
            reasons = Counter(each.reason for each in refused)
            some = dict(list(reasons.items())[:_MOST_REASONS])
            lines = _reasons(some, len(refused), more=len(reasons) > len(some))
            rest = [statement for each in refused for statement in each.statements]
            remedy = self._administrator.add(_PURPOSE_OF_OBJECTS, self._session, rest)
            self._administrator.warn("\n".join([*lines, remedy]))
        return not refused

    def _give(self, into: Server) -> bool:
        """Give the objects of a new database, and then itself, owners and privileges.

        The database is opened to other roles only if each object has its owner: a function that
        still belongs to the restoring role would give its caller the rights of that role.
        """
        self._tool_run.emit(events.PhaseStarted("owners and privileges"))
        request = self._request
        owners, privileges = not request.no_owner, not request.no_privileges
        refused = owners_and_privileges.apply(into, self._chosen(self._objects), self._tool_run)
        rest = refused.statements
        if refused.total or not owners:
            consequence = (
                "The owner, privileges and settings of the database itself are left out. Only the "
                "restoring role and superusers can connect"
            )
        else:
            # Who gives a database away may not be able to name it afterwards.
            owners = owners_and_privileges.may_give_database(into, self._of_database)
            wanted = owners_and_privileges.chosen(
                self._of_database, owners=owners, privileges=privileges
            )
            refused = owners_and_privileges.apply(into, wanted, self._tool_run)
            if owners and not refused.total:
                return privileges
            consequence = "The database itself may still belong to the restoring role"
        if not request.no_owner:  # all: a new owner changes what was granted by the old one
            wanted = self._chosen(self._of_database)
            rest = [*rest, *owners_and_privileges.statements_of(wanted)]
        remedy = "A superuser can apply all: docs/how-to/restore-without-pgstash.md, step 5"
        if rest:
            remedy = self._administrator.add(_PURPOSE, self._session, rest)
        lines = [*_reasons(refused.reasons, refused.total, more=refused.more), consequence, remedy]
        self._administrator.warn("\n".join(lines))
        return not refused.total and privileges and not request.no_owner

    def _chosen(self, script: bytes) -> bytes:
        return owners_and_privileges.chosen(
            script, owners=not self._request.no_owner, privileges=not self._request.no_privileges
        )


def _reasons(reasons: Mapping[str, int], total: int, *, more: bool) -> list[str]:
    """Return lines with the number of refused statements, and the first reasons."""
    if not total:
        return []
    count = counted(total, "statement")
    return [
        f"The target refused {count} for owners and privileges:",
        *(f"{reason} ({counted(n, 'statement')})" for reason, n in reasons.items()),
        *(["…"] if more else []),
    ]
