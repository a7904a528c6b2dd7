"""The service for weeks, in minutes, with everything around it failing at random.

What happened is told by the store, by the log and by the webhook, and all three must agree.
"""

from __future__ import annotations

import contextlib
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Self

import pytest

from faults.scene import Bucket, complete_archives, wait_until
from pgstash.format import names
from pgstash.prune import retention
from support import compressed_service
from support.backups import PREFIX
from support.cli import NO_DOTENV, environment
from support.hooks import Receiver, receiving
from support.proxy import PASS, REFUSE, Action, Answer, Behaviour, Drop, HttpProxy, TcpProxy

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from support.postgres import Database, MakeDatabase
    from support.swift import SwiftServer

INTERVAL = timedelta(hours=3)
SWEEP_AFTER = timedelta(days=1)
POLICY = retention.Policy(days=2, last=5, daily=4)
SETTINGS = {
    "BACKUP_INTERVAL": str(int(INTERVAL.total_seconds())),
    "BACKUP_RETENTION_DAYS": "2",
    "RETENTION_KEEP_LAST": "5",
    "RETENTION_KEEP_DAILY": "4",
    "SWEEP_AFTER_DAYS": str(SWEEP_AFTER.days),
    "RETRY_ATTEMPTS": "2",
    "RETRY_DELAY": "0.1",
    "S3_PART_SIZE": "5",
}
SHARE_OF_FAULTS = 0.5
SHARE_OF_KILLS = 0.15
LONGEST_RUN = 120.0  # seconds of real time
SHORT_STALL = 2.0
ROOM_TO_GROW = 16 * 1024  # KiB
REPORTED = re.compile(
    r"(FAILURE|WARNING) Backup failed(?: again)? after [\d.]+s: (backup_\w+)\.sql\.gz: "
)


@dataclass
class Around:
    """What the service depends on, each part behind a proxy."""

    source: Database
    database: TcpProxy
    store: TcpProxy
    requests: HttpProxy
    later: threading.Timer = field(default_factory=lambda: threading.Timer(0, lambda: None))

    def plant(self, chance: random.Random) -> None:
        """Break something, every second time."""
        if chance.random() < SHARE_OF_FAULTS:
            chance.choice(FAULTS)(self, chance)

    def mend(self) -> None:
        self.later.cancel()
        self.database.behave(PASS)
        self.store.behave(PASS)
        self.requests.rules.clear()


def database_down(around: Around, _chance: random.Random) -> None:
    around.database.behave(REFUSE)


def database_lost(around: Around, chance: random.Random) -> None:
    around.database.behave(Behaviour(reset_after=chance.randint(1000, 1_500_000)))


def store_down(around: Around, _chance: random.Random) -> None:
    around.store.behave(REFUSE)


def store_lost(around: Around, chance: random.Random) -> None:
    behaviour = Behaviour(reset_after=chance.randint(500, 400_000))
    around.store.behave(PASS, next_connections=[behaviour] * chance.randint(1, 8))


def both_down(around: Around, _chance: random.Random) -> None:
    around.database.behave(REFUSE)
    around.store.behave(REFUSE)


def stall(around: Around, chance: random.Random) -> None:
    """Nothing moves for a while, and then it goes on, or the connection breaks."""
    proxy = chance.choice([around.database, around.store])
    after = Behaviour(stall_after=chance.randint(0, 300_000))
    then = chance.choice([PASS, REFUSE])
    proxy.behave(after)
    around.later = threading.Timer(SHORT_STALL, lambda: proxy.behave(then))
    around.later.start()


def slow_down(around: Around, chance: random.Random) -> None:
    """503, or a connection that breaks before or after the work was done: a few, or all."""
    operation = chance.choice(
        [
            "CreateMultipartUpload",
            "UploadPart",
            "ListParts",
            "PutObject",
            "HeadObject",
            "CompleteMultipartUpload",
            "AbortMultipartUpload",
            "ListObjectsV2",
            "DeleteObjects",
        ]
    )
    actions: list[Action] = [Answer(503, "SlowDown"), Drop(forward=True), Drop(forward=False)]
    around.requests.rule(
        operation,
        chance.choice(actions),
        skip=chance.choice([0, 0, 1]),
        times=chance.choice([1, 2, 100]),
    )


FAULTS = [
    database_down,
    database_lost,
    store_down,
    store_lost,
    both_down,
    stall,
    slow_down,
    slow_down,
    slow_down,
]


@dataclass
class Sample:
    """What the process holds after a run."""

    threads: int
    descriptors: int
    memory: int  # KiB


@dataclass
class Story:
    """What the service said of itself, run by run."""

    outcomes: Counter[str] = field(default_factory=Counter)
    cut_off: int = 0
    samples: list[Sample] = field(default_factory=list)
    now: datetime = field(default_factory=lambda: datetime.now(UTC))


