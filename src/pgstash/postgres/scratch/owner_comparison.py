"""Compares owners and privileges in a restored database with those in the source.

Both are scripts of ``postgres/dump/owners_and_privileges.py``. Versions of pg_dump write them in
different orders, and differ in quotes and in the kind that they give a relation.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from pgstash.postgres.restore.owners_and_privileges import TOKEN, Refused

_SIMPLE = re.compile(rb'"[a-z_][a-z0-9_]*"')
_BLANKS = re.compile(rb"\s+")
_RELATION = re.compile(rb"ALTER (?:FOREIGN TABLE|MATERIALIZED VIEW|SEQUENCE|VIEW) ")
_OWNER = re.compile(rb"ALTER (.*) OWNER TO (.*);", re.DOTALL)
# What servers grant on by themselves, which depends on their major.
_OF_SERVER = re.compile(
    rb".* ON [A-Z ]* (?:pg_catalog|information_schema)\..*"
    rb"|.* ON SCHEMA public (?:TO|FROM) .*|ALTER SCHEMA public OWNER TO .*",
    re.DOTALL,
)
_ON_SCHEMA = re.compile(
    rb"""(?:GRANT|REVOKE) [A-Z, ]+ ON SCHEMA ("(?:[^"]|"")+"|[^" ]+) (?:TO|FROM) .*""", re.DOTALL
)

_NOT_ALLOWED = "42501"

Unit = Sequence[bytes]


@dataclass(frozen=True, slots=True)
class Comparison:
    """The number of units that were compared, how many could not be, and the differences."""

    compared: int
    left_out: int
    problems: Sequence[bytes]


def compare(
    of_source: Iterable[Unit],
    of_restored: Iterable[Unit],
    refused: Collection[Refused],
    *,
    more_on: Collection[bytes] | None,
    same_major: bool,
) -> Comparison:
    """Return how the restored database differs from the source.

    ``refused`` is what a superuser could not run. Some objects must belong to a superuser: if
    theirs is an ordinary role here, they are left out. The restored database may have more
    privileges on the schemas ``more_on`` (quoted names); None if the backup is not of the whole
    database, so that it may have more of everything. What servers grant by themselves is compared
    with one of the ``same_major`` alone.
    """
    expected = {_normal(unit): b" ".join(unit) for unit in of_source}
    found = {_normal(unit): b" ".join(unit) for unit in of_restored}
    if not same_major:
        expected, found = _without_servers_own(expected), _without_servers_own(found)
    excused = {
        _owned(_normal(unit.statements))[0] for unit in refused if unit.state == _NOT_ALLOWED
    } - {b""}
    left_out = [each for each in expected if _owned(each)[0] in excused]
    missing = [each for each in expected if each not in found and each not in left_out]
    more = [
        each
        for each in found
        if each not in expected
        and _owned(each)[0] not in excused
        and not _is_about(each, {*map(_unquoted, more_on or ())})
    ]
    others = dict(map(_owned, more))
    problems = []
    for each in missing:
        what, owner = _owned(each)
        if what and what in others:
            problems.append(
                b"%s belongs to %s in the source, and to %s in the restored database"
                % (what, owner, others.pop(what))
            )
        else:
            problems.append(b"only in the source: " + expected[each].rstrip(b";"))
    if more_on is not None:
        problems += [
            b"only in the restored database: " + found[each].rstrip(b";")
            for each in more
            if not _owned(each)[0] or _owned(each)[0] in others
        ]
    return Comparison(len(expected) - len(left_out), len(left_out), problems)


def _normal(unit: Unit) -> bytes:
    """Return a unit as all versions of pg_dump and of pgstash might have written it."""
    text = b"".join(_unquoted(token[0]) for token in TOKEN.finditer(b" ".join(unit)))
    return _RELATION.sub(b"ALTER TABLE ", text, count=1) if _OWNER.fullmatch(text) else text


def _unquoted(token: bytes) -> bytes:
    if token[:1] in (b'"', b"'"):
        return token[1:-1] if _SIMPLE.fullmatch(token) else token
    return _BLANKS.sub(b" ", token)


def _owned(normal: bytes) -> tuple[bytes, bytes]:
    """Return an object and its owner; nothing if the statement gives no owner."""
    match = _OWNER.fullmatch(normal)
    return (match[1], match[2]) if match else (b"", b"")


def _is_about(normal: bytes, schemas: Collection[bytes]) -> bool:
    """Return whether a statement grants or revokes something on one of these schemas."""
    match = _ON_SCHEMA.fullmatch(normal)
    return match is not None and match[1] in schemas


def _without_servers_own(units: dict[bytes, bytes]) -> dict[bytes, bytes]:
    return {normal: unit for normal, unit in units.items() if not _OF_SERVER.fullmatch(normal)}
