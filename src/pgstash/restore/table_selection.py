"""Selects single tables of an archive, and the members to read for them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

from pgstash import events
from pgstash.errors import TableNotStoredError
from pgstash.format.manifest import Manifest
from pgstash.format.names import schema_name
from pgstash.postgres.tools import toc
from pgstash.postgres.tools.patterns import compiled
from pgstash.repository.archive import Archive
from pgstash.restore.archived_tables import Tables

_BY_ONE_PG_DUMP = (
    "It was made by a single pg_dump (DUMP_JOBS=1, or the reason is in the log of the backup), or "
    "by an older pgstash: "
)
_VIA_NEW_DATABASE = "restore it into a new database with --create, and copy the table from there."
_MOST_NAMED = 5
_MOST_SKIPPED = 10


@dataclass(frozen=True, slots=True)
class Selection:
    """Tables of an archive, and the members to read for them.

    ``names`` are for people; the first of the ``members`` is the header. With ``rows_only`` all
    others are rows, of one table after the other. ``after`` are the entries to create after the
    rows, and ``tables`` the selected tables, as numbers in pg_dump's table of contents ``head``.
    """

    names: Sequence[str]
    members: Sequence[int]
    rows_only: bool
    rows: int
    raw_bytes: int
    head: bytes
    after: Sequence[int]
    tables: Collection[int]
    manifest: Manifest = field(repr=False)


def select(
    archive: Archive, patterns: Sequence[str], emit: events.Emit, *, rows_only: bool
) -> Selection:
    """Find the tables that match one of the patterns, which are those of pg_dump's --table.

    A partitioned table includes its partitions. With ``rows_only`` only rows are selected. Raises
    TableNotStoredError if single tables of the archive cannot be read, or none matches.
    """
    manifest = archive.manifest
    if manifest is None or not archive.is_seekable:
        raise _not_seekable(archive)
    head = archive.schema()
    try:
        contents = toc.read(head)
    except toc.TocError as error:
        raise TableNotStoredError(
            f"the schema companion of {archive.name} cannot be read: {error}"
        ) from error
    if contents is None:
        raise TableNotStoredError(f"the schema companion of {archive.name} is truncated")
    tables = Tables(manifest, contents)
    chosen: set[int] = set()
    names: list[str] = []
    for pattern in patterns:
        fits = compiled(pattern)
        found = {number: name for number, name in tables.names.items() if fits(*name)}
        if not found:
            raise _no_match(archive.name, pattern, tables.names.values())
        names += [".".join(name) for name in found.values()]
        chosen |= found.keys()
    chosen = tables.with_partitions(chosen)
    stored = tables.stored(chosen)
    if others := tables.stored_with(stored, chosen):
        shared = ", ".join(sorted(".".join(tables.names[each]) for each in others))
        if rows_only:
            raise TableNotStoredError(
                f"the rows of {', '.join(names)} are stored together with those of {shared}: "
                "these are partitions whose rows load through the partitioned table",
                hint="Name the partitioned table. Or restore into a new database with --create, "
                "and copy the rows from there.",
            )
        emit(events.Warned(f"Also restored, because their rows are stored together: {shared}"))
        chosen |= others
    after: list[int] = []
    if not rows_only:
        after, skipped = tables.belonging(chosen)
        if skipped:
            emit(events.Warned(_skipped(skipped)))
    members = (
        _rows_of(manifest, tables.in_order(chosen))
        if rows_only
        else _members(manifest, stored, tables.of_extensions)
    )
    return Selection(
        names=list(dict.fromkeys(names)),
        members=members,
        rows_only=rows_only,
        raw_bytes=sum(manifest.members[number].raw for number in members),
        rows=sum(manifest.tables[number].rows for number in stored),
        head=head,
        after=after,
        tables=frozenset(chosen),
        manifest=manifest,
    )


def _members(manifest: Manifest, stored: set[int], of_extensions: set[int]) -> list[int]:
    """Return the numbers of the members to read; the first is the header.

    Extensions are created with all other objects, and what tables compute may need the rows of
    extensions. So these come before the rows of the ``stored`` tables.
    """
    wanted = stored | of_extensions
    found = [
        number
        for number, member in enumerate(manifest.members)
        if member.section in {"header", "pre-data", "sequences"}
        or (member.section == "data" and member.table in wanted)
    ]
    return sorted(
        found,
        key=lambda number: (
            manifest.members[number].section in {"data", "sequences"}
            and manifest.members[number].table not in of_extensions
        ),
    )


def _rows_of(manifest: Manifest, stored: Collection[int]) -> list[int]:
    """Return the numbers of the header, and of the rows of these tables in this order."""
    place: dict[int | None, int] = {table: place for place, table in enumerate(stored)}
    found = [
        number
        for number, member in enumerate(manifest.members)
        if member.section == "header" or (member.section == "data" and member.table in place)
    ]
    found.sort(key=lambda number: place.get(manifest.members[number].table, -1))
    return found


def _not_seekable(archive: Archive) -> TableNotStoredError:
    message, manifest = f"{archive.name} cannot be read table by table", archive.manifest
    if manifest is None:
        message += ": it has no manifest to find them with"
        return TableNotStoredError(message, hint=_VIA_NEW_DATABASE.capitalize())
    if manifest.schema_sha256 is None:
        return TableNotStoredError(message, hint=_BY_ONE_PG_DUMP + _VIA_NEW_DATABASE)
    base = manifest.archive.partition(".")[0]
    schema = schema_name(base, manifest.id, encrypted=manifest.encryption is not None)
    return TableNotStoredError(
        f"{message}: its schema companion is missing",
        hint=f"Put {schema} back next to it; or {_VIA_NEW_DATABASE}",
    )


def _skipped(what: Sequence[str]) -> str:
    more = len(what) - _MOST_SKIPPED
    names = ", ".join(what[:_MOST_SKIPPED]) + (f", and {more} more" if more > 0 else "")
    depends = "it depends" if len(what) == 1 else "they depend"
    return f"Skipped, because {depends} on tables that were not restored: {names}"


def _no_match(name: str, pattern: str, tables: Iterable[tuple[str, str]]) -> TableNotStoredError:
    known = sorted(".".join(each) for each in tables)
    some = ", ".join(known[:_MOST_NAMED]) + (", …" if len(known) > _MOST_NAMED else "")
    return TableNotStoredError(
        f"{name} has no table {pattern}",
        hint=f"`pgstash show` lists the tables: {some}. Patterns are those of pg_dump --table: "
        "letters outside of double quotes are folded to lower case.",
    )
