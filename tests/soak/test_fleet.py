"""A fleet for some minutes, with everything around it failing at random.

What ran is told by the log of the queue, the store and the server with the databases.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import time
from collections import Counter
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from support import backups
from support.backups import PREFIX
from support.cli import NO_DOTENV, environment, program, run_pgstash
from support.postgres import Cluster, Database
from support.proxy import PASS, REFUSE, STALL, TcpProxy

if TYPE_CHECKING:
    from collections.abc import Iterator

DATABASES = 8
AT_ONCE = 2
INTERVAL = 60  # seconds, the shortest that is allowed
MINUTES = 5
FAULTS_END = 60.0  # seconds before the end
LONGEST_RUN = 120.0
TIMEOUT = 5

# The clock of this worker is ahead, and the one of another worker behind, by 20 seconds.
OFF = """
from datetime import timedelta
from pgstash import runtime
def off(now=runtime.utc_now):
    return now() + timedelta(seconds={seconds})
before = runtime.Runtime.__init__.__defaults__
runtime.Runtime.__init__.__defaults__ = tuple(off if d is runtime.utc_now else d for d in before)
runtime.utc_now = off
"""

HISTORY = """
SELECT j.id, j.args->>'job' AS job, j.task_name AS work, j.lock, e.type::text AS type, e.at
FROM pgstash_queue.procrastinate_events AS e JOIN pgstash_queue.procrastinate_jobs AS j
ON j.id = e.job_id ORDER BY e.id
"""


class Workers:
    """The processes of a fleet, each with a clock of its own; those that end start again."""

    def __init__(self, env: dict[str, str], log: Path) -> None:
        self._env = env
        self._log = log.open("wb")
        self._offsets = (0, 20, -20)
        self._running: list[subprocess.Popen[bytes]] = [self._started(each) for each in range(3)]

    def _started(self, number: int) -> subprocess.Popen[bytes]:
        command = program(OFF.format(seconds=self._offsets[number]))
        return subprocess.Popen(
            [*command, "worker"],
            env=self._env,
            cwd=NO_DOTENV,
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,
        )

    def kill(self, number: int) -> None:
        """Lose the machine of a worker: the worker, and what runs for it."""
        lost = self._running[number]
        children = [
            int(folder.name)
            for folder in Path("/proc").glob("[0-9]*")
            if _parent(folder) == lost.pid
        ]
        lost.kill()
        for child in children:
            with contextlib.suppress(OSError):
                os.killpg(child, signal.SIGKILL)
        lost.wait()
        self._running[number] = self._started(number)

    def restart(self, number: int) -> None:
        self._running[number].terminate()
        self._running[number].wait(timeout=LONGEST_RUN)
        self._running[number] = self._started(number)

    def stop(self) -> None:
        for each in self._running:
            each.terminate()
        for each in self._running:
            each.wait(timeout=LONGEST_RUN)
        self._log.close()


def _parent(folder: Path) -> int:
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    return 0


@contextlib.contextmanager
def cut(proxy: TcpProxy, chance: random.Random) -> Iterator[None]:
    """Cut all workers off from the queue, at once or by silence."""
    proxy.behave(chance.choice([REFUSE, STALL]))
    yield
    proxy.behave(PASS)


def histories(queue: Database) -> list[dict[str, Any]]:
    with queue.connect() as connection:
        cursor = connection.execute(HISTORY)
        names = [each.name for each in cursor.description or ()]
        return [dict(zip(names, row, strict=True)) for row in cursor]


def overlaps(rows: list[dict[str, Any]], key: str) -> list[tuple[str, datetime]]:
    """Return what began while another run with the same key had not ended, for the queue."""
    running: dict[str, int] = {}
    found = []
    for row in rows:
        if row["type"] == "started":
            if running.get(row[key], row["id"]) != row["id"]:
                found.append((row[key], row["at"]))
            running[row[key]] = row["id"]
        elif row["type"] in ("succeeded", "failed", "deferred_for_retry", "aborted"):
            running.pop(row[key], None)
    return found


@pytest.fixture
def databases(newest_cluster: Cluster) -> Iterator[list[Database]]:
    """Databases to back up; each has a table with a thousand rows."""
    every = [newest_cluster.create_database(f"fleet_{number}") for number in range(DATABASES)]
    try:
        for each in every:
            each.run_sql("CREATE TABLE t AS SELECT generate_series(1, 1000) AS n")
        yield every
    finally:
        for each in every:
            each.drop()


def dumped(server: Database) -> int:
    """Return how many databases are dumped now, according to their server."""
    return int(
        server.run_sql(
            "SELECT count(DISTINCT datname) FROM pg_stat_activity WHERE "
            "datname LIKE 'fleet_%' AND application_name = 'pg_dump'"
        )
    )


def break_something(
    workers: Workers, cluster: Cluster, proxy: TcpProxy, chance: random.Random
) -> str:
    """Break something for a moment, every second time; return what."""
    match chance.choice(["kill", "restart", "cut", "queue", "", "", "", ""]):
        case "kill":
            workers.kill(chance.randrange(3))
            return "kill"
        case "restart":
            workers.restart(chance.randrange(3))
            return "restart"
        case "cut":
            with cut(proxy, chance):
                time.sleep(chance.uniform(0.5, 2 * TIMEOUT))
            return "cut"
        case "queue":
            cluster.stop(signal.SIGQUIT)
            time.sleep(chance.uniform(0.1, TIMEOUT))
            cluster.start()
            return "queue"
    return "nothing"


@pytest.mark.long
def test_a_fleet_under_faults(
    tmp_path: Path, newest_cluster: Cluster, databases: list[Database]
) -> None:
    chance = random.Random(20260131)  # noqa: S311 - the same faults at each run
    (store := tmp_path / "store").mkdir()
    server = Database(newest_cluster, "postgres")
    broken: Counter[str] = Counter()
    most = 0
    with Cluster(newest_cluster.major) as cluster, TcpProxy(cluster.port) as proxy:
        queue = cluster.create_database("queue")
        env = environment(
            server.bin_dir,
            **backups.settings(server, store),
            DATABASES="fleet_*",
            QUEUE_URL=queue.uri.replace(f":{cluster.port}", f":{proxy.port}"),
            WORKERS="2",
            MAX_BACKUPS=str(AT_ONCE),
            BACKUP_INTERVAL=str(INTERVAL),
            WORKER_TIMEOUT=str(TIMEOUT),
            WORKER_GRACE="4",
            DUMP_JOBS="1",
        )
        assert run_pgstash(["queue", "migrate"], env).returncode == 0
        workers = Workers(env, tmp_path / "log")
        try:
            end = time.monotonic() + MINUTES * 60
            while (left := end - time.monotonic()) > 0:
                time.sleep(chance.uniform(0.5, 3))
                most = max(most, dumped(server))
                if left > FAULTS_END:
                    broken[break_something(workers, cluster, proxy, chance)] += 1
        finally:
            workers.stop()
        rows = histories(queue)

    assert broken.keys() == {"kill", "restart", "cut", "queue", "nothing"}
    assert "Unexpected error" not in (tmp_path / "log").read_text(errors="replace")
    assert most <= AT_ONCE
    assert overlaps(rows, "job") == []
    assert overlaps(rows, "lock") == []
    for database in databases:
        # None is lost: each has a backup from the time after the faults, and all of them are whole.
        found = backups.stored(store, f"{PREFIX}/{database.name}")
        made = [datetime.fromisoformat(each.manifest["started"]) for each in found]
        assert len(found) >= MINUTES // 2, database.name
        assert max(made) > rows[-1]["at"] - timedelta(seconds=FAULTS_END + INTERVAL), database.name
        assert all(b"PostgreSQL database dump complete" in each.script() for each in found)
        restored = newest_cluster.create_database(f"restored_{database.name}")
        try:
            found[-1].restore(restored)
            assert restored.run_sql("SELECT count(*) FROM t").strip() == "1000"
        finally:
            restored.drop()
