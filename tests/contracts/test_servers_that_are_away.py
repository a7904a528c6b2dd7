"""A server that cannot be reached is asked once, however many databases it has."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pgstash import events, settings
from pgstash.commands.prune import remove_old_backups
from pgstash.commands.schedules import next_run, schedule_of_job
from pgstash.settings import jobs

NOW = datetime(2026, 1, 31, 12, 0, 0, tzinfo=UTC)


@contextmanager
def listening() -> Iterator[tuple[int, list[object]]]:
    """Accept connections, close each at once, and count them."""
    seen = list[object]()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept() -> None:
            while True:
                try:
                    connection, address = server.accept()
                except OSError:
                    return
                seen.append(address)
                connection.close()

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield server.getsockname()[1], seen
        server.shutdown(socket.SHUT_RDWR)
        thread.join(10)


def test_pruning_asks_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with listening() as (port, seen):
        values = settings.load(
            given={
                "DATABASE_URL": f"postgresql://u@127.0.0.1:{port}/postgres",
                "DATABASES": "*",
                "STORAGE_URL": tmp_path.as_uri(),
                "BACKUP_ENCRYPTION": "false",
            }
        )
        away = set[str]()
        remove_old_backups(jobs.of_database(values, "a"), events.ignore, away=away)
        once = len(seen)
        assert once
        remove_old_backups(jobs.of_database(values, "b"), events.ignore, away=away)
        assert len(seen) == once
        remove_old_backups(jobs.of_database(values, "b"), events.ignore)
        assert len(seen) > once
        assert len(away) == 1


def test_the_next_run_of_one_of_many_jobs(tmp_path: Path) -> None:
    """It has times of its own, and nothing starts in a blackout."""

    def of(blackout: str = "") -> settings.Settings:
        found = settings.load(
            given={
                "DATABASE_URL": "postgresql://u@h/postgres",
                "DATABASES": "*",
                "STORAGE_URL": tmp_path.as_uri(),
                "BACKUP_ENCRYPTION": "false",
                "BACKUP_INTERVAL": "3600",
                "BLACKOUT": blackout,
            }
        )
        return jobs.of_database(found, "shop")

    last = NOW - timedelta(minutes=1)
    planned = next_run(of(), last, NOW)
    assert planned == schedule_of_job(of()).after(last)
    assert planned.minute or planned.second
    assert last < planned <= last + timedelta(hours=1)
    assert next_run(of("11:00-15:00"), last, NOW) == NOW.replace(hour=15)
    long_ago = NOW - timedelta(days=1)
    assert next_run(of("11:00-15:00"), long_ago, NOW) == NOW.replace(hour=15)
    assert next_run(of(), long_ago, NOW) < NOW
