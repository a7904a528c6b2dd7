"""The service for many databases of a server for days, in minutes, while everything fails.

Databases appear and go, their names and encodings are odd, and processes are killed. At the end
each visible backup restores, and each database has the backups that the retention keeps.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pgstash import events, settings
from pgstash.commands import service_of_jobs
from pgstash.errors import Interrupted
from pgstash.format import names
from pgstash.format.folders import database_of, folder_of
from pgstash.processes.children import Children
from pgstash.prune import retention
from pgstash.runtime import Runtime, utc_now
from soak.test_soak import Around, Seen
from support import compressed_job
from support.backups import PREFIX
from support.cli import environment
from support.postgres import Database
from support.proxy import HttpProxy, TcpProxy

if TYPE_CHECKING:
    from support.postgres import Cluster, MakeDatabase
    from support.swift import SwiftServer

INTERVAL = timedelta(hours=7)
POLICY = retention.Policy(days=1, last=2, daily=2)
SETTINGS = {
    "BACKUP_INTERVAL": str(int(INTERVAL.total_seconds())),
    "BACKUP_RETENTION_DAYS": "1",
    "RETENTION_KEEP_LAST": "2",
    "RETENTION_KEEP_DAILY": "2",
    "RETRY_ATTEMPTS": "2",
    "RETRY_DELAY": "0.1",
    "S3_PART_SIZE": "5",
    "DUMP_JOBS": "1",
    "WORKERS": "2",
    "MAX_BACKUPS": "2",
}
CALM = 2 * INTERVAL
"""At the end nothing fails for so long: what is left is what the rules say."""
SHARE_OF_KILLS = 0.002  # for each look at the clock while something runs
STEP = timedelta(minutes=1)
ODD = {"-soak A/b'd\"e%f?g=h": "UTF8", "soakÜnï$(id)": "LATIN1", "soak\x1b[31m": "SQL_ASCII"}
INVALID, PLAIN, NEW, GONE = "soak invalid", "soak plain", "soak new", "soak gone"
DAYS = 3


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


@dataclass
class Server:
    """The server with its databases."""

    maintenance: Database
    made: list[str] = field(default_factory=list)

    def create(self, name: str, encoding: str = "UTF8") -> None:
        how = f"TEMPLATE template0 ENCODING '{encoding}' LOCALE 'C'"
        self.maintenance.run_sql(f"CREATE DATABASE {quoted(name)} {how}")
        self.made.append(name)
        Database(self.maintenance.cluster, name).run_sql("CREATE TABLE t AS SELECT 1 AS n")

    def drop(self, name: str) -> None:
        self.maintenance.run_sql(f"DROP DATABASE IF EXISTS {quoted(name)} WITH (FORCE)")


@pytest.fixture
def server(newest_cluster: Cluster) -> Iterator[Server]:
    server = Server(Database(newest_cluster, "postgres"))
    try:
        for name, encoding in ODD.items():
            server.create(name, encoding)
        server.create(GONE)
        server.create(INVALID)
        server.maintenance.run_sql(
            f"UPDATE pg_database SET datconnlimit = -2 WHERE datname = '{INVALID}'"
        )
        yield server
    finally:
        for name in server.made:
            server.drop(name)


@pytest.fixture
def around(server: Server, swift_server: SwiftServer) -> Iterator[Around]:
    with (
        HttpProxy(swift_server.port) as requests,
        TcpProxy(int(requests.endpoint.rpartition(":")[2])) as store,
        TcpProxy(server.maintenance.cluster.port) as before_database,
    ):
        around = Around(server.maintenance, before_database, store, requests)
        yield around
        around.mend()


class Story:
    """Lets the time pass while nothing runs, and something happen now and then."""

    def __init__(
        self,
        around: Around,
        server: Server,
        offset: Path,
        look: Callable[[], None],
    ) -> None:
        self.look = look
        self.around = around
        self.server = server
        self.offset = offset
        self.later = timedelta(0)
        self.start = utc_now()
        self.end = timedelta(days=DAYS)
        self.chance = random.Random(DAYS)  # noqa: S311 - the same story each time
        self.hour = -1
        self.kills = 0
        self.seen: list[events.Event] = []
        self._to_come = [
            (self.end / 4, lambda: server.create(NEW)),
            (self.end / 2, lambda: server.drop(GONE)),
        ]
        offset.write_text("0")

    def now(self) -> datetime:
        running = self._running()
        if running:
            if not self.is_calm and self.chance.random() < SHARE_OF_KILLS:
                self.kills += 1
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self.chance.choice(running), signal.SIGKILL)
        else:
            self._pass()
        return utc_now() + self.later

    @property
    def is_calm(self) -> bool:
        return self.later >= self.end - CALM

    def _pass(self) -> None:
        self.later += STEP
        self.offset.write_text(str(self.later.total_seconds()))
        if self.later >= self.end:
            raise Interrupted(signal.SIGTERM)
        if (hour := self.later // timedelta(hours=1)) > self.hour:
            self.hour = hour
            self.look()
            self.around.mend()
            if not self.is_calm:
                self.around.plant(self.chance)
        if self._to_come and self.later >= self._to_come[0][0]:
            self._to_come.pop(0)[1]()

    @staticmethod
    def _running() -> list[int]:
        found = []
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text()
        for pid in map(int, children.split()):
            with contextlib.suppress(OSError):
                if b"compressed_job" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    found.append(pid)
        return found


def backups_of(swift: SwiftServer, bucket: str) -> dict[str, set[Seen]]:
    """Return the visible archives by database."""
    found: dict[str, set[Seen]] = {}
    pages = swift.client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=PREFIX)
    for page in pages:
        for each in page.get("Contents", []):
            folder, _, name = each["Key"].removeprefix(f"{PREFIX}/").rpartition("/")
            if names.ARCHIVE_NAME.fullmatch(name):
                database = database_of(folder)
                assert database
                found.setdefault(database, set()).add(Seen(name, each["Size"]))
    return found


@pytest.mark.long
def test_soak_of_many_databases(  # noqa: PLR0917 - fixtures
    around: Around,
    server: Server,
    swift_server: SwiftServer,
    s3_bucket: str,
    make_database: MakeDatabase,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server.create(PLAIN)
    monkeypatch.chdir(tmp_path)
    env = environment(
        server.maintenance.bin_dir,
        DATABASE_URL=f"postgresql://admin@127.0.0.1:{around.database.port}/postgres",
        DATABASES="*soak*",
        S3_ENDPOINT=around.store.endpoint,
        S3_BUCKET=s3_bucket,
        S3_ACCESS_KEY_ID=swift_server.access_key_id,
        S3_SECRET_ACCESS_KEY=swift_server.secret_access_key,
        **{compressed_job.VARIABLE: str(tmp_path / "offset")},
        **SETTINGS,
    )
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(service_of_jobs, "LONGEST_NAP", 0.02)
    command = (sys.executable, compressed_job.__file__)
    monkeypatch.setattr(service_of_jobs, "Children", partial(Children, command=command))
    seen: dict[str, set[Seen]] = {}

    def look() -> None:
        for database, found in backups_of(swift_server, s3_bucket).items():
            seen.setdefault(database, set()).update(found)

    story = Story(around, server, tmp_path / "offset", look)
    with pytest.raises(Interrupted):
        service_of_jobs.serve(settings.load(), Runtime(story.seen.append, now=story.now))
    visible = backups_of(swift_server, s3_bucket)
    assert story.kills
    failed = [each for each in story.seen if "BackupFailed" in type(each).__name__]
    assert failed, "no fault did any harm"

    there = {*ODD, PLAIN, NEW, GONE}
    assert visible.keys() == there
    for database, found in visible.items():
        newest = max(each.started for each in found)
        every = found | seen.get(database, set())
        decisions = retention.decide(every, POLICY, newest)
        kept = {each.backup.name for each in decisions if each.keep}
        assert {each.name for each in found} == kept, database
        if database == GONE:
            assert newest < story.start + story.end / 2 + INTERVAL
        else:
            assert newest > story.start + story.end - CALM
    for database, found in visible.items():
        for each in found:
            key = f"{PREFIX}/{folder_of(database)}/{each.name}"
            body = swift_server.client.get_object(Bucket=s3_bucket, Key=key)["Body"].read()
            unpacked = subprocess.run(
                ["gunzip", "-c"], input=body, stdout=subprocess.PIPE, check=True
            ).stdout
            target = make_database(on=server.maintenance.cluster)
            target.run_sql(unpacked)
            assert target.run_sql("SELECT n FROM t").strip() == "1"
    assert any(re.search(INVALID, str(each)) for each in story.seen)
