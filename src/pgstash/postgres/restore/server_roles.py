"""All roles of a server that is lost, created on another one from what its backups store of them.

Each backup stores all roles of its server. The newest one decides: what an older one grants may
have been revoked since, and a role that only an older one has was dropped since.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import psycopg
from psycopg import sql

from pgstash.events import Emit, RoleCreated
from pgstash.postgres.dump.globals import roles_in
from pgstash.postgres.restore import logins, memberships, role_settings
from pgstash.postgres.restore.logins import Login
from pgstash.postgres.restore.memberships import Membership
from pgstash.postgres.restore.role_settings import Setting
from pgstash.postgres.restore.target import connected, said
from pgstash.postgres.server.connection import Server
from pgstash.postgres.server.description import shared_name
from pgstash.postgres.server.quoting import identifier


@dataclass(frozen=True, slots=True)
class Script:
    """The stored roles of one backup.

    ``passwords`` is whether hashes of passwords in it may be used, and ``system`` the server.
    """

    text: bytes = field(repr=False)
    passwords: bool
    system: str | None


@dataclass(frozen=True, slots=True)
class Roles:
    """The roles of a server. Only older backups have the ``dropped`` ones: they get no login."""

    logins: Mapping[str, Login]
    memberships: list[Membership]
    settings: list[Setting]
    dropped: list[str]


def gathered(scripts: Iterable[Script]) -> Roles:
    """Return the roles in scripts of pg_dumpall, the newest script first."""
    found = Roles({}, [], [], [])
    every: dict[str, Login] = {}
    decided: set[str | None] = set()
    for script in scripts:
        names = [name for name in roles_in(script.text) if not name.startswith("pg_")]
        new = [name for name in names if name not in every]
        if script.system in decided:
            every |= dict.fromkeys(new, logins.UNKNOWN)
            found.dropped.extend(new)
            continue
        decided.add(script.system)
        known = logins.read(script.text, passwords=script.passwords)
        every |= {name: known.get(name, logins.UNKNOWN) for name in new}
        found.settings.extend(each for each in role_settings.read(script.text) if each.role in new)
        found.memberships.extend(
            each
            for each in memberships.read(script.text)
            if each.group in new or each.member in new
        )
    return Roles(every, found.memberships, found.settings, found.dropped)


@dataclass(frozen=True, slots=True)
class Created:
    """What became of the roles of the source.

    ``names`` were created. Of these, the ``closed`` ones could log in on the source and cannot yet.
    ``refused`` were not created, each for its reason. ``rights`` are statements for rights on the
    whole server that created roles had, and were not given.
    """

    names: list[str] = field(default_factory=list)
    closed: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    rights: list[str] = field(default_factory=list)


def missing(server: Server, roles: Roles) -> list[str]:
    """Return the roles that the server does not have. Raises TargetLostError."""
    with connected(server, "SQL_ASCII") as session:  # names are bytes
        rows = session.execute("SELECT rolname FROM pg_catalog.pg_roles").fetchall()
    there = {shared_name(name, server.codec) for (name,) in rows}
    return [name for name in roles.logins if name not in there]


def create(server: Server, roles: Roles, emit: Emit) -> Created:
    """Create the missing roles with logins, memberships and settings, all in one transaction.

    So a recovery that is killed leaves none without its memberships. Roles that are there stay as
    they are. What the server refuses is reported. Raises TargetLostError.
    """
    done = Created()
    new = missing(server, roles)
    if not new:
        return done
    with connected(server) as session:
        logins.keep_out_of_log(session)
        with session.transaction():
            for name in new:
                try:
                    with session.transaction():
                        session.execute(
                            sql.SQL("CREATE ROLE {} NOLOGIN").format(sql.Identifier(name))
                        )
                except (psycopg.Error, UnicodeError) as error:
                    if isinstance(error, psycopg.Error) and error.sqlstate is None:
                        raise
                    done.refused[name] = said(error)
                    continue
                done.names.append(name)
                login = roles.logins[name]
                if not logins.give(session, name, login, emit) and login.can_login:
                    done.closed.append(name)
                if login.rights:
                    rights = " ".join(login.rights)
                    done.rights.append(f"ALTER ROLE {identifier(name)} {rights};")
            memberships.give_in(session, server.major, roles.memberships, done.names, emit)
            role_settings.give_in(session, roles.settings, done.names, emit)
    for name in done.names:
        emit(RoleCreated(name, login=roles.logins[name].can_login and name not in done.closed))
    return done


def may_create(server: Server) -> bool:
    """Return whether the login may create roles. Raises TargetLostError."""
    asked = "SELECT rolsuper OR rolcreaterole FROM pg_catalog.pg_roles WHERE rolname = current_user"
    with connected(server) as session:
        return session.execute(asked).fetchone() == (True,)
