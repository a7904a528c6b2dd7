"""Gives tables in a transaction their owners and privileges, as far as the login may."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pgstash.counting import counted
from pgstash.postgres.restore import owners_and_privileges
from pgstash.postgres.restore.placing import Placement
from pgstash.postgres.restore.request import Request
from pgstash.postgres.restore.transaction import Transaction
from pgstash.postgres.server.quoting import identifier, literal, qualified
from pgstash.postgres.tools import toc
from pgstash.postgres.tools.qualified_names import Name
from pgstash.restore.administrator_file import AdministratorFile
from pgstash.restore.connecting import as_comment
from pgstash.restore.table_parts import TABLES, Parts

_SHOWN = 10
_PURPOSE = "give the restored tables their owners and privileges"
_BEGINS = b"SET SESSION AUTHORIZATION"
_ENDS = b"RESET SESSION AUTHORIZATION"

_IS_SUPERUSER = (
    b"SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname OPERATOR(pg_catalog.=) current_user"
)
# What the default privileges of the restoring role have granted: the backup has all GRANTs.
_BY_DEFAULT = b"""
    SELECT pg_catalog.format('REVOKE ALL ON %1$s %2$s FROM %3$s; GRANT ALL ON %1$s %2$s TO %4$I;',
               CASE c.relkind WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END,
               c.oid::pg_catalog.regclass, grantees.names, owner.rolname)
    FROM pg_catalog.pg_class c
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    JOIN pg_catalog.pg_roles owner ON owner.oid = c.relowner
    CROSS JOIN LATERAL (
        SELECT pg_catalog.string_agg(DISTINCT CASE WHEN acl.grantee = 0 THEN 'PUBLIC'
                   ELSE pg_catalog.quote_ident(r.rolname) END, ', ') AS names
        FROM pg_catalog.aclexplode(c.relacl) AS acl
        LEFT JOIN pg_catalog.pg_roles r ON r.oid = acl.grantee
        WHERE acl.grantee = 0 OR r.oid IS NOT NULL) AS grantees
    WHERE c.relacl IS NOT NULL AND grantees.names IS NOT NULL
          AND (n.nspname::pg_catalog.text, c.relname::pg_catalog.text) IN (<names>)
"""


@dataclass(frozen=True, slots=True)
class Refused:
    """A statement that the target refused, and why."""

    statement: bytes
    reason: str


def give_early(
    transaction: Transaction, parts: Parts, placement: Placement, request: Request
) -> None:
    """Give the tables their owners before indexes are built, if the login is a superuser.

    The server runs the functions of an index as the owner of its table: this must not be the
    superuser, whose rights a function could use. Another login may need to own the tables until the
    end. What is refused here is refused again by :func:`give`, and reported. Raises RestoreError.
    """
    if request.no_owner or transaction.run(_IS_SUPERUSER) != [[b"t"]]:
        return
    for entry in parts.tables:
        name = (entry.schema, entry.tag)
        if entry.owner:
            transaction.attempt(_ownership(entry, placement.staged.get(name, name)))


def give(
    transaction: Transaction,
    contents: toc.Contents,
    parts: Parts,
    placement: Placement,
    request: Request,
) -> list[Refused]:
    """Give the tables and their sequences owners and privileges; return what was refused.

    Raises RestoreError.
    """
    statements: list[bytes] = []
    if not request.no_privileges:
        _revoke_defaults(transaction, placement)
    if not request.no_owner:
        statements += [
            _ownership(entry, placement.names[entry.schema, entry.tag])
            for entry in parts.owned
            if entry.owner
        ]
    if not request.no_privileges:
        for entry in parts.privileges:
            statements += _units(placement.final(toc.definition(contents, entry)))
    return [
        Refused(statement.strip(), reason.partition("\nSTATEMENT: ")[0])
        for statement in statements
        if (reason := transaction.attempt(statement))
    ]


def warn(
    refused: Sequence[Refused], session: Sequence[bytes], administrator: AdministratorFile
) -> None:
    """Leave the statements that were refused to an administrator, and warn of them.

    ``session`` are the statements that set up a session for them.
    """
    if not refused:
        return
    count = counted(len(refused), "statement")
    lines = [f"The target refused {count} for owners and privileges:"]
    lines += [
        f"{as_comment(each.reason)}\n{each.statement.decode('utf-8', 'replace')}"
        for each in refused[:_SHOWN]
    ]
    if len(refused) > _SHOWN:
        lines.append(f"and {len(refused) - _SHOWN} more")
    lines.append(administrator.add(_PURPOSE, session, [each.statement for each in refused]))
    administrator.warn("\n".join(lines))


def _ownership(entry: toc.Entry, name: Name) -> bytes:
    kind = b"TABLE" if entry.description in TABLES else entry.description
    return b"ALTER %s %s OWNER TO %s;" % (kind, qualified(*name), identifier(entry.owner))


def _units(script: bytes) -> Iterator[bytes]:
    """Yield the statements of a script; those that run as another role are one unit."""
    unit = b""
    for statement in owners_and_privileges.statements_of(script):
        unit += statement + b"\n"
        if not unit.startswith(_BEGINS) or statement.startswith(_ENDS):
            yield unit
            unit = b""


def _revoke_defaults(transaction: Transaction, placement: Placement) -> None:
    objects = placement.objects
    final = (placement.names[name] for name in [*objects.tables, *objects.sequences])
    names = b", ".join(b"(%s, %s)" % (literal(schema), literal(name)) for schema, name in final)
    names = b"VALUES " + names  # hashed, unlike a list of pairs
    for (statement,) in transaction.run(_BY_DEFAULT.replace(b"<names>", names)):
        transaction.run(statement or b"")
