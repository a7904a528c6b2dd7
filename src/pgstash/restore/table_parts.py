"""What belongs to some tables of an archive, what they need, and what needs them.

The names of entries' kinds, and what they depend on, are pg_dump's (pg_dump.c, ``ARCHIVE_OPTS``).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from pgstash.postgres.restore.placing import Objects
from pgstash.postgres.tools import toc
from pgstash.postgres.tools.qualified_names import Name
from pgstash.postgres.tools.toc import Entry, Section

TABLES = (b"TABLE", b"FOREIGN TABLE")
FOREIGN_KEY = b"FK CONSTRAINT"
_SEQUENCE = b"SEQUENCE"
_OF_SEQUENCE = (b"SEQUENCE OWNED BY", b"SEQUENCE SET")
PARTITION = b"TABLE ATTACH"
PUBLISHED = b"PUBLICATION TABLE"
_CONNECTING = (PARTITION, PUBLISHED, FOREIGN_KEY)
_PRIVILEGES = b"ACL"
_STATISTICS = b"STATISTICS"
_TRIGGER = b"TRIGGER"
_ON_OTHERS = (b"COMMENT", b"SECURITY LABEL")
# Their tag begins with the name of their table if they may refer to others too.
_OF_TABLE = frozenset(
    [
        b"CHECK CONSTRAINT",
        b"CONSTRAINT",
        b"DEFAULT",
        b"INDEX",
        b"INDEX ATTACH",
        b"POLICY",
        b"ROW SECURITY",
        b"RULE",
        _STATISTICS,
        _TRIGGER,
    ]
)
# These are dropped along with a table by DROP TABLE … CASCADE.
_DEPENDENTS = frozenset(
    [
        *TABLES,
        b"AGGREGATE",
        b"FUNCTION",
        b"MATERIALIZED VIEW",
        b"POLICY",
        b"PROCEDURE",
        b"RULE",
        b"VIEW",
    ]
)


@dataclass(frozen=True, slots=True)
class Attempt:
    """An entry that may be impossible in the target; its comments follow it."""

    entry: Entry
    comments: list[Entry] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Parts:
    """What belongs to tables: entries in the order in which they are created.

    ``before`` and ``after`` are those before and after the rows, ``privileges`` their GRANTs.
    ``attempts`` connect the tables with others: foreign keys in both directions, partitions to
    attach, publications. ``needed`` are other objects that must exist, and ``dependents`` those
    that cannot exist without the tables.
    """

    tables: list[Entry] = field(default_factory=list)
    before: list[Entry] = field(default_factory=list)
    after: list[Entry] = field(default_factory=list)
    privileges: list[Entry] = field(default_factory=list)
    attempts: list[Attempt] = field(default_factory=list)
    needed: list[Entry] = field(default_factory=list)
    dependents: list[Entry] = field(default_factory=list)

    @property
    def owned(self) -> list[Entry]:
        """The tables, and what has an owner of its own among their parts."""
        return [*self.tables, *(each for each in self.after if each.description == _STATISTICS)]

    @property
    def objects(self) -> Objects:
        """The names of all that has a name in a schema."""
        indexes = []
        tables = {table.number: table for table in self.tables}
        for entry in self.after:
            if entry.description == b"INDEX":
                indexes.append((entry.schema, entry.tag))
            elif entry.description == b"CONSTRAINT":
                indexes.append((entry.schema, name_of_constraint(entry, tables)))
        return Objects(
            tables=_names(self.tables),
            sequences=_names(each for each in self.before if each.description == _SEQUENCE),
            indexes=indexes,
            statistics=_names(each for each in self.after if each.description == _STATISTICS),
        )


def _names(entries: Iterable[Entry]) -> list[Name]:
    return [(entry.schema, entry.tag) for entry in entries]


def name_of_constraint(entry: Entry, tables: Mapping[int, Entry]) -> bytes:
    """Return the name of a constraint of one of these tables, without that of the table.

    The ``tables`` are those of these numbers.
    """
    prefixes = [
        tables[number].tag + b" "
        for number in entry.depends_on & tables.keys()
        if entry.tag.startswith(tables[number].tag + b" ")
    ]
    return entry.tag[len(max(prefixes, key=len, default=b"")) :]


def of_tables(contents: toc.Contents, chosen: Collection[int]) -> Parts:
    """Return what belongs to the tables that have these numbers, with all their partitions."""
    return _Finder(contents, chosen).parts


class _Finder:
    def __init__(self, contents: toc.Contents, chosen: Collection[int]) -> None:
        self._entries = {entry.number: entry for entry in contents.entries}
        self._tables = {e.number: e for e in contents.entries if e.description in TABLES}
        self._chosen = frozenset(chosen)
        self._contents = contents
        self._detached: set[int] = set()  # partitions of tables that are not chosen
        self._parents = {
            frozenset(entry.depends_on) for entry in contents.entries if _is_partition(entry)
        }
        self._sequences: set[int] = set()
        self._attempts: dict[int, Attempt] = {}
        self._place: dict[int, list[Entry]] = {}
        self.parts = Parts()
        for entry in contents.entries:
            self._sort(entry)
        self._find_needed()
        self._find_dependents(contents.entries)

    def _sort(self, entry: Entry) -> None:
        kind, parts = entry.description, self.parts
        if kind in TABLES and entry.number in self._chosen:
            parts.tables.append(entry)
            self._put(entry, parts.before)
        elif kind == _SEQUENCE and not entry.depends_on.isdisjoint(self._chosen):
            self._sequences.add(entry.number)
            self._put(entry, parts.before)
        elif kind in _OF_SEQUENCE and not entry.depends_on.isdisjoint(self._sequences):
            self._put(entry, parts.before)
        elif kind in _CONNECTING:
            self._sort_connection(entry)
        elif kind in _ON_OTHERS or kind == _PRIVILEGES:
            self._sort_addition(entry)
        elif kind in _OF_TABLE and (owners := self._owners(entry)) and owners <= self._chosen:
            if self._is_later(entry):
                parts.attempts.append(Attempt(entry))
                return
            early = entry.section == Section.PRE_DATA
            self._put(entry, parts.before if early else parts.after)

    def _put(self, entry: Entry, place: list[Entry]) -> None:
        self._place[entry.number] = place
        place.append(entry)

    def _sort_connection(self, entry: Entry) -> None:
        tables = entry.depends_on & self._tables.keys()
        if _is_partition(entry) and tables <= self._chosen:
            self._put(entry, self.parts.before)
        elif not tables.isdisjoint(self._chosen):
            if _is_partition(entry):
                self._detached |= tables & self._chosen
            self._attempts[entry.number] = Attempt(entry)
            self.parts.attempts.append(self._attempts[entry.number])

    def _is_later(self, entry: Entry) -> bool:
        """Return whether it is for a trigger that a table only has as a partition of another."""
        return (
            entry.description == _TRIGGER
            and bool(self._detached & entry.depends_on)
            and toc.definition(self._contents, entry).lstrip().startswith(b"ALTER TABLE ")
        )

    def _sort_addition(self, entry: Entry) -> None:
        """Sort a comment, a label or privileges, which go with what they are on."""
        for number in entry.depends_on:
            if entry.description == _PRIVILEGES:
                if number in self._place:
                    self._put(entry, self.parts.privileges)
                    return
            elif number in self._attempts:
                self._attempts[number].comments.append(entry)
                return
            elif number in self._place:
                self._put(entry, self._place[number])
                return

    def _owners(self, entry: Entry) -> set[int]:
        """Return the table that an entry belongs to; both tables if an index is attached."""
        tables = {*(entry.depends_on & self._tables.keys())}
        if len(tables) < 2 or entry.description == b"INDEX ATTACH":  # noqa: PLR2004
            return tables
        named = [
            table
            for table in tables
            if entry.schema == self._tables[table].schema
            and entry.tag.startswith(self._tables[table].tag + b" ")
        ]
        return {max(named, key=lambda table: len(self._tables[table].tag))} if named else tables

    def _find_needed(self) -> None:
        """Find what must exist before. A partition is first created as a table of its own."""
        needed: dict[int, Entry] = {}
        for entry in [*self.parts.before, *self.parts.after]:
            for number in entry.depends_on - self._place.keys():
                other = self._entries.get(number)
                if other is None or other.section != Section.PRE_DATA:
                    continue
                if frozenset({number, entry.number}) not in self._parents:
                    needed[number] = other
        self.parts.needed.extend(needed[number] for number in sorted(needed))

    def _find_dependents(self, entries: Sequence[Entry]) -> None:
        known = {*self._chosen}
        for entry in entries:
            if (
                entry.description in _DEPENDENTS
                and entry.number not in self._place
                and not entry.depends_on.isdisjoint(known)
            ):
                known.add(entry.number)
                self.parts.dependents.append(entry)


def _is_partition(entry: Entry) -> bool:
    return entry.description == PARTITION
