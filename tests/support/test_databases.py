"""Every sample database survives pg_dump and psql: what a round trip by pgstash is held to."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support import databases
from support.compare import compare

if TYPE_CHECKING:
    from support.postgres import Cluster


@pytest.mark.newest_first
@pytest.mark.parametrize("sample", databases.ROUND_TRIPPING)
def test_pg_dump_and_psql_carry_it(cluster: Cluster, sample: str) -> None:
    source = cluster.load_sample(sample)
    target = cluster.create_database(f"target_{sample}", encoding=databases.encoding(sample))
    try:
        target.run_sql(source.plain_dump("--no-owner", "--no-acl", "--clean", "--if-exists"))
        assert compare(source.conninfo, target.conninfo, bin_dir=source.bin_dir) == []
    finally:
        source.drop()
        target.drop()
