"""All databases of a server: backed up once, and by the service, each in a process of its own."""

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
from typing import TYPE_CHECKING

import pytest

from support import backups
from support.backups import PREFIX
from support.cli import environment, program, run_pgstash, started_pgstash
from support.fake_tools import MIB, dies_midway, hangs, install_pg_dump
from support.hooks import receiving
from support.postgres import Database, free_port

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator, Sequence

    from support.postgres import Cluster, MakeDatabase
    from support.swift import SwiftServer

SECONDS = 120.0
"""A service lists the databases each second in these tests, instead of every 15 minutes."""
OFTEN = (
    "from datetime import timedelta",
    "from pgstash.commands import service_of_jobs",
    "service_of_jobs.LISTING = timedelta(seconds=1)",
)


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


@pytest.fixture
def hostile(newest_cluster: Cluster) -> Iterator[list[Database]]:
    """Names that break shells, URIs and logs, in three encodings; the last is invalid."""
    server = Database(newest_cluster, "postgres")
    made = {
        "-x A/b'd\"e%f?g=h": "UTF8",
        "xÜnï$(id)": "LATIN1",
        "x\x1b[31m": "SQL_ASCII",
        "xinvalid": "UTF8",
    }
    try:
        for name, encoding in made.items():
            how = f"TEMPLATE template0 ENCODING '{encoding}' LOCALE 'C'"
            server.run_sql(f"CREATE DATABASE {quoted(name)} {how}")
        databases = [Database(newest_cluster, name) for name in made]
        for each in databases:
            each.run_sql("CREATE TABLE t AS SELECT 1 AS n")
        server.run_sql("UPDATE pg_database SET datconnlimit = -2 WHERE datname = 'xinvalid'")
        yield databases
    finally:
        for name in made:
            server.run_sql(f"DROP DATABASE IF EXISTS {quoted(name)} WITH (FORCE)")


def prefixes(store: Path) -> dict[str, int]:
    """Return how many backups each folder has."""
    return {
        folder.name: len(list(folder.glob("backup_????????_??????.sql.gz")))
        for folder in (store / PREFIX).glob("*")
    }


def test_once_backs_up_all_and_names_those_that_failed(
    make_database: MakeDatabase, tmp_path: Path
) -> None:
    well, lacking = make_database(), make_database()
    well.run_sql("CREATE TABLE t AS SELECT 1 AS n")
    server = Database(well.cluster, "postgres")
    env = environment(
        server.bin_dir,
        **backups.settings(server, tmp_path),
        DATABASES=f"{well.name},{lacking.name},no_such_database",
        REQUIRE_TABLES="t",
        WORKERS="2",
        MAX_BACKUPS="2",
    )
    done = run_pgstash(["once"], env)
    assert done.returncode == 53
    assert prefixes(tmp_path)[well.name] == 1
    [summary] = re.findall(r"FAILURE 2 of 3 jobs failed\n(?:  .*\n)*", done.stderr)
    assert "  no_such_database: the server has no such database" in summary
    why = r"REQUIRE_TABLES is not met: .*\bt does not exist in the database"
    assert re.search(rf"  {lacking.name}: exit status 51: {why}\n", summary)
    assert re.search(rf"SUCCESS \[{well.name}\] Backup completed", done.stdout)
    assert re.search(rf"FAILURE \[{lacking.name}\] Backup failed", done.stderr)

    done = run_pgstash(["once"], env | {"DATABASES": well.name, "LOG_FORMAT": "json"})
    assert (done.returncode, done.stderr) == (0, "")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert {line.get("job") for line in lines} == {well.name, None}
    assert lines[-1]["message"] == "All jobs succeeded: 1 backup"
    assert prefixes(tmp_path)[well.name] == 2


def test_once_without_any_database_or_server(make_database: MakeDatabase, tmp_path: Path) -> None:
    database = make_database()
    env = environment(database.bin_dir, **backups.settings(database, tmp_path), DATABASES="no*")
    done = run_pgstash(["once"], env)
    assert done.returncode == 53
    assert "DATABASES=no* selects no database of the server" in done.stderr
    done = run_pgstash(["once"], env | {"DATABASE_URL": "postgresql://u:p@127.0.0.1:1/x"})
    assert done.returncode == 10
    assert "FAILURE Backup failed" in done.stderr


