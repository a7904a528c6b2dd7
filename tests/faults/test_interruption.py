"""A signal ends a run within seconds, and a kill at any moment leaves nothing half done."""

from __future__ import annotations

import contextlib
import random
import signal
import subprocess
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Self

import pytest

from faults.scene import (
    Bucket,
    Folder,
    Scene,
    archives_in,
    assert_nothing_left,
    assert_succeeds,
    complete_archives,
    wait_until,
)
from support.fake_tools import MIB, FakePgDump, recorded_calls
from support.proxy import STALL, Action, Change, Hang, HttpProxy, Request, TcpProxy
from support.tiers import later

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from support.postgres import MakeDatabase
    from support.swift import SwiftServer

SIGNALS = [signal.SIGTERM, signal.SIGINT]
# One signal takes the way of the other: the first tier sends both only while dumping.
MOSTLY_SIGTERM = later(SIGNALS, signal.SIGINT)
SECONDS_TO_END = 5.0
# A signal that comes again sooner is the same one.
ECHO_SECONDS = 2.0
LARGE = FakePgDump(size=24 * MIB, noisy=True)
ENDLESS = replace(LARGE, hang="with child", complete=False)
STUBBORN = replace(ENDLESS, ignored_signals=("SIGTERM", "SIGINT"))


class HoldingProxy(HttpProxy):
    """Holds requests of one operation back until they are released."""

    operation = ""

    def __enter__(self) -> Self:
        self.arrived = threading.Event()
        self.released = threading.Event()
        super().__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        self.released.set()
        super().__exit__(*exc)

    def action(self, request: Request) -> Action | None:
        if request.operation == self.operation:
            self.arrived.set()
            self.released.wait(60)
        return super().action(request)


@pytest.fixture
def holding(swift_server: SwiftServer) -> Iterator[HoldingProxy]:
    with HoldingProxy(swift_server.port) as proxy:
        yield proxy


@pytest.fixture
def held(bucket_scene: Scene, holding: HoldingProxy) -> Scene:
    """A bucket behind the proxy that holds requests back."""
    bucket_scene.fake(LARGE)
    bucket_scene.settings["S3_ENDPOINT"] = holding.endpoint
    return bucket_scene


def ended_by(
    process: subprocess.Popen[str],
    signum: signal.Signals,
    then: Callable[[], object] = lambda: None,
) -> subprocess.CompletedProcess[str]:
    """Send the signal, do what comes ``then``, and see the process end by it in time."""
    sent = time.monotonic()
    process.send_signal(signum)
    then()
    out, err = process.communicate(timeout=60)
    took = time.monotonic() - sent
    assert process.returncode == -signum, out + err
    assert took < SECONDS_TO_END, f"{took:.1f} s"
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def assert_interrupted(done: subprocess.CompletedProcess[str], signum: signal.Signals) -> None:
    assert f": interrupted by {signum.name}" in done.stderr
    assert "FAILURE Backup failed after" in done.stderr
    assert "Traceback" not in done.stderr
    assert "SUCCESS" not in done.stdout


def dumping(scene: Scene) -> Callable[[], bool]:
    return lambda: bool(recorded_calls(scene.tools))


# SIGTERM and SIGINT.


@pytest.mark.parametrize("signum", MOSTLY_SIGTERM)
@pytest.mark.parametrize("behaviour", [ENDLESS, STUBBORN], ids=["willing", "stubborn"])
def test_while_dumping(behaviour: FakePgDump, signum: signal.Signals, scene: Scene) -> None:
    scene.fake(behaviour)
    with scene.started() as process:
        wait_until(dumping(scene), "pg_dump runs")
        wait_until(scene.place.unfinished, "something was stored")
        done = ended_by(process, signum)
    assert_interrupted(done, signum)
    assert_nothing_left(scene)
    scene.fake(LARGE)
    assert_succeeds(scene)


@pytest.mark.parametrize("signum", MOSTLY_SIGTERM)
def test_while_waiting_for_a_lock(
    signum: signal.Signals, make_database: MakeDatabase, folder: Folder
) -> None:
    database = make_database()
    database.run_sql("CREATE TABLE t AS SELECT 1")
    scene = Scene(database, folder, database.bin_dir)

    def waiting() -> bool:
        row = database.run_sql(
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
            " AND query LIKE 'LOCK TABLE%' AND datname = current_database()"
        )
        return row.strip() == "1"

    with database.connect() as holder, holder.transaction():
        holder.execute("LOCK TABLE t IN ACCESS EXCLUSIVE MODE")
        with scene.started() as process:
            wait_until(waiting, "pg_dump waits")
            done = ended_by(process, signum)
        wait_until(lambda: not waiting(), "the server has noticed")
    assert_interrupted(done, signum)
    assert_nothing_left(scene)
    assert_succeeds(scene)


@pytest.mark.parametrize("signum", MOSTLY_SIGTERM)
def test_while_a_part_is_not_answered(
    signum: signal.Signals, bucket_scene: Scene, http: HttpProxy
) -> None:
    rule = http.rule("UploadPart", Hang(), skip=1)
    bucket_scene.fake(ENDLESS)
    with bucket_scene.started(S3_ENDPOINT=http.endpoint) as process:
        wait_until(lambda: rule.applied, "a part hangs")
        done = ended_by(process, signum)
    assert_interrupted(done, signum)
    assert_nothing_left(bucket_scene)
    assert "upload id" not in done.stderr


