"""Tables are chosen as pg_dump chooses them, and what belongs to them goes along."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgstash import events
from pgstash.errors import CorruptedError, TableNotStoredError
from pgstash.format import manifest as manifests
from pgstash.format import names
from pgstash.pipeline import compression, encryption
from pgstash.postgres.tools import toc
from pgstash.postgres.tools.installed import ClientTools
from pgstash.postgres.tools.patterns import compiled
from pgstash.postgres.tools.toc import Contents, Entry, Section
from pgstash.postgres.tools.tool_run import ToolRun
from pgstash.repository import archive, catalog
from pgstash.repository.access import Access
from pgstash.repository.archive import Archive
from pgstash.restore import selected_script, table_selection
from pgstash.restore.archived_tables import Tables
from pgstash.restore.selected_script import _rows
from pgstash.restore.table_selection import Selection
from pgstash.storage.memory import MemoryStorage
from support.stored import Made, key_of, make

END = b"\\.\n\n\n"
PASSPHRASE = "correct horse battery staple, and more"


@pytest.mark.parametrize(
    ("pattern", "fitting", "others"),
    [
        ("t", ["public.t", "extra.t"], ["public.T", "public.tt", "public.at", "t.x"]),
        ("T", ["public.t"], ["public.T"]),
        ('"T"', ["public.T"], ["public.t"]),
        ("public.t", ["public.t"], ["extra.t", "public.tt", "apublic.t"]),
        ("PUBLIC.T", ["public.t"], ["PUBLIC.T"]),
        ('"PUBLIC".t', ["PUBLIC.t"], ["public.t"]),
        ("t*", ["public.t", "public.tt", "public.t\nx"], ["public.at"]),
        ("*", ["public.t", "extra.T", "a.b c"], []),
        ("extra.*", ["extra.t", "extra.T"], ["public.t"]),
        ("e*.t?", ["extra.tt", "e.t1"], ["extra.t", "extra.ttt", "public.tt"]),
        ("?", ["public.t", "public.T", "public.\n"], ["public.tt", "public."]),
        ('"t*"', ["public.t*"], ["public.t", "public.tt"]),
        ('"t?"', ["public.t?"], ["public.tt"]),
        ('t"*"*', ["public.t*", "public.t*x"], ["public.tx"]),
        ('"a b"', ["public.a b"], ["public.ab"]),
        ("a b", ["public.a b"], ["public.ab"]),
        ('"say ""hi"""', ['public.say "hi"'], ["public.say hi"]),
        ('my"T"able', ["public.myTable"], ["public.mytable", 'public.my"T"able']),
        ("", [], ["public.t"]),
        ("a+", ["public.a+"], ["public.a", "public.aa"]),
        ("a|b", ["public.a|b"], ["public.a", "public.b"]),
        ("[ab]", ["public.[ab]"], ["public.a"]),
        ("(a)$", ["public.(a)$"], ["public.a"]),
        ("a\\d", ["public.a\\d"], ["public.a1"]),
        ("ä", ["public.ä"], ["public.a"]),
        ("Ärger", ["public.Ärger"], ["public.ärger"]),
        ("TÄT", ["public.tÄt"], ["public.tät", "public.TÄT"]),
    ],
)
def test_a_pattern_fits(pattern: str, fitting: list[str], others: list[str]) -> None:
    fits = compiled(pattern)
    for name in fitting:
        assert fits(*name.split(".")), name
    for name in others:
        assert not fits(*name.split(".")), name


@pytest.mark.parametrize(
    ("pattern", "schema", "table"),
    [
        ('"a.b"', "public", "a.b"),
        ('"a.b"."c.d"', "a.b", "c.d"),
        ('x."c.d"', "x", "c.d"),
        ('"a.b".c', "a.b", "c"),
    ],
)
def test_a_dot_in_quotes_divides_nothing(pattern: str, schema: str, table: str) -> None:
    assert compiled(pattern)(schema, table)
    assert not compiled(pattern)(schema, table + "x")
    assert not compiled(pattern.replace('"', ""))(schema, table)


NAMES = st.text(st.sampled_from('aA.*?"\\ \nä[+'), min_size=1, max_size=8)


