"""A table of contents is read whole, or it is said that more of it, or another, is needed."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgstash.postgres.tools import toc
from pgstash.postgres.tools.toc import Contents, Entry, Section, TocError

VERSIONS = ((1, 14), (1, 15), (1, 16))
INT_BYTES = 4
OFFSET_BYTES = 8
CUSTOM = 1
BEHIND = b"what stands behind the table of contents"

OWNER = b"an owner"
DEFINITION = b"CREATE something;\n"
ENTRIES = (
    Entry(3170, 0, b"ENCODING", Section.PRE_DATA, b"ENCODING", b"", b"", frozenset(), OWNER),
    Entry(209, 16385, b"TABLE", Section.PRE_DATA, b"t", b"public", b"", frozenset({5, 3}), OWNER),
    Entry(
        3171,
        16385,
        b"TABLE DATA",
        Section.DATA,
        b"t",
        b"public",
        b"COPY public.t (id, name) FROM stdin;\n",
        frozenset({209}),
        OWNER,
    ),
    Entry(
        3020, 16390, b"COMMENT", Section.NONE, b"INDEX i", b"caf\xe9", b"", frozenset({209}), OWNER
    ),
    Entry(
        3019,
        4294967295,
        b"INDEX",
        Section.POST_DATA,
        b'a\n"b\0',
        b"public",
        b"",
        frozenset(),
        OWNER,
    ),
)

of_each_version = pytest.mark.parametrize(
    "version", VERSIONS, ids=lambda version: ".".join(map(str, version))
)


def integer(value: int, size: int = INT_BYTES) -> bytes:
    return bytes([value < 0]) + abs(value).to_bytes(size, "little")


def text(value: bytes | None) -> bytes:
    return integer(-1) if value is None else integer(len(value)) + value


def head_of(version: tuple[int, int], kind: int = CUSTOM, magic: bytes = b"PGDMP") -> bytes:
    """Write what stands before the entries, as WriteHead() does."""
    compression = integer(-1) if version < (1, 15) else b"\0"
    moment = b"".join(map(integer, (59, 30, 2, 31, 0, 126, 0)))
    names = b"".join(map(text, (b"shop", b"18.6", b"18.6 (Debian)")))
    sizes = bytes([*version, 0, INT_BYTES, OFFSET_BYTES, kind])
    return magic + sizes + compression + moment + names


def written(entry: Entry, version: tuple[int, int]) -> bytes:
    """Write one entry, as WriteToc() does."""
    parts = [
        integer(entry.number),
        integer(int(entry.section == Section.DATA)),
        text(b"1259"),
        text(b"%d" % entry.oid),
        text(entry.tag),
        text(entry.description),
        integer(entry.section),
        text(DEFINITION),
        text(None),
        text(entry.copy or None),
        text(entry.schema or None),
        text(None),
        text(b"heap"),
        integer(ord("r")) if version >= (1, 16) else b"",
        text(entry.owner),
        text(b"false"),
        *(text(b"%d" % number) for number in sorted(entry.depends_on)),
        text(None),
        b"\x01" + bytes(OFFSET_BYTES),
    ]
    return b"".join(parts)


def archive_of(entries: Sequence[Entry], version: tuple[int, int]) -> bytes:
    listed = b"".join(written(entry, version) for entry in entries)
    return head_of(version) + integer(len(entries)) + listed


@of_each_version
def test_what_was_written_is_read(version: tuple[int, int]) -> None:
    head = archive_of(ENTRIES, version)
    assert toc.read(head) == Contents(head, ENTRIES)
    assert toc.read(head + BEHIND) == Contents(head, ENTRIES)
    assert toc.read(archive_of((), version)) == Contents(archive_of((), version), ())


@of_each_version
def test_of_what_is_cut_short_more_is_needed(version: tuple[int, int]) -> None:
    head = archive_of(ENTRIES, version)
    for end in range(len(head)):
        assert toc.read(head[:end]) is None, end


@of_each_version
def test_a_definition_can_be_taken_out(version: tuple[int, int]) -> None:
    contents = toc.read(archive_of(ENTRIES, version))
    assert contents is not None
    undefined = toc.read(toc.without_definitions(contents, {b"COMMENT"}))
    assert undefined is not None
    assert undefined.entries == ENTRIES
    for entry in contents.entries:
        assert toc.definition(contents, entry) == DEFINITION
    for entry in undefined.entries:
        kept = entry.description == b"COMMENT"
        assert (toc.definition(undefined, entry) == DEFINITION) == kept
    assert toc.without_definitions(undefined, {b"COMMENT"}) == undefined.head


@of_each_version
@pytest.mark.parametrize("step", [1, 2, 7, 64, 100_000])
def test_it_is_read_as_it_comes_and_ends_where_it_ends(step: int, version: tuple[int, int]) -> None:
    head = archive_of(ENTRIES, version)
    data = head + BEHIND
    reading = toc.Reading()
    for start in range(0, len(head), step):
        assert len(reading) == start
        contents = reading.feed(data[start : start + step])
        assert (contents is not None) == (start + step >= len(head)), start
    assert contents == Contents(head, ENTRIES)


def test_no_entry_is_read_again_when_more_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    def counted(number: int, *rest: object) -> Entry:
        made.append(number)
        return Entry(number, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(toc, "Entry", counted)
    head = archive_of(ENTRIES * 50, VERSIONS[-1])
    reading = toc.Reading()
    contents = [reading.feed(head[start : start + 10]) for start in range(0, len(head), 10)]
    assert contents[-1] == Contents(head, ENTRIES * 50)
    assert made == [entry.number for entry in ENTRIES * 50]


def test_numbers_of_a_width_that_is_not_known() -> None:
    head = bytearray(head_of(VERSIONS[-1]))
    head[len(b"PGDMP") + 3] = 3
    with pytest.raises(TocError, match="integers of 3 bytes"):
        toc.read(bytes(head))


WORDS = st.binary(max_size=20)
ANY_ENTRIES = st.lists(
    st.builds(
        Entry,
        number=st.integers(0, 2**31 - 1),
        oid=st.integers(0, 2**32 - 1),
        description=WORDS,
        section=st.sampled_from(Section),
        tag=WORDS,
        schema=WORDS,
        copy=WORDS,
        depends_on=st.frozensets(st.integers(0, 2**31 - 1), max_size=4),
    ),
    max_size=4,
)


@given(ANY_ENTRIES, st.sampled_from(VERSIONS), st.binary(max_size=20))
def test_whatever_the_entries_hold(
    entries: list[Entry], version: tuple[int, int], behind: bytes
) -> None:
    head = archive_of(entries, version)
    assert toc.read(head + behind) == Contents(head, tuple(entries))


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(head_of((1, 16), magic=b"PGDMQ"), id="magic"),
        pytest.param(b"-- PostgreSQL database dump\n", id="plain SQL"),
        pytest.param(b"\x1f\x8b\x08" + bytes(50), id="gzip"),
        pytest.param(bytes(50), id="zeros"),
        pytest.param(head_of((1, 13)), id="older"),
        pytest.param(head_of((1, 17)), id="newer"),
        pytest.param(head_of((2, 14)), id="much newer"),
        pytest.param(head_of((1, 16), kind=3), id="tar"),
        pytest.param(head_of((1, 16), kind=5), id="directory"),
    ],
)
def test_what_is_no_table_of_contents_is_an_error(data: bytes) -> None:
    with pytest.raises(TocError):
        toc.read(data + bytes(1000))


@pytest.mark.parametrize("number", [b"", b"-", b"x", b"1.5", b"\xb2", b"9" * 5000])
@pytest.mark.parametrize("before", [b"1259", b"false"], ids=["oid", "dependency"])
@of_each_version
def test_what_should_be_a_number_is_one(
    version: tuple[int, int], before: bytes, number: bytes
) -> None:
    entry = written(ENTRIES[1], version)
    at = entry.index(text(before)) + len(text(before))
    [taken] = [old for old in (b"16385", b"3") if entry.startswith(text(old), at)]
    harmed = entry[:at] + text(number) + entry[at + len(text(taken)) :]
    with pytest.raises(TocError, match="is not a number"):
        toc.read(head_of(version) + integer(1) + harmed)


def test_a_length_that_no_string_has_is_an_error() -> None:
    """Nobody waits for the gigabytes that damage promises."""
    head = head_of((1, 16)) + integer(1) + integer(1) * 2
    with pytest.raises(TocError, match="too long"):
        toc.read(head + integer(2**31))


def mutated(data: bytes, at: int, kind: str, noise: bytes) -> bytes:
    at %= len(data) + 1
    match kind:
        case "overwrite":
            return data[:at] + noise + data[at + len(noise) :]
        case "insert":
            return data[:at] + noise + data[at:]
        case "remove":
            return data[:at] + data[at + len(noise) :]
        case _:
            return data[:at] + data[at : at + len(noise)] * 3 + data[at:]


@settings(max_examples=400)
@given(
    st.sampled_from(VERSIONS),
    st.lists(
        st.tuples(
            st.integers(0, 2000),
            st.sampled_from(["overwrite", "insert", "remove", "repeat"]),
            st.binary(min_size=1, max_size=6) | st.sampled_from([b"\0", b"\xff" * 5, b"\1"]),
        ),
        min_size=1,
        max_size=4,
    ),
)
def test_damage_is_none_or_an_error_of_its_own_or_contents(
    version: tuple[int, int], changes: list[tuple[int, str, bytes]]
) -> None:
    data = archive_of(ENTRIES, version)
    for at, kind, noise in changes:
        data = mutated(data, at, kind, noise)
    assert_read_or_refused(data)


@given(st.binary(max_size=300), st.sampled_from(VERSIONS))
def test_garbage_is_none_or_an_error_of_its_own_or_contents(
    garbage: bytes, version: tuple[int, int]
) -> None:
    beginnings = (b"", b"PGDMP", b"PGDMP" + bytes(version), head_of(version))
    for beginning in beginnings:
        assert_read_or_refused(beginning + garbage)


def assert_read_or_refused(data: bytes) -> None:
    try:
        contents = toc.read(data)
    except TocError:
        return
    if contents is not None:
        assert data.startswith(contents.head)


def rows_of(copy: bytes, description: bytes = b"TABLE DATA") -> tuple[bytes, bytes] | None:
    entry = Entry(1, 1, description, Section.DATA, b"t", b"public", copy, frozenset())
    return entry.loads_into


@pytest.mark.parametrize(
    ("name", "columns"),
    [
        (b"public.t", b"id, name"),
        (b"t", b"id"),
        (b'public."T"', b'"Id", "a ""b"""'),
        (b'"a.b"."c.d"', b'"x.y"'),
        (b'public."a ""quoted"" name"', b"id"),
        (b'public."two\nlines"', b'"a\nb", c'),
        (b'public."x (a) FROM stdin;\n"', b'") FROM stdin;\n", b'),
        (b'"(".")"', b'"(", ")"'),
        (b"sch\xe9ma.\xa5\xc6\xa1\xbc", b"\xc9"),
        (b"public.a$b", b"c$d"),
    ],
)
def test_rows_belong_where_the_copy_statement_says(name: bytes, columns: bytes) -> None:
    assert rows_of(b"COPY " + name + b" (" + columns + b") FROM stdin;\n") == (name, columns)
    assert rows_of(b"COPY " + name + b"  FROM stdin;\n") == (name, b"")


