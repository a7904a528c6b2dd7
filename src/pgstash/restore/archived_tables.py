"""Single tables of an archive: which are meant, their rows, and what belongs to them."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from pgstash import events
from pgstash.archive import Archive
from pgstash.errors import CorruptedError, TableNotStoredError
from pgstash.manifest import Manifest, Member, schema_name
from pgstash.postgres import outline, toc
from pgstash.postgres.patterns import compiled
from pgstash.postgres.tools import ClientTools
from pgstash.unpacking import Seeker, footer, take_statement

_BY_ONE_PG_DUMP = (
    "It was made by one pg_dump (DUMP_JOBS=1, or the log of the backup says why), or by an older "
    "pgstash: "
)
_BY_WAY_OF_ALL = "restore it into a new database with --create, and copy the table from there."
_PARTITION = b"TABLE ATTACH"
_INDEX_OF_PARTITION = b"INDEX ATTACH"
_FOREIGN_KEY = b"FK CONSTRAINT"
_UNIQUE = (b"CONSTRAINT", b"INDEX")
_KINDS = (b"TABLE", b"FOREIGN TABLE")
# Comments are of no section, and stand behind what they are on.
_AFTER = (toc.Section.NONE, toc.Section.POST_DATA)
_MOST_NAMED = 5
_MOST_LEFT_OUT = 10

# How a COPY block ends in a script.
_END = b"\\.\n"
_END_OF_ROWS = _END + b"\n\n"


@dataclass(frozen=True, slots=True)
class Selection:
    """Tables of an archive, and the members to read for them.

    ``names`` are for people; of the ``members`` the first is the header. With ``rows_only`` all
    others are rows, of one table after the other. ``after`` are the numbers of the entries that
    belong to them, in pg_dump's table of contents ``head``.
    """

    names: Sequence[str]
    members: Sequence[int]
    rows_only: bool
    rows: int
    raw_bytes: int
    head: bytes
    after: Sequence[int]
    manifest: Manifest = field(repr=False)


def select(
    archive: Archive, patterns: Sequence[str], emit: events.Emit, *, rows_only: bool
) -> Selection:
    """Find the tables that fit one of the patterns, each written as pg_dump's --table is.

    A partitioned table stands for its partitions too. With ``rows_only`` nothing but rows is
    wanted.
    Raises TableNotStoredError where the archive cannot be read by tables, or has none that fits.
    """
    manifest = archive.manifest
    if manifest is None or not archive.is_seekable:
        raise _not_seekable(archive)
    head = archive.schema()
    try:
        contents = toc.read(head)
    except toc.TocError as error:
        raise TableNotStoredError(
            f"the schema beside {archive.name} is not understood: {error}"
        ) from error
    if contents is None:
        raise TableNotStoredError(f"the schema beside {archive.name} is cut short")
    tables = _Tables(manifest, contents)
    chosen: set[int] = set()
    names: list[str] = []
    for pattern in patterns:
        fits = compiled(pattern)
        found = {number: name for number, name in tables.names.items() if fits(*name)}
        if not found:
            raise _none_fits(archive.name, pattern, tables.names.values())
        names += [".".join(name) for name in found.values()]
        chosen |= found.keys()
    chosen = tables.with_partitions(chosen)
    stored = tables.stored(chosen)
    if others := tables.stored_with(stored, chosen):
        shared = ", ".join(sorted(".".join(tables.names[each]) for each in others))
        if rows_only:
            raise TableNotStoredError(
                f"the rows of {', '.join(names)} are stored together with those of {shared}, "
                "because they load through the table that these are partitions of",
                hint="Name that table; or restore into a new database with --create, and copy the "
                "rows from there.",
            )
        emit(events.Warned(f"Stored together, and so restored too: {shared}"))
        chosen |= others
    after: list[int] = []
    if not rows_only:
        after, left = tables.belonging(chosen)
        if left:
            emit(events.Warned(_left_out(left)))
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
        manifest=manifest,
    )


def script(
    selection: Selection,
    archive: Archive,
    client: ClientTools,
    environment: Mapping[str, str],
    watch: Callable[[int], None],
) -> Iterator[bytes]:
    """Yield the script of the selected tables, every member of it compared before.

    Raises CorruptedError, StorageError, TableNotStoredError where pg_restore makes none.
    """
    seeker = archive.seek(watch)
    header, *others = selection.members
    begins = b"".join(seeker.member(header))
    yield begins
    if selection.rows_only:
        known = selection.manifest.members
        for _, numbers in itertools.groupby(others, lambda number: known[number].table):
            yield from _as_one(numbers, known, seeker)
    else:
        for number in others:
            yield from seeker.member(number)
    if selection.after:
        try:
            options = selection.manifest.options
            yield outline.entries(selection.head, client, selection.after, options, environment)
        except outline.CompositionError as error:
            raise TableNotStoredError(
                f"what belongs to the tables of {archive.name} cannot be made: {error.message}",
                hint="Restore all of it with --create, or the rows alone with --data-only.",
            ) from error
    yield footer(begins)


class _Tables:
    """The tables in a table of contents, and what hangs on them."""

    def __init__(self, manifest: Manifest, contents: toc.Contents) -> None:
        self._entries = contents.entries
        made = [entry for entry in contents.entries if entry.description in _KINDS]
        self._made = {entry.number: entry for entry in made}
        self.names = {entry.number: (_text(entry.schema), _text(entry.tag)) for entry in made}
        # The manifest counts the tables in the order in which their rows are listed.
        places = dict.fromkeys(into[0] for entry in contents.entries if (into := entry.loads_into))
        numbers = {name: number for number, name in enumerate(places)}
        self._stored = {
            table: numbers[into[0]]
            for entry in contents.entries
            if (into := entry.loads_into)
            for table in entry.depends_on & self.names.keys()
        }
        for table, number in self._stored.items():
            if any("\udc80" <= letter <= "\udcff" for letter in "".join(self.names[table])):
                known = manifest.tables[number]  # decoded by somebody who knew the encoding
                self.names[table] = (known.schema, known.name)
        of_tables = {(entry.schema, entry.tag) for entry in made}
        self.of_extensions = {
            numbers[into[0]]
            for entry in contents.entries
            if (into := entry.loads_into) and (entry.schema, entry.tag) not in of_tables
        }
        attached = {
            entry.depends_on for entry in contents.entries if entry.description == _PARTITION
        }
        self._parents = {
            entry.number: parent
            for entry in made
            for parent in entry.depends_on & self.names.keys()
            if frozenset({entry.number, parent}) in attached
        }

    def stored(self, tables: Collection[int]) -> set[int]:
        """Return the numbers that these tables have in the manifest, where they have rows."""
        return {self._stored[table] for table in tables if table in self._stored}

    def stored_with(self, stored: Collection[int], tables: Collection[int]) -> set[int]:
        """Return the tables beside these whose rows have the same numbers in the manifest.

        Those are partitions whose rows load through their root.
        """
        return {
            table
            for table, number in self._stored.items()
            if number in stored and table not in tables
        }

    def in_order(self, tables: Collection[int]) -> list[int]:
        """Return the same, and a table behind those that its foreign keys refer to.

        Where tables refer to each other in a circle, one of them has to be the first.
        """
        keys = self._keys()
        roots: dict[int, list[int]] = {}
        for table in tables:
            for ancestor in self._line(table):
                roots.setdefault(ancestor, []).append(table)
        ordered: dict[int, None] = {}
        begun: set[int] = set()
        todo = [(table, False) for table in sorted(tables, reverse=True)]
        while todo:
            table, done = todo.pop()
            if done:
                ordered[table] = None
            elif table not in begun:
                begun.add(table)
                todo.append((table, True))
                for ancestor in self._line(table):
                    for parent in sorted(keys.get(ancestor, ()), reverse=True):
                        todo += [
                            (each, False) for each in sorted(roots.get(parent, ()), reverse=True)
                        ]
        return list(dict.fromkeys(self._stored[each] for each in ordered if each in self._stored))

    def _keys(self) -> dict[int, set[int]]:
        """Return which tables the foreign keys of each table refer to."""
        of_table = {
            entry.number: entry.depends_on & self.names.keys()
            for entry in self._entries
            if entry.description in _UNIQUE
        }
        keys: dict[int, set[int]] = {}
        for entry in self._entries:
            if entry.description != _FOREIGN_KEY:
                continue
            unique = (of_table[each] for each in entry.depends_on if each in of_table)
            referred = set[int]().union(*unique)
            for table in entry.depends_on & self.names.keys():
                keys.setdefault(table, set()).update(referred - {table})
        return keys

    def with_partitions(self, tables: set[int]) -> set[int]:
        """Add the partitions of these tables, and the partitions of those."""
        return {table for table in self.names if not tables.isdisjoint(self._line(table))}

    def belonging(self, tables: Collection[int]) -> tuple[list[int], list[str]]:
        """Return what is made of these tables after their rows came, and what is left out.

        The former are numbers of entries. What belongs to the table that a partition is of is
        among them: indexes of partitions hang on those of the whole.
        """
        built = {ancestor for table in tables for ancestor in self._line(table)}
        after: list[int] = []
        left: list[str] = []
        known = set(built)
        late = {entry.number for entry in self._entries if entry.section in _AFTER}
        for entry in self._entries:
            if entry.section not in _AFTER or not entry.depends_on & known:
                continue
            needed = {each for each in entry.depends_on if each in late or each in self.names}
            if needed <= known:
                known.add(entry.number)
                after.append(entry.number)
            elif self._is_missed(entry, built):
                left.append(f"{_text(entry.description)} {_text(entry.tag)}")
        return after, left

    def _is_missed(self, entry: toc.Entry, tables: set[int]) -> bool:
        """Tell whether these tables are not the same without what needs others too.

        What a table has of its own bears its name: keys, policies, rules, triggers.
        """
        if entry.section != toc.Section.POST_DATA or entry.description == _INDEX_OF_PARTITION:
            return False
        needed = entry.depends_on & self._made.keys()
        owners = {
            table
            for table in needed
            if entry.schema == (own := self._made[table]).schema
            and entry.tag.startswith(own.tag + b" ")
        }
        return not needed or not tables.isdisjoint(owners or needed)

    def _line(self, table: int) -> Iterator[int]:
        """Yield a table, the one that it is a partition of, and so on."""
        at: int | None = table
        while at is not None:
            yield at
            at = self._parents.get(at)


def _members(manifest: Manifest, stored: set[int], of_extensions: set[int]) -> list[int]:
    """Return the numbers of the members to read; the first is the header.

    The extensions are made with all other objects, and what tables compute may need their rows: so
    these come before the rows of the ``stored`` tables.
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
    """Return the numbers of the header and of the rows of tables, which are in this order."""
    place: dict[int | None, int] = {table: place for place, table in enumerate(stored)}
    found = [
        number
        for number, member in enumerate(manifest.members)
        if member.section == "header" or (member.section == "data" and member.table in place)
    ]
    found.sort(key=lambda number: place.get(manifest.members[number].table, -1))
    return found


