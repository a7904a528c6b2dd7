"""A login that is refused says why, by the SQLSTATE of the refusal."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pgstash.errors import DatabaseLoginError
from pgstash.postgres.server import login, login_refusal
from support.backups import back_up
from support.cli import environment, run_pgstash

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.postgres import Cluster, Database, MakeDatabase

CLOSED = "accepts no connections"


@pytest.fixture
def closed(cluster: Cluster, make_database: MakeDatabase) -> Database:
    database = make_database(on=cluster)
    cluster.maintenance.run_sql(f"ALTER DATABASE {database.name} ALLOW_CONNECTIONS false")
    return database


@pytest.fixture
def anybody(cluster: Cluster) -> Iterator[str]:
    cluster.maintenance.run_sql("CREATE ROLE anybody LOGIN")
    yield "anybody"
    cluster.maintenance.run_sql("DROP ROLE anybody")


def as_role(database: Database, role: str) -> str:
    return database.uri.replace(f"//{database.cluster.user}@", f"//{role}@")


WHY = {
    "closed": ("ALTER DATABASE {} ALLOW_CONNECTIONS false", "55000", CLOSED),
    "invalid": (
        "UPDATE pg_database SET datconnlimit = -2 WHERE datname = '{}'",
        "55000",
        "DROP DATABASE was interrupted",
    ),
    "without the right": ("REVOKE CONNECT ON DATABASE {} FROM PUBLIC", "42501", "GRANT CONNECT"),
    "full": ("ALTER DATABASE {} CONNECTION LIMIT 0", "53300", "CONNECTION LIMIT"),
    "gone": ("ALTER DATABASE {0} RENAME TO {0}_away", "3D000", "no database of that name"),
}


@pytest.mark.newest_first
@pytest.mark.parametrize("why", WHY)
def test_a_refusal_has_a_code_and_a_remedy(
    why: str, cluster: Cluster, make_database: MakeDatabase, anybody: str
) -> None:
    statement, state, words = WHY[why]
    database = make_database(on=cluster)
    cluster.maintenance.run_sql(statement.format(database.name))
    url = as_role(database, anybody)
    assert login_refusal.refusal(url.encode()) == state
    with pytest.raises(DatabaseLoginError) as caught:
        login.inspect(url)
    assert words in caught.value.hint
    assert caught.value.retryable is (why == "full")  # only that ends on its own
    cluster.drop_database(f"{database.name}_away")


def test_no_code_if_nobody_answers() -> None:
    assert login_refusal.refusal(b"host=127.0.0.1 port=1") == ""


def test_a_login_that_is_accepted_a_moment_later(make_database: MakeDatabase) -> None:
    error = login_refusal.error(make_database().uri.encode(), "refused")
    assert error.retryable
    assert "CONNECTION LIMIT" in error.hint


@pytest.mark.newest_first
def test_every_command_says_that_a_database_takes_no_connections(
    closed: Database, make_database: MakeDatabase, tmp_path: Path
) -> None:
    back_up(make_database(on=closed.cluster), tmp_path)
    stored = {"STORAGE_URL": tmp_path.as_uri()}
    for arguments, settings, status in (
        (["once"], {"DATABASE_URL": closed.uri}, 11),
        (["check"], {"DATABASE_URL": closed.uri}, 40),
        (["restore", "--to", closed.uri], {}, 11),
        (["drill"], {"VERIFY_DATABASE_URL": closed.uri}, 43),
    ):
        done = run_pgstash(arguments, environment(closed.bin_dir, **stored, **settings))
        assert done.returncode == status, done.stdout + done.stderr
        assert CLOSED in done.stdout + done.stderr, arguments