@pytest.mark.long
def test_servers_of_a_configuration_file(make_database: MakeDatabase, tmp_path: Path) -> None:
    """Each is backed up below its own folder; one that does not answer counts as a failure."""
    database = make_database()
    (store := tmp_path / "store").mkdir()
    config = tmp_path / "pgstash.toml"
    config.write_text(
        f"""
        [defaults]
        storage_url = "{store.as_uri()}"
        backup_encryption = false
        [servers.one]
        database_url = {{ env = "ONE" }}
        databases = ["{database.name}"]
        [servers.two]
        database_url = {{ env = "ONE" }}
        [servers.away]
        database_url = "postgresql://u@127.0.0.1:1/x"
        databases = ["*"]
        """
    )
    env = environment(database.bin_dir, ONE=database.uri, PGSTASH_CONFIG=str(config))
    done = run_pgstash(["once"], env)
    assert done.returncode == 53
    [summary] = re.findall(r"FAILURE 1 of 3 jobs failed\n(?:  .*\n)*", done.stderr)
    assert "  away/*: the database cannot be reached" in summary
    assert "Backup failed after 0.0s: all databases of away: " in done.stderr
    for server in ("one", "two"):
        assert f"SUCCESS [{server}/{database.name}] Backup completed" in done.stdout
    assert len(list(store.rglob("backup_????????_??????.sql.gz"))) == 2

    port = free_port()
    with serving(env | {"HEALTH_PORT": str(port)}, tmp_path) as (_, log):
        log.wait_for(r"FAILURE Backup failed .*: all databases of away: ")
        log.wait_for(r"INFO 2 databases to back up: 0 due now, the next one at ")
        ready = ask(port)
        assert (ready["status"], ready["not_ready"]) == ("not ready", 1)
        found = ready["jobs"]
        assert isinstance(found, dict)
        assert found["all databases of away"]["status"] == "unavailable"


def test_the_password_may_be_in_a_file(make_database: MakeDatabase, tmp_path: Path) -> None:
    """Each process reads it for itself, and takes no other for it."""
    database = make_database()
    cluster = database.cluster
    (store := tmp_path / "store").mkdir()
    (password := tmp_path / "password").write_text(cluster.password or "any")
    values = backups.settings(database, store)
    del values["DATABASE_URL"]
    env = environment(
        database.bin_dir,
        **values,
        PGHOST=cluster.host,
        PGPORT=str(cluster.port),
        PGUSER=cluster.user,
        PGPASSWORD_FILE=str(password),
        DATABASES=database.name,
    )
    done = run_pgstash(["once"], env)
    assert done.returncode == 0, done.stderr