def _as_one(numbers: Iterable[int], members: Sequence[Member], seeker: Seeker) -> Iterator[bytes]:
    """Yield the rows of a table with one COPY, if that is possible: keys are checked at its end."""
    following = iter(numbers)
    begun = b""
    for number in following:
        pieces = seeker.member(number)
        statement = take_statement(pieces)
        if statement != begun:
            # Rows that load through the root of partitions have the columns of each in its order.
            if begun:
                yield _END_OF_ROWS
            yield statement
            begun = statement
        yield from _rows(_block(number, pieces, following, members, seeker))
    yield _END_OF_ROWS


def _block(
    number: int,
    pieces: deque[bytes],
    following: Iterator[int],
    members: Sequence[Member],
    seeker: Seeker,
) -> Iterator[bytes]:
    """Yield what follows a COPY statement, which may go on in the members that follow."""
    while True:
        while pieces:
            yield pieces.popleft()
        if members[number].rows is not None:
            return
        number = next(following, -1)
        if number < 0:
            raise CorruptedError("the rows of a table end within one")
        pieces = seeker.member(number)


def _rows(block: Iterator[bytes]) -> Iterator[bytes]:
    """Yield the rows of a block, without its end and what follows that."""
    held = b"\n"  # begins with a byte that was yielded, as if there were one before the first
    for piece in block:
        data = held + piece
        end = data.find(b"\n" + _END)
        if end >= 0:
            yield data[1 : end + 1]
            for _ in block:
                pass  # comments; they are compared all the same
            return
        kept = max(0, len(data) - len(_END))
        yield data[1:kept]
        held = data[max(0, kept - 1) :]
    raise CorruptedError("a block of rows has no end")


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


