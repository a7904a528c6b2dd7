"""The members of a dump by several sessions hold each row once, in whole blocks."""

from __future__ import annotations

import gzip
import hashlib
import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pgstash.backup.dump_workers import _HANDED_BYTES, _cut, _together
from pgstash.backup.parallel_dump import _before
from pgstash.format.manifest import Member
from pgstash.pipeline import member_writer
from pgstash.pipeline.decompression import _edited
from pgstash.pipeline.member_writer import Others, Packed, Rows
from pgstash.pipeline.sql_scanner import Part, SqlScanner
from pgstash.pipeline.transaction_filter import WithoutTransactions
from pgstash.postgres.dump.pg_dump import CLOSING, CLOSING_BYTES, without_closing
from pgstash.postgres.dump.schema_dump import CompositionError, Script

MEMBER_BYTES = 100
LEVEL = 1
END = b"\\.\n\n\n"
NAMES = {
    b"public.t": b"COPY public.t (id, name) FROM stdin;\n",
    b"public.none": b"COPY public.none  FROM stdin;\n",
    b'public."a\nb"': b'COPY public."a\nb" ("c\nd") FROM stdin;\n',
}
# What pg_dump writes behind a block.
BEHIND = b"\n\n--\n-- Data for Name: u; Type: TABLE DATA; Schema: public; Owner: -\n--\n\n"

# Rows as COPY writes them: without a line break or a bare backslash.
ROWS = st.lists(
    st.one_of(
        st.sampled_from(
            [b"", b"1\tx", b"\\\\.", b"\\\\\\\\.", b".", b"\\N", b"\\\\.\\n", b"COPY "]
        ),
        st.binary(max_size=150).map(
            lambda row: row.replace(b"\\", b"\\\\").replace(b"\n", b"\\n").replace(b"\r", b"\\r")
        ),
    ),
    max_size=25,
)
STEPS = st.lists(st.integers(1, 120), min_size=1, max_size=20)


@pytest.fixture(autouse=True, scope="module")
def _small_members() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(member_writer, "MEMBER_BYTES", MEMBER_BYTES)
        yield


@given(st.lists(st.integers(1, 3 * _HANDED_BYTES), max_size=30))
def test_members_are_handed_over_in_their_order_and_small_ones_together(sizes: list[int]) -> None:
    members = [Packed(b"", Member(0, stored, 1, ""), None) for stored in sizes]
    batches = list(_together(iter(members)))
    assert [each for batch in batches for each in batch] == members
    for batch in batches[:-1]:
        assert sum(each.member.stored for each in batch) >= _HANDED_BYTES
    for batch in batches:
        assert sum(each.member.stored for each in batch[:-1]) < _HANDED_BYTES


def chunks_of(text: bytes, steps: Sequence[int]) -> list[bytes]:
    """Cut a text into chunks of these sizes, again and again."""
    chunks: list[bytes] = []
    at = 0
    while at < len(text):
        chunks.append(text[at : at + steps[len(chunks) % len(steps)]])
        at += len(chunks[-1])
    return chunks


def opened(packed: Packed) -> bytes:
    """Return the text of a member that is as it says."""
    text = gzip.decompress(packed.data)
    member = packed.member
    assert (member.offset, member.stored, member.raw) == (0, len(packed.data), len(text))
    assert member.sha256 == hashlib.sha256(packed.data).hexdigest()
    return text


def blocks(packed: Iterable[Packed]) -> list[tuple[bytes, Packed]]:
    """Return the texts of members, those that go on with what they go on in, and the last ones."""
    found: list[tuple[bytes, Packed]] = []
    going_on = b""
    for each in packed:
        text = opened(each)
        if each.goes_on:
            assert len(text) >= 2 * MEMBER_BYTES
            going_on += text
        else:
            found.append((going_on + text, each))
            going_on = b""
    assert not going_on
    return found