@pytest.mark.parametrize("behaviour", [ENDLESS, STUBBORN], ids=["willing", "stubborn"])
def test_while_the_store_is_dead(
    behaviour: FakePgDump, bucket_scene: Scene, bucket: Bucket, tcp: TcpProxy
) -> None:
    bucket_scene.fake(behaviour)
    with bucket_scene.started(S3_ENDPOINT=tcp.endpoint) as process:
        wait_until(lambda: tcp.sent_bytes > 7 * MIB, "a part was sent")
        tcp.behave(STALL)
        done = ended_by(process, signal.SIGTERM)
    assert_interrupted(done, signal.SIGTERM)
    [upload_id] = bucket.unfinished()
    assert f"upload id: {upload_id}" in done.stderr
    assert bucket.objects() == {}
    assert bucket_scene.processes() == []


def test_while_waiting_to_try_again(bucket_scene: Scene, http: HttpProxy) -> None:
    rule = http.rule("ListObjectsV2", Hang())
    with bucket_scene.started(S3_ENDPOINT=http.endpoint) as process:
        wait_until(lambda: rule.applied, "the store is asked")
        done = ended_by(process, signal.SIGTERM)
    assert_interrupted(done, signal.SIGTERM)
    assert_nothing_left(bucket_scene)


@pytest.mark.parametrize("signum", MOSTLY_SIGTERM)
def test_while_the_upload_begins(
    signum: signal.Signals, held: Scene, holding: HoldingProxy
) -> None:
    """Only the store's answer says what is to be removed."""
    holding.operation = "CreateMultipartUpload"
    with held.started() as process:
        wait_until(holding.arrived.is_set, "the upload begins")
        done = ended_by(process, signum, then=holding.released.set)
    assert_interrupted(done, signum)
    assert_nothing_left(held)


def test_while_an_upload_begins_for_ever(held: Scene, holding: HoldingProxy) -> None:
    holding.operation = "CreateMultipartUpload"
    with held.started() as process:
        wait_until(holding.arrived.is_set, "the upload begins")
        done = ended_by(process, signal.SIGTERM)
    assert_interrupted(done, signal.SIGTERM)
    assert_nothing_left(held)
    assert "the store did not answer in time" in done.stderr, "what may come yet is told"


@pytest.mark.parametrize("signum", MOSTLY_SIGTERM)
def test_a_commit_that_ends_in_time_is_a_success(
    signum: signal.Signals, held: Scene, holding: HoldingProxy
) -> None:
    holding.operation = "CompleteMultipartUpload"
    with held.started(HOOK_AFTER_BACKUP="sleep 3600") as process:
        wait_until(holding.arrived.is_set, "the commit is sent")
        done = ended_by(process, signum, then=holding.released.set)
    assert "SUCCESS Backup completed successfully" in done.stdout
    assert "Backup failed" not in done.stderr
    assert len(complete_archives(held.place)) == 1
    assert held.place.unfinished() == held.processes() == []


def test_a_commit_that_never_arrives_is_given_up(held: Scene, holding: HoldingProxy) -> None:
    """Nobody can know whether it will arrive: so the upload is left alone, and named."""
    holding.operation = "CompleteMultipartUpload"
    with held.started() as process:
        wait_until(holding.arrived.is_set, "the commit is sent")
        done = ended_by(process, signal.SIGTERM)
    assert_interrupted(done, signal.SIGTERM)
    assert complete_archives(held.place) == []
    (unfinished,) = held.place.unfinished()
    assert unfinished in done.stderr
    assert held.processes() == []


def test_a_commit_that_was_done_and_not_answered_is_looked_up(
    bucket_scene: Scene, http: HttpProxy
) -> None:
    """The store did it, and its answer does not come: then the backup is there, and told so."""
    stored, ended = threading.Event(), threading.Event()

    def answer_late(body: bytes) -> bytes:
        stored.set()
        ended.wait(30)
        return body

    http.rule("CompleteMultipartUpload", Change(answer_late))
    bucket_scene.fake(LARGE)
    with bucket_scene.started(S3_ENDPOINT=http.endpoint) as process:
        wait_until(stored.is_set, "the store has it")
        done = ended_by(process, signal.SIGTERM)
    ended.set()
    assert len(complete_archives(bucket_scene.place)) == 1
    assert "SUCCESS Backup completed successfully" in done.stdout
    assert "Backup failed" not in done.stderr


def test_a_dead_store_during_the_commit(held: Scene, holding: HoldingProxy) -> None:
    """Neither the commit nor its abort is answered."""
    holding.operation = "CompleteMultipartUpload"
    holding.rule("AbortMultipartUpload", Hang())
    holding.rule("HeadObject", Hang(), skip=1)
    with held.started() as process:
        wait_until(holding.arrived.is_set, "the commit is sent")
        done = ended_by(process, signal.SIGTERM)
    assert_interrupted(done, signal.SIGTERM)
    [upload_id] = held.place.unfinished()
    assert f"upload id: {upload_id}" in done.stderr
    assert complete_archives(held.place) == []