class Service:
    """One process of the service, which waits before each run to be told."""

    def __init__(self, env: dict[str, str], log: Path, story: Story) -> None:
        self._story = story
        ours, theirs = socket.socketpair()
        ours.settimeout(LONGEST_RUN)
        self._control, self._lines = ours, ours.makefile("r")
        script = [sys.executable, compressed_service.__file__]
        with log.open("a") as output, theirs:
            self.process = subprocess.Popen(
                [*script, story.now.isoformat(), str(theirs.fileno())],
                env=env,
                cwd=NO_DOTENV,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=[theirs.fileno()],
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end(signal.SIGKILL)
        self._lines.close()
        self._control.close()

    def run(self) -> None:
        """Let one run happen, to its end."""
        self.begin()
        outcome, now = self._hear().split(" ")
        self._story.outcomes[outcome] += 1
        self._story.now = datetime.fromisoformat(now)
        self._story.samples.append(self.sample())

    def begin(self) -> None:
        assert self._hear() == "ready"
        self._control.sendall(b"!")

    def end(self, signum: int) -> None:
        self.process.send_signal(signum)
        self.process.wait(LONGEST_RUN)

    def sample(self) -> Sample:
        folder = Path(f"/proc/{self.process.pid}")
        status = dict(re.findall(r"(\w+):\s+(\d+)", (folder / "status").read_text()))
        descriptors = len(list((folder / "fd").iterdir()))
        return Sample(int(status["Threads"]), descriptors, int(status["VmRSS"]))

    def children(self) -> list[str]:
        tasks = Path(f"/proc/{self.process.pid}/task").glob("*/children")
        return [child for task in tasks for child in task.read_text().split()]

    def _hear(self) -> str:
        return self._lines.readline().strip()


@pytest.fixture
def around(make_database: MakeDatabase, swift_server: SwiftServer) -> Iterator[Around]:
    database = make_database("mixed")
    database.run_sql("CREATE TABLE runs (number integer)")
    with (
        HttpProxy(swift_server.port) as requests,
        TcpProxy(int(requests.endpoint.rpartition(":")[2])) as store,
        TcpProxy(database.cluster.port) as before_database,
    ):
        around = Around(database, before_database, store, requests)
        yield around
        around.mend()


@pytest.mark.long
@pytest.mark.parametrize(
    ("runs", "calm"),
    [(16, 8), (200, 100)],
    ids=["days", "weeks"],
)
def test_soak(  # noqa: PLR0917 - fixtures
    runs: int,
    calm: int,
    around: Around,
    swift_server: SwiftServer,
    s3_bucket: str,
    make_database: MakeDatabase,
    tmp_path: Path,
) -> None:
    """``runs`` runs, of which the last ``calm`` are in one process that nobody kills."""
    log, story, seen = tmp_path / "log", Story(), set[Seen]()
    bucket = Bucket(swift_server.client, s3_bucket, {})
    chance = random.Random(runs)  # noqa: S311 - the same story each time
    with receiving() as receiver, contextlib.ExitStack() as services:
        env = environment(
            around.source.bin_dir,
            DATABASE_URL=f"postgresql://admin@127.0.0.1:{around.database.port}/{around.source.name}",
            S3_ENDPOINT=around.store.endpoint,
            S3_BUCKET=s3_bucket,
            S3_ACCESS_KEY_ID=swift_server.access_key_id,
            S3_SECRET_ACCESS_KEY=swift_server.secret_access_key,
            WEBHOOK_URL=receiver.url("/hook"),
            WEBHOOK_ON_SUCCESS="true",
            **SETTINGS,
        )
        service = services.enter_context(Service(env, log, story))
        for number in range(runs):
            around.source.run_sql(f"INSERT INTO runs VALUES ({number})")
            around.plant(chance)
            if number < runs - calm and chance.random() < SHARE_OF_KILLS:
                service.begin()
                time.sleep(chance.uniform(0.0, 1.0))
                service.end(chance.choice([signal.SIGKILL, signal.SIGTERM]))
                story.cut_off += 1
                story.now += INTERVAL
                service = services.enter_context(Service(env, log, story))
            else:
                service.run()
            around.mend()
            seen |= visible(bucket)
        # The last run meets no fault, so that what it leaves is what the rules say.
        service.run()
        seen |= visible(bucket)
        told = log.read_text()

        assert_told_once(story, told, receiver)
        assert_kept_by_the_policy(bucket, seen, story.now)
        assert_nothing_left_over(bucket, around.source, service, story.now)
        assert_no_growth(story.samples[-calm:], service)
    assert_all_restore(bucket, around.source, make_database)


@dataclass(frozen=True)
class Seen:
    """An archive that was once visible; what a rule of the retention looks at."""

    name: str
    size: int

    @property
    def started(self) -> datetime:
        started = names.started_of(self.name.partition(".")[0])
        assert started
        return started

    @property
    def proven(self) -> datetime | None:
        return None  # nothing is drilled here


def visible(bucket: Bucket) -> set[Seen]:
    listed = bucket.client.list_objects_v2(Bucket=bucket.name, Prefix=f"{PREFIX}/backup_")
    found = ((each["Key"].rpartition("/")[2], each["Size"]) for each in listed.get("Contents", []))
    return {Seen(name, size) for name, size in found if names.ARCHIVE_NAME.fullmatch(name)}


def assert_told_once(story: Story, log: str, receiver: Receiver) -> None:
    """Every run that failed is told once in the log, and none that succeeded.

    The webhook is told of each but of those that failed again for the same reason.
    """
    failed = sum(story.outcomes.values()) - story.outcomes["success"]
    assert failed, "no fault did any harm"
    reported = REPORTED.findall(log)
    names = Counter(name for _, name in reported)
    repeated = sum(level == "WARNING" for level, _ in reported)
    # One that was cut off may have had the name of the next: its time was not told any more.
    assert names.total() - len(names) <= story.cut_off
    assert failed <= len(names) <= failed + story.cut_off
    assert "Unexpected error" not in log
    assert "Traceback" not in log

    posts = [each.json for each in receiver.received if each.target == "/hook"]
    told = Counter((post["status"], post["extra"]["backup"]) for post in posts)
    for (status, backup), times in told.items():
        # As often as the log: see above.
        assert times <= (names[backup.partition(".")[0]] if status == "failure" else 1), backup
    failures = [backup for status, backup in told if status == "failure"]
    assert len(names) - story.cut_off <= len(failures) + repeated <= len(names) + story.cut_off
    successes = len(told) - len(failures)
    assert story.outcomes["success"] - story.cut_off <= successes
    assert successes <= story.outcomes["success"] + story.cut_off


def assert_kept_by_the_policy(bucket: Bucket, seen: set[Seen], now: datetime) -> None:
    decisions = retention.decide(seen, POLICY, now)
    kept = {decision.backup.name for decision in decisions if decision.keep}
    assert {each.name for each in visible(bucket)} == kept
    assert len(kept) < len(seen) or len(seen) < 30, "nothing was ever removed"


def assert_nothing_left_over(
    bucket: Bucket, source: Database, service: Service, now: datetime
) -> None:
    archives = {each.name.partition(".")[0] for each in visible(bucket)}
    keys = [key.rpartition("/")[2] for key in bucket.names()]
    orphans = [key for key in keys if key.partition(".")[0] not in archives]
    assert orphans == []
    companions = Counter(key.partition(".")[0] for key in keys)
    assert set(companions.values()) == {5}, "an archive and its four companions"
    uploads = bucket.client.list_multipart_uploads(Bucket=bucket.name).get("Uploads", [])
    begun = [Seen(each["Key"].rpartition("/")[2], 0) for each in uploads]
    overdue = [each.name for each in begun if now - each.started > SWEEP_AFTER + INTERVAL]
    assert overdue == []
    assert service.children() == []

    def sessions() -> str:
        others = "datname = current_database() AND pid <> pg_backend_pid()"
        return source.run_sql(f"SELECT count(*) FROM pg_stat_activity WHERE {others}").strip()

    wait_until(lambda: sessions() == "0", "no session of a backup is left")


def assert_no_growth(samples: Sequence[Sample], service: Service) -> None:
    """What the last process holds after its last run is no more than after its first few."""
    early = samples[: len(samples) // 4]
    wait_until(
        lambda: service.sample().threads <= max(each.threads for each in early),
        "no thread is left",
        patience=LONGEST_RUN,
    )
    last = service.sample()
    assert last.descriptors <= max(each.descriptors for each in early)
    assert last.memory <= max(each.memory for each in early) + ROOM_TO_GROW


def assert_all_restore(bucket: Bucket, source: Database, make_database: MakeDatabase) -> None:
    archives = complete_archives(bucket)
    for key in archives:
        target = make_database(on=source.cluster)
        script = subprocess.run(
            ["gunzip", "-c"], input=bucket.get(key), stdout=subprocess.PIPE, check=True
        ).stdout
        target.run_sql(script)
        runs = target.run_sql("SELECT count(*), max(number) FROM runs").strip()
        rows, _, newest = runs.partition("|")
        assert int(rows) == int(newest) + 1, "a run's row is missing"
        target.drop()
