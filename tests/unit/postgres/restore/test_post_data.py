"""What pg_restore says when it fails: its first error, and the entries that it names."""

from __future__ import annotations

import pytest

from pgstash.errors import CorruptedError
from pgstash.postgres.restore.post_data import _entries, _Stderr

COMMAND = "Command was: CREATE SUBSCRIPTION s CONNECTION 'host=h password=sesame' PUBLICATION p;"
SAID = f"""\
pg_restore: creating INDEX "public.a_n_idx"
WARNUNG:  laut
pg_restore: while PROCESSING TOC:
pg_restore: from TOC entry 3; 1 2 SUBSCRIPTION - s a
pg_restore: error: could not execute query: FEHLER:  Syntaxfehler
DETAIL:  CREATE SUBSCRIPTION s CONNECTION 'host=h password=sesame'
{COMMAND}
    more of it
pg_restore: from TOC entry 4; 1 2 INDEX - i a
pg_restore: error: could not execute query: FEHLER:  noch einer
pg_restore: error: a worker process died unexpectedly
"""


def test_the_first_error_is_kept() -> None:
    said = _Stderr()
    for line in SAID.splitlines():
        said.read(line)
    assert said.error == "FEHLER:  Syntaxfehler\nDETAIL:  CREATE SUBSCRIPTION s CONNECTION '…"
    assert said.entries == [3, 4]


def test_an_end_without_an_error() -> None:
    said = _Stderr()
    said.read(COMMAND)
    assert (said.error, said.entries) == ("", [])


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (b"no archive", "cannot be read"),
        (b"PGDMP\x01\x7f\x00" + b"\0" * 99, "cannot be read"),
        (b"PGDMP\x01\x10", "is truncated"),
    ],
)
def test_a_schema_that_cannot_be_read(head: bytes, words: str) -> None:
    with pytest.raises(CorruptedError, match=words):
        _entries(head)
