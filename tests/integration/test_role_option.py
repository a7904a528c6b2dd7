"""The role that pg_dump is to take: one that cannot be taken is refused as that."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support.cli import environment, run_pgstash
from support.postgres import Database

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.postgres import Cluster

NAME = "role_option"


@pytest.fixture
def source(cluster: Cluster) -> Iterator[Database]:
    """A database of LATIN1, and a login that is a member of nothing."""
    cluster.maintenance.run_sql("CREATE ROLE alone LOGIN; CREATE ROLE another")
    yield cluster.create_database(NAME, encoding="LATIN1")
    cluster.drop_database(NAME)
    cluster.maintenance.run_sql("DROP ROLE alone, another")


ROLES = {
    "that does not exist": ("--role=nobody_here", ["nobody_here", "Check --role"]),
    "of another group": ("--role=another", ["another", 'GRANT "another" TO "alone"']),
    "with letters that the database lacks": ("--role=наблюдатель", ["наблюдатель", "LATIN1"]),
    "of a dump of one table": ("--role=nobody_here -t a", ["nobody_here", "Check --role"]),
}


@pytest.mark.newest_first
@pytest.mark.parametrize("role", ROLES)
def test_a_role_that_cannot_be_taken(role: str, source: Database, tmp_path: Path) -> None:
    options, words = ROLES[role]
    env = environment(
        source.bin_dir,
        DATABASE_URL=source.uri.replace("//admin@", "//alone@"),
        STORAGE_URL=tmp_path.as_uri(),
        PG_DUMP_EXTRA_ARGS=options,
    )
    for command, status in (("once", 19), ("check", 40)):
        done = run_pgstash([command], env)
        said = done.stdout + done.stderr
        assert done.returncode == status, said
        assert "Traceback" not in said
        assert [word for word in words if word not in said] == [], said