def rows_in(packed: Iterable[Packed], table: bytes) -> list[bytes]:
    """Return the rows of members, each of which is a COPY block and nothing else."""
    load = NAMES[table]
    rows: list[bytes] = []
    for text, each in blocks(packed):
        assert text.startswith(load)
        block, end, behind = text[len(load) :].rpartition(b"\\.\n")
        assert end
        assert not block or block.endswith(b"\n")
        assert re.fullmatch(rb"\n*(--[^\n]*\n|\n)*", behind)
        lines = block.split(b"\n")[:-1]
        assert b"\\." not in lines
        assert (each.table, each.member.section, each.member.rows) == (table, "data", len(lines))
        rows += lines
    return rows


def from_reader(table: bytes, chunks: Iterable[bytes]) -> list[Packed]:
    subject = Rows(LEVEL, table, NAMES[table])
    packed = [each for chunk in chunks for each in subject.write(chunk)]
    return [*packed, *subject.close()]


def by_pg_dump(table: bytes, rows: Sequence[bytes], behind: bytes = BEHIND) -> bytes:
    return NAMES[table] + b"".join(row + b"\n" for row in rows) + b"\\.\n" + behind


def from_pg_dump(table: bytes, chunks: Iterable[bytes]) -> list[Packed]:
    """Pack one block as the scanner cuts it."""
    subject = Rows(LEVEL, table, NAMES[table], written=True)
    packed: list[Packed] = []
    begun = False
    for piece in SqlScanner().split(chunks):
        if isinstance(piece, Part):
            assert piece == Part(table, NAMES[table])
            assert not begun
            begun = True
        else:
            packed += subject.write(piece)
    return [*packed, *subject.close()]


@given(st.sampled_from(list(NAMES)), ROWS, STEPS)
@example(b"public.t", [b"x" * 60] * 6, [61])
@example(b"public.t", [b"x" * 300] * 3, [1])
def test_rows_that_are_read_become_whole_blocks(
    table: bytes, rows: list[bytes], steps: list[int]
) -> None:
    text = b"".join(row + b"\n" for row in rows)
    packed = from_reader(table, chunks_of(text, steps))
    assert rows_in(packed, table) == rows
    assert bool(packed) == bool(rows)
    for block, _ in blocks(packed):
        assert block.endswith(b"\n" + END)


@given(st.sampled_from(list(NAMES)), ROWS, STEPS, st.sampled_from([b"", b"\n\n", BEHIND]))
@example(b"public.t", [b"x" * 60] * 6, [61], BEHIND)
@example(b"public.t", [b"x" * 300] * 3, [1], BEHIND)
@example(b"public.t", [b"x" * 66], [100, 1], BEHIND)
def test_blocks_of_pg_dump_become_whole_blocks(
    table: bytes, rows: list[bytes], steps: list[int], behind: bytes
) -> None:
    packed = from_pg_dump(table, chunks_of(by_pg_dump(table, rows, behind), steps))
    assert rows_in(packed, table) == rows
    assert opened(packed[-1]).endswith(b"\\.\n" + behind)
    for block, _ in blocks(packed)[:-1]:
        assert block.endswith(b"\\.\n\n\n")


def test_without_rows_there_is_no_member() -> None:
    assert from_reader(b"public.t", []) == []


def test_an_empty_block_of_pg_dump_is_one_member() -> None:
    [packed] = from_pg_dump(b"public.t", [by_pg_dump(b"public.t", [])])
    assert opened(packed) == by_pg_dump(b"public.t", [])
    assert packed.member.rows == 0


@given(st.integers(1, 2000), STEPS, st.sampled_from(["read", "written"]))
def test_a_row_that_is_longer_than_members_goes_on_in_the_next(
    length: int, steps: list[int], how: str
) -> None:
    table, rows = b"public.t", [b"a", b"x" * length, b"b"]
    text = b"".join(row + b"\n" for row in rows)
    if how == "written":
        packed = from_pg_dump(table, chunks_of(by_pg_dump(table, rows), steps))
    else:
        packed = from_reader(table, chunks_of(text, steps))
    assert rows_in(packed, table) == rows
    longest = max(map(len, chunks_of(by_pg_dump(table, rows), steps)))
    assert all(len(opened(each)) <= 2 * MEMBER_BYTES + 2 * longest + 60 for each in packed)


