"""The tables of an archive: their rows in the manifest, and what depends on them."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from pgstash.format.manifest import Manifest
from pgstash.postgres.tools import toc

_PARTITION = b"TABLE ATTACH"
_INDEX_OF_PARTITION = b"INDEX ATTACH"
_FOREIGN_KEY = b"FK CONSTRAINT"
_UNIQUE = (b"CONSTRAINT", b"INDEX")
_KINDS = (b"TABLE", b"FOREIGN TABLE")
# Comments have no section, and come after the entries that they are on.
_AFTER = (toc.Section.NONE, toc.Section.POST_DATA)


class Tables:
    """The tables in pg_dump's table of contents, their rows in the manifest, and dependencies.

    Tables are identified by the number of their entry; ``names`` are their schemas and names,
    ``of_extensions`` the numbers, in the manifest, of tables that CREATE EXTENSION creates.
    """

    def __init__(self, manifest: Manifest, contents: toc.Contents) -> None:
        """Find the tables; ``contents`` are those of the archive of this ``manifest``."""
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
                known = manifest.tables[number]  # decoded by the encoding of the source
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
        """Return the numbers in the manifest of those of these tables that have rows."""
        return {self._stored[table] for table in tables if table in self._stored}

    def stored_with(self, stored: Collection[int], tables: Collection[int]) -> set[int]:
        """Return the other tables whose rows have the same numbers in the manifest.

        Those are partitions whose rows load through their root.
        """
        return {
            table
            for table, number in self._stored.items()
            if number in stored and table not in tables
        }

    def in_order(self, tables: Collection[int]) -> list[int]:
        """Return the numbers in the manifest, a table after those that its foreign keys refer to.

        If tables refer to each other in a circle, one of them has to be the first.
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
        """Return, for each table, the tables that its foreign keys refer to."""
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
        """Return these tables with their partitions, and the partitions of those."""
        return {table for table in self.names if not tables.isdisjoint(self._line(table))}

    def belonging(self, tables: Collection[int]) -> tuple[list[int], list[str]]:
        """Return the entries to create after the rows of these tables, and names of skipped ones.

        The former are numbers of entries. They include what belongs to the partitioned table of a
        partition: an index of a partition depends on the index of the whole table.
        """
        built = {ancestor for table in tables for ancestor in self._line(table)}
        after: list[int] = []
        skipped: list[str] = []
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
                skipped.append(f"{_kind(entry.description)} {_text(entry.tag)}")
        return after, skipped

    def _is_missed(self, entry: toc.Entry, tables: set[int]) -> bool:
        """Return whether these tables are incomplete without an entry that needs others too.

        What belongs to a single table has its name: keys, policies, rules, triggers.
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
        """Yield a table, the table that it is a partition of, and so on."""
        at: int | None = table
        while at is not None:
            yield at
            at = self._parents.get(at)


def _kind(description: bytes) -> str:
    """Return pg_dump's description of an entry in words, for people."""
    return "foreign key" if description == _FOREIGN_KEY else _text(description).lower()


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")