@given(NAMES, NAMES, NAMES)
def test_a_quoted_name_fits_itself_alone(schema: str, table: str, other: str) -> None:
    quoted = ['"' + name.replace('"', '""') + '"' for name in (schema, table)]
    fits = compiled(".".join(quoted))
    assert fits(schema, table)
    assert fits(other, table) is (other == schema)
    assert fits(schema, other) is (other == table)
    assert compiled(quoted[1])(other, table)


def entry(
    number: int,
    description: str,
    tag: str,
    *depends_on: int,
    schema: str = "public",
    section: Section = Section.POST_DATA,
    copy: bytes = b"",
) -> Entry:
    return Entry(
        number,
        16384 + number,
        description.encode(),
        section,
        tag.encode("utf-8", "surrogateescape"),
        schema.encode("utf-8", "surrogateescape"),
        copy,
        frozenset(depends_on),
    )


def made(
    number: int, tag: str, *depends_on: int, kind: str = "TABLE", schema: str = "public"
) -> Entry:
    return entry(number, kind, tag, *depends_on, schema=schema, section=Section.PRE_DATA)


def rows(number: int, table: str, made_by: int) -> Entry:
    copy = f"COPY public.{table} (id) FROM stdin;\n".encode()
    return entry(number, "TABLE DATA", table, made_by, section=Section.DATA, copy=copy)


# A partitioned table (10) with two partitions, one of them partitioned again; two tables beside
# it, one of which refers to the other; a table without rows; a function.
ENTRIES = (
    made(5, "changed()", kind="FUNCTION"),
    made(10, "events"),
    made(11, "events_1", 10),
    made(12, "events_2", 10),
    made(13, "events_2_a", 12),
    entry(14, "TABLE ATTACH", "events_1", 10, 11, section=Section.PRE_DATA),
    entry(15, "TABLE ATTACH", "events_2", 10, 12, section=Section.PRE_DATA),
    entry(16, "TABLE ATTACH", "events_2_a", 12, 13, section=Section.PRE_DATA),
    made(20, "orders"),
    entry(21, "COMMENT", "TABLE orders", 20, section=Section.NONE),
    made(22, "people"),
    made(23, "heirs", 22),
    made(24, "far", kind="FOREIGN TABLE"),
    made(25, "seen", 20, kind="VIEW"),
    rows(30, "events_1", 11),
    rows(31, "events_2_a", 13),
    rows(32, "orders", 20),
    rows(33, "people", 22),
    rows(34, "heirs", 23),
    entry(40, "INDEX", "events_at", 10),
    entry(41, "INDEX", "events_1_at", 11),
    entry(42, "INDEX", "events_2_at", 12),
    entry(43, "INDEX", "events_2_a_at", 13),
    entry(44, "CONSTRAINT", "orders orders_pkey", 20),
    entry(45, "COMMENT", "INDEX orders_pkey", 20, 44, section=Section.NONE),
    entry(46, "CONSTRAINT", "people people_pkey", 22),
    entry(47, "COMMENT", "CONSTRAINT people_pkey", 46, section=Section.NONE),
    entry(50, "INDEX ATTACH", "events_1_at", 40, 41),
    entry(51, "INDEX ATTACH", "events_2_at", 40, 42),
    entry(52, "INDEX ATTACH", "events_2_a_at", 42, 43),
    entry(53, "TRIGGER", "orders changed", 5, 20),
    entry(60, "FK CONSTRAINT", "orders orders_person", 20, 22, 46),
    entry(65, "COMMENT", "CONSTRAINT orders_person", 20, 60, section=Section.NONE),
    entry(61, "FK CONSTRAINT", "heirs heirs_heir", 23, 46, 22),
    entry(62, "PUBLICATION", "p"),
    entry(63, "PUBLICATION TABLE", "p orders", 62, 20),
    entry(64, "COMMENT", "PUBLICATION p", 62, section=Section.NONE),
)
STORED = ("events_1", "events_2_a", "orders", "people", "heirs")
WITHOUT = {
    "FK": "foreign key orders orders_person",
    "publication": "publication table p orders",
}

LEFT_TOO = (
    ("POLICY", "orders old only"),
    ("POLICY", "orders seen_by"),
    ("POLICY", "orders elsewhere"),
    ("RULE", "seen _RETURN"),
)


def tables_of(entries: Sequence[Entry] = ENTRIES) -> Tables:
    manifest = make(b"").with_manifest(
        tables=[manifests.Table("public", name, 1) for name in STORED]
    )
    return Tables(manifest.manifest, Contents(b"", tuple(entries)))