def test_members_are_about_as_long_as_they_should_be() -> None:
    rows = [b"%04d" % number for number in range(1000)]
    text = b"".join(row + b"\n" for row in rows)
    for steps in ([1], [7], [40]):
        lengths = [len(opened(each)) for each in from_reader(b"public.t", chunks_of(text, steps))]
        assert max(lengths) <= MEMBER_BYTES + len(NAMES[b"public.t"]) + 40 + len(END)
        assert min(lengths[:-1]) >= MEMBER_BYTES - 5


@given(st.lists(st.binary(min_size=1, max_size=150), max_size=12))
def test_what_has_no_end_is_cut_anywhere(chunks: list[bytes]) -> None:
    subject = Others(LEVEL, "sequences")
    packed = [each for chunk in chunks for each in subject.write(chunk)]
    packed += subject.close()
    packed += subject.close()
    texts = [opened(each) for each in packed]
    assert b"".join(texts) == b"".join(chunks)
    assert all(texts)
    assert all(len(text) >= 2 * MEMBER_BYTES for text in texts[:-1])
    assert all(each.goes_on for each in packed[:-1])
    assert {(each.table, each.member.section, each.member.rows) for each in packed} <= {
        (None, "sequences", None)
    }


LARGE_OBJECT = b"""BEGIN;

SELECT pg_catalog.lo_open('16393', 131072);
SELECT pg_catalog.lowrite(0, '\\x%b');
SELECT pg_catalog.lo_close(0);

COMMIT;
"""
OF_ANOTHER = b"COPY public.of_another (n) FROM stdin;\n1\n\\.\n\n\n"
STATEMENTS = st.lists(
    st.one_of(
        st.integers(0, 300).map(
            lambda size: b"SELECT pg_catalog.lowrite(0, '\\x" + b"5c" * size + b"');"
        ),
        st.sampled_from(
            [
                b"SELECT pg_catalog.lo_open('16393', 131072);",
                *(LARGE_OBJECT % (b"5c" * size) for size in (0, 1, 30, 200)),
                b"SELECT 'it''s; COPY public.t FROM stdin;\n';",
                b"SELECT pg_catalog.setval('public.s', 1, true);",
                b"SELECT E'a\\'; b';",
                b"SELECT $a$;\n;$b$;$a$;",
                by_pg_dump(b"public.t", [b"1\t;", b"2"], b"\n\n"),
            ]
        ),
    ),
    max_size=15,
)


@given(STATEMENTS, STEPS)
@example([b"SELECT '%s';" % (b"x" * 86), LARGE_OBJECT % b"5c"], [1])  # full within BEGIN
def test_rows_of_others_never_come_into_the_middle_of_a_statement(
    statements: list[bytes], steps: list[int]
) -> None:
    """Wherever a member may be followed by another session's, a statement has ended."""
    ends, text = {0, 1}, b""
    for statement in statements:
        for end in re.finditer(rb";\n+(?=SELECT pg_catalog.lo|COMMIT;)", statement):
            ends |= {len(text) + 1 + end.start() + 1, len(text) + 1 + end.end()}
            ends |= set(range(len(text) + 2 + end.start(), len(text) + 2 + end.end()))
        text += b"\n" + statement
        # A line break goes with the statement that it follows, or with the next.
        ends |= {len(text), len(text) + 1}
    packed = list(_cut(chunks_of(text, steps), SqlScanner(), LEVEL))
    assert b"".join(map(opened, packed)) == text
    edited = WithoutTransactions()
    script = b""
    for each in packed:
        plain = deque(chunks_of(opened(each), steps))
        script += b"".join(
            _edited(plain, replace(each.member, table=None if each.table is None else 1), edited)
        )
        if not each.goes_on:
            rows = replace(each.member, table=2)
            script += b"".join(_edited(deque([OF_ANOTHER]), rows, edited))
    script += edited.rest()
    alone = WithoutTransactions()
    assert script.replace(OF_ANOTHER, b"") == alone.feed(text) + alone.rest()
    assert b"COMMIT" not in script
    at = 0
    for each in packed:
        at += each.member.raw
        assert each.goes_on or at in ends or at == len(text)
        longest = max(map(len, chunks_of(text, steps)))
        assert len(opened(each)) <= 2 * MEMBER_BYTES + 2 * longest + 60
    assert not (packed and packed[-1].goes_on and packed[-1].table is not None)