@given(st.lists(st.binary(min_size=1, max_size=12), min_size=2, max_size=5))
def test_rows_belong_to_any_quoted_name(words: list[bytes]) -> None:
    schema, table, *columns = (b'"' + word.replace(b'"', b'""') + b'"' for word in words)
    name, listed = schema + b"." + table, b", ".join(columns)
    copy = b"COPY " + name + b" " + (b"(" + listed + b")" if columns else b"") + b" FROM stdin;\n"
    assert rows_of(copy) == (name, listed)


@pytest.mark.parametrize(
    "copy",
    [
        b"",
        b"COPY public.t (id) FROM stdin;",
        b"COPY public.t (id) TO stdout;\n",
        b"COPY public.t (id) FROM stdin;\nSELECT 1;\n",
        b"COPY (SELECT 1) FROM stdin;\n",
        b'COPY public."t (id) FROM stdin;\n',
        b"INSERT INTO public.t VALUES (1);\n",
    ],
)
def test_what_is_no_copy_statement_loads_nothing(copy: bytes) -> None:
    assert rows_of(copy) is None


@pytest.mark.parametrize("description", [b"TABLE", b"BLOBS", b"SEQUENCE SET", b""])
def test_what_holds_no_rows_loads_nothing(description: bytes) -> None:
    assert rows_of(b"COPY public.t (id) FROM stdin;\n", description) is None


def test_sizes_of_integers_are_those_that_the_archive_says() -> None:
    """A pg_dump of another machine may write others."""

    def resized(parts: Iterator[bytes]) -> bytes:
        return b"".join(parts)

    sizes = bytes([1, 14, 0, 8, 4, CUSTOM])
    numbers = resized(integer(value, 8) for value in (0, *range(7)))
    strings = resized(integer(1, 8) + b"x" for _ in range(3))
    head = b"PGDMP" + sizes + numbers + strings
    one = (
        resized(integer(value, 8) for value in (7, 1))
        + resized(integer(1, 8) + b"8" for _ in range(4))
        + integer(3, 8)
        + resized(itertools.repeat(integer(-1, 8), 8))
        + integer(1, 8)
        + b"9"
        + integer(-1, 8)
        + b"\x01"
        + bytes(4)
    )
    whole = head + integer(1, 8) + one
    expected = Entry(7, 8, b"8", Section.DATA, b"8", b"", b"", frozenset({9}))
    assert toc.read(whole + BEHIND) == Contents(whole, (expected,))