def test_tables_are_what_has_rows_or_may_have_them() -> None:
    names = {name for _, name in tables_of().names.values()}
    assert names == {"events", "events_1", "events_2", "events_2_a", *STORED, "far"}


def test_partitions_go_along() -> None:
    tables = tables_of()
    assert tables.with_partitions({10}) == {10, 11, 12, 13}
    assert tables.with_partitions({12}) == {12, 13}
    assert tables.with_partitions({13}) == {13}
    assert tables.with_partitions({20}) == {20}


def test_a_table_that_inherits_is_no_partition() -> None:
    assert tables_of().with_partitions({22}) == {22}


def test_rows_have_the_number_that_the_manifest_gives_their_table() -> None:
    tables = tables_of()
    assert tables.stored({10, 11, 12, 13}) == {0, 1}
    assert tables.stored({20}) == {2}
    assert tables.stored({24}) == set()


def test_rows_of_partitions_may_load_into_the_whole() -> None:
    into_whole = replace(rows(31, "events_2_a", 13), copy=rows(30, "events_1", 11).copy)
    entries = [into_whole if each.number == 31 else each for each in ENTRIES]
    tables = tables_of(entries)
    assert tables.stored({11}) == tables.stored({13}) == {0}
    assert tables.stored({20}) == {1}


def test_indexes_of_a_partition_bring_those_that_they_are_part_of() -> None:
    after, left = tables_of().belonging({13})
    assert after == [40, 42, 43, 51, 52]
    assert left == []


def test_all_of_a_partitioned_table_belongs_to_it() -> None:
    assert tables_of().belonging({10, 11, 12, 13}) == ([40, 41, 42, 43, 50, 51, 52], [])


def test_comments_triggers_and_constraints_belong_to_a_table() -> None:
    after, left = tables_of().belonging({20})
    assert after == [21, 44, 45, 53]
    assert left == [WITHOUT["FK"], WITHOUT["publication"]]


def test_a_foreign_key_between_chosen_tables_belongs_to_them() -> None:
    after, left = tables_of().belonging({20, 22})
    assert after == [21, 44, 45, 46, 47, 53, 60, 65]
    assert left == [WITHOUT["publication"]]


def test_what_is_left_out_is_of_the_tables_that_are_wanted() -> None:
    more = (
        made(26, "orders old"),
        entry(70, "POLICY", "orders old only", 20, 22, 26),
        entry(71, "POLICY", "orders seen_by", 20, 22),
        entry(72, "POLICY", "orders elsewhere", 20, 22, schema="extra"),
        entry(73, "RULE", "seen _RETURN", 20, 25, 46),
        entry(74, "FK CONSTRAINT", "people person_order", 20, 22, 44),
    )
    left = tables_of([*ENTRIES, *more]).belonging({20})[1]
    assert left == [*WITHOUT.values(), *(f"{kind.lower()} {tag}" for kind, tag in LEFT_TOO)]
    assert tables_of([*ENTRIES, *more]).belonging({26})[1] == ["policy orders old only"]


def test_names_that_are_no_utf_8_are_those_of_the_manifest() -> None:
    """What the dump holds is in the encoding of the database, which the manifest's maker knew."""
    latin = made(20, "caf\udce9")
    copy = b"COPY public.caf\xe9 (id) FROM stdin;\n"
    data = entry(30, "TABLE DATA", "caf\udce9", 20, section=Section.DATA, copy=copy)
    manifest = make(b"").with_manifest(tables=[manifests.Table("public", "café", 1)]).manifest
    assert Tables(manifest, Contents(b"", (latin, data))).names == {20: ("public", "café")}
    assert Tables(manifest, Contents(b"", (latin,))).names == {20: ("public", "caf\udce9")}


def integer(value: int) -> bytes:
    return bytes([value < 0]) + abs(value).to_bytes(4, "little")


def text(value: bytes | None) -> bytes:
    return integer(-1) if value is None else integer(len(value)) + value


