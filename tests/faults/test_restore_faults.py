"""What goes wrong on the way back leaves the target as it was, and says why."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest

from faults.scene import Bucket, wait_until
from support.cli import environment, restore_to, run_pgstash, started_pgstash
from support.postgres import Cluster
from support.proxy import Cut
from support.stored import CLOSING, Made, make
from support.tiers import later

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable

    from support.postgres import Database
    from support.proxy import HttpProxy

PASSPHRASE = "correct horse battery staple, and more"
SECONDS_TO_END = 5.0
# As pg_dump writes them: with a transaction of their own around large objects.
LARGE_OBJECTS = (
    b"SELECT pg_catalog.lo_create('4711');\n\n"
    b"BEGIN;\n\nSELECT pg_catalog.lo_open('4711', 131072);\n"
    b"SELECT pg_catalog.lowrite(0, '\\x0102');\nSELECT pg_catalog.lo_close(0);\n\nCOMMIT;\n\n"
)
ROWS = b"COPY public.a (line) FROM stdin;\n" + b"BEGIN;\nCOMMIT;\n" * 4000 + b"\\.\n\n"
SCRIPT = b"CREATE TABLE public.a (line text);\n\n" + LARGE_OBJECTS + ROWS + CLOSING
# The server is at it until somebody ends it; what comes before has been run by then.
ENDLESS = (
    b"CREATE TABLE public.a (line text);\n\n"
    + LARGE_OBJECTS
    + b"SELECT pg_sleep(600);\n"
    + ROWS
    + CLOSING
)


def restore_environment(folder: Path, target: Database, **more: str) -> dict[str, str]:
    given = {
        "STORAGE_URL": folder.as_uri(),
        "RESTORE_URL": target.uri,
        "BACKUP_ENCRYPTION_KEY": PASSPHRASE,
    }
    return environment(target.bin_dir, **(given | more))


def restore(folder: Path, target: Database, *arguments: str) -> subprocess.CompletedProcess[str]:
    env = restore_environment(folder, target)
    return run_pgstash(restore_to(env, *arguments), env)


def held(target: Database) -> str:
    """Return what the target holds: tables, their rows, large objects."""
    return target.run_sql(
        "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace;"
        "SELECT oid FROM pg_largeobject_metadata"
    )


def working(target: Database) -> str:
    return target.run_sql("SELECT datname FROM pg_database WHERE datname ~ '_pgstash_'")


def assert_failed(done: subprocess.CompletedProcess[str], status: int, *words: str) -> None:
    said = done.stderr
    assert done.returncode == status, (done.returncode, done.stdout, said)
    message = re.search(
        r"FAILURE Restore failed after [\d.]+s, and nothing was changed in the target: (.+)",
        said,
        re.DOTALL,
    )
    assert message, said
    assert [word for word in words if word not in message[1]] == [], said
    assert "Traceback" not in said
    assert "SUCCESS" not in done.stdout


def replace_member(made: Made) -> bytes:
    first, second = made.manifest.members[1:3]
    at, middle, end = first.offset, second.offset, second.offset + second.stored
    data = made.archive
    return data[:at] + data[middle:end] + data[at:middle] + data[end:]


DAMAGE: dict[str, Callable[[Made], bytes]] = {
    "a flipped bit at the beginning": lambda made: b"\x1e" + made.archive[1:],
    "a flipped bit in the middle": lambda made: _flipped(made.archive, len(made.archive) // 2),
    "a flipped bit at the end": lambda made: _flipped(made.archive, len(made.archive) - 3),
    "cut in the middle": lambda made: made.archive[: len(made.archive) // 2],
    "cut by a byte": lambda made: made.archive[:-1],
    "longer by a byte": lambda made: made.archive + b"\0",
    "its members in another order": replace_member,
    "empty": lambda _: b"",
    "another script": lambda made: make(SCRIPT[::-1]).archive[: len(made.archive)],
}


def _flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :]


# The unit tests of the archive go through every damage with and without encryption.
@pytest.mark.parametrize(
    "encrypted",
    [pytest.param(False, id="plain", marks=pytest.mark.long), pytest.param(True, id="encrypted")],
)
@pytest.mark.parametrize("kind", DAMAGE)
def test_damage(kind: str, database: Database, tmp_path: Path, *, encrypted: bool) -> None:
    made = make(SCRIPT, passphrase=PASSPHRASE if encrypted else None, member_bytes=8000)
    assert len(made.manifest.members) > 5
    made.store_as_backup(tmp_path)
    path = tmp_path / made.key.replace("p/", "postgres-backups/")
    path.write_bytes(DAMAGE[kind](made))
    done = restore(tmp_path, database)
    assert_failed(done, 31)
    assert held(database) == ""


def test_damage_that_shows_after_large_objects(database: Database, tmp_path: Path) -> None:
    """pg_dump commits them by itself: that must not commit what is restored."""
    # More than fits into a pipe: psql has run what comes before it when the damage shows.
    made = make(SCRIPT.replace(ROWS, ROWS * 60), member_bytes=500_000)
    made.store_as_backup(tmp_path)
    whole = restore(tmp_path, database)
    assert (whole.returncode, whole.stderr) == (0, "")
    assert held(database) == "a\n4711\n"
    rows = database.run_sql("SELECT count(*) FROM a WHERE line IN ('BEGIN;', 'COMMIT;')")
    assert rows == "480000\n"
    database.run_sql("DROP TABLE a; SELECT lo_unlink(4711)")
    path = tmp_path / made.key.replace("p/", "postgres-backups/")
    path.write_bytes(_flipped(made.archive, len(made.archive) - 20))
    done = restore(tmp_path, database)
    assert_failed(done, 31, f"member {len(made.manifest.members)}, ")
    assert held(database) == ""
    created = restore(tmp_path, database, "--create", "never_made")
    assert_failed(created, 31)
    assert working(database) == ""


# Whatever comes after them is swallowed: of the commit psql would see nothing.
OPEN = {
    "quote": b"SELECT 'a",
    "dollar quote": b"DO $$ BEGIN",
    "comment": b"/* a",
    "rows": b"COPY public.a (line) FROM stdin;\nlast\n",
    "statement": b"INSERT INTO public.a VALUES",
}


@pytest.mark.parametrize("create", [False, True], ids=["into", "create"])
@pytest.mark.parametrize("what", later(OPEN, "dollar quote", "comment"))
def test_a_script_with_something_open_at_its_end_is_not_whole(
    what: str, database: Database, tmp_path: Path, *, create: bool
) -> None:
    script = b"CREATE TABLE public.a (line text);\n\n" + CLOSING + OPEN[what]
    make(script).store_as_backup(tmp_path)
    arguments = ["--create", "never_made"] if create else []
    done = restore(tmp_path, database, *arguments)
    assert_failed(done, 62)
    if what == "rows":  # psql ends well
        assert "something in it was still open" in done.stderr
    assert held(database) == ""
    assert "never_made" not in database.run_sql("SELECT datname FROM pg_database")


def test_objects_that_are_gone(database: Database, tmp_path: Path) -> None:
    made = make(SCRIPT, passphrase=PASSPHRASE)
    made.store_as_backup(tmp_path)
    env = restore_environment(tmp_path, database)
    (tmp_path / made.manifest_key.replace("p/", "postgres-backups/")).unlink()
    assert_failed(run_pgstash(restore_to(env), env), 32, "has no manifest", "--unverified")
    (tmp_path / made.key.replace("p/", "postgres-backups/")).unlink()
    assert_failed(run_pgstash(restore_to(env), env), 25, "no backup")
    assert held(database) == ""


def started_endless(target: Database) -> bool:
    asked = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep(600)%'"
    return target.run_sql(asked) == "1\n"


def sessions(target: Database) -> str:
    return target.run_sql(
        "SELECT query FROM pg_stat_activity WHERE application_name ~ '^(pgstash|psql)'"
        " AND pid <> pg_backend_pid()"
    )


@pytest.mark.parametrize("arguments", [[], ["--create", "never_made"]], ids=["into", "create"])
@pytest.mark.parametrize(
    "signum", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.long)]
)
def test_a_signal(
    signum: signal.Signals, arguments: list[str], database: Database, tmp_path: Path
) -> None:
    make(ENDLESS).store_as_backup(tmp_path)
    env = restore_environment(tmp_path, database)
    with started_pgstash(restore_to(env, *arguments), env) as process:
        wait_until(lambda: started_endless(database), "the statement runs")
        sent = time.monotonic()
        process.send_signal(signum)
        out, err = process.communicate(timeout=60)
        took = time.monotonic() - sent
    assert process.returncode == -signum, out + err
    assert took < SECONDS_TO_END, f"{took:.1f} s"
    assert f"interrupted by {signum.name}" in err
    assert "and nothing was changed in the target: " in err
    assert sessions(database) == ""
    assert held(database) == ""
    assert working(database) == ""


def test_what_a_killed_restore_left_is_told(database: Database, tmp_path: Path) -> None:
    name = f"killed_{os.getpid()}"
    make(ENDLESS).store_as_backup(tmp_path)
    env = restore_environment(tmp_path, database)
    try:
        with started_pgstash(["restore", "--create", name], env) as process:
            wait_until(lambda: started_endless(database), "the statement runs")
            process.kill()
            process.communicate(timeout=60)
        left = working(database).strip()
        assert left.startswith(f"{name}_pgstash_")
        (tmp_path / "again").mkdir()
        make(SCRIPT).store_as_backup(tmp_path / "again")
        env = restore_environment(tmp_path / "again", database)
        done = run_pgstash(["restore", "--create", name], env)
        assert done.returncode == 0, done.stderr
        assert f"WARNING The database {left} is incomplete: " in done.stderr
        assert working(database).strip() == left
    finally:
        for each in (name, *working(database).split()):
            database.cluster.drop_database(each)


def psqls(target: Database) -> list[int]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if command[0].endswith(b"/psql") and target.name.encode() in b" ".join(command):
            found.append(int(process.name))
    return found


def test_psql_is_killed(database: Database, tmp_path: Path) -> None:
    make(ENDLESS).store_as_backup(tmp_path)
    env = restore_environment(tmp_path, database)
    with started_pgstash(restore_to(env), env) as process:
        wait_until(lambda: started_endless(database), "the statement runs")
        [pid] = psqls(database)
        os.kill(pid, signal.SIGKILL)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 63, out + err
    assert "and nothing was changed in the target: " in err
    assert "psql was killed by signal 9" in err
    assert sessions(database) == ""
    assert held(database) == ""


def test_the_session_is_ended_by_the_server(database: Database, tmp_path: Path) -> None:
    make(ENDLESS).store_as_backup(tmp_path)
    env = restore_environment(tmp_path, database)
    with started_pgstash(restore_to(env), env) as process:
        wait_until(lambda: started_endless(database), "the statement runs")
        database.run_sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query ~ '^SELECT pg_sle'"
        )
        out, err = process.communicate(timeout=60)
    assert process.returncode == 63, out + err
    assert "and nothing was changed in the target: " in err
    assert held(database) == ""


def test_a_server_that_comes_back_is_waited_for(newest_cluster: Cluster, tmp_path: Path) -> None:
    """As one does of which a process was killed, by the kernel for want of memory."""
    make(ENDLESS).store_as_backup(tmp_path)
    with Cluster(newest_cluster.major) as cluster:
        database = cluster.maintenance
        env = restore_environment(tmp_path, database)
        with started_pgstash(["restore", "--create", "never_made"], env) as process:
            wait_until(lambda: started_endless(database), "the statement runs")
            cluster.stop()
            time.sleep(1)  # by then it was tried
            cluster.start()
            out, err = process.communicate(timeout=60)
        assert process.returncode == 63, out + err
        assert "and nothing was changed in the target: " in err
        assert "could not be dropped" not in err
        assert working(database) == ""


def test_a_signal_while_a_server_is_waited_for(newest_cluster: Cluster, tmp_path: Path) -> None:
    make(ENDLESS).store_as_backup(tmp_path)
    with Cluster(newest_cluster.major) as cluster:
        env = restore_environment(tmp_path, cluster.maintenance)
        with started_pgstash(["restore", "--create", "never_made"], env) as process:
            wait_until(lambda: started_endless(cluster.maintenance), "the statement runs")
            cluster.stop()
            time.sleep(1)
            sent = time.monotonic()
            process.send_signal(signal.SIGTERM)
            out, err = process.communicate(timeout=60)
            took = time.monotonic() - sent
    assert process.returncode == -signal.SIGTERM, out + err
    assert took < SECONDS_TO_END, f"{took:.1f} s"
    assert re.search("FAILURE .* and the database never_made_pgstash_.* is left, incomplete: ", err)


def test_a_signal_while_the_database_is_created(database: Database, tmp_path: Path) -> None:
    """The server finishes CREATE DATABASE, whoever asked for it is there or not."""
    make(SCRIPT).store_as_backup(tmp_path)
    env = restore_environment(tmp_path, database)
    creating = (
        "SELECT 1 FROM pg_stat_activity"
        " WHERE query ~ '^CREATE DATABASE .never_made' AND wait_event_type = 'Lock'"
    )
    with psycopg.connect(database.uri) as holder:
        holder.execute("COMMENT ON DATABASE template0 IS 'a lock that a copy waits for'")
        with started_pgstash(["restore", "--create", "never_made"], env) as process:
            wait_until(lambda: database.run_sql(creating), "the database is being created")
            process.send_signal(signal.SIGTERM)
            time.sleep(0.3)
            holder.rollback()
            out, err = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGTERM, out + err
    assert "and nothing was changed in the target: " in err
    active = creating.replace("wait_event_type = 'Lock'", "state = 'active'")
    wait_until(lambda: not database.run_sql(active), "the server has finished")
    assert working(database) == ""


def noisy_script() -> bytes:
    """Return a script that does not get small."""
    lines = (hashlib.sha256(b"%d" % number).hexdigest().encode() for number in range(60_000))
    return (
        b"CREATE TABLE public.a (line text);\n\nCOPY public.a (line) FROM stdin;\n"
        + b"\n".join(lines)
        + b"\n\\.\n\n"
        + CLOSING
    )


@pytest.mark.parametrize("stays", [False, True], ids=["comes back", "stays away"])
def test_the_connection_to_the_store_breaks(
    bucket: Bucket, http: HttpProxy, database: Database, *, stays: bool
) -> None:
    made = make(noisy_script(), passphrase=PASSPHRASE, member_bytes=1 << 19)
    metadata = {"id": made.manifest.id}
    for key, data in ((made.key, made.archive), (made.manifest_key, made.packed_manifest())):
        bucket.client.put_object(Bucket=bucket.name, Key=key, Body=data, Metadata=metadata)
    assert len(made.archive) > 2_000_000
    http.rule("GetObject", Cut(after=700_000), times=2 if stays else 1000)
    if stays:
        http.rule("GetObject", Cut(after=0))
    settings = bucket.settings | {"S3_ENDPOINT": http.endpoint, "BACKUP_PREFIX": "p"}
    env = environment(
        database.bin_dir,
        RESTORE_URL=database.uri,
        BACKUP_ENCRYPTION_KEY=PASSPHRASE,
        **settings,
    )
    done = run_pgstash(restore_to(env), env)
    assert "retry 1 of 3" in done.stderr
    if stays:
        assert_failed(done, 20, "the connection broke")
        assert held(database) == ""
    else:
        assert done.returncode == 0, done.stderr
        assert database.run_sql("SELECT count(DISTINCT line) FROM a") == "60000\n"