class Log:
    """The log of a service, as it comes."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def wait_for(self, pattern: str, seconds: float = SECONDS) -> str:
        give_up = time.monotonic() + seconds
        while time.monotonic() < give_up:
            text = self.path.read_text(errors="replace")
            if found := re.search(pattern, text, re.MULTILINE):
                return found[0]
            time.sleep(0.1)
        raise AssertionError(f"never said: {pattern}\n{self.path.read_text(errors='replace')}")


@contextlib.contextmanager
def serving(
    env: dict[str, str], folder: Path, statements: Sequence[str] = OFTEN
) -> Iterator[tuple[subprocess.Popen[str], Log]]:
    """Run the service; its log goes to a file, as its children write to it too."""
    path = folder / "log"
    shell = ["sh", "-c", f'exec "$@" > {path} 2>&1', "sh", *program(*statements)]
    path.touch()
    with started_pgstash(["backup"], env, command=shell) as process:
        try:
            yield process, Log(path)
        finally:
            process.terminate()
            process.wait(SECONDS)


def test_the_service_backs_up_what_comes_and_goes(hostile: list[Database], tmp_path: Path) -> None:
    (store := tmp_path / "store").mkdir()
    server = Database(hostile[0].cluster, "postgres")
    port = free_port()
    env = environment(
        server.bin_dir,
        **backups.settings(server, store),
        DATABASES="-x*,x*",
        HEALTH_PORT=str(port),
        WORKERS="2",
        MAX_BACKUPS="2",
    )
    with serving(env, tmp_path) as (process, log):
        log.wait_for(r"WARNING Not backed up: xinvalid\. Reason: an interrupted DROP DATABASE")
        log.wait_for(r"INFO 3 databases to back up: 3 due now")
        for number in range(1, 4):
            log.wait_for(rf"(?:SUCCESS \[.*\] Backup completed(?:.|\n)*){{{number}}}")
        assert sorted(prefixes(store).values()) == [1, 1, 1]
        give_up = time.monotonic() + SECONDS
        while (ready := ask(port))["status"] != "ready" and time.monotonic() < give_up:
            time.sleep(0.1)  # a process ends a moment after its last line
        assert ready["status"] == "ready"
        jobs = ready["jobs"]
        assert isinstance(jobs, dict)
        assert set(jobs) == {each.name for each in hostile[:3]}

        server.run_sql("CREATE DATABASE xnew")
        try:
            log.wait_for(r"INFO New databases, backed up now: xnew$")
            log.wait_for(r"SUCCESS \[xnew\] Backup completed")
        finally:
            server.run_sql("DROP DATABASE xnew WITH (FORCE)")
        gone = log.wait_for(r"WARNING Not backed up any more, .*: xnew\. .*")
        time.sleep(2.5)  # two more listings
        text = log.path.read_text(errors="replace")
        assert text.count(gone) == 1
        assert text.count("Not backed up: xinvalid") == 1
        assert "\x1b" not in text
        sessions = server.run_sql(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'pgstash%'"
        )
        assert sessions.strip() == "0"
        process.send_signal(signal.SIGTERM)
        assert process.wait(SECONDS) == -signal.SIGTERM

    # What is in the store decides after a restart.
    with serving(env, tmp_path) as (process, log):
        log.wait_for(r"INFO 3 databases to back up: 0 due now, the next one at ")
    assert sum(prefixes(store).values()) == 4


def test_the_service_follows_its_configuration_file(
    make_database: MakeDatabase, tmp_path: Path
) -> None:
    """A broken edit changes nothing, and a job that starts meanwhile runs by the file before it."""
    first, second = make_database(), make_database()
    server = Database(first.cluster, "postgres")
    (store := tmp_path / "store").mkdir()
    config = tmp_path / "pgstash.toml"

    def describe(more: str, *databases: str) -> None:
        config.write_text(
            f"""
            {more}
            [defaults]
            storage_url = "{store.as_uri()}"
            backup_encryption = false
            [servers.one]
            database_url = {{ env = "ONE" }}
            databases = {json.dumps(databases)}
            """
        )

    describe("", first.name, "reload_*")
    env = environment(server.bin_dir, ONE=server.uri, PGSTASH_CONFIG=str(config))
    with serving(env, tmp_path) as (process, log):
        log.wait_for(rf"SUCCESS \[one/{first.name}\] Backup completed")
        describe("[unknown]\n[more", second.name)
        process.send_signal(signal.SIGHUP)
        refused = r"FAILURE Backup failed after 0.0s: the configuration file: it is not read again"
        log.wait_for(refused)
        server.run_sql("CREATE DATABASE reload_new")
        try:
            log.wait_for(r"SUCCESS \[one/reload_new\] Backup completed")
            describe("[unknown]", second.name)
            process.send_signal(signal.SIGHUP)
            log.wait_for(rf"(?:{refused}(?:.|\n)*){{2}}")
            assert "Not backed up any more" not in log.path.read_text()
            describe("", second.name)
            log.wait_for(rf"INFO New databases, backed up now: one/{second.name}$")
        finally:
            server.run_sql("DROP DATABASE reload_new WITH (FORCE)")
        log.wait_for(rf"SUCCESS \[one/{second.name}\] Backup completed")
        gone = rf"one/({first.name}, one/reload_new|reload_new, one/{first.name})"
        log.wait_for(rf"WARNING Not backed up any more, as the configuration file .*: {gone}\. ")
        process.send_signal(signal.SIGTERM)
        assert process.wait(SECONDS) == -signal.SIGTERM
    assert len(list(store.rglob("backup_????????_??????.sql.gz"))) == 3


def ask(port: int) -> dict[str, object]:
    url = f"http://127.0.0.1:{port}/readyz"
    try:
        with urllib.request.urlopen(url, timeout=30) as answer:
            found: dict[str, object] = json.load(answer)
    except urllib.error.HTTPError as error:
        found = json.load(error)
    return found


def children_of(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(each) for each in text.split()]


def test_a_child_that_is_killed_and_a_signal_in_the_middle(
    make_database: MakeDatabase, tmp_path: Path
) -> None:
    """The rest goes on; at the end nothing is left, neither a process nor half a backup."""
    made = [make_database() for _ in range(3)]
    (store := tmp_path / "store").mkdir()
    server = Database(made[0].cluster, "postgres")
    env = environment(
        install_pg_dump(tmp_path / "bin", hangs()),
        server.bin_dir,
        **backups.settings(server, store),
        DATABASES=",".join(each.name for each in made),
        WORKERS="2",
        MAX_BACKUPS="2",
        DUMP_JOBS="1",
    )
    with serving(env, tmp_path) as (process, log):
        log.wait_for(r"(?:Uploading(?:.|\n)*){2}")
        first = children_of(process.pid)
        assert len(first) == 2
        of_first = children_of(first[0])
        os.kill(first[0], signal.SIGKILL)
        for pid in of_first:  # this one hangs; pg_dump ends when nobody reads what it writes
            os.kill(pid, signal.SIGKILL)
        log.wait_for(r"FAILURE Backup failed after .*: .*: the process was ended by SIGKILL")
        log.wait_for(r"INFO The backup of .* failed; next attempt at ")
        log.wait_for(r"(?:Uploading(?:.|\n)*){3}")
        running = children_of(process.pid)
        assert len(running) == 2
        assert first[1] in running
        process.send_signal(signal.SIGTERM)
        assert process.wait(SECONDS) == -signal.SIGTERM
    assert not any(Path(f"/proc/{pid}").exists() for pid in running)
    assert not any(prefixes(store).values())


@pytest.mark.long
def test_an_outage_is_posted_once_for_each_database(
    make_database: MakeDatabase, tmp_path: Path
) -> None:
    """Its messages have the time of the next attempt, although another process makes that."""
    database = make_database()
    (store := tmp_path / "store").mkdir()
    server = Database(database.cluster, "postgres")
    soon = (
        "from datetime import timedelta",
        "from pgstash.service import retries",
        "retries.FIRST_DELAY = timedelta(seconds=1)",
    )
    with receiving() as receiver:
        env = environment(
            install_pg_dump(tmp_path / "bin", dies_midway(size=MIB)),
            server.bin_dir,
            **backups.settings(server, store),
            DATABASES=database.name,
            DUMP_JOBS="1",
            WEBHOOK_URL=receiver.url("/hook"),
            HEALTHCHECK_PING_URL=receiver.url("/ping/{job}"),
        )
        with serving(env, tmp_path, soon) as (_, log):
            log.wait_for(rf"FAILURE \[{database.name}\] Backup failed after")
            log.wait_for(rf"WARNING \[{database.name}\] Backup failed again after")
        [post] = [each for each in receiver.received if each.target == "/hook"]
        assert post.json["database"]["name"] == database.name
        assert post.json["extra"]["next_attempt"]
        assert receiver.targets.count(f"/ping/{database.name}/fail") >= 2
    assert not any(prefixes(store).values())


@pytest.mark.long
def test_drills_follow_backups(make_database: MakeDatabase, tmp_path: Path, scratch: Path) -> None:
    """One that fails makes the service unready, and concerns no other database."""
    well, empty = make_database(), make_database()
    well.run_sql("CREATE TABLE t AS SELECT 1 AS n")
    (store := tmp_path / "store").mkdir()
    port = free_port()
    env = environment(
        well.bin_dir,
        **backups.settings(Database(well.cluster, "postgres"), store),
        DATABASES=f"{well.name},{empty.name}",
        HEALTH_PORT=str(port),
        VERIFY_INTERVAL="86400",
        MIN_TABLE_COUNT="1",
        TMPDIR=str(scratch),
    )
    with serving(env, tmp_path) as (_, log):
        log.wait_for(rf"SUCCESS \[{well.name}\] Drill passed")
        log.wait_for(rf"FAILURE \[{empty.name}\] Drill failed")
        log.wait_for(rf"INFO The drill of {empty.name} failed with exit status 42$")
        jobs = ask(port)["jobs"]
        assert isinstance(jobs, dict)
        assert jobs[empty.name]["status"] == "drill failed"
        assert jobs[empty.name]["last_failed_drill"]["status"] == 42
        assert jobs[well.name]["status"] == "ready"
    # The proof is found in the store, so only the other one has a drill to come.
    with serving(env | {"BACKUP_ON_START": "true"}, tmp_path) as (_, log):
        log.wait_for(rf"SUCCESS \[{well.name}\] Backup completed")
        log.wait_for(rf"FAILURE \[{empty.name}\] Drill failed")
        proofs = list((store / PREFIX / well.name).glob("backup_*.proof_*"))
    assert len(proofs) == 1


@pytest.mark.long
def test_the_memory_of_an_idle_service(
    make_database: MakeDatabase, swift_server: SwiftServer, s3_bucket: str, tmp_path: Path
) -> None:
    """Five hundred databases, each looked up in a store of S3; one runs at a time."""
    database = make_database()
    env = environment(
        database.bin_dir,
        DATABASE_URL=database.uri,
        DATABASES="*",
        WORKERS="1",
        S3_ENDPOINT=swift_server.endpoint,
        S3_BUCKET=s3_bucket,
        S3_ACCESS_KEY_ID=swift_server.access_key_id,
        S3_SECRET_ACCESS_KEY=swift_server.secret_access_key,
    )
    many = (
        "from pgstash.postgres.server import databases",
        "names = [f'database{number}' for number in range(500)]",
        "databases.listed = lambda *_: databases.Databases(names, [], [], [], None)",
    )
    with serving(env, tmp_path, many) as (process, log):
        log.wait_for(r"INFO 500 databases to back up: 500 due now", 600)
        log.wait_for(r"INFO The backup of \w+ failed")  # the server has none of them
        status = Path(f"/proc/{process.pid}/status").read_text()
    [kib] = re.findall(r"VmRSS:\s+(\d+) kB", status)
    assert int(kib) < 128 * 1024
