"""Two backups of one source to one place never run at once, and a dead one is in nobody's way."""

from __future__ import annotations

import os
import signal
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest

from faults.conftest import ONE_PG_DUMP
from faults.other_places import GoogleBucket
from faults.scene import (
    Folder,
    Scene,
    assert_failed,
    assert_nothing_left,
    assert_succeeds,
    complete_archives,
    wait_until,
)
from pgstash import events
from pgstash.errors import DatabaseLoginError, WriterBusyError, WriterLostError
from pgstash.postgres.server import login, time_limits, writer_lock
from support.fake_tools import FakePgDump, hangs
from support.postgres import Cluster, Database
from support.proxy import Change, HttpProxy

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator

    from support.postgres import MakeDatabase

HERE = "s3://bucket/prefix"
SLOW = FakePgDump(silence=2.0)
APPLICATION = "pgstash writer lock"
KEY = 4_694_985_893_711_065_877


def sessions(database: Database) -> list[int]:
    """Return the process ids of the sessions that hold a lock, or held one a moment ago."""
    with database.cluster.maintenance.connect() as connection:
        found = connection.execute(
            "SELECT pid FROM pg_stat_activity WHERE datname = %s AND application_name = %s",
            [database.name, APPLICATION],
        ).fetchall()
    return [pid for (pid,) in found]


def terminate(database: Database) -> None:
    with database.cluster.maintenance.connect() as connection:
        for pid in sessions(database):
            connection.execute("SELECT pg_terminate_backend(%s)", [pid])


@contextmanager
def held(
    database: Database, destination: str = HERE, heard: list[events.Event] | None = None
) -> Iterator[writer_lock.Writer]:
    emit = events.ignore if heard is None else heard.append
    with writer_lock.hold(login.inspect(database.uri), destination, emit) as lock:
        yield lock


