"""Creates tables in a schema of their own first, so that they meet nothing that has their names.

Each object then gets a name that is free, and moves to its schema, all in the same transaction.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from pgstash.errors import StatementError
from pgstash.postgres.restore import presence
from pgstash.postgres.restore.presence import Run
from pgstash.postgres.restore.target import LONGEST_NAME
from pgstash.postgres.server.quoting import identifier, literal, qualified
from pgstash.postgres.tools.qualified_names import Name, renamed

_MARK_BYTES = 8

Wanted = Callable[[Name], Name]
"""Returns the name that an object should get, given its own."""

# What the session has locked, other than for reading, of relations with these names.
_TOUCHED = b"""
    SELECT c.oid::pg_catalog.regclass
    FROM pg_catalog.pg_locks l
    JOIN pg_catalog.pg_class c ON c.oid = l.relation
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE l.pid = pg_catalog.pg_backend_pid() AND l.locktype = 'relation'
          AND l.database = (SELECT oid FROM pg_catalog.pg_database
                            WHERE datname = pg_catalog.current_database())
          AND l.mode <> 'AccessShareLock'
          AND (n.nspname::pg_catalog.text, c.relname::pg_catalog.text) IN (<names>)
"""
# What the tables in these schemas depend on, of relations with these names.
_DEPENDING = b"""
    WITH made AS (
        SELECT c.oid FROM pg_catalog.pg_class c
        JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
        WHERE n.nspname::pg_catalog.text IN (<schemas>)
    ), parts (class, oid) AS (
        SELECT 'pg_catalog.pg_class'::pg_catalog.regclass, oid FROM made
        UNION ALL SELECT 'pg_catalog.pg_attrdef'::pg_catalog.regclass, oid
            FROM pg_catalog.pg_attrdef WHERE adrelid IN (SELECT oid FROM made)
        UNION ALL SELECT 'pg_catalog.pg_constraint'::pg_catalog.regclass, oid
            FROM pg_catalog.pg_constraint WHERE conrelid IN (SELECT oid FROM made)
        UNION ALL SELECT 'pg_catalog.pg_trigger'::pg_catalog.regclass, oid
            FROM pg_catalog.pg_trigger WHERE tgrelid IN (SELECT oid FROM made)
        UNION ALL SELECT 'pg_catalog.pg_policy'::pg_catalog.regclass, oid
            FROM pg_catalog.pg_policy WHERE polrelid IN (SELECT oid FROM made)
        UNION ALL SELECT 'pg_catalog.pg_rewrite'::pg_catalog.regclass, oid
            FROM pg_catalog.pg_rewrite WHERE ev_class IN (SELECT oid FROM made)
    )
    SELECT c.oid::pg_catalog.regclass
    FROM parts p
    JOIN pg_catalog.pg_depend d ON d.classid = p.class AND d.objid = p.oid
    JOIN pg_catalog.pg_class c
        ON d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass AND c.oid = d.refobjid
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE (n.nspname::pg_catalog.text, c.relname::pg_catalog.text) IN (<names>)
"""
# What makes tables in these schemas children of a table elsewhere no children.
_DISINHERITING = b"""
    SELECT pg_catalog.format('ALTER TABLE %s NO INHERIT %s',
               i.inhrelid::pg_catalog.regclass, i.inhparent::pg_catalog.regclass)
    FROM pg_catalog.pg_inherits i
    JOIN pg_catalog.pg_class child ON child.oid = i.inhrelid AND child.relkind IN ('r', 'f')
    JOIN pg_catalog.pg_namespace n ON n.oid = child.relnamespace
    JOIN pg_catalog.pg_class parent ON parent.oid = i.inhparent
    JOIN pg_catalog.pg_namespace m ON m.oid = parent.relnamespace
    WHERE n.nspname::pg_catalog.text IN (<schemas>)
          AND m.nspname::pg_catalog.text NOT IN (<schemas>)