def head_of(entries: Sequence[Entry]) -> bytes:
    """Write a table of contents of version 1.16."""
    head = b"PGDMP" + bytes([1, 16, 0, 4, 8, 1, 0]) + integer(0) * 7 + text(b"") * 3
    head += integer(len(entries))
    for each in entries:
        names = (b"1259", b"%d" % each.oid, each.tag, each.description)
        head += integer(each.number) + integer(0) + b"".join(map(text, names))
        head += integer(each.section) + text(None) * 2 + text(each.copy or None)
        head += text(each.schema) + text(None) * 2 + integer(0) + text(each.owner) + text(b"false")
        head += b"".join(text(b"%d" % number) for number in sorted(each.depends_on))
        head += text(None) + bytes(9)
    return head


@dataclass
class Scene:
    """A backup whose members are known, in a store."""

    passphrase: str | None = None
    head: bytes = field(default_factory=lambda: head_of(ENTRIES))
    said: list[str] = field(default_factory=list)

    def members(self) -> list[tuple[bytes, manifests.Section, int | None, int | None]]:
        blocks = [
            (b"COPY public.%s (id) FROM stdin;\n%d\n%d\n\\.\n\n\n" % (name.encode(), n, n), n)
            for n, name in enumerate([*STORED, "orders"])
        ]
        return [
            (b"--\n\n\\restrict aB3\n\nSET x = 1;\n", "header", None, None),
            (b"DROP TABLE x;\n", "drops", None, None),
            (b"CREATE TABLE x ();\n", "pre-data", None, None),
            *((block, "data", n if n < len(STORED) else 2, 2) for block, n in blocks),
            (b"SELECT lo;\n", "data", None, None),
            (b"SELECT setval;\n", "sequences", None, None),
            (b"CREATE INDEX;\n\\unrestrict aB3\n", "post-data", None, None),
        ]

    def made(self) -> Made:
        key = key_of(self.passphrase)
        packed, members, offset = [], [], 0
        for script, section, table, count in self.members():
            data, member = compression.pack(script, 1, section)
            packed.append(data)
            members.append(replace(member, offset=offset, table=table, rows=count))
            offset += len(data)
        stored = b"".join(encryption.encrypt(packed, key) if key else packed)
        empty = make(b"", passphrase=self.passphrase)
        changed = empty.with_manifest(
            raw_bytes=sum(member.raw for member in members),
            stored_bytes=len(stored),
            sha256=hashlib.sha256(stored).hexdigest(),
            encryption=replace(empty.manifest.encryption, salt=key.salt.hex())
            if empty.manifest.encryption and key
            else None,
            tables=[
                manifests.Table("public", name, 4 if name == "orders" else 2) for name in STORED
            ],
            members=members,
            schema_sha256=hashlib.sha256(self.head).hexdigest(),
        )
        return replace(changed, archive=stored)

    def opened(self, *, with_schema: bool = True, head: bytes | None = None) -> Archive:
        storage, backup = MemoryStorage(), self.made()
        backup.store(storage)
        if with_schema:
            encrypted = self.passphrase is not None
            name = names.schema_name(backup.base, backup.manifest.id, encrypted=encrypted)
            sealed = encryption.sealed(head or self.head, key_of(self.passphrase))
            storage.put(f"p/{name}", sealed, {"id": backup.manifest.id})
        access = Access(self.passphrase, unverified=False, only_encrypted=False)
        found = catalog.find(catalog.read(storage, "p"), "latest", datetime.now(UTC))
        return archive.open_stored(storage, found, access)

    def select(self, *patterns: str, rows_only: bool = False) -> Selection:
        return table_selection.select(self.opened(), patterns, self.emit, rows_only=rows_only)

    def emit(self, event: events.Event) -> None:
        assert isinstance(event, events.Warned)
        self.said.append(event.message)

    def script(self, selected: Selection) -> bytes:
        """Return the script of what needs no pg_restore."""
        nothing_after = replace(selected, after=[])
        return b"".join(
            selected_script.script(
                nothing_after,
                self.opened(),
                ToolRun(ClientTools(Path("/nowhere"), 18, "18.6", 6), {}, events.ignore),
                lambda _count: None,
            )
        )


each_kind = pytest.mark.parametrize("passphrase", [None, PASSPHRASE], ids=["plain", "encrypted"])


