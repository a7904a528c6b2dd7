"""What is taken for the drops of a real dump is exactly what ``--clean --if-exists`` adds."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from pgstash.pipeline.sections import Border, Sections
from support import databases
from support.compare import compare

if TYPE_CHECKING:
    from support.postgres import Cluster, MakeDatabase

SAMPLES = (*databases.ROUND_TRIPPING, "breaks_under_clean")


def sections(dump: bytes) -> dict[str | None, bytes]:
    sections = Sections()
    found: dict[str | None, bytes] = {"drops": b""}
    section: str | None = None
    for piece in sections.split([dump]):
        if isinstance(piece, Border):
            section = piece.section
        else:
            found[section] = found.get(section, b"") + piece
    assert sections.found
    return found


def comparable(dump: bytes) -> bytes:
    """Leave out what differs from run to run: the key of \\restrict, and empty lines."""
    return re.sub(rb"\n+", b"\n", re.sub(rb"\n\\(un)?restrict \w+", b"", dump))


@pytest.mark.newest_first
@pytest.mark.parametrize("sample", SAMPLES)
def test_the_drops_are_what_clean_adds(
    sample: str, cluster: Cluster, make_database: MakeDatabase
) -> None:
    database = make_database(sample, on=cluster)
    options = ("--no-owner", "--no-acl", f"--encoding={databases.encoding(sample)}")
    found = sections(database.plain_dump(*options, "--clean", "--if-exists"))
    without = found["header"] + found.get(None, b"")
    assert comparable(without) == comparable(database.plain_dump(*options))
    assert bool(found["drops"]) == (sample != "empty")


def test_the_rest_restores_where_the_drops_would_not(
    cluster: Cluster, make_database: MakeDatabase
) -> None:
    source = make_database("breaks_under_clean", on=cluster)
    dump = source.plain_dump("--no-owner", "--no-acl", "--clean", "--if-exists")
    found = sections(dump)
    target = make_database(on=cluster)
    with pytest.raises(RuntimeError):
        target.run_sql(dump)
    target = make_database(on=cluster)
    target.run_sql(found["header"] + found[None])
    assert compare(source.conninfo, target.conninfo, bin_dir=source.bin_dir) == []
