"""The jobs that have backups in a copy, by a configuration file."""

from __future__ import annotations

from pathlib import Path

import pytest

from pgstash.commands import jobs
from pgstash.errors import ConfigurationError
from pgstash.settings import Request
from pgstash.settings.config import file


def test_what_a_copy_has(tmp_path: Path) -> None:
    """Not what the primary has: that may be lost, and --from names the copy."""
    for stored in ("main/p/eu/only_here", "off/p/eu/blog", "off/mine", "off/p/us/x", "main/p/us/x"):
        (tmp_path / stored).mkdir(parents=True)
        (tmp_path / stored / "backup_20260131_020000.sql.gz").write_bytes(b"x")
    path = tmp_path / "pgstash.toml"
    path.write_text(
        f"""
        [defaults]
        store = "main"
        backup_prefix = "p"
        backup_encryption = false
        copy_to = "off"
        databases = "*"
        [stores.main]
        storage_url = "{(tmp_path / "main").as_uri()}"
        [stores.off]
        storage_url = "{(tmp_path / "off").as_uri()}"
        [servers.eu]
        database_url = "postgresql://127.0.0.1:1"
        [servers.eu.database.shop]
        backup_prefix = "mine"
        [servers.us]
        database_url = "postgresql://127.0.0.1:1"
        copy_to = ""
        """
    )
    config = file.opened(Request(), {"PGSTASH_CONFIG": str(path)}, Path("/none"))
    assert config is not None
    every = config.process()
    here = [job.name for job in jobs.stored(every)]
    assert here == ["eu/only_here", "us/x"]
    there = jobs.with_backups(every, "off").jobs
    assert [(job.name, job.settings.backup_prefix) for job in there] == [
        ("eu/blog", "p/eu/blog"),
        ("eu/shop", "mine"),
    ]
    assert {job.settings.copy_name for job in there} == {"off"}
    with pytest.raises(ConfigurationError, match="--from none is not in COPY_TO"):
        jobs.with_backups(every, "none")
    (tmp_path / "main").rename(tmp_path / "gone")
    lost = jobs.with_backups(every)
    assert (lost.jobs, sorted(lost.unreadable)) == ([], ["eu", "us"])