"""


@dataclass(frozen=True, slots=True)
class Objects:
    """The names of what is created: tables, and what has a name in the schema of its table."""

    tables: Sequence[Name]
    sequences: Sequence[Name]
    indexes: Sequence[Name]
    statistics: Sequence[Name]

    @property
    def all(self) -> list[Name]:
        """All names."""
        return [*self.tables, *self.sequences, *self.indexes, *self.statistics]


@dataclass(frozen=True, slots=True)
class Placement:
    """Which name each object gets, by its name in the backup.

    If any of them gets another one, all are created in the schemas ``stages`` first, with the names
    ``staged``. Those of a ``copy`` are no children of the tables that these inherit from in the
    backup.
    """

    objects: Objects
    names: Mapping[Name, Name]
    stages: Mapping[bytes, bytes] = field(default_factory=dict)
    copy: bool = False
    staged: Mapping[Name, Name] = field(default_factory=dict)

    def created(self, definition: bytes) -> bytes:
        """Return a definition as it has to be run to create an object.

        Raises StatementError if it does not name anything that is created: it could change what
        exists.
        """
        if not self.stages:
            return definition
        changed = renamed(definition, self.staged)
        if changed == definition:
            raise StatementError(
                "the restore under other names met a statement that names none of the objects: "
                + definition.decode("utf-8", "replace"),
                hint="Restore the table into a new database with --create, and copy it from there.",
            )
        return changed

    def final(self, statements: bytes) -> bytes:
        """Return statements with the names that the objects have in the end."""
        return renamed(statements, self.names) if self.stages else statements

    def begin(self, run: Run) -> None:
        """Create the schemas in which the objects are created."""
        for stage in self.stages.values():
            run(b"CREATE SCHEMA " + identifier(stage))

    def finish(self, run: Run) -> None:
        """Give all objects their names and schemas.

        Raises StatementError if others were touched.
        """
        if not self.stages:
            return
        if self.copy:  # or queries of the parent would find its rows twice
            schemas = b", ".join(map(literal, self.stages.values()))
            for (statement,) in run(_DISINHERITING.replace(b"<schemas>", schemas)):
                run(statement or b"")
        self._refuse_touched(run)
        kinds = (
            (b"TABLE", self.objects.tables),
            (b"SEQUENCE", self.objects.sequences),
            (b"INDEX", self.objects.indexes),
            (b"STATISTICS", self.objects.statistics),
        )
        for kind, names in kinds:
            for name in names:
                if (new := self.names[name][1]) != name[1]:
                    old = qualified(*self.staged[name])
                    run(b"ALTER %s %s RENAME TO %s" % (kind, old, identifier(new)))
        # Indexes and sequences move along with their table.
        for kind, names in (kinds[0], kinds[-1]):
            for name in names:
                schema, new = self.names[name]
                now = qualified(self.stages[name[0]], new)
                run(b"ALTER %s %s SET SCHEMA %s" % (kind, now, identifier(schema)))
        for stage in self.stages.values():
            run(b"DROP SCHEMA " + identifier(stage))

    def _refuse_touched(self, run: Run) -> None:
        """Raise StatementError if a statement concerned an object that existed before.

        That cannot happen, unless a definition names an object in a way that is not known here.
        """
        # VALUES, because the server hashes them: it compares a list of pairs one by one.
        names = b", ".join(b"(%s, %s)" % (literal(a), literal(b)) for a, b in self.names)
        names = b"VALUES " + names
        schemas = b", ".join(map(literal, self.stages.values()))
        rows = run(_TOUCHED.replace(b"<names>", names))
        # The schemas are random, and contain no such mark.
        rows += run(_DEPENDING.replace(b"<schemas>", schemas).replace(b"<names>", names))
        if rows:
            touched = (rows[0][0] or b"").decode("utf-8", "replace")
            raise StatementError(
                f"the definitions of the backup refer to {touched}, which is in use",
                hint="Restore the table into a new database with --create, and copy it from there.",
            )


def place(run: Run, objects: Objects, wanted: Wanted, only: Name | None = None) -> Placement:
    """Return a placement in which each object has the wanted name, or a similar one that is free.

    All tables get exactly the wanted names, whether these are free or not; or if a copy of an
    ``only`` table is made, that table alone.
    """
    copy = only is not None
    exact = objects.tables if only is None else [only]
    names = {name: wanted(name) for name in objects.all}
    reserved = {names[name] for name in exact}
    originals = {*objects.all}
    partitions = [name for name in objects.tables if name not in exact]
    for found, taken in (
        (partitions, presence.taken_tables),
        ([*objects.sequences, *objects.indexes], presence.taken_relations),
        (objects.statistics, presence.taken_statistics),
    ):
        todo, number = list(found), 1
        while todo:
            used = {*taken(run, [names[name] for name in todo])}
            again = []
            for name in todo:
                schema, new = names[name]
                # In its first schema, the object must not meet another one either.
                moved = new != name[1] and (name[0], new) in originals
                if moved or (schema, new) in used or (schema, new) in reserved:
                    again.append(name)
                else:
                    reserved.add((schema, new))
            number += 1
            for name in again:
                schema, base = wanted(name)
                names[name] = schema, shortened(base, b"_%d" % number)
            todo = again
    if all(old == new for old, new in names.items()):
        return Placement(objects, names)
    mark = secrets.token_hex(_MARK_BYTES).encode()
    schemas = sorted({schema for schema, _ in originals})
    stages = {schema: b"pgstash_%s_%d" % (mark, number) for number, schema in enumerate(schemas)}
    staged = {name: (stages[name[0]], name[1]) for name in names}
    return Placement(objects, names, stages, copy, staged)


def renaming(old: Name, new: Name) -> Wanted:
    """Return the names of what belongs to a table that gets another name, and of itself."""

    def wanted(name: Name) -> Name:
        if name == old:
            return new
        rest = name[1].removeprefix(old[1]) if name[1].startswith(old[1]) else b"_" + name[1]
        return new[0], shortened(new[1] + rest)

    return wanted


def shortened(base: bytes, end: bytes = b"") -> bytes:
    """Return a name with this end that is not too long for the server."""
    room = LONGEST_NAME - len(end)
    if len(base) > room:
        base = base[:room].decode("utf-8", "ignore").encode()
    return base + end
