"""A script of a newer pg_dump is changed in its header alone."""

from __future__ import annotations

import pytest

from pgstash.repository.script import KNOWN_FROM, without_settings_unknown_to

HEADER = b"--\n\\restrict abc\n\nSET statement_timeout = 0;\n"
NEW = b"SET transaction_timeout = 0;\n"
REST = b"CREATE TABLE t (n text);\nCOPY t FROM stdin;\n" + NEW + b"\\.\n"


@pytest.mark.parametrize(
    "chunks",
    [
        [HEADER + NEW + REST],
        [HEADER + NEW, REST],
        [b"", HEADER + NEW + REST],
        [b"", b"", HEADER + NEW, b"", REST],
    ],
)
def test_an_older_server_does_not_get_the_setting(chunks: list[bytes]) -> None:
    # The first chunk may be empty: an edit may be changed until it gets the first bytes.
    found = b"".join(without_settings_unknown_to(KNOWN_FROM - 1, iter(chunks)))
    assert found == HEADER + REST
    assert b"".join(without_settings_unknown_to(KNOWN_FROM, iter(chunks))) == b"".join(chunks)


def test_nothing_becomes_nothing() -> None:
    assert b"".join(without_settings_unknown_to(KNOWN_FROM - 1, iter([]))) == b""
