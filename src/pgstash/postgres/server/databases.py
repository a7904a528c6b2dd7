"""The databases of a server."""

from __future__ import annotations

from dataclasses import dataclass

from pgstash.postgres.server import login, query
from pgstash.postgres.server.connection import Password

_INVALID = b"-2"  # what a DROP DATABASE that was interrupted leaves in datconnlimit

_DATABASES = """
    SELECT datname, datallowconn, datconnlimit
    FROM pg_catalog.pg_database
    WHERE NOT datistemplate
    ORDER BY datname
"""


@dataclass(frozen=True, slots=True)
class Databases:
    """The databases of a server but for templates, each list sorted.

    ``closed`` ones take no connections (``datallowconn``); ``invalid`` ones can only be dropped.
    The names of ``foreign`` ones are not UTF-8, so that no URI contains them; they are shown with
    escapes. ``system`` is the system identifier of the server, None if it is not disclosed.
    """

    usable: list[str]
    closed: list[str]
    invalid: list[str]
    foreign: list[str]
    system: str | None


def listed(url: str, password: Password | None = None) -> Databases:
    """Log in to the database of ``url``, and return all of its server.

    Raises DatabaseError.
    """
    server = login.inspect(url, password)
    found = Databases([], [], [], [], server.database.system)
    with query.asking(server, "the list of databases") as ask:
        rows = ask(_DATABASES)
    for name, allowed, limit in rows:
        text = (name or b"").decode("utf-8", "backslashreplace")
        if text.encode() != name:
            found.foreign.append(text)
        elif limit == _INVALID:
            found.invalid.append(text)
        elif allowed == b"t":
            found.usable.append(text)
        else:
            found.closed.append(text)
    return found
