"""The service as a container runs it: started, signalled, told on; and several side by side."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pgstash import events, settings
from pgstash.commands.backup import back_up
from pgstash.commands.notifications import listening
from pgstash.commands.service import first_run
from pgstash.errors import Interrupted
from pgstash.monitoring import log
from pgstash.monitoring.redaction import Scrubber
from pgstash.runtime import Runtime
from pgstash.service import loop
from pgstash.service.retries import AFTER_FAILURE, Retries
from pgstash.service.schedule import Interval
from support.backups import settings as local
from support.backups import stored
from support.cli import COMMAND, environment, run_pgstash, started_pgstash
from support.clock import START, FakeClock
from support.fake_tools import FakePgDump, hangs, install_pg_dump
from support.hooks import Receiver, receiving
from support.postgres import Database, MakeDatabase
from support.swift import SwiftServer
from support.tiers import later

SIGNALS = [signal.SIGTERM, signal.SIGINT]
ABORT_SECONDS = 10  # what a container has; 5 are promised, on a machine that is not too busy


def read_until(process: subprocess.Popen[str], pattern: str) -> str:
    """Return the log up to the first line that matches."""
    assert process.stdout
    seen = ""
    for line in process.stdout:
        seen += line
        if re.search(pattern, line):
            return seen
    raise AssertionError(f"never said: {pattern}\n{seen}{process.stderr and process.stderr.read()}")


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


@pytest.mark.parametrize("signum", later(SIGNALS, signal.SIGINT))
def test_a_signal_while_it_waits_ends_it_at_once(
    signum: int, make_database: MakeDatabase, tmp_path: Path
) -> None:
    database = make_database("mixed")
    env = environment(database.bin_dir, **local(database, tmp_path), BACKUP_INTERVAL="60")
    with started_pgstash(["backup"], env, command=(COMMAND,)) as process:
        log = read_until(process, "Next run at")
        process.send_signal(signum)
        began = time.monotonic()
        out, errors = process.communicate(timeout=30)
        assert time.monotonic() - began < ABORT_SECONDS
    assert process.returncode == -signum
    assert (out, errors) == ("", "")
    assert re.search(r"INFO Iteration 1$", log, re.MULTILINE)
    assert re.search(
        r"INFO Next run at \d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ \(in (\d+s|1m)\)$", log, re.MULTILINE
    )
    assert len(stored(tmp_path)) == 1


@pytest.mark.parametrize(
    "answers",
    [
        pytest.param(True, id="webhook answers", marks=pytest.mark.long),
        pytest.param(False, id="webhook hangs"),
    ],
)
@pytest.mark.parametrize("signum", SIGNALS)
def test_a_signal_during_a_backup_aborts_it(  # noqa: PLR0917 - fixtures
    signum: int,
    answers: bool,  # noqa: FBT001 - parameter
    make_database: MakeDatabase,
    swift_server: SwiftServer,
    s3_bucket: str,
    tmp_path: Path,
    receiver: Receiver,
) -> None:
    receiver.silence = 0 if answers else 60
    env = environment(
        install_pg_dump(tmp_path / "bin", hangs(20 * 1024 * 1024)),
        **to_swift(make_database(), swift_server, s3_bucket),
        WEBHOOK_URL=receiver.url("/hook"),
        HEALTHCHECK_PING_URL=receiver.url("/ping"),
    )
    with started_pgstash(["backup"], env) as process:
        read_until(process, "Uploading")
        time.sleep(0.5)
        process.send_signal(signum)
        began = time.monotonic()
        _, errors = process.communicate(timeout=30)
        assert time.monotonic() - began < ABORT_SECONDS
    assert process.returncode == -signum
    assert "FAILURE Backup failed" in errors
    client = swift_server.client
    stored = client.list_objects_v2(Bucket=s3_bucket).get("Contents", [])
    assert [each["Key"] for each in stored if ".failure.json" not in each["Key"]] == []
    assert "Uploads" not in client.list_multipart_uploads(Bucket=s3_bucket)
    if answers:
        assert sorted(receiver.targets) == ["/hook", "/ping/fail", "/ping/start"]
        [post] = [each for each in receiver.received if each.target == "/hook"]
        assert post.json["extra"]["exit_code"] == 128 + signum
    else:
        assert "was not delivered before the command ended" in errors


def test_the_first_process_of_a_container_ends_with_the_signals_status(tmp_path: Path) -> None:
    """Linux keeps from process 1 what it does not handle: it cannot end by a signal."""
    namespace = ["unshare", "--user", "--map-root-user", "--pid", "--fork"]
    if subprocess.run([*namespace, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no namespaces here")
    env = environment(DATABASE_URL="postgresql://u:p@127.0.0.1:1/x", STORAGE_URL=tmp_path.as_uri())
    with subprocess.Popen(
        [*namespace, COMMAND, "backup"],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        read_until(process, "Next run at")
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
        os.kill(int(children), signal.SIGTERM)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGTERM
    assert "Traceback" not in errors


def to_swift(
    database: Database, server: SwiftServer, bucket: str, prefix: str = "backups"
) -> dict[str, str]:
    return {
        "DATABASE_URL": database.uri,
        "S3_ENDPOINT": server.endpoint,
        "S3_BUCKET": bucket,
        "S3_ACCESS_KEY_ID": server.access_key_id,
        "S3_SECRET_ACCESS_KEY": server.secret_access_key,
        "BACKUP_PREFIX": prefix,
        "RETRY_DELAY": "0.1",
    }


def test_a_service_that_fails_goes_on(tmp_path: Path) -> None:
    env = environment(DATABASE_URL="postgresql://u:p@127.0.0.1:1/x", STORAGE_URL=tmp_path.as_uri())
    with started_pgstash(["backup"], env) as process:
        read_until(process, "Next run at")
        process.terminate()
        _, errors = process.communicate(timeout=30)
    assert process.returncode == -signal.SIGTERM
    assert "FAILURE Backup failed" in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"BACKUP_SCHEDULE": "61 * * * *"}, "BACKUP_SCHEDULE"),
        ({"BACKUP_SCHEDULE": "0 3 * * *", "TZ": "Mars/Olympus"}, "TZ"),
        ({"BACKUP_INTERVAL": "59"}, "BACKUP_INTERVAL"),
        ({"HEALTHCHECK_PING_URL": "planted"}, "HEALTHCHECK_PING_URL"),
    ],
)
def test_a_setting_that_is_wrong_ends_it_with_1(
    values: dict[str, str], named: str, tmp_path: Path
) -> None:
    env = environment(DATABASE_URL="postgresql://h/d", STORAGE_URL=tmp_path.as_uri(), **values)
    done = run_pgstash(["backup"], env | values)
    assert done.returncode == 1
    assert re.search(rf"ERROR {named} ", done.stderr)
    assert "planted" not in done.stderr


def test_a_schedule_is_heard(make_database: MakeDatabase, tmp_path: Path) -> None:
    database = make_database("mixed")
    env = environment(
        database.bin_dir,
        **local(database, tmp_path),
        BACKUP_SCHEDULE="0 0 1 1 *",
        BACKUP_INTERVAL="60",
    )
    with started_pgstash(["backup"], env | {"TZ": "Asia/Kathmandu"}) as process:
        log = read_until(process, "Next run at")
        process.terminate()
        process.communicate(timeout=30)
    assert re.search(r"Next run at \d{4}-12-31T18:15:00Z \(in \d+d", log)
    assert len(stored(tmp_path)) == 1


def test_once_tells_webhook_and_dead_man_switch(
    make_database: MakeDatabase, tmp_path: Path, receiver: Receiver
) -> None:
    database = make_database("mixed")
    values = local(database, tmp_path) | {
        "WEBHOOK_URL": receiver.url("/hook"),
        "WEBHOOK_ON_SUCCESS": "true",
        "HEALTHCHECK_PING_URL": receiver.url("/ping?create=1"),
    }
    done = run_pgstash(["once"], environment(database.bin_dir, **values))
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(receiver.targets) == ["/hook", "/ping/start?create=1", "/ping?create=1"]
    [post] = [each for each in receiver.received if each.target == "/hook"]
    [backup] = stored(tmp_path)
    payload = post.json
    assert (payload["status"], payload["service"]) == ("success", "postgres-backup")
    assert payload["database"]["name"] == database.name
    assert payload["extra"]["backup"] == backup.archive.name
    assert payload["extra"]["stored_bytes"] == backup.archive.stat().st_size

    receiver.received.clear()
    broken = install_pg_dump(tmp_path / "bin", FakePgDump(version="19.1", status=1))
    done = run_pgstash(["once"], environment(broken, **values))
    assert done.returncode == 13
    [post] = [each for each in receiver.received if each.target == "/hook"]
    assert post.json["status"] == "failure"
    assert post.json["database"]["name"] == database.name
    assert post.json["extra"]["error"] == "DumpError"
    assert post.json["extra"]["exit_code"] == 13
    assert "/ping/fail?create=1" in receiver.targets


@pytest.mark.parametrize("ratio", later(["0.5", "0"], "0"))
def test_a_backup_tells_when_a_backup_was_last_proven(
    ratio: str, make_database: MakeDatabase, tmp_path: Path, receiver: Receiver
) -> None:
    database = make_database()
    env = environment(
        database.bin_dir,
        **local(database, tmp_path),
        WEBHOOK_URL=receiver.url("/hook"),
        VERIFY_WEBHOOK_URL=receiver.url("/drills"),
        WEBHOOK_ON_SUCCESS="true",
        ANOMALY_RATIO=ratio,
    )
    assert run_pgstash(["once"], env).returncode == 0
    [backup] = stored(tmp_path)
    beside = backup.archive.with_name(
        f"{backup.archive.name.partition('.')[0]}.{backup.manifest['id']}"
        ".proof_20260131_040000.json.gz"
    )
    beside.write_bytes(b"")
    assert run_pgstash(["once"], env).returncode == 0
    assert receiver.targets == ["/hook", "/hook"]
    told = [post.json["extra"]["last_proof"] for post in receiver.received]
    assert told == [None, "2026-01-31T04:00:00Z"]


@pytest.mark.parametrize(
    ("urls", "targets"),
    [
        (["WEBHOOK_URL"], ["/WEBHOOK_URL", "/WEBHOOK_URL"]),
        (["VERIFY_WEBHOOK_URL"], ["/VERIFY_WEBHOOK_URL"]),
        (["WEBHOOK_URL", "VERIFY_WEBHOOK_URL"], ["/VERIFY_WEBHOOK_URL", "/WEBHOOK_URL"]),
    ],
)
def test_drills_are_told_to_a_webhook_of_their_own_if_there_is_one(
    urls: list[str], targets: list[str], tmp_path: Path, receiver: Receiver
) -> None:
    there = {"DATABASE_URL": "postgresql://u@127.0.0.1:1/x", "STORAGE_URL": tmp_path.as_uri()}
    chosen = {name: receiver.url(f"/{name}") for name in urls}
    values = settings.load(there | chosen, Path("/nonexistent"))
    with listening(values) as emit:
        emit(events.BackupFailed("backup_1", 1.0, "no", ""))
        emit(events.DrillStarted("backup_2", "scratch"))
        emit(events.DrillFailed("backup_2", 1.0, "no", "", "h", "d", "RestoreError", 40))
    assert sorted(receiver.targets) == targets
    told = {post.target: post.json["extra"]["operation"] for post in receiver.received}
    assert told[targets[0]] == "drill"


def test_a_webhook_that_fails_is_a_warning(
    make_database: MakeDatabase, tmp_path: Path, receiver: Receiver
) -> None:
    receiver.statuses = [500]
    database = make_database("mixed")
    env = environment(
        database.bin_dir,
        **local(database, tmp_path),
        WEBHOOK_URL=receiver.url("/planted-path"),
        WEBHOOK_ON_SUCCESS="true",
    )
    done = run_pgstash(["once"], env)
    assert done.returncode == 0
    assert len(receiver.received) == 3
    [line] = done.stderr.splitlines()
    assert line.endswith("WARNING The webhook could not be delivered in 3 tries: HTTP 500")


def test_an_outage_is_reported_once_and_ends_with_a_backup(
    make_database: MakeDatabase,
    tmp_path: Path,
    receiver: Receiver,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The whole of a service but its clock: nobody answers three times, then somebody does."""
    database = make_database("mixed")
    monkeypatch.setenv("PATH", f"{database.bin_dir}:{os.environ['PATH']}")
    (store := tmp_path / "store").mkdir()
    told = tmp_path / "told"
    there = local(database, store) | {
        "WEBHOOK_URL": receiver.url("/hook"),
        "HEALTHCHECK_PING_URL": receiver.url("/ping"),
        "HOOK_AFTER_BACKUP": shlex.join(
            [
                "sh",
                "-c",
                f'echo "$PGSTASH_STATUS $PGSTASH_REPEATED $PGSTASH_NEXT_ATTEMPT" >> {told}',
            ]
        ),
    }
    away = there | {"DATABASE_URL": "postgresql://u:p@127.0.0.1:1/x"}
    answers = iter([away, away, away, there, away, there])
    clock = FakeClock()
    clock.signal_at(START + timedelta(minutes=62), signal.SIGTERM)
    log.start(Scrubber(), layout="text", debug=False)
    runs: list[float] = []

    def job(given: Runtime) -> None:
        runs.append((clock.now() - START).total_seconds() / 60)
        values = settings.load(next(answers), Path("/nonexistent"))
        back_up(values, given, server_now=lambda _: clock.now())

    with listening(settings.load(there, Path("/nonexistent"))) as emit:
        runtime = Runtime(emit, now=clock.now, random=bytes)
        with pytest.raises(Interrupted):
            loop.run(job, Retries(Interval(3600, START), runtime), runtime, clock.sleep)
    assert runs == [0, 1, 3, 7, 60, 61]
    assert len(stored(store)) == 2
    posts = [each.json for each in receiver.received if each.target == "/hook"]
    assert [post["extra"]["next_attempt"] for post in posts] == [
        "2026-01-31T02:01:00Z",
        "2026-01-31T03:01:00Z",
    ]
    assert [target for target in receiver.targets if target[:5] == "/ping"] == [
        *["/ping/start", "/ping/fail"] * 3,
        *["/ping/start", "/ping"],
        *["/ping/start", "/ping/fail"],
        *["/ping/start", "/ping"],
    ]
    assert told.read_text().splitlines() == [
        "failure false 2026-01-31T02:01:00Z",
        "failure true 2026-01-31T02:03:00Z",
        "failure true 2026-01-31T02:07:00Z",
        "success  ",
        "failure false 2026-01-31T03:01:00Z",
        "success  ",
    ]
    out, err = capsys.readouterr()
    assert err.count(" FAILURE Backup failed after ") == 2
    assert err.count(" WARNING Backup failed again after ") == 2
    assert out.count("(in 1m): the last one failed") == 2


