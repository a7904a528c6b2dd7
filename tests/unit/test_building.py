"""What pg_restore says when it fails becomes an error, and holds nothing confidential."""

from __future__ import annotations

import pytest

from pgstash.errors import CorruptedError, StatementError, TargetLostError
from pgstash.postgres.building import _entries, _failure

COMMAND = "Command was: CREATE SUBSCRIPTION s CONNECTION 'host=h password=sesame' PUBLICATION p;"


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("could not execute query: ERROR:  syntax error", StatementError),
        ("could not execute query: ERROR:  terminating connection", TargetLostError),
        ("could not execute query: ERROR:  connection to server at h failed", TargetLostError),
    ],
)
def test_a_failed_statement(said: str, kind: type[Exception]) -> None:
    lines = [
        "pg_restore: while PROCESSING TOC:",
        "pg_restore: from TOC entry 3; 1 2 SUBSCRIPTION - s a",
        f"pg_restore: error: {said}",
        COMMAND,
    ]
    error = _failure(1, lines)
    assert isinstance(error, kind)
    assert said.rpartition("ERROR:  ")[2] in error.message
    assert "CREATE SUBSCRIPTION s CONNECTION '…" in error.message
    assert "sesame" not in error.message
    assert "TOC" not in error.message


def test_an_end_without_an_error() -> None:
    error = _failure(-9, [COMMAND])
    assert isinstance(error, TargetLostError)
    assert "sesame" not in error.message


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (b"no archive", "not understood"),
        (b"PGDMP\x01\x7f\x00" + b"\0" * 99, "not understood"),
        (b"PGDMP\x01\x10", "ends before its end"),
    ],
)
def test_a_schema_that_cannot_be_read(head: bytes, words: str) -> None:
    with pytest.raises(CorruptedError, match=words):
        _entries(head)