@each_kind
def test_a_table_is_selected_with_what_belongs_to_it(passphrase: str | None) -> None:
    scene = Scene(passphrase)
    selected = scene.select("orders")
    assert selected.names == ["public.orders"]
    assert selected.rows == 4
    assert selected.after == [21, 44, 45, 53]
    assert selected.head == scene.head
    contents = toc.read(selected.head)
    assert contents
    assert contents.entries == ENTRIES
    wanted = [0, 2, 5, 8, 10]
    assert selected.members == wanted
    members = scene.members()
    assert selected.raw_bytes == sum(len(members[number][0]) for number in wanted)
    left = WITHOUT.values()
    assert scene.said == [
        f"Skipped, because they depend on tables that were not restored: {', '.join(left)}"
    ]
    script = b"".join(members[number][0] for number in wanted)
    assert scene.script(selected) == script + b"\n\\unrestrict aB3\n"


def test_of_much_that_is_left_out_some_is_named() -> None:
    keys = [entry(100 + n, "FK CONSTRAINT", f"orders key_{n}", 20, 22, 46) for n in range(9)]
    scene = Scene(head=head_of([*ENTRIES, *keys]))
    scene.select("orders")
    [said] = scene.said
    assert said.endswith(", foreign key orders key_7, and 1 more")


def test_without_pg_restore_nothing_that_belongs_to_a_table_is_made(tmp_path: Path) -> None:
    scene = Scene()
    selected = scene.select("orders")
    nowhere = ToolRun(ClientTools(tmp_path, 18, "18.6", 6), {}, events.ignore)
    script = selected_script.script(selected, scene.opened(), nowhere, lambda _count: None)
    with pytest.raises(TableNotStoredError, match="cannot be restored: pg_restore cannot be run"):
        list(script)


def test_rows_alone() -> None:
    scene = Scene()
    selected = scene.select("orders", "PEOPLE", rows_only=True)
    assert selected.names == ["public.orders", "public.people"]
    assert (selected.members, selected.after, selected.rows) == ([0, 6, 5, 8], [], 6)
    assert scene.said == []
    rows_of = {number: scene.members()[number][0] for number in selected.members}
    begins, *blocks = rows_of.values()
    statements = [block.partition(b"\n")[0] + b"\n" for block in blocks]
    assert statements[1] == statements[2] != statements[0]
    bare = [block.partition(b"\n")[2].partition(b"\\.\n")[0] for block in blocks]
    assert (
        scene.script(selected)
        == b"".join((begins, statements[0], bare[0], END, statements[1], bare[1], bare[2], END))
        + b"\n\\unrestrict aB3\n"
    )


# Tables 1 to 6, each with a key (11 to 16): 1 refers to 2, 2 to 3; 4 and 5 to each other; 6 to
# itself. Table 7 is partitioned (8 and 9), refers to 1, and 3 refers to it.
def referring(*keys: tuple[int, int]) -> list[Entry]:
    tables = [made(number, f"t{number}") for number in range(1, 8)]
    parts = [made(number, f"t{number}", 7) for number in (8, 9)]
    attached = [
        entry(20 + number, "TABLE ATTACH", f"t{number}", 7, number, section=Section.PRE_DATA)
        for number in (8, 9)
    ]
    data = [rows(100 + number, f"t{number}", number) for number in (*range(1, 7), 8, 9)]
    unique = [entry(10 + number, "CONSTRAINT", f"k{number}", number) for number in range(1, 8)]
    foreign = [
        entry(50 + place, "FK CONSTRAINT", "f", child, parent, 10 + parent)
        for place, (child, parent) in enumerate(keys)
    ]
    return [*tables, *parts, *attached, *data, *unique, *foreign]


@pytest.mark.parametrize(
    ("keys", "wanted", "order"),
    [
        ([], {1, 2, 3}, [1, 2, 3]),
        ([(1, 2), (2, 3)], {1, 2, 3}, [3, 2, 1]),
        ([(1, 3), (2, 3)], {1, 2, 3}, [3, 1, 2]),
        ([(1, 2), (2, 3)], {1, 3}, [1, 3]),
        ([(6, 6), (1, 6)], {1, 6}, [6, 1]),
        ([(4, 5), (5, 4)], {4, 5}, [5, 4]),
        ([(4, 5), (5, 4), (4, 6)], {4, 5, 6}, [5, 6, 4]),
        ([(7, 1)], {1, 8, 9}, [1, 8, 9]),
        ([(3, 7)], {3, 8, 9}, [8, 9, 3]),
        ([(3, 7), (7, 1)], {1, 3, 9}, [1, 9, 3]),
    ],
)
def test_rows_go_behind_those_that_they_refer_to(
    keys: list[tuple[int, int]], wanted: set[int], order: list[int]
) -> None:
    entries = referring(*keys)
    copied = [int(each.tag[1:]) for each in entries if each.description == b"TABLE DATA"]
    manifest = make(b"").with_manifest(
        tables=[manifests.Table("public", f"t{number}", 1) for number in copied]
    )
    tables = Tables(manifest.manifest, Contents(b"", tuple(entries)))
    assert [copied[place] for place in tables.in_order(wanted)] == order


