"""SqlScanner counts the rows that are there, and none that a hostile text only looks like."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pgstash.pipeline.sql_scanner import Part, SqlScanner, split_name

FAKE = b"COPY public.fake (id) FROM stdin;\n1\n2\n\\.\n"

HOSTILE = b"\n".join(
    [
        b"--",
        b"-- PostgreSQL database dump",
        b"--",
        b"",
        b"\\restrict 8MoCkEd'\"$a$",
        b"",
        b"SET standard_conforming_strings = on;",
        b"COMMENT ON TABLE public.t IS '" + FAKE + b" -- it''s';",
        b"COMMENT ON TABLE public.t IS E'\\'; " + FAKE + b"'' \\\\';",
        b"COMMENT ON TABLE public.t IS e'\\\\'';\n" + FAKE + b"';",
        b"SELECT typE'not an escape: \\';",
        b"CREATE FUNCTION f() RETURNS text AS $_$; $$ " + FAKE + b" $__$ $a $_ $_$;",
        b"CREATE FUNCTION g() RETURNS text AS $$\n" + FAKE + b"'\"$a$;\n$$;",
        b"CREATE FUNCTION h() RETURNS text AS $a$ $ab$ $a " + FAKE + b" $ab$ $a$;",
        b"CREATE FUNCTION i(a$$ int) RETURNS int RETURN 1;",
        b"CREATE VIEW v AS SELECT '-' - 1 - -2 --; '\"$$\n, 3 AS a$b;",
        b"CREATE FUNCTION j() RETURNS int BEGIN ATOMIC",
        b" SELECT 'COPY public.fake FROM stdin;';",
        b" SELECT $1;",
        b"END;",
        b'CREATE TABLE public."; ' + FAKE.replace(b'"', b'""') + b'" (id integer);',
        b'CREATE TABLE public."a""; $$ \'" (id integer);',
        b"CREATE TABLE caf\xe9 (\xa5\xc6 text DEFAULT '\xff'';');",
        b"-- Data for Name: it's \"one; $$",
        b"",
        b"COPY public.one (id, name) FROM stdin;",
        b"1\t\\\\.",
        b"2\tCOPY public.fake (id) FROM stdin;",
        b"3\t\\\\\\\\.",
        b"4\tend\\\\.",
        b"\\\\.",
        b"\\.",
        b"",
        b"",
        b"COPY public.none (id) FROM stdin;",
        b"\\.",
        b"",
        b"COPY public.columnless  FROM stdin;",
        b"",
        b"",
        b"",
        b"\\.",
        b"",
        b'COPY public."odd ""name"";\nCOPY x FROM stdin;\n" ("a,""b", "FROM stdin;") FROM stdin;',
        b"1\t1",
        b"\\.",
        b"COPY sch\xe9ma.\xa5\xc6\xa1\xbc (\xc9) FROM stdin;",
        b"\xa5\x5c\x5c",
        b"'\"$$ --",
        b"\\.",
        b"",
        b"SELECT pg_catalog.setval('public.one_id_seq', 3, true);",
        b"\\unrestrict 8MoCkEd'\"$a$",
        b"",
    ]
)
IN_HOSTILE = {
    b"public.one": 5,
    b"public.none": 0,
    b"public.columnless": 3,
    b'public."odd ""name"";\nCOPY x FROM stdin;\n"': 1,
    b"sch\xe9ma.\xa5\xc6\xa1\xbc": 2,
}


def count(chunks: list[bytes]) -> dict[bytes, int]:
    scanner = SqlScanner()
    assert list(scanner.watch(chunks)) == chunks
    assert scanner.raw_bytes == sum(map(len, chunks))
    return scanner.rows


def cut(text: bytes, positions: list[int]) -> list[bytes]:
    edges = [0, *sorted(positions), len(text)]
    return [text[start:end] for start, end in pairwise(edges)]


def assert_seen_after(sql: bytes) -> None:
    """Show that a real table is still seen after the text, whichever way the whole is cut."""
    text = sql + b"\nCOPY public.real (id) FROM stdin;\n1\n2\n3\n\\.\n"
    expected = {b"public.real": 3}
    assert count([text]) == expected
    assert count([text[i : i + 1] for i in range(len(text))]) == expected
    for position in range(len(text)):
        assert count(cut(text, [position])) == expected, text[:position]


def test_a_hostile_dump_in_one_piece() -> None:
    assert count([HOSTILE]) == IN_HOSTILE


def test_a_hostile_dump_byte_by_byte() -> None:
    assert count([HOSTILE[i : i + 1] for i in range(len(HOSTILE))]) == IN_HOSTILE


def test_a_hostile_dump_cut_once_at_each_byte() -> None:
    for position in range(len(HOSTILE)):
        assert count(cut(HOSTILE, [position])) == IN_HOSTILE, HOSTILE[:position]


@given(st.lists(st.integers(0, len(HOSTILE))))
@example([0, 0, len(HOSTILE)])
def test_a_hostile_dump_cut_anyhow(positions: list[int]) -> None:
    assert count(cut(HOSTILE, positions)) == IN_HOSTILE


@pytest.mark.parametrize(
    "sql",
    [
        pytest.param(b"", id="nothing before it"),
        pytest.param(b"SELECT $$" + FAKE + b"$$;", id="dollar quotes"),
        pytest.param(b"SELECT $a$ $ab$ $$ $a" + FAKE + b"$a$;", id="tags that begin alike"),
        pytest.param(b"SELECT $ab$ $a$ $b$" + FAKE + b"$ab$;", id="tags within tags"),
        pytest.param(b"SELECT $\xe9$" + FAKE + b"$\xe9$;", id="a tag that is not ASCII"),
        pytest.param(b"SELECT a$b$c, $1, 1$a$;", id="dollars that open nothing"),
        pytest.param(b"SELECT '" + FAKE + b"';", id="string"),
        pytest.param(b"SELECT '\\';", id="a backslash in a plain string escapes nothing"),
        pytest.param(b"SELECT '''; " + FAKE + b"''';", id="doubled quotes"),
        pytest.param(b"SELECT E'\\';" + FAKE + b"';", id="escaped quote"),
        pytest.param(b"SELECT E'\\\\\\';" + FAKE + b"';", id="escaped backslash, then quote"),
        pytest.param(b"SELECT E'\\\\', 1;", id="escaped backslash at the end"),
        pytest.param(b"SELECT E'a'';" + FAKE + b"\\''';" + FAKE + b"';", id="doubled, escaped"),
        pytest.param(b"SELECT somE'\\';", id="a word that ends in E is no prefix"),
        pytest.param(b"SELECT \xc9E'\\';", id="nor after a letter that is not ASCII"),
        pytest.param(b'SELECT "' + FAKE + b'""; $$ \'";', id="quoted identifier"),
        pytest.param(b"SELECT 1 - 2 -- '\" $$;\n;", id="comment in a statement"),
        pytest.param(b"-- it's $$ \" " + FAKE.replace(b"\n", b" "), id="comment"),
        pytest.param(b"\\restrict it's$$\"", id="psql command"),
        pytest.param(b"COPYING 1;", id="a word that begins alike"),
        pytest.param(b"CREATE RULE r AS ON INSERT TO t DO (SELECT ';'; SELECT 1;);", id="rule"),
        pytest.param(b"SELECT '-'-1;", id="minus after a quote"),
    ],
)
def test_what_comes_before_a_table_hides_nothing(sql: bytes) -> None:
    assert_seen_after(sql)


# What the user controls, in every quoting that pg_dump puts around it.
QUOTED = st.one_of(
    st.binary().map(lambda text: b"'" + text.replace(b"'", b"''") + b"'"),
    st.binary().map(lambda text: b" E'" + text.replace(b"\\", b"\\\\").replace(b"'", b"''") + b"'"),
    st.binary(min_size=1).map(lambda text: b'"' + text.replace(b'"', b'""') + b'"'),
    st.binary().map(lambda text: b" $x1$" + text.replace(b"$x1$", b"") + b"\n$x1$"),
    st.binary().map(lambda text: b"--" + text.replace(b"\n", b" ") + b"\n"),
)
HOSTILE_TEXT = st.lists(
    st.sampled_from([FAKE, b"'", b'"', b"$", b"$x", b"\\", b";", b"\n", b"-", b"E", b"COPY "])
).map(b"".join)
HOSTILE_QUOTED = st.one_of(
    HOSTILE_TEXT.map(lambda text: b"'" + text.replace(b"'", b"''") + b"'"),
    HOSTILE_TEXT.map(
        lambda text: b" E'" + text.replace(b"\\", b"\\\\").replace(b"'", b"\\'") + b"'"
    ),
    HOSTILE_TEXT.map(lambda text: b'"x' + text.replace(b'"', b'""') + b'"'),
    HOSTILE_TEXT.map(lambda text: b" $x1$" + text + b"\n$x1$"),
)


@given(
    st.lists(st.one_of(QUOTED, HOSTILE_QUOTED)),
    st.lists(st.binary().map(lambda row: row.replace(b"\\", b"\\\\").replace(b"\n", b"\\n"))),
    st.lists(st.integers(0, 2000)),
)
def test_whatever_is_quoted_and_wherever_it_is_cut(
    quoted: list[bytes], rows: list[bytes], positions: list[int]
) -> None:
    statements = b"".join(b"SELECT " + text + b"\n;\n" for text in quoted)
    block = b"COPY public.t (a) FROM stdin;\n" + b"".join(row + b"\n" for row in rows) + b"\\.\n\n"
    text = statements + block + statements + block.replace(b"public.t", b"public.u")
    expected = {b"public.t": len(rows), b"public.u": len(rows)}
    assert count([text]) == expected
    assert count(cut(text, [position for position in positions if position < len(text)])) == (
        expected
    )


def test_a_table_in_several_blocks_is_counted_as_one() -> None:
    block = b"COPY t (a) FROM stdin;\n1\n\\.\n"
    assert count([block * 3]) == {b"t": 3}


@pytest.mark.parametrize("length", [300, 300_000])
def test_a_dollar_tag_as_long_as_the_body_makes_it(length: int) -> None:
    tag = b"$_" + b"X" * length + b"$"
    text = b"SELECT " + tag + b";" + FAKE + tag + b";\nCOPY t (a) FROM stdin;\n1\n\\.\n"
    half = len(b"SELECT ") + length // 2 + 200
    assert count(cut(text, [half])) == {b"t": 1}
    assert count([text[i : i + 65536] for i in range(0, len(text), 65536)]) == {b"t": 1}


@pytest.mark.parametrize(
    ("written", "schema", "table"),
    [
        (b"public.t", b"public", b"t"),
        (b"t", b"", b"t"),
        (b'"a.b"."c""d"', b"a.b", b'c"d'),
        (b'public."FROM stdin;\n"', b"public", b"FROM stdin;\n"),
        (b'"A".b', b"A", b"b"),
        (b"sch\xe9ma.caf\xe9", b"sch\xe9ma", b"caf\xe9"),
    ],
)
def test_split_name(written: bytes, schema: bytes, table: bytes) -> None:
    assert split_name(written) == (schema, table)


@given(st.binary(min_size=1), st.binary(min_size=1))
def test_split_name_undoes_quoting(schema: bytes, table: bytes) -> None:
    quoted = [b'"' + name.replace(b'"', b'""') + b'"' for name in (schema, table)]
    assert split_name(b".".join(quoted)) == (schema, table)


MIB = 1024 * 1024
PLAIN = b"x y " * 256
LONG = {
    "string": (b"SELECT '", b"it''s $$ -- \\ " + PLAIN, b"';\n"),
    "escape string": (b"SELECT E'", b"\\' \\\\ '' $$ " + PLAIN, b"';\n"),
    "body": (b"SELECT $x$", b"$$ ' \" $y$ $ $x ", b"$x$;\n"),
    "identifier": (b'SELECT "', b'\'; "" $$ ' + PLAIN, b'";\n'),
    "comment": (b"--", b" it's $$ \" ", b"\n"),
    "statement": (b"SELECT 1", b", a$b - 1, 'x', \"y\" " + PLAIN, b";\n"),
    "word": (b"SELECT ", b"abcdefgh", b";\n"),
    "row": (b"COPY public.big (a) FROM stdin;\n", b"\\\\. \\\\n $$ '", b"\n\\.\n"),
    "rows": (b"COPY public.big (a) FROM stdin;\n", b"\\\\.\n.\n" + PLAIN + b"\n", b"\\.\n"),
    "empty rows": (b"COPY public.big  FROM stdin;\n", b"\n", b"\\.\n"),
}


def long_text(kind: str, size: int, chunk_bytes: int) -> Iterator[bytes]:
    """Yield a construct of the size in chunks, without ever holding it."""
    before, piece, after = LONG[kind]
    chunk = piece * (chunk_bytes // len(piece))
    yield before
    for _ in range(size // len(chunk)):
        yield chunk
    yield after
    yield b"COPY public.real (id) FROM stdin;\n1\n\\.\n"


@pytest.mark.parametrize("kind", LONG)
def test_memory_stays_small_in_50_mib_of_one_thing(kind: str) -> None:
    scanner = SqlScanner()
    chunks = scanner.watch(long_text(kind, 50 * MIB, 64 * 1024))
    tracemalloc.start()
    try:
        for _ in chunks:
            pass
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < MIB
    assert scanner.rows[b"public.real"] == 1
    if kind == "rows":
        piece = LONG[kind][1]
        pieces = 50 * MIB // (64 * 1024 // len(piece) * len(piece)) * (64 * 1024 // len(piece))
        assert scanner.rows[b"public.big"] == 3 * pieces


@pytest.mark.parametrize("kind", LONG)
def test_no_byte_is_read_again_and_again(kind: str) -> None:
    """Count the bytes that wait for the next chunk: they are what is read twice."""
    scanner = SqlScanner()
    waited = chunks = 0
    for _ in scanner.watch(long_text(kind, 16 * MIB, 2048)):
        chunks += 1
        waited += len(scanner._carry)  # noqa: SLF001 - the only way to see the work
    assert chunks > 5_000
    assert waited <= 260 * chunks


def split(chunks: list[bytes]) -> tuple[list[tuple[int, Part]], SqlScanner]:
    """Return where the parts begin; show that the bytes are the same, and counted the same."""
    scanner = SqlScanner()
    text, parts = b"".join(chunks), []
    got = b""
    for piece in scanner.split(chunks):
        if isinstance(piece, Part):
            parts.append((len(got), piece))
        else:
            assert piece
            got += piece
    assert got == text
    assert scanner.raw_bytes == len(text)
    assert scanner.rows == count(chunks)
    return parts, scanner


def parts_of_hostile() -> list[tuple[int, Part]]:
    """Say where its parts begin: at its tables, and at the statements that follow others."""
    parts = [(HOSTILE.index(b"SET standard"), Part(None))]
    for name in IN_HOSTILE:
        at = HOSTILE.index(b"\nCOPY " + name + b" ") + 1
        end = HOSTILE.index(b" FROM stdin;\n", at + len(name)) + len(b" FROM stdin;\n")
        parts.append((at, Part(name, HOSTILE[at:end])))
    parts.append((HOSTILE.index(b"SELECT pg_catalog.setval("), Part(None, sequences=True)))
    return parts


def test_parts_begin_where_tables_and_other_statements_do() -> None:
    assert split([HOSTILE])[0] == parts_of_hostile()


def test_parts_are_the_same_wherever_the_dump_is_cut_once() -> None:
    expected = parts_of_hostile()
    for position in range(len(HOSTILE)):
        assert split(cut(HOSTILE, [position]))[0] == expected, HOSTILE[:position]


def test_parts_are_the_same_byte_by_byte() -> None:
    assert split([HOSTILE[i : i + 1] for i in range(len(HOSTILE))])[0] == parts_of_hostile()


def test_of_a_dump_that_is_cut_off_all_is_there() -> None:
    expected = parts_of_hostile()
    for end in range(len(HOSTILE)):
        parts = split([HOSTILE[:end]])[0]
        assert parts == [each for each in expected if each in parts]


def test_statements_between_tables_are_told_apart() -> None:
    block = b"COPY t (a) FROM stdin;\n1\n\\.\n"
    setval = b"SELECT pg_catalog.setval('s', 1);\n"
    other = b"SELECT pg_catalog.lo_open('1', 131072);\n"
    text = b"\n".join([other, other, block, b"-- x", block, setval, setval, other, setval, block])
    rows = Part(b"t", b"COPY t (a) FROM stdin;\n")
    expected = [
        Part(None),
        rows,
        rows,
        Part(None, sequences=True),
        Part(None),
        Part(None, sequences=True),
        rows,
    ]
    for step in (1, 7, len(text)):
        parts, scanner = split([text[i : i + step] for i in range(0, len(text), step)])
        assert [part for _, part in parts] == expected
        for at, part in parts:
            assert text[at:].startswith(part.load or b"SELECT")
        assert scanner.rows == {b"t": 3}


@pytest.mark.parametrize(
    "text",
    [
        b"SELECT '" + FAKE + b"';",
        b"SELECT E'\\'" + FAKE + b"';",
        b"SELECT $$" + FAKE + b"$$;",
        b'SELECT "' + FAKE + b'";',
        b"SELECT 1 -- ;" + FAKE.replace(b"\n", b" ") + b"\n;",
        b"SELECT '; SELECT pg_catalog.setval(1, 2);';",
    ],
    ids=["string", "escaped", "dollar quotes", "identifier", "comment", "setval"],
)
def test_what_only_looks_like_a_part_begins_none(text: bytes) -> None:
    for step in (1, 3, len(text)):
        parts, _ = split([text[i : i + step] for i in range(0, len(text), step)])
        assert parts == [(0, Part(None))]
    assert split([b"-- " + FAKE.replace(b"\n", b" ") + b"\n"])[0] == []


@given(
    st.lists(
        st.one_of(
            HOSTILE_QUOTED.map(lambda text: (b"SELECT " + text + b"\n;\n", Part(None))),
            st.lists(st.sampled_from([b"1\n", b"\\\\.\n", b"\n", FAKE[:34]]), max_size=4).map(
                lambda rows: (
                    b"COPY u (b) FROM stdin;\n" + b"".join(rows) + b"\\.\n\n",
                    Part(b"u", b"COPY u (b) FROM stdin;\n"),
                )
            ),
            st.just((b"SELECT pg_catalog.setval('s', 1);\n", Part(None, sequences=True))),
        ),
        max_size=6,
    ),
    st.lists(st.integers(0, 600), max_size=8),
)
def test_parts_of_whatever_stands_one_after_the_other(
    pieces: list[tuple[bytes, Part]], positions: list[int]
) -> None:
    text = b""
    expected: list[tuple[int, Part]] = []
    for piece, part in pieces:
        if part.table or not expected or expected[-1][1] != part:
            expected.append((len(text), part))
        text += piece
    assert split(cut(text, [each for each in positions if each < len(text)]))[0] == expected
    assert split([text])[0] == expected
