"""The service as a container runs it: started, signalled, told on; and several side by side."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from pgstash import app, events, service, settings
from pgstash.errors import Interrupted
from pgstash.schedule import Interval
from support.backups import settings as local
from support.backups import stored
from support.cli import COMMAND, environment, run_pgstash, started_pgstash
from support.clock import START, FakeClock
from support.fake_tools import FakePgDump, hangs, install_pg_dump
from support.hooks import Receiver, receiving
from support.postgres import Database, MakeDatabase
from support.swift import SwiftServer

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


@pytest.mark.parametrize("signum", SIGNALS)
def test_a_signal_while_it_waits_ends_it_at_once(
    signum: int, make_database: MakeDatabase, tmp_path: Path
) -> None:
    database = make_database("mixed")
    env = environment(database.bin_dir, **local(database, tmp_path), BACKUP_INTERVAL="60")
    with started_pgstash(["backup"], env) as process:
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


@pytest.mark.parametrize("answers", [True, False], ids=["webhook answers", "webhook hangs"])
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
    assert "Contents" not in client.list_objects_v2(Bucket=s3_bucket)
    assert "Uploads" not in client.list_multipart_uploads(Bucket=s3_bucket)
    if answers:
        assert sorted(receiver.targets) == ["/hook", "/ping/fail", "/ping/start"]
        [post] = [each for each in receiver.received if each.target == "/hook"]
        assert post.json["extra"]["exit_code"] == 128 + signum
    else:
        assert "was not delivered before the end" in errors


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


@pytest.mark.parametrize("ratio", ["0.5", "0"])
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
    with app.listening(values) as emit:
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


def test_a_database_that_comes_back_is_backed_up_at_the_next_run(
    make_database: MakeDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole of a service but its clock: nobody answers twice, then somebody does."""
    database = make_database("mixed")
    monkeypatch.setenv("PATH", str(database.bin_dir))
    there = local(database, tmp_path)
    away = there | {"DATABASE_URL": "postgresql://u:p@127.0.0.1:1/x"}
    answers = iter([away, away, there, away, there])
    clock = FakeClock()
    clock.signal_at(START + timedelta(seconds=4 * 3600 + 1), signal.SIGTERM)
    counts = []

    def job() -> None:
        counts.append(len(stored(tmp_path)))
        app.back_up(settings.load(next(answers), Path("/nonexistent")), lambda _event: None)

    with pytest.raises(Interrupted):
        service.run(job, Interval(3600, START), clock, lambda _event: None, lambda: None)
    assert counts == [0, 0, 0, 1, 1]
    assert len(stored(tmp_path)) == 2


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
    assert len(keys) == 12
    for prefix, database in databases.items():
        [archive] = [
            key for key in keys if re.fullmatch(rf"{prefix}/backup_\d{{8}}_\d{{6}}\.sql\.gz", key)
        ]
        head = client.head_object(Bucket=s3_bucket, Key=archive)
        assert head["Metadata"]["database"] == database.name