LINES = st.lists(
    st.sampled_from([b"", b"1", b".", b"\\N", b"\\\\.", b"x\\\\.", b"\\\\.\t"]), max_size=6
)
BEHIND = st.sampled_from([b"", b"\n\n", b"\n\n--\n-- Data for Name: u\n--\n\n"])


@given(LINES, BEHIND, st.data())
def test_of_a_block_the_rows_are_kept(
    lines: list[bytes], behind: bytes, data: st.DataObject
) -> None:
    wanted = b"".join(line + b"\n" for line in lines)
    block = wanted + b"\\.\n" + behind
    cuts = sorted(data.draw(st.lists(st.integers(0, len(block)), max_size=8)))
    pieces = [block[a:b] for a, b in zip([0, *cuts], [*cuts, len(block)], strict=True)]
    left = iter(pieces)
    assert b"".join(_rows(left)) == wanted
    assert list(left) == []


def test_a_block_without_an_end_is_none() -> None:
    with pytest.raises(CorruptedError):
        list(_rows(iter([b"1\n", b"\\."])))


def test_tables_that_several_patterns_fit_are_selected_once() -> None:
    selected = Scene().select("o*", "orders", "public.orders")
    assert selected.names == ["public.orders"]
    assert selected.members == Scene().select("orders").members


def test_a_partitioned_table_is_selected_with_its_partitions() -> None:
    scene = Scene()
    selected = scene.select("events")
    assert selected.members == [0, 2, 3, 4, 10]
    assert selected.after == [40, 41, 42, 43, 50, 51, 52]
    assert scene.said == []


def test_a_table_without_rows_is_selected_all_the_same() -> None:
    selected = Scene().select("far")
    assert (selected.members, selected.rows) == ([0, 2, 10], 0)


@pytest.mark.parametrize("pattern", ["nothing", "seen", "extra.orders", '"Orders"', ""])
def test_a_pattern_that_nothing_fits(pattern: str) -> None:
    with pytest.raises(TableNotStoredError, match="has no table") as caught:
        Scene().select("orders", pattern)
    assert "public.events, public.events_1" in caught.value.hint
    assert "…" in caught.value.hint


@each_kind
def test_an_archive_that_cannot_be_read_by_tables_is_told_with_the_reason(
    passphrase: str | None,
) -> None:
    scene = Scene(passphrase)
    whole = scene.opened()
    assert whole.manifest
    of_one = replace(whole, manifest=replace(whole.manifest, schema_sha256=None))
    suffix = ".schema.gz" + (".enc" if passphrase else "")
    reasons = (
        (replace(whole, manifest=None), "no manifest", "Restore it into"),
        (of_one, "table by table$", "DUMP_JOBS=1"),
        (scene.opened(with_schema=False), "schema companion is missing", f"{suffix} back"),
    )
    for found, reason, remedy in reasons:
        with pytest.raises(TableNotStoredError, match=reason) as caught:
            table_selection.select(found, ["orders"], scene.emit, rows_only=False)
        assert "cannot be read table by table" in caught.value.message
        assert remedy in caught.value.hint
        assert "--create" in caught.value.hint
        assert ("DUMP_JOBS" in caught.value.hint) == (found is of_one)


def test_a_schema_that_is_another_or_not_understood() -> None:
    scene = Scene()
    with pytest.raises(CorruptedError, match="not the one that was stored"):
        table_selection.select(scene.opened(head=b"PGDMP"), ["*"], scene.emit, rows_only=False)
    with pytest.raises(TableNotStoredError, match="truncated"):
        Scene(head=scene.head[:-1]).select("orders")
    newer = scene.head.replace(b"PGDMP\1\x10", b"PGDMP\1\x20")
    with pytest.raises(TableNotStoredError, match="cannot be read"):
        Scene(head=newer).select("orders")
