"""The time of the server and the position in its WAL that a backup records."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

from pgstash import events
from pgstash.postgres.dump import moment
from pgstash.postgres.server import login
from support import backups
from support.cli import environment, run_pgstash
from support.postgres import Cluster, Database

if TYPE_CHECKING:
    from pathlib import Path

    from support.postgres import MakeDatabase

_WRITTEN = "SELECT pg_current_wal_lsn() - '0/0'"
_REPLAYED = "SELECT pg_last_wal_replay_lsn() - '0/0'"


def bytes_of(position: str | None) -> int:
    high, low = (position or "").split("/")
    return (int(high, 16) << 32) + int(low, 16)


def of(uri: str) -> tuple[moment.Moment | None, list[events.Event]]:
    heard: list[events.Event] = []
    return moment.of(login.inspect(uri), heard.append), heard


@pytest.mark.newest_first
def test_of_a_primary_and_of_a_standby(major: int) -> None:
    with Cluster(major, settings={"wal_level": "replica", "hot_standby": "on"}) as cluster:
        server = cluster.maintenance
        before = int(server.run_sql(_WRITTEN))
        found, heard = of(server.uri)
        assert found
        assert before <= bytes_of(found.wal) <= int(server.run_sql(_WRITTEN))
        near = f"SELECT abs(extract(epoch FROM clock_timestamp() - '{found.time}')) < 600"
        assert server.run_sql(near).strip() == "t"
        assert heard == []

        # A backup does not depend on the right to ask for it.
        server.run_sql(
            "REVOKE EXECUTE ON FUNCTION pg_current_wal_lsn() FROM PUBLIC; CREATE ROLE r LOGIN"
        )
        limited, heard = of(server.uri.replace(cluster.user, "r", 1))
        assert limited
        assert (limited.wal, len(limited.time)) == (None, len("2026-01-31T02:00:00.000Z"))
        assert [type(event) for event in heard] == [events.Notice]

        cluster.stop(signal.SIGINT)
        (cluster.folder / "data" / "standby.signal").touch()
        cluster.start()
        found, _ = of(server.uri)
        assert found
        assert bytes_of(found.wal) == int(server.run_sql(_REPLAYED))


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_it_is_stored_and_shown(make_database: MakeDatabase, jobs: str, tmp_path: Path) -> None:
    database: Database = make_database()
    before = int(database.run_sql(_WRITTEN))
    env = environment(database.bin_dir, **backups.settings(database, tmp_path), DUMP_JOBS=jobs)
    made = run_pgstash(["once"], env)
    assert made.returncode == 0, made.stderr
    [backup] = backups.stored(tmp_path)
    snapshot = backup.manifest["snapshot"]
    assert before <= bytes_of(snapshot["wal"]) <= int(database.run_sql(_WRITTEN))
    shown = run_pgstash(["show"], env)
    assert f"{snapshot['time']}, WAL position {snapshot['wal']}" in shown.stdout
