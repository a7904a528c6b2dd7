"""A statement that a target refused, identified by SQLSTATE, libpq's labels and the statement.

A server writes its messages, even the word for their severity, in the language of its
``lc_messages``. Nothing here depends on them. The same everywhere are the SQLSTATE
(https://www.postgresql.org/docs/current/errcodes-appendix.html), libpq's labels (client tools run
with ``LC_ALL=C``), names of settings and types, and the statement, which pg_dump wrote.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from pgstash.errors import RestoreError, StatementError, TargetLostError
from pgstash.postgres.restore import hints
from pgstash.postgres.restore.hints import QUERY_CANCELED

# Options of servers, user mappings and subscriptions may hold passwords.
_CONFIDENTIAL = re.compile(r"(OPTIONS \(|CONNECTION ').*", re.DOTALL)

LOST = ("08", "57")
"""Classes of SQLSTATEs: the connection is gone, or the session was terminated."""

_NO_LOCKS = ("53200", "max_locks_per_transaction")


class LockTableFullError(StatementError):
    """One transaction cannot lock as many objects as the script makes."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A message of the server: its SQLSTATE, its text with libpq's labels, and the statement."""

    state: str
    text: str
    statement: str

    @property
    def headline(self) -> str:
        """The message, its SQLSTATE and the statement."""
        first, _, more = self.text.partition("\n")
        lines = [f"{first} (SQLSTATE {self.state})"]
        if more:
            lines.append(more)
        if self.statement:
            lines.append(f"STATEMENT: {self.statement}")
        return without_confidential("\n".join(lines))

    @property
    def hint(self) -> str:
        """What to do about the refusal; empty if that is unknown."""
        return hints.hint(self.state, self.text, self.statement)


def refused(refusal: Refusal, message: str) -> RestoreError:
    """Return the error for a refusal; ``message`` names the place and the reason."""
    if refusal.state == _NO_LOCKS[0] and _NO_LOCKS[1] in refusal.text:
        return LockTableFullError(message)
    if refusal.state[:2] in LOST and refusal.state != QUERY_CANCELED:
        return TargetLostError(message)
    return StatementError(message, hint=refusal.hint)


def without_confidential(message: str) -> str:
    """Cut a message of a server or a tool where the options of a statement begin."""
    return _CONFIDENTIAL.sub(r"\1…", message)