def test_a_second_signal_ends_at_once(held: Scene, holding: HoldingProxy) -> None:
    """The store is dead, and somebody does not want to wait for what is still tried."""
    holding.operation = "CompleteMultipartUpload"
    holding.rule("AbortMultipartUpload", Hang())
    holding.rule("HeadObject", Hang(), skip=1)
    with held.started() as process:
        wait_until(holding.arrived.is_set, "the commit is sent")
        process.send_signal(signal.SIGTERM)
        time.sleep(ECHO_SECONDS + 0.1)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT, err
    assert "Backup failed" not in err, "it was not waited for"
    assert complete_archives(held.place) == []


@pytest.mark.long
@pytest.mark.parametrize("attempt", range(25))
def test_at_any_moment(attempt: int, scene: Scene) -> None:
    """Whatever runs just then: the process ends by the signal, and nothing stays."""
    scene.fake(replace(ENDLESS, size=20 * MIB))
    moment = random.Random(attempt).uniform(0.2, 1.2)  # noqa: S311 - not for secrets
    with scene.started() as process:
        time.sleep(moment)
        ended_by(process, signal.SIGTERM)
    assert_nothing_left(scene)


# kill -9.


def killed(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate(timeout=60)


def assert_clean_but_for_parts(scene: Scene, archives: int = 0) -> None:
    """What is visible is whole, pg_dump has noticed, and the next run succeeds."""
    assert len(complete_archives(scene.place)) == archives
    assert len(archives_in(scene.place.objects())) == archives
    wait_until(lambda: not scene.processes(), "pg_dump is gone")
    done = scene.once(**scene.place.settings)
    assert done.returncode == 0, done.stderr
    assert len(complete_archives(scene.place)) == archives + 1


def test_killed_before_the_dump(scene: Scene) -> None:
    """While the login waits, on a server that does not answer."""
    with TcpProxy(scene.database.cluster.port) as proxy:
        proxy.behave(STALL)
        port = scene.database.cluster.port
        url = scene.database.uri.replace(f":{port}/", f":{proxy.port}/")
        with scene.started(DATABASE_URL=url) as process:
            wait_until(lambda: proxy.accepted, "the login has begun")
            killed(process)
    assert_nothing_left(scene)
    assert_clean_but_for_parts(scene)


def test_killed_while_dumping(scene: Scene) -> None:
    scene.fake(FakePgDump(size=4000 * MIB))
    with scene.started() as process:
        wait_until(scene.place.unfinished, "something was stored")
        killed(process)
    assert scene.place.objects() == {}
    wait_until(lambda: not scene.processes(), "pg_dump is gone")
    scene.fake(LARGE)
    assert_clean_but_for_parts(scene)


OPERATIONS = ["UploadPart", "PutObject", "ListParts", "HeadObject", "CompleteMultipartUpload"]


# Nothing is stored by the reads, so what is left is as before the next request.
@pytest.mark.parametrize("operation", later(OPERATIONS, "ListParts", "HeadObject"))
def test_killed_before_a_request(operation: str, held: Scene, holding: HoldingProxy) -> None:
    holding.operation = operation
    with held.started() as process:
        wait_until(holding.arrived.is_set, f"{operation} is sent")
        killed(process)
    wait_until(lambda: not held.processes(), "pg_dump is gone")
    held.fake(FakePgDump())
    assert_clean_but_for_parts(held)


def test_killed_while_the_store_commits(bucket_scene: Scene, http: HttpProxy) -> None:
    """The store has done it, and nobody hears its answer: the backup is there, and whole."""
    stored, ended = threading.Event(), threading.Event()

    def answer_late(body: bytes) -> bytes:
        stored.set()
        ended.wait(30)
        return body

    http.rule("CompleteMultipartUpload", Change(answer_late))
    bucket_scene.fake(LARGE)
    with bucket_scene.started(S3_ENDPOINT=http.endpoint) as process:
        wait_until(stored.is_set, "the store has it")
        killed(process)
    ended.set()
    assert_clean_but_for_parts(bucket_scene, archives=1)


@pytest.mark.long
@pytest.mark.parametrize("attempt", range(25))
def test_killed_at_any_moment(attempt: int, scene: Scene) -> None:
    scene.fake(FakePgDump(size=20 * MIB))
    moment = random.Random(attempt).uniform(0.2, 1.0)  # noqa: S311 - not for secrets
    with scene.started() as process:
        time.sleep(moment)
        process.kill()
        process.communicate(timeout=60)

    def what_is_there_is_whole() -> bool:
        with contextlib.suppress(AssertionError):
            archives = complete_archives(scene.place)
            there = archives_in(scene.place.objects())
            assert len(there) == len(archives)
            assert_clean_but_for_parts(scene, archives=len(archives))
            return True
        return False

    # The store may still be at the last request of the one that was killed; each look is a run.
    wait_until(
        what_is_there_is_whole, "what is visible is whole, and nothing else is left", patience=300
    )
