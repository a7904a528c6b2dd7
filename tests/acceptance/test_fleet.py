"""A fleet by its commands: workers that share a queue, die, stop, and are told what to do."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from support import backups
from support.backups import PREFIX
from support.cli import environment, program, run_pgstash, started_pgstash
from support.fake_tools import hangs, install_pg_dump
from support.postgres import Cluster, Database, free_port

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator

    from support.postgres import MakeDatabase

SECONDS = 120.0


def until(condition: Callable[[], object]) -> None:
    give_up = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.1)


class Fleet:
    """A database to back up, the queue, and what workers are started with."""

    def __init__(self, database: Database, queue: Database, store: Path) -> None:
        self.database = database
        self.queue = queue
        self.store = store
        self.env = environment(
            database.bin_dir,
            **backups.settings(Database(database.cluster, "postgres"), store),
            DATABASES=database.name,
            QUEUE_URL=queue.uri,
            WORKER_TIMEOUT="3",
            WORKER_GRACE="2",
            DUMP_JOBS="1",
        )

    def tell(self, *arguments: str, status: int = 0) -> str:
        done = run_pgstash(["queue", *arguments], self.env)
        assert done.returncode == status, done.stderr
        return done.stdout + done.stderr

    def runs(self) -> list[tuple[str, str, int]]:
        """The runs so far: job, status and attempts."""
        rows = self.queue.run_sql(
            "SELECT args->>'job', status, attempts FROM pgstash_queue.procrastinate_jobs "
            "ORDER BY id"
        )
        split = (line.split("|") for line in rows.splitlines())
        return [(job, status, int(attempts)) for job, status, attempts in split]

    def stored(self) -> int:
        folder = self.store / PREFIX / self.database.name
        return len(list(folder.glob("backup_????????_??????.sql.gz")))

    def lose_machine(self, worker: subprocess.Popen[str]) -> None:
        """Kill a worker, and the processes that run jobs for it: they go on otherwise."""
        ours = f"--job={self.database.name}".encode()
        os.kill(worker.pid, signal.SIGKILL)
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if ours in (folder / "cmdline").read_bytes().split(b"\0"):
                    os.killpg(int(folder.name), signal.SIGKILL)

    @contextlib.contextmanager
    def worker(self, *arguments: str, **more: str) -> Iterator[subprocess.Popen[str]]:
        with started_pgstash(["worker", *arguments], self.env | more) as process:
            yield process

    def hanging(self, folder: Path) -> dict[str, str]:
        """The variables of a worker whose pg_dump hangs."""
        tools = install_pg_dump(folder / "tools", hangs())
        return {"PATH": f"{tools}:{self.env['PATH']}"}


@pytest.fixture
def fleet(make_database: MakeDatabase, tmp_path: Path) -> Fleet:
    (store := tmp_path / "store").mkdir()
    made = Fleet(make_database(), make_database(), store)
    assert made.tell("migrate") == "Applied: schema\n"
    return made


def test_a_worker_from_start_to_end(fleet: Fleet) -> None:
    port = free_port()
    with fleet.worker(HEALTH_PORT=str(port)) as worker:
        until(lambda: [each[1:] for each in fleet.runs()] == [("succeeded", 1)])

        def facts() -> dict[str, Any]:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz") as answer:
                    return dict(json.load(answer))
            except urllib.error.HTTPError as error:
                return dict(json.load(error))

        until(lambda: facts()["status"] == "ready")
        assert (facts()["leads"], list(facts()["jobs"])) == (True, [fleet.database.name])
        shown = json.loads(fleet.tell("status", "--json"))
        assert [each["is_alive"] for each in shown["workers"]] == [True]
        worker.send_signal(signal.SIGTERM)
        out, err = worker.communicate(timeout=SECONDS)
    assert worker.returncode == -signal.SIGTERM, err
    assert "This worker plans the runs of all jobs" in out
    assert f"SUCCESS [{fleet.database.name}] Backup completed successfully" in out
    assert fleet.stored() == 1
    assert json.loads(fleet.tell("status", "--json"))["workers"] == []
    # The tables hold names and times, and no address.
    held = fleet.queue.run_sql("SELECT * FROM pgstash_queue.procrastinate_jobs")
    assert fleet.database.name in held
    assert str(fleet.database.cluster.port) not in held


def test_another_worker_takes_the_run_of_one_that_was_killed(fleet: Fleet, tmp_path: Path) -> None:
    with fleet.worker(**fleet.hanging(tmp_path)) as first:
        until(lambda: [each[1] for each in fleet.runs()] == ["doing"])
        fleet.lose_machine(first)
        with fleet.worker() as second:
            until(lambda: [each[1] for each in fleet.runs()][-1] == "succeeded")
            second.send_signal(signal.SIGTERM)
            out, err = second.communicate(timeout=SECONDS)
    assert f"The worker of the backup of {fleet.database.name} is dead: another one" in out + err
    assert fleet.stored() == 1


def test_a_worker_that_stops_hands_back_and_another_one_goes_on(
    fleet: Fleet, tmp_path: Path
) -> None:
    with fleet.worker(**fleet.hanging(tmp_path)) as first:
        until(lambda: [each[1] for each in fleet.runs()] == ["doing"])
        began = time.monotonic()
        first.send_signal(signal.SIGTERM)
        first.wait(timeout=SECONDS)
        assert time.monotonic() - began < 60
    assert [each[1:] for each in fleet.runs()] == [("todo", 1)]
    with fleet.worker("--label", "eu"):
        until(lambda: [each[1] for each in fleet.runs()] == ["succeeded"])
    assert fleet.stored() == 1


def test_cancelling_and_retrying_by_the_commands(fleet: Fleet, tmp_path: Path) -> None:
    with fleet.worker(**fleet.hanging(tmp_path)):
        until(lambda: [each[1] for each in fleet.runs()] == ["doing"])
        shown = fleet.tell("status")
        assert re.search(rf"^1 +{fleet.database.name} +backup +running ", shown, re.MULTILINE)
        assert fleet.tell("cancel", "1") == "1 run cancelled.\n"
        until(lambda: [each[1] for each in fleet.runs()] == ["aborted"])
    refused = fleet.tell("cancel", "1", "7", status=2)
    assert "1, 7: no run that waits or runs" in refused
    assert "0 runs cancelled" in refused
    assert "1: no failed run" in fleet.tell("retry", "1", status=2)
    assert fleet.tell("retry", "--failed") == "0 runs put into the queue again.\n"
    assert "give numbers of runs, or --failed" in fleet.tell("retry", status=2)
    assert fleet.stored() == 0


def test_a_queue_that_is_restarted(make_database: MakeDatabase, tmp_path: Path) -> None:
    (store := tmp_path / "store").mkdir()
    with Cluster(make_database().cluster.major) as cluster:
        fleet = Fleet(make_database(), cluster.create_database("queue"), store)
        fleet.tell("migrate")
        with fleet.worker(BACKUP_INTERVAL="60") as worker:
            until(lambda: [each[1] for each in fleet.runs()] == ["succeeded"])
            cluster.stop(signal.SIGQUIT)
            time.sleep(2)
            cluster.start()
            until(lambda: len(json.loads(fleet.tell("status", "--json"))["workers"]) == 1)
            until(lambda: fleet.queue.run_sql("SELECT 1 FROM pg_locks WHERE locktype = 'advisory'"))
            worker.send_signal(signal.SIGTERM)
            out, err = worker.communicate(timeout=SECONDS)
    assert "What runs goes on; the queue is tried again" in err
    assert out.count("This worker plans the runs of all jobs") == 2
    assert "The queue answers again" in out


def test_what_a_user_forgets(make_database: MakeDatabase, fleet: Fleet) -> None:
    unmigrated = fleet.env | {"QUEUE_URL": make_database().uri}
    for arguments in (["worker"], ["queue", "status"]):
        done = run_pgstash(arguments, unmigrated)
        assert done.returncode == 1
        assert "the database has no queue yet. Run `pgstash queue migrate`." in done.stderr
    without = ("import sys", "sys.modules['procrastinate'] = None")
    for arguments in (["worker"], ["queue", "status"]):
        done = run_pgstash(arguments, fleet.env, command=program(*without))
        assert done.returncode == 1
        assert "Run: pip install 'pgstash[fleet]'" in done.stderr
    done = run_pgstash(["backup"], fleet.env)
    assert done.returncode == 1
    assert "Start `pgstash worker` on each machine instead, or remove QUEUE_URL" in done.stderr
    away = fleet.env | {"QUEUE_URL": "postgresql://u:s3cret@127.0.0.1:1/queue"}
    done = run_pgstash(["worker"], away)
    assert done.returncode == 10
    assert "QUEUE_URL: the database cannot be reached" in done.stderr
    assert "s3cret" not in done.stdout + done.stderr


def test_labels_of_a_configuration_file(
    make_database: MakeDatabase, fleet: Fleet, tmp_path: Path
) -> None:
    """Only a worker near to a database backs it up."""
    near = make_database()
    config = tmp_path / "pgstash.toml"
    config.write_text(
        f"""
        [defaults]
        storage_url = "{fleet.store.as_uri()}"
        backup_encryption = false
        queue_url = {{ env = "QUEUE" }}
        [servers.one]
        database_url = {{ env = "ONE" }}
        databases = ["{fleet.database.name}", "{near.name}"]
        max_backups = 2
        [servers.one.database.{near.name}]
        labels = ["eu"]
        """
    )
    env = environment(
        near.bin_dir,
        ONE=fleet.database.uri,
        QUEUE=fleet.queue.uri,
        PGSTASH_CONFIG=str(config),
        WORKER_GRACE="2",
    )
    with started_pgstash(["worker"], env):
        until(lambda: {each[1] for each in fleet.runs()} == {"succeeded", "todo"})
        assert (f"one/{near.name}", "todo", 0) in fleet.runs()
        with started_pgstash(["worker", "--label", "eu"], env):
            until(lambda: {each[1] for each in fleet.runs()} == {"succeeded"})
    config.write_text(config.read_text().replace('["eu"]', '["EU West"]'))
    done = run_pgstash(["config", "check"], env)
    assert done.returncode == 1
    assert f"servers.one.database.{near.name}.labels must be at most 3 labels of 1 to 30" in (
        done.stderr
    )
