"""Parameters of a connection that our libpq knows, and that of older client tools does not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pgstash.postgres.server import login
from pgstash.postgres.tools import installed
from support.backups import back_up
from support.cli import TOOLS_ON_PATH_ALONE, environment, restore_to, run_pgstash

if TYPE_CHECKING:
    from pathlib import Path

    from support.postgres import Clusters, Database, MakeDatabase

NEW = "sslnegotiation=postgres&max_protocol_version=3.0"


@pytest.fixture
def oldest(clusters: Clusters, major: int, make_database: MakeDatabase) -> Database:
    if major >= 17:
        pytest.skip("its libpq knows them")
    return make_database(on=clusters.get(major))


def test_every_command_names_parameter_and_tools(oldest: Database, tmp_path: Path) -> None:
    back_up(oldest, tmp_path)
    url = f"{oldest.uri}?{NEW}"
    env = environment(
        oldest.bin_dir, DATABASE_URL=url, RESTORE_URL=url, STORAGE_URL=tmp_path.as_uri()
    )
    for command, status in ((["once"], 12), (["check"], 40), (restore_to(env), 12)):
        done = run_pgstash(command, env, statements=TOOLS_ON_PATH_ALONE)
        said = done.stdout + done.stderr
        assert done.returncode == status, said
        asks = (
            "does not know these parameters of the connection: max_protocol_version, sslnegotiation"
        )
        assert asks in said
        assert str(oldest.bin_dir) in said
        assert "Install the client of PostgreSQL 18, or a newer one" in said


def test_what_the_tools_know_is_no_problem(make_database: MakeDatabase, major: int) -> None:
    database = make_database()
    uri = f"{database.uri}?keepalives=1&sslmode=prefer&sslsni=1"
    server = login.inspect(uri + (f"&{NEW}&require_auth=none" if major >= 18 else ""))
    found = installed.ClientTools(database.bin_dir, server.major, server.version)
    installed.refuse_unknown_parameters(found, server.connection, {})
