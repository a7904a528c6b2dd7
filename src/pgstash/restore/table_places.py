"""Decides which names restored tables get in their database, and whether they can be there."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

from pgstash import events
from pgstash.counting import counted
from pgstash.errors import TableNotStoredError, TargetLacksError, TargetNotEmptyError
from pgstash.format.manifest import Manifest
from pgstash.postgres.restore import placing, presence
from pgstash.postgres.restore.placing import Placement
from pgstash.postgres.server.connection import Server
from pgstash.postgres.server.quoting import identifier, qualified
from pgstash.postgres.tools import patterns
from pgstash.postgres.tools.toc import Entry
from pgstash.restore import table_parts
from pgstash.restore.table_parts import Parts

_SHOWN = 10
_PLAIN = re.compile(r"[a-z_][a-z0-9_]*")
_KINDS = {
    table_parts.FOREIGN_KEY: "foreign key",
    table_parts.PARTITION: "partition",
    table_parts.PUBLISHED: "publication",
}


def codec_of(manifest: Manifest, server: Server) -> str:
    """Return Python's codec for the names in an archive, to be used with ``surrogateescape``.

    It is that of ASCII if the backup is of another encoding than the target, and not of UTF8.
    """
    encoding = manifest.database.encoding
    if encoding == server.database.encoding:
        return server.codec
    return "utf-8" if encoding == "UTF8" else "ascii"


def placed(run: presence.Run, parts: Parts, name: str, codec: str) -> Placement:
    """Return which names the parts of tables get: their own as far as these are free.

    With a ``name``, the only table gets that, and its parts get similar ones. Raises
    TableNotStoredError if that is impossible, RestoreError.
    """
    if not name:
        return placing.place(run, parts.objects, lambda own: own)
    partitions = {
        (entry.schema, entry.tag)
        for entry in parts.before
        if entry.description == table_parts.PARTITION
    }
    roots = [table for table in parts.objects.tables if table not in partitions]
    if len(roots) != 1:
        raise TableNotStoredError(
            f"--as names one table, but {counted(len(roots), 'table')} would be restored: "
            + some([text(b".".join(root), codec) for root in roots]),
            hint="Give --table the schema and the name of one table.",
        )
    [old] = roots
    schema, new = patterns.name(name)
    try:
        final = schema.encode(codec) if schema else old[0], new.encode(codec)
    except UnicodeEncodeError as error:
        raise TableNotStoredError(
            f"the name {name} has characters that the encoding of the database lacks",
            hint="Use a name of ASCII characters with --as.",
        ) from error
    return placing.place(run, parts.objects, placing.renaming(old, final), only=old)


def refuse_taken(run: presence.Run, placement: Placement, server: Server, codec: str) -> None:
    """Raise TargetNotEmptyError if the database has one of the tables. Raises RestoreError."""
    tables = {placement.names[name]: name for name in placement.objects.tables}
    there = presence.taken_tables(run, list(tables))
    if not there:
        return
    first = there[0]
    schema, name = tables[first]
    other = f"--as {shown_for_shell(text(schema, codec), text(name, codec) + '_restored')}"
    rename = f"ALTER TABLE {text(qualified(*first), codec)} RENAME TO …;"
    raise TargetNotEmptyError(
        f"the database {server.database.name} already has "
        + some([text(b".".join(each), codec) for each in there]),
        hint=f"Restore it under another name: {other}\n"
        "Or load only the rows into the table that is there: --data-only in place of "
        "--into-existing\n"
        f"Or drop the existing table first, or rename it, in psql: {rename}",
    )


def refuse_lacking(
    run: presence.Run, parts: Parts, placement: Placement, server: Server, codec: str
) -> None:
    """Raise TargetLacksError if the database lacks something that the tables need.

    Raises RestoreError.
    """
    wanted = [placement.names[name][0] for name in placement.objects.tables]
    schemas = presence.missing_schemas(run, wanted)
    lacking = presence.missing(
        run, [each for each in parts.needed if each.description != b"SCHEMA"]
    )
    if not schemas and not lacking:
        return
    names = [f"schema {text(schema, codec)}" for schema in schemas]
    hints = [f"CREATE SCHEMA {text(identifier(schema), codec)};" for schema in schemas]
    if any(each.description in table_parts.TABLES for each in lacking):
        hints.append("Restore the missing tables along with these: add --table for each.")
    hints.append(
        "Create what is missing first. To get its definition, restore into a new database "
        "with --create, and run pg_dump --schema-only there."
    )
    raise TargetLacksError(
        f"the database {server.database.name} lacks what the tables need: "
        + some([*names, *(_named(each, codec) for each in lacking)]),
        hint="\n".join(hints),
    )


def warn_of_publications(
    run: presence.Run, placement: Placement, server: Server, codec: str, emit: events.Emit
) -> None:
    """Warn of publications that contain the tables before they are complete.

    Raises RestoreError.
    """
    schemas = {schema for schema, _ in placement.names.values()}
    if found := presence.publications(run, schemas, server.major):
        emit(
            events.Warned(
                "Publications of all tables, or of all in a schema, send the restored rows to "
                f"their subscribers: {some([text(name, codec) for name in found])}\n"
                "A subscription stops if it lacks the table, or has its rows already"
            )
        )


def planned(parts: Parts, codec: str, *, copy: bool) -> str:
    """Return what would be done, for people; a ``copy`` is not connected with other tables."""
    rest = len(parts.before) + len(parts.after) - len(parts.tables)
    tables = counted(len(parts.tables), "table")
    done = f"One transaction would create {tables} with {counted(rest, 'part')} and all rows"
    if parts.attempts:
        named = listed([attempt.entry for attempt in parts.attempts], codec)
        left_out = "These would be left out, because it is a copy"
        done += f". {left_out if copy else 'After it, these would be created if possible'}: {named}"
    return done


def renamed(placement: Placement, codec: str) -> str:
    """Return which names differ from those in the backup, for people; empty if none do."""
    found = [(old, new) for old, new in placement.names.items() if old != new]
    if not found:
        return ""
    pairs = [
        f"{text(b'.'.join(old), codec)} as {text(b'.'.join(new), codec)}" for old, new in found
    ]
    return f"Names that differ from those in the backup: {some(pairs)}"


def listed(entries: Sequence[Entry], codec: str) -> str:
    """Return kinds and names of entries, for people."""
    return some([_named(entry, codec) for entry in entries])


def some(names: Sequence[str]) -> str:
    """Return the first few names, and how many more there are."""
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f", and {more} more" if more > 0 else "")


def _named(entry: Entry, codec: str) -> str:
    kind = entry.description
    said = _KINDS.get(kind) or text(kind, codec).lower()
    return f"{said} {text(b'.'.join(filter(None, (entry.schema, entry.tag))), codec)}"


def shown_for_shell(schema: str, name: str) -> str:
    """Return a name for an option such as --as, quoted for SQL and for a shell if it needs that."""
    parts = (each if _PLAIN.fullmatch(each) else identifier(each) for each in (schema, name))
    return shlex.quote(".".join(parts))


def text(name: bytes, codec: str) -> str:
    """Return a name as text."""
    return name.decode(codec, "surrogateescape")
