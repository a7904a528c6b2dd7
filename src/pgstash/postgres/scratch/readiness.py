"""Finds out before a drill what its server lacks for a database of the source."""

from __future__ import annotations

from pgstash.errors import ScratchError
from pgstash.postgres.dump.globals import Required
from pgstash.postgres.server import query
from pgstash.postgres.server.connection import Server
from pgstash.postgres.server.description import shared_name

_MAY = """
    SELECT rolsuper OR rolcreatedb, rolsuper OR rolcreaterole,
           pg_catalog.quote_ident(rolname)
    FROM pg_catalog.pg_roles WHERE rolname OPERATOR(pg_catalog.=) current_user
"""
_EXTENSIONS = "SELECT name FROM pg_catalog.pg_available_extensions"
_ROLES = "SELECT rolname FROM pg_catalog.pg_roles"


def refuse(scratch: Server, required: Required) -> None:
    """Raise ScratchError with everything that a drill would fail for.

    ``required`` are the roles and extensions of the source. Raises DatabaseError if the server does
    not answer.
    """
    with query.opened(scratch, "what a drill needs") as session:
        [(creates_databases, creates_roles, login)] = session.execute(_MAY).fetchall()
        available = {name for (name,) in session.execute(_EXTENSIONS).fetchall()}
        there = {shared_name(name, scratch.codec) for (name,) in session.execute(_ROLES).fetchall()}
    who = query.text(login, scratch)
    problems, remedies = [], []
    if not creates_databases:
        problems.append(f"{who} may not create databases")
        remedies.append(f"ALTER ROLE {who} CREATEDB;")
    if not creates_roles and (lacking := [name for name in required.roles if name not in there]):
        problems.append(f"{who} may not create the roles that are missing: {', '.join(lacking)}")
        remedies.append(f"ALTER ROLE {who} CREATEROLE;")
    names = {query.text(name, scratch) for name in available}
    if lacking := [each.name for each in required.extensions if each.name not in names]:
        problems.append(f"extensions of the source are missing: {', '.join(lacking)}")
        remedies.append("Install the packages of the extensions for that server.")
    if problems:
        raise ScratchError("; ".join(problems), hint="\n".join(remedies))
