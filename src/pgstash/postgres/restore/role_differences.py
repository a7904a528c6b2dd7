"""What roles that are on a server lack of what they had on the lost one.

A recovery changes no role that is there. It may have been created by an earlier run that was killed
before it could report what is left to do.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from pgstash.postgres.restore.server_roles import Roles
from pgstash.postgres.restore.target import connected
from pgstash.postgres.server.connection import Server
from pgstash.postgres.server.description import shared_name
from pgstash.postgres.server.quoting import identifier

_ROLES = """
    SELECT rolname, rolcanlogin, rolsuper, rolcreaterole, rolcreatedb, rolreplication, rolbypassrls
    FROM pg_catalog.pg_roles
"""
_RIGHTS = ("LOGIN", "SUPERUSER", "CREATEROLE", "CREATEDB", "REPLICATION", "BYPASSRLS")
_MEMBERSHIPS = """
    SELECT g.rolname, m.rolname FROM pg_catalog.pg_auth_members a
    JOIN pg_catalog.pg_roles g ON g.oid = a.roleid JOIN pg_catalog.pg_roles m ON m.oid = a.member
"""
_SETTINGS = """
    SELECT r.rolname, pg_catalog.split_part(setting, '=', 1)
    FROM pg_catalog.pg_db_role_setting s JOIN pg_catalog.pg_roles r ON r.oid = s.setrole
    CROSS JOIN pg_catalog.unnest(s.setconfig) AS setting
    WHERE s.setdatabase = 0
"""


@dataclass(frozen=True, slots=True)
class There:
    """The roles of a server, each with its rights, and pairs: group and member, role and setting.

    The names of the settings are in lower case.
    """

    rights: Mapping[str, Collection[str]]
    memberships: Collection[tuple[str, str]]
    settings: Collection[tuple[str, str]]


def on(server: Server) -> There:
    """Ask the server. Raises TargetLostError."""
    with connected(server, "SQL_ASCII") as session:  # names are bytes

        def text(name: bytes) -> str:
            return shared_name(name, server.codec)

        return There(
            {
                text(name): [right for right, has in zip(_RIGHTS, flags, strict=True) if has]
                for name, *flags in session.execute(_ROLES).fetchall()
            },
            {(text(one), text(other)) for one, other in session.execute(_MEMBERSHIPS).fetchall()},
            {
                (text(one), text(name).lower())
                for one, name in session.execute(_SETTINGS).fetchall()
            },
        )


def statements(roles: Roles, there: There, major: int) -> list[str]:
    """Return what gives these roles what they lack; settings without a value, which may be secret.

    What concerns a role that is not there is left out: its creation reports that.
    """
    found = []
    for name, login in roles.logins.items():
        if name not in there.rights:
            continue
        wanted = (*(["LOGIN"] if login.can_login else []), *login.rights)
        if lacking := [right for right in wanted if right not in there.rights[name]]:
            found.append(f"ALTER ROLE {identifier(name)} {' '.join(lacking)};")
    for each in roles.memberships:
        both = {each.group, each.member}
        is_there = (each.group, each.member) in there.memberships
        if not is_there and both <= there.rights.keys():
            found.append(each.by_hand(major))
    for setting in roles.settings:
        name, key = setting.role, (setting.role, setting.name.lower())
        if name in there.rights and key not in there.settings:
            found.append(f"ALTER ROLE {identifier(name)} SET {identifier(setting.name)} TO …;")
    return found
