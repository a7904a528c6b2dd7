"""The sections of a dump are told apart by what stands there, or not at all."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgstash.pipeline import sections
from pgstash.pipeline.sections import Border, Sections

HEADER = b"""--
-- PostgreSQL database dump
--

\\restrict abcDEF123

-- Dumped from database version 18.6
-- Dumped by pg_dump version 18.6

SET statement_timeout = 0;
SET client_encoding = 'UTF8';
SELECT pg_catalog.set_config('search_path', '', false);
SET row_security = off;
"""
DROPS = b"""
DROP TABLE IF EXISTS public."SET x;
--
-- Name: no";
ALTER TABLE IF EXISTS ONLY public."it's" DROP CONSTRAINT IF EXISTS "a""b";
CREATE OR REPLACE VIEW public.totals AS
SELECT
    NULL::integer AS id;
CREATE OR REPLACE VIEW public.without_columns AS
SELECT;
SELECT pg_catalog.lo_unlink(oid) FROM pg_catalog.pg_largeobject_metadata WHERE oid = '1';

ALTER TABLE IF EXISTS public.people ALTER COLUMN id DROP DEFAULT;
-- *not* dropping schema, since initdb creates it
DROP OPERATOR IF EXISTS public.<-> (integer, integer);
"""
ENTRY = b"""--
-- Name: people; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.people (id integer);
DROP TABLE later;
"""


def split(chunks: list[bytes]) -> tuple[bool, dict[str | None, bytes]]:
    """Return whether the sections were found, and the bytes of each section."""
    subject = Sections()
    sections: dict[str | None, bytes] = {}
    section: str | None = "before the first border"
    for piece in subject.split(chunks):
        if isinstance(piece, Border):
            section = piece.section
            assert section not in sections
            sections[section] = b""
        else:
            assert piece
            sections[section] += piece
    assert b"".join(sections.values()) == b"".join(chunks)
    return subject.found, sections


@pytest.mark.parametrize(
    "rest",
    [
        ENTRY,
        b"SET default_tablespace = '';\n\nSET default_table_access_method = heap;\n\n" + ENTRY,
        b"\n\n--\n-- TOC entry 217 (class 1259 OID 16384)\n" + ENTRY,
        b"SELECT pg_catalog.lo_create('900001');\n",
        b"--\n-- PostgreSQL database dump complete\n--\n\n",
    ],
    ids=["entry", "tablespace", "verbose", "large object", "nothing"],
)
@given(cuts=st.lists(st.integers(1, 1200), max_size=6))
def test_header_and_drops_are_told_apart(rest: bytes, cuts: list[int]) -> None:
    dump = HEADER + DROPS + rest
    edges = [0, *sorted({min(cut, len(dump)) for cut in cuts}), len(dump)]
    chunks = [dump[a:b] for a, b in itertools.pairwise(edges) if a < b]
    found, sections = split(chunks)
    assert found
    assert {name: text.strip() for name, text in sections.items()} == {
        "header": HEADER.strip(),
        "drops": DROPS.strip(),
        None: rest.strip(),
    }


def test_one_byte_at_a_time() -> None:
    dump = HEADER + DROPS + ENTRY
    whole = split([dump])
    assert split([dump[at : at + 1] for at in range(len(dump))]) == whole


def test_a_dump_without_drops() -> None:
    found, sections = split([HEADER, ENTRY])
    assert found
    assert "drops" not in sections


@pytest.mark.parametrize(
    "dump",
    [
        HEADER + DROPS + b"CREATE TABLE public.people (id integer);\n" + ENTRY,
        HEADER + DROPS + b"SET row_security = off;\n" + ENTRY,
        HEADER + b"INSERT INTO people VALUES ('DROP TABLE x');\n" + DROPS + ENTRY,
        HEADER + b"CREATE VIEW v AS SELECT NULL::text;\n" + ENTRY,
        HEADER + b"CREATE OR REPLACE VIEW v AS SELECT a, NULL::text;\n" + ENTRY,
        HEADER + b'ALTER TABLE people ADD COLUMN " DROP " integer;\n' + ENTRY,
        HEADER + DROPS + b"SELECT pg_catalog.setval('a', 1);\n" + ENTRY,
        HEADER + DROPS + b'DROP TABLE "never closed;\n' + ENTRY,
        HEADER + DROPS,
        DROPS[:20],
        b"",
    ],
)
def test_what_does_not_belong_there_ends_it(dump: bytes) -> None:
    assert split([dump])[0] is False


def test_a_statement_without_an_end_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sections, "_LONGEST_STATEMENT", 1000)
    endless = [HEADER, b"DROP TABLE IF EXISTS ", *[b"x" * 100] * 50]
    pieces = [piece for piece in Sections().split(endless) if isinstance(piece, bytes)]
    assert b"".join(pieces) == b"".join(endless)
    assert max(map(len, pieces)) < 1200, "what was held back"
