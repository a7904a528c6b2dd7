"""Names and text are quoted in one place, and mean in SQL what they were."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgstash.pipeline.sql_scanner import split_name
from pgstash.postgres.server.quoting import identifier, literal, qualified

NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1)


@pytest.mark.parametrize(
    ("name", "quoted"),
    [("t", '"t"'), ('a"b', '"a""b"'), ("a.b", '"a.b"'), ("a'b", '"a\'b"'), ("", '""')],
)
def test_a_name_is_quoted(name: str, quoted: str) -> None:
    assert identifier(name) == quoted


@pytest.mark.parametrize(
    ("text", "quoted"),
    [
        ("t", "'t'"),
        ("it's", "'it''s'"),
        ("a\\b", r"E'a\\b'"),
        ("\\'", r"E'\\'''"),
        ('"', "'\"'"),
        ("", "''"),
    ],
)
def test_text_is_quoted(text: str, quoted: str) -> None:
    assert literal(text) == quoted


@given(NAMES)
def test_text_and_bytes_are_quoted_alike(name: str) -> None:
    assert identifier(name).encode() == identifier(name.encode())
    assert literal(name).encode() == literal(name.encode())


@given(NAMES, NAMES)
def test_a_qualified_name_can_be_split_again(schema: str, name: str) -> None:
    whole = qualified(schema.encode(), name.encode())
    assert whole == qualified(schema, name).encode()
    assert split_name(whole) == (schema.encode(), name.encode())


@given(st.binary())
def test_no_quote_ends_text_too_early(text: bytes) -> None:
    """As a scanner of SQL reads it, with standard_conforming_strings on and off."""
    quoted = literal(text)
    inner = rb"(?:[^'\\]|''|\\\\)*" if quoted.startswith(b"E") else rb"(?:[^'\\]|'')*"
    assert re.fullmatch(rb"E?'" + inner + rb"'", quoted, re.DOTALL)
