"""The transactions of a script go, and nothing else changes."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from pgstash.pipeline.transaction_filter import WithoutTransactions

BEFORE = b"""SET a = 1;
CREATE PROCEDURE p() LANGUAGE plpgsql AS $$
BEGIN;
COMMIT;
$$;
COPY public.a (line) FROM stdin;
BEGIN;
COMMIT;
\\.

COMMENT ON TABLE a IS '
COMMIT;
BEGIN;
';
-- COMMIT;
BEGIN;

SELECT pg_catalog.lo_open('1', 131072);
SELECT pg_catalog.lowrite(0, '\\x00');
SELECT pg_catalog.lo_close(0);

COMMIT;

BEGIN;

SELECT pg_catalog.lo_open('2', 131072);
COMMIT;
COPY not_as_pg_dump_writes_it FROM stdin;
BEGIN;
COMMIT;
\\.
BEGIN;

SELECT pg_catalog.l"""
AFTER = (
    BEFORE.replace(b"\nBEGIN;\n\nSELECT pg_catalog.lo_", b"\n      \n\nSELECT pg_catalog.lo_")
    .replace(b"(0);\n\nCOMMIT;\n", b"(0);\n\n       \n")
    .replace(b"131072);\nCOMMIT;\n", b"131072);\n       \n")
)


def edited(chunks: list[bytes]) -> bytes:
    edit = WithoutTransactions()
    return b"".join(map(edit.feed, chunks)) + edit.rest()


@given(cuts=st.lists(st.integers(0, len(BEFORE)), max_size=40))
def test_wherever_the_script_is_cut(cuts: list[int]) -> None:
    ends = [0, *sorted(cuts), len(BEFORE)]
    chunks = [BEFORE[start:end] for start, end in itertools.pairwise(ends)]
    assert edited(chunks) == AFTER


def test_byte_by_byte() -> None:
    chunks = [BEFORE[at : at + 1] for at in range(len(BEFORE))]
    assert edited(chunks) == AFTER


@given(cuts=st.lists(st.integers(0, 40), max_size=8))
def test_rows_need_not_be_shown(cuts: list[int]) -> None:
    """Where a block follows, all before it has been read."""
    edit = WithoutTransactions()
    start, end = BEFORE.index(b"COPY public.a"), BEFORE.index(b"COMMENT ON TABLE")
    block = BEFORE[start:end]
    done = b""
    for text in (BEFORE[:start], BEFORE[end:]):
        ends = sorted({0, *(min(cut * len(text) // 40, len(text)) for cut in cuts), len(text)})
        for first, last in itertools.pairwise(ends):
            done += edit.feed(text[first:last])
        done += edit.rest()
        if text == BEFORE[:start]:
            done += block
    assert done == AFTER


@given(script=st.text("BEGINCOMT;$'\"\\-\n ").map(str.encode))
def test_no_byte_is_lost(script: bytes) -> None:
    assert len(edited([script])) == len(script)
