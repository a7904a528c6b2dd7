"""Decides which names restored tables get in their database, and whether they can be there."""

from __future__ import annotations

from collections.abc import Sequence

from pgstash.counting import counted
from pgstash.errors import TableNotStoredError, TargetLacksError, TargetNotEmptyError
from pgstash.postgres.restore import placing, presence
from pgstash.postgres.restore.placing import Placement
from pgstash.postgres.server.connection import Server
from pgstash.postgres.server.quoting import identifier, qualified
from pgstash.postgres.tools import patterns, toc
from pgstash.postgres.tools.toc import Entry
from pgstash.restore import table_parts
from pgstash.restore.table_parts import Parts

_SHOWN = 10
_UTF8 = b"'UTF8'"


def placed(run: presence.Run, contents: toc.Contents, parts: Parts, name: str) -> Placement:
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
            + some([text(b".".join(root)) for root in roots]),
            hint="Give --table the schema and the name of one table.",
        )
    [old] = roots
    schema, new = patterns.name(name)
    encoded = new.encode(), (schema.encode() if schema else old[0])
    if not all(part.isascii() for part in encoded) and not _is_utf8(contents):
        raise TableNotStoredError(
            f"the name {name} cannot be used with this backup, whose encoding is not UTF8",
            hint="Use a name of ASCII characters with --as.",
        )
    wanted = placing.renaming(old, (encoded[1], encoded[0]))
    return placing.place(run, parts.objects, wanted, exact=[old])


def _is_utf8(contents: toc.Contents) -> bool:
    return any(
        entry.description == b"ENCODING" and _UTF8 in toc.definition(contents, entry)
        for entry in contents.entries
    )


def refuse_taken(run: presence.Run, placement: Placement, server: Server) -> None:
    """Raise TargetNotEmptyError if the database has one of the tables. Raises RestoreError."""
    tables = {placement.names[name]: name for name in placement.objects.tables}
    there = presence.taken_tables(run, list(tables))
    if not there:
        return
    first = there[0]
    schema, name = tables[first]
    rename = f"ALTER TABLE {text(qualified(*first))} RENAME TO …;"
    raise TargetNotEmptyError(
        f"the database {server.database.name} already has "
        + some([text(b".".join(each)) for each in there]),
        hint="Restore the table under another name, with "
        f"--as {text(schema)}.{text(name)}_restored. "
        "Or load only the rows into the table that is there, with --data-only in place of "
        f"--into-existing. Or move the existing table out of the way first, in psql: {rename} or "
        "drop it.",
    )


def refuse_lacking(run: presence.Run, parts: Parts, placement: Placement, server: Server) -> None:
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
    names = [f"schema {text(schema)}" for schema in schemas]
    hints = [f"CREATE SCHEMA {text(identifier(schema))};" for schema in schemas]
    if any(each.description in table_parts.TABLES for each in lacking):
        hints.append("Restore the missing tables along with these: add --table for each.")
    hints.append(
        "Create what is missing first. To get its definition, restore into a new database "
        "with --create, and run pg_dump --schema-only there."
    )
    raise TargetLacksError(
        f"the database {server.database.name} lacks what the tables need: "
        + some([*names, *map(_named, lacking)]),
        hint="\n".join(hints),
    )


def planned(parts: Parts, *, copy: bool) -> str:
    """Return what would be done, for people; a ``copy`` is not connected with other tables."""
    rest = len(parts.before) + len(parts.after) - len(parts.tables)
    tables = counted(len(parts.tables), "table")
    done = f"One transaction would create {tables} with {counted(rest, 'part')} and all rows"
    if parts.attempts:
        named = listed([attempt.entry for attempt in parts.attempts])
        left_out = "These would be left out, because it is a copy"
        done += f". {left_out if copy else 'After it, these would be created if possible'}: {named}"
    return done


def renamed(placement: Placement) -> str:
    """Return which names differ from those in the backup, for people; empty if none do."""
    found = [(old, new) for old, new in placement.names.items() if old != new]
    if not found:
        return ""
    pairs = [f"{text(b'.'.join(old))} as {text(b'.'.join(new))}" for old, new in found]
    return f"Names that differ from those in the backup: {some(pairs)}"


def listed(entries: Sequence[Entry]) -> str:
    """Return kinds and names of entries, for people."""
    return some([_named(entry) for entry in entries])


def some(names: Sequence[str]) -> str:
    """Return the first few names, and how many more there are."""
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f", and {more} more" if more > 0 else "")


def _named(entry: Entry) -> str:
    kind = entry.description
    said = "foreign key" if kind == table_parts.FOREIGN_KEY else text(kind).lower()
    return f"{said} {text(b'.'.join(filter(None, (entry.schema, entry.tag))))}"


def text(name: bytes) -> str:
    """Return a name as text."""
    return name.decode("utf-8", "surrogateescape")