@given(st.binary(max_size=450))
def test_a_text_becomes_members_that_follow_each_other(text: bytes) -> None:
    packed = list(member_writer.pack_all(text, LEVEL, "drops"))
    assert b"".join(map(opened, packed)) == text
    assert [each.goes_on for each in packed] == [True] * (len(packed) - 1) + [False]
    assert max(each.member.raw for each in packed) <= MEMBER_BYTES
    assert {(each.table, each.member.section) for each in packed} == {(None, "drops")}


CLOSINGS = [
    b"\n--\n-- PostgreSQL database dump complete\n--\n\n",
    b"\n--\n-- PostgreSQL database dump complete\n--\n\n\\unrestrict " + b"aB3" * 21 + b"\n\n",
    b"\n--\n-- PostgreSQL database dump complete\n--\n\n\\unrestrict aB3\n",
]


@given(
    st.one_of(
        st.binary(max_size=200),
        st.integers(0, 4 * CLOSING_BYTES).map(lambda size: b"1\ttwo\n" * (size // 6)),
        st.sampled_from([closing + b"SELECT 1;\n" for closing in CLOSINGS]),
    ),
    st.sampled_from(CLOSINGS),
    st.lists(st.integers(1, 3 * CLOSING_BYTES), min_size=1, max_size=5),
)
def test_the_closing_alone_is_taken_away(text: bytes, closing: bytes, steps: list[int]) -> None:
    chunks = chunks_of(text + closing, steps)
    assert b"".join(without_closing(chunks)) == text
    assert b"".join(without_closing(chunks_of(text, steps))) == text[: ending(text)]


def ending(text: bytes) -> int:
    match = CLOSING.search(text)
    return match.start() if match else len(text)


def test_the_closing_is_taken_away_byte_by_byte() -> None:
    for closing in CLOSINGS:
        text = b"1\ttwo\n" * 700 + closing
        assert b"".join(without_closing(chunks_of(text, [1]))) == b"1\ttwo\n" * 700


HEADER = b"""--
-- PostgreSQL database dump
--

\\restrict abc

SET client_encoding = 'UTF8';
SELECT pg_catalog.set_config('search_path', '', false);
"""
DROPS = b"""
DROP INDEX IF EXISTS public.i;
DROP TABLE IF EXISTS public.t;
"""
MADE = b"""--
-- Name: t; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.t (id integer);


"""
AFTER = b"""--
-- Name: i; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX i ON public.t USING btree (id);


--
-- PostgreSQL database dump complete
--

\\unrestrict abc
"""


@pytest.mark.parametrize("drops", [b"", DROPS], ids=["nothing to drop", "drops"])
@pytest.mark.parametrize("made", [b"", MADE], ids=["nothing to make", "makes"])
def test_what_stands_before_the_rows_is_told_apart(drops: bytes, made: bytes) -> None:
    pieces = list(_before(Script(HEADER + drops + made, AFTER)))
    assert b"".join(text for _, text in pieces) == HEADER + drops + made
    found = {section: text.strip() for section, text in pieces if text.strip()}
    expected = {"header": HEADER, "drops": drops, "pre-data": made}
    assert found == {name: text.strip() for name, text in expected.items() if text}


def test_what_begins_otherwise_is_not_cut() -> None:
    with pytest.raises(CompositionError):
        list(_before(Script(b"SELECT 1;\n" + HEADER + MADE, AFTER)))
