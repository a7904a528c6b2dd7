"""Memberships of the roles that a restore creates, read from the script of pg_dumpall."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import psycopg

from pgstash.counting import counted
from pgstash.events import Emit, Warned
from pgstash.postgres.restore.target import connected
from pgstash.postgres.server.connection import Server
from pgstash.postgres.server.query import Connection
from pgstash.postgres.server.quoting import identifier

_NAME = r"""(?:"(?:[^"]|"")+"|[^",;\s]+)"""
# As pg_dumpall writes it, one to a line. Comments and other quoted text are skipped: a name may
# contain a line that looks like this.
_GRANT = re.compile(
    rf"""^--.*$|^ALTER ROLE (?P<passive>{_NAME}) WITH(?: [A-Z]+)*? NOINHERIT\b"""
    rf"""|^GRANT (?P<group>{_NAME}) TO (?P<member>{_NAME})"""
    rf"""(?: WITH (?P<options>[A-Z]+ [A-Z]+(?:, [A-Z]+ [A-Z]+)*))?(?: GRANTED BY {_NAME})?;$"""
    r"""|"(?:[^"]|"")*"|'(?:[^']|'')*'""",
    re.MULTILINE,
)
_ADMIN = "ADMIN OPTION"
_INHERITING = ("INHERIT TRUE", "INHERIT FALSE")
_OPTIONS = (_ADMIN, *_INHERITING, "SET TRUE", "SET FALSE")
_DEFAULTS = ("INHERIT TRUE", "SET TRUE")  # of a role that may inherit, as created roles may
_FIRST_WITH_OPTIONS = 16
_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Membership:
    """A role, the ``group``, was granted to another, the ``member``, with these options."""

    group: str
    member: str
    options: tuple[str, ...] = ()

    def statement(self, major: int) -> str | None:
        """Return the GRANT for a server of this major; None if that would grant more."""
        options = self.options
        if major < _FIRST_WITH_OPTIONS:
            options = tuple(each for each in options if each not in _DEFAULTS)
            if any(each != _ADMIN for each in options):
                return None
        given = f" WITH {', '.join(options)}" if options else ""
        return f"GRANT {identifier(self.group)} TO {identifier(self.member)}{given};"

    def by_hand(self, major: int) -> str:
        """Return what a person can run on a server of this major to get the same, or nearly."""
        if statement := self.statement(major):
            return statement
        options = tuple(each for each in self.options if each == _ADMIN)
        grant = Membership(self.group, self.member, options).statement(major) or ""
        if "INHERIT FALSE" in self.options:
            return f"ALTER ROLE {identifier(self.member)} NOINHERIT; {grant}"
        return grant


def read(script: bytes) -> list[Membership]:
    """Return the memberships in a script of pg_dumpall, except those with unknown options."""
    found = {}
    passive = set()  # these roles inherit nothing, which servers before 16 have for roles alone
    for match in _GRANT.finditer(script.decode("utf-8", "surrogateescape")):
        if match["passive"]:
            passive.add(match["passive"])
        if not match["group"]:
            continue
        options = tuple(match["options"].split(", ")) if match["options"] else ()
        if match["member"] in passive and not {*_INHERITING} & {*options}:
            options += ("INHERIT FALSE",)
        if all(each in _OPTIONS for each in options):
            group, member = _bare(match["group"]), _bare(match["member"])
            found[group, member] = Membership(group, member, options)
    return list(found.values())


def _bare(name: str) -> str:
    return name[1:-1].replace('""', '"') if name.startswith('"') else name


def give(
    server: Server, memberships: Sequence[Membership], created: Collection[str], emit: Emit
) -> None:
    """Give created roles their memberships in other created roles.

    A membership in a role that was there before would give the new role its privileges, and one of
    such a role would give it more: they are for somebody to decide, as is what the server refuses.
    """
    with connected(server) as session:
        give_in(session, server.major, memberships, created, emit)


def give_in(
    session: Connection,
    major: int,
    memberships: Sequence[Membership],
    created: Collection[str],
    emit: Emit,
) -> None:
    """Do the same in a session with a server of this major, which may be in a transaction."""
    left: list[str] = []
    for each in memberships:
        if not {each.group, each.member} & {*created}:
            continue
        statement = each.statement(major)
        if statement is None or not {each.group, each.member} <= {*created}:
            left.append(each.by_hand(major))
            continue
        try:
            with session.transaction():
                session.execute(statement.encode())
        except psycopg.Error as error:
            if error.sqlstate is None:
                raise
            left.append(statement)
    if left:
        more = f" and {len(left) - _SHOWN} more" if len(left) > _SHOWN else ""
        emit(
            Warned(
                f"{counted(len(left), 'membership')} of created roles left out, because the other "
                "role was there before, or the server refused it, or cannot limit it as the source "
                f"does. If they are wanted: "
                f"{' '.join(left[:_SHOWN])}{more}",
                to_do=True,
            )
        )