def older(database: Database, folder: Path, age: timedelta) -> datetime:
    """Store a backup of that age, and return when it began."""
    began = (datetime.now(UTC) - age).replace(microsecond=0)
    values = settings.load(local(database, folder), Path("/nonexistent"))
    back_up(values, at(began), server_now=lambda _: began)
    return began


def at(moment: datetime) -> Runtime:
    """Return a runtime whose clock stands still."""
    return Runtime(events.ignore, now=lambda: moment)


def test_a_start_makes_no_backup_if_the_newest_is_young_enough(
    make_database: MakeDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = make_database("mixed")
    monkeypatch.setenv("PATH", f"{database.bin_dir}:{os.environ['PATH']}")
    began = older(database, tmp_path, timedelta(minutes=50))
    env = environment(database.bin_dir, **local(database, tmp_path), BACKUP_ON_START="false")
    for _ in range(2):  # a platform may start it as often as it likes
        with started_pgstash(["backup"], env) as process:
            log = read_until(process, "Next run at")
            process.terminate()
            out, errors = process.communicate(timeout=30)
        assert process.returncode == -signal.SIGTERM
        assert (out, errors) == ("", "")
        [name] = [each.archive.name for each in stored(tmp_path)]
        due = began + timedelta(hours=1)
        assert f"Next run at {due:%Y-%m-%dT%H:%M:%SZ} (in " in log
        assert f": the newest backup, {name}, is 50m " in log
        assert "Iteration" not in log


def test_a_start_makes_a_backup_if_the_newest_is_too_old(
    make_database: MakeDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = make_database("mixed")
    monkeypatch.setenv("PATH", f"{database.bin_dir}:{os.environ['PATH']}")
    older(database, tmp_path, timedelta(minutes=70))
    env = environment(database.bin_dir, **local(database, tmp_path), BACKUP_ON_START="false")
    with started_pgstash(["backup"], env) as process:
        first = read_until(process, "Next run at")
        assert "(now: it is overdue): the newest backup, " in first
        second = read_until(process, "Next run at")
        process.terminate()
        process.communicate(timeout=30)
    # The next one counts from this one, and not from the one that is too old.
    assert re.search(r"Next run at \S+ \(in (59m \d+s|1h)\)$", second, re.MULTILINE)
    assert len(stored(tmp_path)) == 2


AGES = [
    # The schedule, the age of the newest backup, and the time until the first run.
    ({}, None, 0),
    ({}, 10, 50),
    ({}, 60, 0),
    ({}, 600, 0),
    ({"BACKUP_INTERVAL": "86400"}, 600, 840),
    ({"BACKUP_INTERVAL": "60"}, 10, 0),
    ({"BACKUP_SCHEDULE": "30 3 * * *"}, 60, 90),  # it is 02:00
    ({"BACKUP_SCHEDULE": "30 1 * * *"}, 60, 0),  # missed half an hour ago
    ({"BACKUP_SCHEDULE": "30 1 * * *"}, 20, 23 * 60 + 30),
    ({"BACKUP_SCHEDULE": "0 3 * * 0"}, 5 * 1440, 25 * 60),  # on Sunday, and it is Saturday
]


@pytest.mark.long
def test_the_first_run_counts_from_the_newest_backup(
    make_database: MakeDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = make_database()
    monkeypatch.setenv("PATH", f"{database.bin_dir}:{os.environ['PATH']}")
    for number, (values, age, expected) in enumerate(AGES):
        (folder := tmp_path / str(number)).mkdir()
        there = local(database, folder) | {"BACKUP_ON_START": "false"} | values
        loaded = settings.load(there, Path("/nonexistent"))
        if age is not None:
            back_up(loaded, at(START - timedelta(minutes=age)))
        first = first_run(loaded, at(START))
        assert first.at == START + timedelta(minutes=expected), (values, age)
        assert ("there is no recent backup" in first.reason) is (age is None)


def test_a_backup_of_another_source_does_not_count(
    make_database: MakeDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = make_database()
    monkeypatch.setenv("PATH", f"{database.bin_dir}:{os.environ['PATH']}")
    other = settings.load(local(make_database(), tmp_path), Path("/nonexistent"))
    back_up(other, at(START - timedelta(minutes=10)))
    ours = settings.load(local(database, tmp_path), Path("/nonexistent"))
    assert first_run(ours, at(START)).at == START


def test_a_store_that_does_not_answer_does_not_put_the_first_run_off() -> None:
    env = environment(
        DATABASE_URL="postgresql://u:p@127.0.0.1:1/x",
        S3_ENDPOINT="http://127.0.0.1:1",
        S3_BUCKET="bucket",
        S3_ACCESS_KEY_ID="id",
        S3_SECRET_ACCESS_KEY="secret",
        RETRY_DELAY="0.1",
        BACKUP_ON_START="false",
    )
    with started_pgstash(["backup"], env) as process:
        log = read_until(process, "Iteration 1")
        log += read_until(process, "Next run at")
        process.terminate()
        _, errors = process.communicate(timeout=30)
    assert "the age of the newest backup is unknown" in log
    assert "WARNING Could not find the newest backup: " in errors
    assert "FAILURE Backup failed" in errors


def test_a_login_that_is_refused_at_first_ends_it_if_asked_to(
    make_database: MakeDatabase, tmp_path: Path, receiver: Receiver
) -> None:
    database = make_database()
    refused = {"DATABASE_URL": re.sub("//[^@]*@", "//planted_nobody@", database.uri)}
    more = {"EXIT_ON_FIRST_FAILURE": "true", "WEBHOOK_URL": receiver.url("/hook")}
    env = environment(database.bin_dir, **(local(database, tmp_path) | refused | more))
    with started_pgstash(["backup"], env) as process:
        out, errors = process.communicate(timeout=60)
    assert process.returncode == 11
    assert "FAILURE Backup failed" in errors
    assert "INFO The service ends" in out
    assert "Next run" not in out
    [post] = receiver.received
    assert post.json["extra"]["next_attempt"] is None


def test_a_server_that_is_away_at_first_ends_nothing(tmp_path: Path) -> None:
    env = environment(
        DATABASE_URL="postgresql://u:p@127.0.0.1:1/x",
        STORAGE_URL=tmp_path.as_uri(),
        EXIT_ON_FIRST_FAILURE="true",
    )
    with started_pgstash(["backup"], env) as process:
        log = read_until(process, "Next run at")
        process.terminate()
        process.communicate(timeout=30)
    assert process.returncode == -signal.SIGTERM
    assert re.search(rf"\(in 1m( \d+s)?\): {AFTER_FAILURE}$", log, re.MULTILINE)


@pytest.mark.long
def test_several_databases_side_by_side_on_one_bucket(
    make_database: MakeDatabase, swift_server: SwiftServer, s3_bucket: str
) -> None:
    """Nested prefixes too: team is the beginning of team/shop and of team-2."""
    databases = {prefix: make_database("mixed") for prefix in ("team", "team/shop", "team-2")}
    with contextlib.ExitStack() as stack:
        processes = [
            stack.enter_context(
                started_pgstash(
                    ["backup"],
                    environment(
                        database.bin_dir, **to_swift(database, swift_server, s3_bucket, prefix)
                    ),
                )
            )
            for prefix, database in databases.items()
        ]
        for process in processes:
            read_until(process, "Next run at")
        for process in processes:
            process.terminate()
        for process in processes:
            assert process.communicate(timeout=30)[1] == ""
            assert process.returncode == -signal.SIGTERM
    client = swift_server.client
    keys = [found["Key"] for found in client.list_objects_v2(Bucket=s3_bucket)["Contents"]]
    assert len(keys) == 15
    for prefix, database in databases.items():
        [archive] = [
            key for key in keys if re.fullmatch(rf"{prefix}/backup_\d{{8}}_\d{{6}}\.sql\.gz", key)
        ]
        head = client.head_object(Bucket=s3_bucket, Key=archive)
        assert head["Metadata"]["database"] == database.name
