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
from pgstash.commands import job_survey
from pgstash.commands import jobs as every_job
from pgstash.commands.prune import remove_old_backups
from pgstash.commands.schedules import next_run, schedule_of_job
from pgstash.runtime import Runtime
from pgstash.service.dispatcher import Stored
from pgstash.settings import jobs
from pgstash.settings.config import file

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


COUNT = 3


@contextmanager
def hanging() -> Iterator[tuple[list[int], list[bool]]]:
    """Servers that answer nobody before somebody has asked each of them.

    Yields their ports, and a list where each notes whether that happened while it waited.
    """
    all_asked, ports, together = threading.Event(), list[int](), list[bool]()
    missing = threading.Semaphore(0)

    def accept(server: socket.socket) -> None:
        with server:
            connection, _ = server.accept()
            missing.release()
            together.append(all_asked.wait(20))
            connection.close()

    def notice() -> None:
        if all(missing.acquire(timeout=20) for _ in range(COUNT)):
            all_asked.set()

    threads = [threading.Thread(target=notice)]
    for _ in range(COUNT):
        server = socket.create_server(("127.0.0.1", 0))
        ports.append(server.getsockname()[1])
        threads.append(threading.Thread(target=accept, args=[server]))
    for thread in threads:
        thread.start()
    yield ports, together
    for thread in threads:
        thread.join()


def of_file(folder: Path, ports: list[int], databases: str = "") -> settings.Settings:
    tables = [
        f"[servers.s{port}]\n"
        f'database_url = "postgresql://u@127.0.0.1:{port}/shop?sslmode=disable&connect_timeout=60"\n{databases}'
        for port in ports
    ]
    defaults = f'[defaults]\nstorage_url = "{folder.as_uri()}"\nbackup_encryption = false\n'
    path = folder / "pgstash.toml"
    path.write_text(defaults + "\n".join(tables))
    found = file.opened(settings.Request(), {"PGSTASH_CONFIG": str(path)}, Path("/none"))
    assert found is not None
    return found.process()


def test_servers_of_a_file_are_listed_at_the_same_time(tmp_path: Path) -> None:
    with hanging() as (ports, together):
        found = every_job.on_server(of_file(tmp_path, ports, 'databases = "*"'))
        assert together == [True] * COUNT
    assert list(found.unreachable) == [f"s{port}" for port in ports]
    assert found.jobs == []


def test_a_service_asks_servers_and_stores_at_the_same_time(tmp_path: Path) -> None:
    with hanging() as (ports, together):
        found = every_job.on_server(of_file(tmp_path, ports))
        known = job_survey.stored(found.jobs, Runtime(events.ignore))
        assert together == [True] * COUNT
    assert known == {f"s{port}/shop": Stored() for port in ports}
