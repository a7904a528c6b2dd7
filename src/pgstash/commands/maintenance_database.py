"""The database that is on every server: a recovery logs in to it, and restores into it."""

from __future__ import annotations

import re
from collections.abc import Iterator

from pgstash.errors import PgstashError
from pgstash.format.manifest import Manifest
from pgstash.postgres.restore import owners_and_privileges
from pgstash.postgres.tools import toc
from pgstash.repository.archive import Archive

MAINTENANCE = "postgres"

_OF_DATABASE = {b"ENCODING", b"STDSTRINGS", b"SEARCHPATH", b"DATABASE", b"DATABASE PROPERTIES"}
_OF_INITDB = {
    (b"SCHEMA", b"public"),
    (b"EXTENSION", b"plpgsql"),
    (b"COMMENT", b"SCHEMA public"),
    (b"COMMENT", b"EXTENSION plpgsql"),
    (b"COMMENT", b"DATABASE postgres"),
}
# What pg_dump writes around the objects; a line of anything else is one of an object.
_NOTHING = re.compile(
    rb"|--.*|SET \w+ = [^;]*;|SELECT pg_catalog\.set_config\('search_path', '', false\);"
    rb"|\\(?:un)?restrict \w+"
)
_LONGEST_EMPTY = 64 * 1024  # bytes
_GRANT = re.compile(rb'GRANT (\w+) ON DATABASE :"DBNAME" TO (.+);')
_OF_PUBLIC = {(b"CONNECT", b"PUBLIC"), (b"TEMPORARY", b"PUBLIC")}
_OWNER = re.compile(rb'ALTER DATABASE :"DBNAME" OWNER TO (.+);')


def holds_nothing(opened: Archive, manifest: Manifest) -> bool:
    """Return whether a backup certainly holds nothing that a user made."""
    if manifest.tables or owners_and_privileges.units_of(_script(opened)[0]):
        return False
    try:
        if not opened.is_seekable:
            return manifest.raw_bytes <= _LONGEST_EMPTY and _is_empty(opened)
        contents = toc.read(opened.schema())
    except (PgstashError, toc.TocError):
        return False
    return contents is not None and all(
        each.description in _OF_DATABASE or (each.description, each.tag) in _OF_INITDB
        for each in contents.entries
    )


def _is_empty(opened: Archive) -> bool:
    """Return whether a script makes nothing. Raises what :meth:`Archive.script` raises."""
    with opened.script() as chunks:
        return all(_NOTHING.fullmatch(line) for line in b"".join(chunks).splitlines())


def notes(opened: Archive, database: str) -> Iterator[str]:
    """Yield that privileges on the maintenance database itself do not come back, if it has any."""
    if database != MAINTENANCE:
        return
    statements = owners_and_privileges.statements_of(_script(opened)[1])
    granted = {found.groups() for each in statements if (found := _GRANT.fullmatch(each))}
    owners = {found[1] for each in statements if (found := _OWNER.fullmatch(each))}
    to_others = {each for each in granted if each[1] not in owners}
    if statements and to_others != _OF_PUBLIC:
        yield (
            "privileges on the database itself (GRANT … ON DATABASE) are not restored. Who may "
            "connect to it is in docs/how-to/restore-without-pgstash.md, step 5"
        )


def _script(opened: Archive) -> tuple[bytes, bytes]:
    """Return the scripts of owners and privileges: of the objects, and of the database itself."""
    try:
        return owners_and_privileges.parts(opened.privileges() or b"")
    except PgstashError:  # the restore reports it
        return b"", b""
