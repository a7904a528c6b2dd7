"""The jobs of a configuration file: those of servers that answer, and those that are stored."""

from __future__ import annotations

from pathlib import Path

import pytest

from pgstash.commands import config as shown_config
from pgstash.commands import jobs
from pgstash.errors import ConfigurationError
from pgstash.settings import Request, Settings
from pgstash.settings.config import file

ARCHIVE = "backup_20260102_030405.sql.gz"


def opened(folder: Path, more: str = "") -> Settings:
    """Return the settings of all jobs of a file with two servers, which are both down."""
    path = folder / "pgstash.toml"
    path.write_text(
        f"""
        [defaults]
        storage_url = "{folder.as_uri()}"
        [servers.eu]
        database_url = {{ env = "EU_URL" }}
        databases = "*"
        labels = ["near"]
        [servers.eu.database.shop]
        backup_prefix = "own"
        [servers.eu.database.blog]
        backup_interval = 600
        [servers.eu.database.unused]
        backup_prefix = "unused"
        [servers.us]
        database_url = "postgresql://127.0.0.1:1/orders"
        {more}
        """
    )
    environ = {"PGSTASH_CONFIG": str(path), "EU_URL": "postgresql://u:Kd83-unseen@127.0.0.1:1"}
    found = file.opened(Request(), environ, Path("/none"))
    assert found is not None
    return found.process()


def test_jobs_that_are_stored(tmp_path: Path) -> None:
    """Each is found where its own section says that its backups are, and only there."""
    prefixes = ("eu/blog", "eu/=4dy", "eu/shop", "us/orders", "us/former")
    for folder in (*(f"postgres-backups/{each}" for each in prefixes), "own"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / ARCHIVE).touch()
    stored = {each.name: each.settings for each in jobs.stored(opened(tmp_path))}
    assert {name: found.backup_prefix for name, found in stored.items()} == {
        "eu/My": "postgres-backups/eu/=4dy",
        "eu/blog": "postgres-backups/eu/blog",
        "eu/shop": "own",
        "us/former": "postgres-backups/us/former",
        "us/orders": "postgres-backups/us/orders",
    }
    assert stored["eu/blog"].backup_interval == 600


def test_servers_that_do_not_answer(tmp_path: Path) -> None:
    """The others are not affected, and a server with one database is not asked for any."""
    settings = opened(tmp_path)
    found = jobs.on_server(settings)
    assert [each.name for each in found.jobs] == ["us/orders"]
    assert found.unreachable.keys() == {"eu"}
    shown = shown_config.shown(settings)
    assert [each.name for each in shown.jobs] == ["us/orders", "eu/shop", "eu/blog", "eu/unused"]
    assert shown.jobs[1].source == "127.0.0.1:1/shop"
    assert (shown.jobs[1].store, shown.jobs[1].prefix) == (f"file://{tmp_path}", "own")
    assert shown.jobs[1].labels == ("near",)
    assert shown.jobs[2].settings["backup_interval"] == 600
    assert "Kd83-unseen" not in repr(shown)
    assert shown.warnings[-1].startswith("The databases of eu are not known: ")
    assert shown_config.summary(settings).endswith(": 2 servers, 3 database sections, no problems")


def test_problems_of_all_servers(tmp_path: Path) -> None:
    settings = opened(tmp_path, "lock_timeout = 0\n[servers.asia]\ndump_jobs = 0")
    with pytest.raises(ConfigurationError) as caught:
        jobs.on_server(settings)
    assert [each.split(" ")[0] for each in caught.value.problems] == [
        "servers.us.lock_timeout",
        "servers.asia.database_url",
        "servers.asia.dump_jobs",
    ]
