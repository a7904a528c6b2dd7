"""Objects get other names wherever a definition names them, and nowhere else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgstash.postgres.server.quoting import literal, qualified
from pgstash.postgres.tools.patterns import name
from pgstash.postgres.tools.qualified_names import renamed

NAMES = {
    (b"s", b"t"): (b"new", b"T"),
    (b"s", b"t_id_seq"): (b"new", b"q"),
    (b"A b", b'"'): (b"x", b"y"),
}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("CREATE TABLE s.t (\n    id integer\n);", 'CREATE TABLE "new"."T" (\n    id integer\n);'),
        (
            "ALTER SEQUENCE s.t_id_seq OWNED BY s.t.id;",
            'ALTER SEQUENCE "new"."q" OWNED BY "new"."T".id;',
        ),
        ('SELECT "s"."t", "A b"."""";', 'SELECT "new"."T", "x"."y";'),
        ("nextval('s.t_id_seq'::regclass)", 'nextval(\'"new"."q"\'::regclass)'),
        ('nextval(\'"A b".""""\'::regclass)', 'nextval(\'"x"."y"\'::regclass)'),
        (
            "SELECT pg_catalog.setval('s.t_id_seq', 7);",
            'SELECT pg_catalog.setval(\'"new"."q"\', 7);',
        ),
        ("ON S.T USING", 'ON "new"."T" USING'),
    ],
)
def test_names_are_replaced(before: str, after: str) -> None:
    assert renamed(before.encode(), NAMES) == after.encode()


@pytest.mark.parametrize(
    "script",
    [
        "DEFAULT 's.t'::text",
        "IS 'ALTER TABLE s.t'",
        "IS E'it\\'s s.t'",
        "IS 'it''s s.t'",
        "AS $$ SELECT s.t $$",
        "AS $a$ $$ s.t $a$",
        "-- s.t\nSELECT",
        "/* s.t */ SELECT",
        '"s.t"',
        '"S".t',
        's."T"',
        "x.s.t",
        "s.tt, ss.t, s.t$",
        "t.s",
        "nextval('s.t.x'::regclass)",
        "nextval('s.other'::regclass)",
    ],
)
def test_everything_else_stays(script: str) -> None:
    assert renamed(script.encode(), NAMES) == script.encode()


@given(st.binary(), st.binary(min_size=1), st.binary(min_size=1))
def test_any_names(text: bytes, schema: bytes, table: bytes) -> None:
    """Whatever a comment says, and whatever the names hold."""
    names = {(schema, table): (b"a", b"b")}
    old, quoted = qualified(schema, table), literal(text)
    assert renamed(b"COMMENT ON TABLE %s IS %s;" % (old, quoted), names) == (
        b'COMMENT ON TABLE "a"."b" IS %s;' % quoted
    )
    default = literal(old)
    assert renamed(b"nextval(%s::regclass)" % default, names) == (b'nextval(\'"a"."b"\'::regclass)')


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("t", (None, "t")),
        ("S.T", ("s", "t")),
        ('"S".T', ("S", "t")),
        ('"a.b"."say ""hi"""', ("a.b", 'say "hi"')),
        ("ÄrgeR", (None, "Ärger")),
    ],
)
def test_a_name(text: str, parts: tuple[str | None, str]) -> None:
    assert name(text) == parts


@pytest.mark.parametrize("text", ["", ".", "a.", ".b", "a.b.c", "a*", "a?", "a b", 'a"b"', '""'])
def test_no_name(text: str) -> None:
    with pytest.raises(ValueError, match=r".*"):
        name(text)
