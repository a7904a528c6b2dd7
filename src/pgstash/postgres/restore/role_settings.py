"""Settings of the roles that a restore creates, read from the script of pg_dumpall."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import psycopg
from psycopg import sql

from pgstash.counting import counted
from pgstash.events import Emit, Warned
from pgstash.postgres.restore.target import connected
from pgstash.postgres.server.connection import Server
from pgstash.postgres.server.query import Connection
from pgstash.postgres.server.quoting import identifier

_NAME = r"""(?:"(?:[^"]|"")+"|[^",;\s]+)"""
_LITERAL = r"""(?:'(?:[^']|'')*'|E'(?:[^'\\]|''|\\\\)*')"""
# As pg_dumpall writes it (makeAlterConfigCommand() in dumputils.c). Comments and other quoted text
# are skipped: they may contain a line that looks like this.
_SET = re.compile(
    rf"""^--.*$|^ALTER ROLE (?P<role>{_NAME}) SET (?P<name>{_NAME})"""
    rf""" TO (?P<values>{_LITERAL}(?:, {_LITERAL})*);$"""
    r"""|"(?:[^"]|"")*"|'(?:[^']|'')*'""",
    re.MULTILINE,
)
_VALUE = re.compile(_LITERAL)
_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Setting:
    """What ``ALTER ROLE … SET`` gave a role; only lists such as search_path have more values."""

    role: str
    name: str
    values: tuple[str, ...]

    @property
    def statement(self) -> sql.Composed:
        """The statement that gives it again."""
        return sql.SQL("ALTER ROLE {} SET {} TO {};").format(
            sql.Identifier(self.role),
            sql.Identifier(self.name),
            sql.SQL(", ").join(map(sql.Literal, self.values)),
        )


def read(script: bytes) -> list[Setting]:
    """Return the settings of roles in a script of pg_dumpall."""
    return [
        Setting(
            _bare(match["role"]),
            _bare(match["name"]),
            tuple(map(_plain, _VALUE.findall(match["values"]))),
        )
        for match in _SET.finditer(script.decode("utf-8", "surrogateescape"))
        if match["role"]
    ]


def _bare(name: str) -> str:
    return name[1:-1].replace('""', '"') if name.startswith('"') else name


def _plain(literal: str) -> str:
    if literal.startswith("E"):
        literal = literal[1:].replace("\\\\", "\\")
    return literal[1:-1].replace("''", "'")


def give(server: Server, settings: Sequence[Setting], created: Collection[str], emit: Emit) -> None:
    """Give created roles their settings; warn of those that the server refuses.

    Raises TargetLostError.
    """
    with connected(server) as session:
        give_in(session, settings, created, emit)


def give_in(
    session: Connection, settings: Sequence[Setting], created: Collection[str], emit: Emit
) -> None:
    """Do the same in a session, which may be in a transaction."""
    left: list[tuple[Setting, str]] = []
    for each in settings:
        if each.role not in created:
            continue
        try:
            with session.transaction():
                session.execute(each.statement)
        except (psycopg.Error, UnicodeError) as error:
            if isinstance(error, psycopg.Error) and error.sqlstate is None:
                raise
            left.append((each, " ".join(str(error).split())))
    if left:
        some = "; ".join(
            f"{each.name} of {identifier(each.role)} ({reason})" for each, reason in left[:_SHOWN]
        )
        more = f"; and {len(left) - _SHOWN} more" if len(left) > _SHOWN else ""
        emit(
            Warned(
                f"{counted(len(left), 'setting')} of created roles refused by the server: "
                f"{some}{more}. If they are wanted, run ALTER ROLE … SET",
                to_do=True,
            )
        )
