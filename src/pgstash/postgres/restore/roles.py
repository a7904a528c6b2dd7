"""The roles and extensions that a backup refers to, and the target must have."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, LiteralString

import psycopg
from psycopg import sql

from pgstash.errors import TargetLacksError
from pgstash.events import Emit, RoleCreated, Warned
from pgstash.format.manifest import Extension, Manifest
from pgstash.postgres.dump.globals import NOT_UTF8
from pgstash.postgres.restore import logins
from pgstash.postgres.restore.logins import Login
from pgstash.postgres.restore.request import Request
from pgstash.postgres.restore.target import connected
from pgstash.postgres.server.connection import Server
from pgstash.postgres.server.description import shared_name
from pgstash.postgres.server.quoting import identifier

_MOST_NAMED = 10

DRILL_COMMENT = "made by pgstash for a drill"
"""The comment that marks the roles which a drill created."""


@dataclass(frozen=True, slots=True)
class Created:
    """The roles that a restore created; the ``closed`` ones could log in, and cannot yet."""

    names: list[str] = field(default_factory=list)
    closed: list[str] = field(default_factory=list)


def refuse_missing(
    server: Server,
    manifest: Manifest,
    of_source: Mapping[str, Login],
    request: Request,
    emit: Emit,
) -> Created:
    """Raise TargetLacksError with all roles and extensions that the target does not have.

    If requested, missing roles are created instead, without any privilege, and so are the other
    roles ``of_source``; a dry run creates none. A role gets its login if its password is known.
    Existing roles stay as they are. If a
    role that the manifest does not require cannot be created, that is only a warning. For a drill,
    no role gets its login, and all are marked; a restore removes the mark from those that it needs.
    For a partial backup, anything missing is only a warning.
    """
    extensions = _names(server, "SELECT name FROM pg_catalog.pg_available_extensions")
    there = _names(server, "SELECT rolname FROM pg_catalog.pg_roles")
    unavailable = [each for each in manifest.extensions if each.name not in extensions]
    if request.skip_superuser_objects and manifest.schema_sha256:
        unavailable = []  # they are left out, with all that depends on them
    required = _required(manifest, request)
    missing = [name for name in required if name not in there]
    wanted = list(dict.fromkeys([*missing, *of_source])) if request.create_roles else []
    if unavailable or (missing and not request.create_roles):
        named = [] if request.create_roles else missing
        error = _missing(server, named, unavailable, request)
        if not manifest.options:
            raise error
        # The options of the dump may have left out what needs them.
        emit(Warned(f"{error.message}; a partial backup may not need them"))
    if request.dry_run:
        return Created()
    with connected(server) as session:
        if not request.for_drill:
            _adopt(session, there & {*required, *wanted})
        new = {
            name: logins.UNKNOWN if request.for_drill else of_source.get(name, logins.UNKNOWN)
            for name in wanted
            if name not in there
        }
        return _create(session, new, missing, request, emit)


def _required(manifest: Manifest, request: Request) -> list[str]:
    """Return the roles that definitions name, and those that own something or have privileges."""
    more = manifest.privilege_roles if request.gives_privileges else ()
    return list(dict.fromkeys([*manifest.roles, *more]))


def _names(server: Server, question: LiteralString) -> set[str]:
    """Return the names that the server answers with; some may not be UTF-8."""
    with connected(server, "SQL_ASCII") as session:  # names are bytes
        rows = session.execute(question).fetchall()
    return {shared_name(name, server.codec) for (name,) in rows}


def _create(
    session: psycopg.Connection[tuple[Any, ...]],
    wanted: Mapping[str, Login],
    required: Collection[str],
    request: Request,
    emit: Emit,
) -> Created:
    """Create roles with their logins.

    If a role that is not ``required`` is refused, that is a warning.
    """
    left_out: list[tuple[str, str]] = []
    created = Created()
    if any(login.password for login in wanted.values()):
        logins.keep_out_of_log(session)
    for name, login in wanted.items():
        if name.startswith("pg_"):
            continue
        statement = sql.SQL("CREATE ROLE {} NOLOGIN").format(sql.Identifier(name))
        if request.for_drill:  # sent as one, and so one transaction
            statement += sql.SQL("; COMMENT ON ROLE {} IS {}").format(
                sql.Identifier(name), sql.Literal(DRILL_COMMENT)
            )
        try:
            session.execute(statement)
        except (psycopg.Error, UnicodeError) as error:
            reason = " ".join(str(error).split())
            if name in required:
                raise TargetLacksError(
                    f"the role {name} cannot be created: {reason}",
                    hint="The login needs CREATEROLE: ALTER ROLE … CREATEROLE.",
                ) from error
            left_out.append((name, reason))
        else:
            created.names.append(name)
            given = logins.give(session, name, login, emit)
            emit(RoleCreated(name, login=given and login.can_login))
            if login.can_login and not given:
                created.closed.append(name)
    if left_out:
        some = ", ".join(name for name, _ in left_out[:_MOST_NAMED])
        more = ", …" if len(left_out) > _MOST_NAMED else ""
        count = f"{len(left_out)} role{'s'[: len(left_out) != 1]} of the source"
        emit(
            Warned(
                f"{count} cannot be created: {some}{more} ({left_out[0][1]}). No definition refers "
                "to them, but rows may"
            )
        )
    return created


def _adopt(session: psycopg.Connection[tuple[Any, ...]], names: Collection[str]) -> None:
    """Unmark roles that a drill created and this restore needs, so that no drill drops them."""
    drilled = (
        "SELECT rolname FROM pg_catalog.pg_roles WHERE rolname = ANY(%s)"
        " AND pg_catalog.shobj_description(oid, 'pg_authid') = %s"
    )
    asked = [name for name in names if not NOT_UTF8.search(name)]
    for (name,) in session.execute(drilled, [asked, DRILL_COMMENT]).fetchall():
        with contextlib.suppress(psycopg.errors.InsufficientPrivilege):
            session.execute(sql.SQL("COMMENT ON ROLE {} IS NULL").format(sql.Identifier(name)))


def _missing(
    server: Server, roles: Sequence[str], extensions: Sequence[Extension], request: Request
) -> TargetLacksError:
    problems, remedies = [], []
    if roles:
        quoted = ", ".join(map(identifier, roles))
        count = f"{len(roles)} role{'s'[: len(roles) != 1]}"
        problems.append(f"is missing {count} that the backup refers to: {quoted}")
        remedies.append(
            "--create-roles creates them, without login unless the backup has their passwords. Or "
            "create them yourself: "
            + " ".join(f"CREATE ROLE {identifier(name)};" for name in roles)
        )
        if request.gives_privileges:
            remedies.append(
                "Or leave out owners and privileges with --no-owner and --no-privileges: then only "
                "the roles that policies, user mappings and functions name are required."
            )
    if extensions:
        names = ", ".join(f"{each.name} ({each.version})" for each in extensions)
        count = f"{len(extensions)} extension{'s'[: len(extensions) != 1]}"
        problems.append(f"is missing {count} of the backup: {names}")
        remedies.append(
            "Install the packages of the extensions on the target's server (Debian and Ubuntu: "
            f"postgresql-contrib, or postgresql-{server.major}-NAME)."
        )
    return TargetLacksError(
        f"the target server {server.database.host} " + ", and ".join(problems),
        hint="\n".join(remedies),
    )
