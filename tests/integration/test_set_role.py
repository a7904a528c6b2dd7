"""A login that works as another role, as those of deployments do: ALTER ROLE … SET role."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

import pytest

from pgstash.errors import TargetLostError
from pgstash.postgres.restore.psql import Psql
from pgstash.postgres.restore.target import Outcome
from pgstash.postgres.server import login
from pgstash.postgres.tools.installed import ClientTools
from pgstash.postgres.tools.tool_run import ToolRun
from support.backups import back_up
from support.cli import environment, restore_to, run_pgstash
from support.postgres import Database
from support.tiers import later

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.postgres import Cluster, MakeDatabase

OWNER, LOGIN, WITHOUT = "owner_of_all", "who_deploys", "without_any_right"
NAME = "restored_as_another"
OBJECTS = """
    CREATE TABLE a (n serial PRIMARY KEY);
    INSERT INTO a SELECT nextval('a_n_seq') FROM generate_series(1, 10);
    CREATE TABLE b (n int REFERENCES a); INSERT INTO b VALUES (1);
"""
OWNERS = "SELECT DISTINCT tableowner FROM pg_tables WHERE schemaname = 'public'"


@pytest.fixture
def target(cluster: Cluster, make_database: MakeDatabase) -> Iterator[Database]:
    """An empty database of the role, with the login."""
    database = make_database(on=cluster)
    admin = cluster.maintenance
    admin.run_sql(
        f"CREATE ROLE {OWNER} CREATEDB; CREATE ROLE {LOGIN} LOGIN NOINHERIT IN ROLE {OWNER};"
        f"ALTER ROLE {LOGIN} SET role = {OWNER}; ALTER DATABASE {database.name} OWNER TO {OWNER};"
    )
    yield database
    database.drop()
    cluster.drop_database(NAME)
    admin.run_sql(f"DROP ROLE {OWNER}, {LOGIN}; DROP ROLE IF EXISTS {WITHOUT}")


def login_of(database: Database) -> str:
    return database.uri.replace(database.cluster.user, LOGIN, 1)


@pytest.mark.newest_first
@pytest.mark.parametrize("jobs", later(["", "1", "2"], ""))
def test_a_restore_is_the_roles(
    jobs: str, target: Database, make_database: MakeDatabase, tmp_path: Path
) -> None:
    """Into the database that is there, or into a new one by so many sessions."""
    of = make_database(on=target.cluster)
    of.run_sql(OBJECTS)
    back_up(of, tmp_path, DUMP_JOBS="2")
    env = environment(
        target.bin_dir,
        STORAGE_URL=tmp_path.as_uri(),
        RESTORE_URL=login_of(target),
        RESTORE_JOBS=jobs or "1",
    )
    new = ["--create", NAME] if jobs else []
    done = run_pgstash(restore_to(env, *new, "--no-owner", "--no-privileges"), env)
    assert (done.returncode, done.stderr) == (0, "")
    restored = Database(target.cluster, NAME) if jobs else target
    assert restored.run_sql(OWNERS) == f"{OWNER}\n"


@pytest.mark.newest_first
@pytest.mark.parametrize("whose", later([LOGIN, "admin"], "admin"))
def test_a_drill_of_a_database_that_sets_a_role(
    whose: str, target: Database, make_database: MakeDatabase, tmp_path: Path
) -> None:
    """Which the login may not be, and which may do nothing with what was restored."""
    of = make_database(on=target.cluster)
    of.run_sql(OBJECTS)
    admin = target.cluster.maintenance
    admin.run_sql(f"CREATE ROLE {WITHOUT}; ALTER DATABASE {of.name} SET role = {WITHOUT}")
    back_up(of, tmp_path, DATABASE_URL=f"{of.uri}?options=-crole%3Dadmin")
    env = environment(
        target.bin_dir,
        STORAGE_URL=tmp_path.as_uri(),
        VERIFY_DATABASE_URL=target.uri.replace("admin", whose, 1),
    )
    done = run_pgstash(["drill"], env)
    assert done.returncode == 0, done.stdout + done.stderr


def opened(target: Database, folder: Path | None = None) -> Psql:
    server = login.inspect(login_of(target))
    return Psql(
        server,
        ToolRun(
            ClientTools(folder or target.bin_dir, server.major, server.version),
            os.environ,
            lambda _event: None,
        ),
        one_transaction=True,
        lc_monetary=None,
    )


def test_the_session_of_the_login_is_ended(target: Database) -> None:
    psql = opened(target)
    with contextlib.suppress(ZeroDivisionError), psql:
        psql.feed(b"SELECT pg_sleep(600);\n")
        raise ZeroDivisionError
    assert psql.outcome is Outcome.NOTHING
    query = f"SELECT count(*) FROM pg_stat_activity WHERE usename = '{LOGIN}'"
    assert target.run_sql(query) == "0\n"


def test_a_psql_that_answers_something_else_is_not_waited_for(
    target: Database, tmp_path: Path
) -> None:
    fake = tmp_path / "psql"
    fake.write_text("#!/bin/sh\nread -r line\necho '4711|0|'\nexec sleep 600\n")
    fake.chmod(0o755)
    with pytest.raises(TargetLostError, match=r"printed '4711\|0\|'"), opened(target, tmp_path):
        pass
