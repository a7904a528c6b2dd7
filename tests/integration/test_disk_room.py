"""How much room the disk of a server has: known on this machine alone."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from pgstash.postgres.server import disk_room, login

if TYPE_CHECKING:
    from support.postgres import MakeDatabase


def test_by_a_socket_it_is_that_of_the_data_directory(make_database: MakeDatabase) -> None:
    database = make_database()
    folder = database.cluster.folder
    found = disk_room.free(login.inspect(f"{database.conninfo} host={folder}"))
    assert found is not None
    assert 0 < found <= shutil.disk_usage(folder).total


def test_by_the_network_it_is_unknown(make_database: MakeDatabase) -> None:
    assert disk_room.free(login.inspect(make_database().conninfo)) is None


def test_to_a_role_that_may_not_know_the_directory_it_is_unknown(
    make_database: MakeDatabase,
) -> None:
    database = make_database()
    database.run_sql("CREATE ROLE knows_little LOGIN")
    try:
        server = login.inspect(
            f"{database.conninfo} host={database.cluster.folder} user=knows_little"
        )
        assert disk_room.free(server) is None
    finally:
        database.run_sql("DROP ROLE knows_little")
