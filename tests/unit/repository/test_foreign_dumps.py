"""Files that are no plain dump are refused by their first bytes, before psql gets any."""

from __future__ import annotations

import gzip
from collections.abc import Sequence

import pytest

from pgstash.errors import CorruptedError
from pgstash.repository import script

END = b"\n--\n-- PostgreSQL database dump complete\n--\n\n"
CLUSTER = b"--\n-- PostgreSQL database cluster dump\n--\n\nCREATE ROLE x;\n\\connect other\n"


def read(chunks: Sequence[bytes]) -> bytes:
    return b"".join(script.unverified(chunks, None, None))


@pytest.mark.parametrize(
    ("start", "what"),
    [
        (b"PGDMP\x01\x10\0", "custom format"),
        (b"toc.dat\0\0\0", "tar format"),
        (CLUSTER, "pg_dumpall"),
        (b"\x28\xb5\x2f\xfd\x04", "zstd"),
        (b"\xfd7zXZ\0\0", "xz"),
        (b"BZh91AY", "bzip2"),
        (b"age-encryption.org/v1\n", "age"),
    ],
)
@pytest.mark.parametrize("packed", [False, True], ids=["as-it-is", "in-gzip"])
@pytest.mark.parametrize("size", [1, 100])
def test_a_file_of_another_kind_is_refused(
    start: bytes,
    what: str,
    packed: bool,  # noqa: FBT001 - parameter
    size: int,
) -> None:
    content = start + b"SELECT 1;\n" * 30 + END
    stored = gzip.compress(content) if packed else content
    pieces = [stored[at : at + size] for at in range(0, len(stored), size)]
    with pytest.raises(CorruptedError, match=what) as refused:
        read(pieces)
    assert refused.value.hint


@pytest.mark.parametrize("size", [1, 100])
def test_a_plain_dump_is_read_whole(size: int) -> None:
    content = b"--\n-- PostgreSQL database dump\n--\n\nSELECT 1;\n" + END
    assert read([content[at : at + size] for at in range(0, len(content), size)]) == content


def test_a_dump_that_is_shorter_than_what_is_looked_at() -> None:
    assert read([END]) == END
