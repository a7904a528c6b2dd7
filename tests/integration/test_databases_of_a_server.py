"""The databases of a server, and the job of each."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pgstash import settings
from pgstash.commands import jobs
from pgstash.postgres.server import databases, login
from support.postgres import Cluster, Database

if TYPE_CHECKING:
    from support.postgres import MakeDatabase


def test_templates_and_unusable_ones(cluster: Cluster, make_database: MakeDatabase) -> None:
    shop = make_database(on=cluster)
    other = make_database(on=cluster)
    invalid = make_database(on=cluster)
    closed = make_database(on=cluster)
    shop.run_sql(f"UPDATE pg_database SET datconnlimit = -2 WHERE datname = '{invalid.name}'")
    shop.run_sql(f"ALTER DATABASE {closed.name} ALLOW_CONNECTIONS false")
    found = databases.listed(shop.uri)
    assert {shop.name, other.name, "postgres"} <= {*found.usable}
    assert not {"template0", "template1"} & {*found.usable, *found.closed}
    assert invalid.name in found.invalid
    assert closed.name in found.closed
    wanted = f"{shop.name},{other.name},{invalid.name},{closed.name},none"
    server = settings.load(
        {"DATABASE_URL": shop.uri, "STORAGE_URL": "file:///tmp", "BACKUP_ENCRYPTION": "false"}
        | {"DATABASES": wanted},
        Path("/none"),
    )
    on_server = jobs.on_server(server)
    assert {job.name for job in on_server.jobs} == {shop.name, other.name}
    assert (on_server.invalid, on_server.closed) == ([invalid.name], [closed.name])
    assert on_server.missing == ["none"]


def test_each_name_can_be_connected_to(newest_cluster: Cluster) -> None:
    """Names that are not UTF-8, as an old application may have made them, are found at least."""
    maintenance = Database(newest_cluster, "postgres")
    # A session of this one takes any bytes as a name.
    plain = Database(newest_cluster, "any bytes")
    maintenance.run_sql(
        f"CREATE DATABASE \"{plain.name}\" TEMPLATE template0 ENCODING 'SQL_ASCII' LOCALE 'C'"
    )
    hostile = ["\udcfc\udcff", "A b/c'd\"e%f?g=h", "Ünï"]
    try:
        for name in hostile:
            quoted = name.replace('"', '""')
            plain.run_sql(
                b"CREATE DATABASE \"%s\" TEMPLATE template0 ENCODING 'SQL_ASCII' LOCALE 'C'"
                % quoted.encode("utf-8", "surrogateescape")
            )
        server = settings.load(
            {"DATABASE_URL": maintenance.uri, "STORAGE_URL": "file:///tmp"}
            | {"BACKUP_ENCRYPTION": "false", "DATABASES": "*"},
            Path("/none"),
        )
        found = jobs.on_server(server)
        by_name = {job.name: job.settings for job in found.jobs}
        assert {*hostile[1:]} <= by_name.keys()
        for name in hostile[1:]:
            assert login.identify(by_name[name].source_url, 10).database == name
        assert found.foreign == [r"\xfc\xff"]
    finally:
        for name in hostile:
            quoted = name.replace('"', '""')
            plain.run_sql(
                b'DROP DATABASE IF EXISTS "%s"' % quoted.encode("utf-8", "surrogateescape")
            )
        maintenance.run_sql(f'DROP DATABASE "{plain.name}"')
