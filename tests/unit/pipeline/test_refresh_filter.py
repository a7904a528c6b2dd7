"""Statements that are left out of a script: as they are given, and nothing else."""

from __future__ import annotations

import pytest

from pgstash.pipeline.refresh_filter import Refreshes

COMMENT = b"COMMENT ON EXTENSION hstore IS 'pairs; ''of'' text';\n"
TRIGGER = (
    b"CREATE EVENT TRIGGER t ON e\n   EXECUTE FUNCTION f();\n\nALTER EVENT TRIGGER t DISABLE;\n"
)
KEPT = (
    b"COMMENT ON EXTENSION hstore IS 'pairs';\n",
    b"CREATE FUNCTION f() RETURNS text LANGUAGE sql AS $$\n" + COMMENT + b"$$;\n",
    b"SELECT '\n" + COMMENT.replace(b"'", b"''") + b"';\n",
    b"-- " + COMMENT,
    b"COPY t (a) FROM stdin;\n" + COMMENT + b"\\.\n",
    b"CREATE EVENT TRIGGER t2 ON e\n   EXECUTE FUNCTION f();\n",
)


@pytest.mark.parametrize("size", [1, 2, 7, 30, 10_000])
def test_left_out(size: int) -> None:
    """In chunks of any size; the lines that follow keep their numbers."""
    edit = Refreshes(lambda name: name, keeps_transactions=True)
    edit.leave_out([COMMENT, TRIGGER])
    parts = [part for kept in KEPT for part in (COMMENT, kept, TRIGGER, b"\n")]
    script = b"".join(parts) + COMMENT[:-9]
    edited = b"".join(edit.edit(script[at : at + size] for at in range(0, len(script), size)))
    empty = {COMMENT: b"\n", TRIGGER: b"\n" * 4}
    assert edited == b"".join(empty.get(part, part) for part in parts) + COMMENT[:-9]
