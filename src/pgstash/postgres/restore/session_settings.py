"""The settings of sessions that restore: nothing may end them early or change what they load."""

from __future__ import annotations

from collections.abc import Mapping

from pgstash.postgres.server import query
from pgstash.postgres.server.quoting import literal

NEUTRAL = {
    "array_nulls": "on",
    "default_transaction_read_only": "off",
    "idle_in_transaction_session_timeout": "0",
    "idle_session_timeout": "0",
    "lock_timeout": "0",
    "statement_timeout": "0",
    "transaction_timeout": "0",
}
"""Settings for every session of a restore, whatever is set for the role or the database.

Other values could end a restore early, refuse it, or turn a NULL in an array into the word "NULL".
"""

STAGING = NEUTRAL | {"synchronous_commit": "off"}
"""The same for a staging database, which does not count before it is renamed.

No statement has to wait for the disk or a standby. The rename does, and what was committed before
it is written before it (https://www.postgresql.org/docs/current/wal-async-commit.html).
"""


def statements(values: Mapping[str, str], lc_monetary: str | None) -> str:
    """Return the statements that make these settings, and that of the locale of money amounts.

    They empty the search_path, so that no object of a user takes the place of a built-in one.
    Settings that the server does not have are skipped.
    """
    wanted = {**values, **({"lc_monetary": lc_monetary} if lc_monetary else {})}
    names = ", ".join(literal(name) for name in wanted)
    texts = ", ".join(literal(value) for value in wanted.values())
    return (
        f"{query.EMPTY_SEARCH_PATH};"  # noqa: S608 - quoted
        "SELECT pg_catalog.set_config(s.name, wanted.value, false)"
        f" FROM ROWS FROM (pg_catalog.unnest(ARRAY[{names}]),"
        f" pg_catalog.unnest(ARRAY[{texts}])) AS wanted (name, value)"
        " JOIN pg_catalog.pg_settings s ON s.name = wanted.name;"
    )
