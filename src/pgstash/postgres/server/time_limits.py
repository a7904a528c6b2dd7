"""How long pgstash waits for a server, in seconds."""

from __future__ import annotations

CONNECT = 10
"""For a login."""

PING = 2
"""For the answer to whether a server listens at an address at all."""

REFUSAL = 10
"""For a second login, which finds out the SQLSTATE of a refusal."""

SESSION = 60
"""For a login after one has succeeded: the server is there, and may be busy."""

ANSWER = 60
"""For the rows of a query, or the end of a statement."""

BRIEF_CONNECT = 5
"""For the login of a query that only adds detail to a message."""

BRIEF_ANSWER = 5
"""For the rows of such a query."""

POOLED_SESSION = 20
"""For a pooler to lend a session of the server to a login."""

LOCK = 2
"""For a lock that a query takes for a moment, such as that of pg_relation_size()."""

STATISTICS_LOCK = 60
"""For the lock of a table whose statistics are updated."""

REPEAT = 30
"""For a statement of a client tool, repeated to find out why it failed."""

SCRATCH_ANSWER = 10
"""For a server of a drill to report when it started."""

RELEASE = 1
"""For the end of the transaction that holds the writer lock."""