def finished(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


# The whole command.


def test_of_two_at_once_one_makes_an_archive_and_the_other_says_why_not(scene: Scene) -> None:
    scene.fake(SLOW)
    with scene.started() as first, scene.started() as second:
        ended = sorted([finished(first), finished(second)])
    assert [status for status, *_ in ended] == [0, 15], ended
    refused = ended[1][2]
    assert "is taken by process " in refused
    assert f"({APPLICATION}, from 127.0.0.1, since 20" in refused
    assert "wait until it finishes" in refused
    assert len(complete_archives(scene.place)) == 1
    assert len(scene.place.objects()) == 3  # the archive, its manifest and the roles
    assert scene.place.unfinished() == scene.processes() == []


def test_one_that_was_killed_does_not_block_the_next(scene: Scene) -> None:
    scene.fake(hangs())
    with scene.started() as process:
        wait_until(scene.fake_groups, "pg_dump runs")
        scene.fake(FakePgDump())
        assert scene.once().returncode == 15
        os.kill(process.pid, signal.SIGKILL)
        finished(process)
    done = scene.once()
    assert done.returncode == 0, done.stderr
    assert len(complete_archives(scene.place)) == 1


def test_another_prefix_is_another_place(scene: Scene) -> None:
    scene.fake(SLOW)
    with scene.started() as first, scene.started(BACKUP_PREFIX="elsewhere") as second:
        ended = [finished(first), finished(second)]
    assert [status for status, *_ in ended] == [0, 0], ended
    assert len(scene.place.objects()) == 6


def test_another_source_is_not_kept_out_but_seen(
    scene: Scene, make_database: MakeDatabase, tmp_path: Path
) -> None:
    other = make_database()
    ending = tmp_path / "ending"
    scene.fake(FakePgDump(until=str(ending)))
    with scene.started() as first:
        wait_until(scene.place.unfinished, "the upload has begun")
        wait_until(scene.fake_groups, "pg_dump knows how it is to behave")
        time.sleep(1)  # the lock does not tell their names apart, the second does
        scene.fake(FakePgDump(silence=1.1))
        during = scene.once(DATABASE_URL=other.uri)
        ending.touch()
        ended = finished(first)
    assert (during.returncode, ended[0]) == (0, 0), during.stderr + ended[2]
    if not isinstance(scene.place, GoogleBucket):  # that store lists no unfinished uploads
        assert "WARNING There is an unfinished upload under this prefix: " in during.stderr
        assert "upload id " in during.stderr
    after = scene.once(DATABASE_URL=scene.database.uri)
    assert after.returncode == 0
    assert f"are backups of other sources: {other.name}@" in after.stderr
    assert f"This source is {scene.database.name}@" in after.stderr
    assert len(complete_archives(scene.place)) == 3


def test_a_lock_that_is_lost_while_dumping(scene: Scene) -> None:
    scene.fake(SLOW)
    with scene.started() as process:
        wait_until(scene.processes, "pg_dump runs")
        terminate(scene.database)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 16, out + err
    assert "writer lock was lost: " in err
    assert "terminating connection due to administrator command" in err
    assert "Was the server restarted" in err
    assert_nothing_left(scene)
    assert_succeeds(scene)


def test_a_lock_that_is_lost_just_before_the_commit(bucket_scene: Scene, http: HttpProxy) -> None:
    """The manifest is stored then: it goes again."""

    def lose(body: bytes) -> bytes:
        terminate(bucket_scene.database)
        return body

    rule = http.rule("PutObject", Change(lose))
    done = bucket_scene.once(S3_ENDPOINT=http.endpoint)
    assert rule.applied
    assert_failed(done, 16, "terminating connection", "restarted", nothing_left=bucket_scene)
    assert http.count("CompleteMultipartUpload") == 0


PLANTED = ["idle_in_transaction_session_timeout", "statement_timeout", "lock_timeout"]


@pytest.mark.newest_first
def test_timeouts_that_somebody_planted(
    cluster: Cluster, make_database: MakeDatabase, folder: Folder, fake_tools: Path
) -> None:
    scene = Scene(make_database(on=cluster), folder, fake_tools, dict(ONE_PG_DUMP))
    planted = [*PLANTED, "transaction_timeout"] if cluster.major >= 17 else PLANTED
    with cluster.maintenance.connect() as connection:
        for name in planted:
            connection.execute(
                f'ALTER ROLE "{cluster.user}" IN DATABASE "{scene.database.name}"'
                f" SET {name} = '500ms'"
            )
    scene.fake(SLOW)
    assert_succeeds(scene)


def test_a_role_with_too_few_sessions(
    newest_cluster: Cluster, make_database: MakeDatabase, folder: Folder
) -> None:
    database = make_database()
    with newest_cluster.maintenance.connect() as connection:
        connection.execute("CREATE ROLE single LOGIN CONNECTION LIMIT 1")
    try:
        scene = Scene(database, folder, database.bin_dir)
        url = database.uri.replace(f"//{newest_cluster.user}@", "//single@")
        done = scene.once(DATABASE_URL=url)
        assert done.returncode in {11, 13}, done.stderr  # as fast as the server ends a session
        assert "too many connections for role" in done.stderr
        assert "CONNECTION LIMIT" in done.stderr
        assert_nothing_left(scene)
    finally:
        with newest_cluster.maintenance.connect() as connection:
            connection.execute("DROP ROLE single")


# The lock by itself.


def test_the_key_is_what_it_is() -> None:
    """Documented, and the same in every version: two of them must keep each other out."""
    assert writer_lock.key_of("s3://my-backups/shop") == KEY
    assert writer_lock.key_of("s3://my-backups/shop2") != KEY


def test_who_is_kept_out_and_who_is_not(
    cluster: Cluster, make_database: MakeDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_lock, "_SECONDS_FOR_THE_DEAD", 0)
    database, other = make_database(on=cluster), make_database(on=cluster)
    with held(database) as lock, held(database, HERE + "2"), held(other):
        lock.check()
        for _ in range(2):
            with pytest.raises(WriterBusyError) as caught, held(database):
                pass
            assert f"{HERE} is taken by process " in caught.value.message
            assert f"({APPLICATION}, from 127.0.0.1, since 20" in caught.value.message
        lock.check()
    for _ in range(20):  # it is free as soon as it was given back
        with held(database) as lock:
            lock.check()


@pytest.mark.newest_first
def test_others_are_told_what_they_may_see(cluster: Cluster, make_database: MakeDatabase) -> None:
    database = make_database(on=cluster)
    with cluster.maintenance.connect() as connection:
        connection.execute("CREATE ROLE nosy LOGIN")
    try:
        with held(database):
            [pid] = sessions(database)
            url = database.uri.replace(f"//{cluster.user}@", "//nosy@")
            with (
                pytest.raises(WriterBusyError, match=rf"process {pid} of .* \({APPLICATION}\)$"),
                writer_lock.hold(login.inspect(url), HERE, events.ignore),
            ):
                pass
    finally:
        with cluster.maintenance.connect() as connection:
            connection.execute("DROP ROLE nosy")


def test_it_holds_back_no_vacuum(cluster: Cluster, make_database: MakeDatabase) -> None:
    database = make_database(on=cluster)
    with held(database) as lock:
        lock.check()
        [pid] = sessions(database)
        with database.connect() as connection:
            assert connection.execute(
                "SELECT state, backend_xmin, backend_xid FROM pg_stat_activity WHERE pid = %s",
                [pid],
            ).fetchone() == ("idle in transaction", None, None)


def test_a_lock_that_is_lost_is_noticed_on_the_way(database: Database) -> None:
    with held(database) as lock:
        assert list(lock.watch([b"a", b"b"], seconds=0)) == [b"a", b"b"]
        terminate(database)
        assert list(lock.watch([b"a", b"b"])) == [b"a", b"b"]  # it is not asked for each chunk
        chunks = lock.watch([b"a", b"b"], seconds=0)
        assert next(chunks) == b"a"
        with pytest.raises(WriterLostError, match="administrator command"):
            next(chunks)
        with pytest.raises(WriterLostError):
            lock.check()
        lock.release()


def test_a_transaction_that_ended_is_a_lost_lock(database: Database) -> None:
    """Whatever ended it, a pooler say: the session may be alive, even somebody else's."""
    with held(database) as lock:
        lock._session.ask("ROLLBACK", 10)  # noqa: SLF001 - nothing else can
        with pytest.raises(WriterLostError, match="although"):
            lock.check()


def test_a_server_that_stands_still_is_not_waited_for_for_ever(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time_limits, "ANSWER", 0.5)
    with ExitStack() as stack:
        with held(database) as lock:
            [pid] = sessions(database)
            os.kill(pid, signal.SIGSTOP)
            stack.callback(os.kill, pid, signal.SIGCONT)
            with pytest.raises(WriterLostError, match="does not answer"):
                lock.check()
        with held(database, HERE + "2"):  # and giving one back neither
            [pid2] = [each for each in sessions(database) if each != pid]
            os.kill(pid2, signal.SIGSTOP)
            stack.callback(os.kill, pid2, signal.SIGCONT)


def test_no_connection_is_left_open(database: Database) -> None:
    server = login.inspect(database.uri)
    before = sorted(os.listdir("/proc/self/fd"))  # noqa: PTH208 - the one of listdir goes too
    with writer_lock.hold(server, HERE, events.ignore):
        with pytest.raises(WriterBusyError), writer_lock.hold(server, HERE, events.ignore):
            pass
        terminate(database)
    database.drop()
    with pytest.raises(DatabaseLoginError), writer_lock.hold(server, HERE, events.ignore):
        pass
    assert sorted(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_both_ends_probe_the_connection(database: Database) -> None:
    """A machine that vanished must not hold the lock for the two hours that are the default."""
    with held(database):
        with psycopg.connect(database.cluster.maintenance.conninfo) as connection:
            row = connection.execute(
                "SELECT client_port FROM pg_stat_activity WHERE pid = %s", sessions(database)
            ).fetchone()
        assert row
        ports = {database.cluster.port, row[0]}

        def probed() -> list[float]:
            return [left for those, timer, left in tcp_timers() if (those, timer) == (ports, "02")]

        wait_until(lambda: len(probed()) == 2, "nothing else is on its way")
        assert max(probed()) <= 31


def tcp_timers() -> list[tuple[set[int], str, float]]:
    """Return ports, active timer (02: keepalive) and its seconds left, of every connection."""
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    hertz = os.sysconf("SC_CLK_TCK")
    return [
        (
            {int(each.rpartition(":")[2], 16) for each in (local, remote)},
            timer.partition(":")[0],
            int(timer.partition(":")[2], 16) / hertz,
        )
        for _, local, remote, _, _, timer, *_ in lines
    ]


def test_a_standby_is_told_of(newest_cluster: Cluster) -> None:
    with Cluster(newest_cluster.major, settings={"wal_level": "replica"}) as cluster:
        heard: list[events.Event] = []
        with held(cluster.maintenance, heard=heard):
            assert not any("standby" in str(event) for event in heard)
        cluster.stop(signal.SIGINT)
        (cluster.folder / "data" / "standby.signal").touch()
        cluster.start()
        with held(cluster.maintenance, heard=heard) as lock:
            lock.check()
            with pytest.raises(WriterBusyError), held(cluster.maintenance):
                pass
        assert sum("is a standby" in str(event) for event in heard) == 1