def _not_seekable(archive: Archive) -> TableNotStoredError:
    message, manifest = f"{archive.name} cannot be read table by table", archive.manifest
    if manifest is None:
        message += ": it has no manifest, which says where each is"
        return TableNotStoredError(message, hint=_BY_WAY_OF_ALL.capitalize())
    if manifest.schema_sha256 is None:
        return TableNotStoredError(message, hint=_BY_ONE_PG_DUMP + _BY_WAY_OF_ALL)
    base = manifest.archive.partition(".")[0]
    schema = schema_name(base, manifest.id, encrypted=manifest.encryption is not None)
    return TableNotStoredError(
        f"{message}: the schema beside it is gone",
        hint=f"Put {schema} back beside it; or {_BY_WAY_OF_ALL}",
    )


def _left_out(what: Sequence[str]) -> str:
    more = len(what) - _MOST_LEFT_OUT
    return f"Left out, as it needs more than the tables: {', '.join(what[:_MOST_LEFT_OUT])}" + (
        f", and {more} more" if more > 0 else ""
    )


def _none_fits(name: str, pattern: str, tables: Iterable[tuple[str, str]]) -> TableNotStoredError:
    known = sorted(".".join(each) for each in tables)
    some = ", ".join(known[:_MOST_NAMED]) + (", …" if len(known) > _MOST_NAMED else "")
    return TableNotStoredError(
        f"{name} has no table {pattern}",
        hint=f"`pgstash show` lists them: {some}. A pattern is written as for pg_dump --table: "
        "what is not in double quotes is folded to lower case.",
    )
