"""What goes wrong while several sessions restore leaves no database, no session and no process."""

from __future__ import annotations

import gzip
import os
import re
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from faults.scene import Bucket, wait_until
from support import backups, pieces
from support.backups import PASSPHRASE, PREFIX
from support.cli import environment, run_pgstash, started_pgstash
from support.compare import compare
from support.postgres import PASSWORD, Cluster, Database, bin_dir, temporary_database
from support.postgres import test_majors as majors_under_test
from support.proxy import STALL, Answer, Cut, TcpProxy
from support.tiers import later

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator, Sequence

    from support.postgres import Clusters, MakeDatabase
    from support.proxy import Action, HttpProxy

MAJORS = majors_under_test()
SECONDS_TO_END = 5.0
# Others run the same tests at the same time, and their processes are seen here.
NAME = f"never_made_{os.getpid()}"
PLANTED = "PlantedTarget1"


def restore_environment(folder: Path, on: Cluster, **more: str) -> dict[str, str]:
    given = {
        "STORAGE_URL": folder.as_uri(),
        "RESTORE_URL": on.maintenance.uri,
        "RESTORE_JOBS": "2",
        "BACKUP_ENCRYPTION_KEY": PASSPHRASE,
    }
    return environment(on.maintenance.bin_dir, **(given | more))


def restore(
    folder: Path,
    on: Cluster,
    *arguments: str,
    statements: Sequence[str] = (),
    **more: str,
) -> subprocess.CompletedProcess[str]:
    env = restore_environment(folder, on, **more)
    return run_pgstash(["restore", "--create", NAME, *arguments], env, statements=statements)


@pytest.fixture(autouse=True)
def _dropped_later(newest_cluster: Cluster) -> Iterator[None]:
    """What a test that fails has left must not fail the next."""
    yield
    left = newest_cluster.maintenance.run_sql(f"{MADE} AND datname ~ '_pgstash_'")
    for name in (NAME, *left.splitlines()):
        newest_cluster.drop_database(name)


MADE = f"SELECT datname FROM pg_database WHERE datname LIKE '{NAME.replace('_', '%')}%'"


def sessions(on: Cluster) -> str:
    return on.maintenance.run_sql(
        "SELECT application_name, query FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
        f" AND (datname LIKE '{NAME}%' OR application_name ~ '^(pgstash|psql|pg_restore)')"
    )


def commands() -> list[bytes]:
    """Return the command lines of all processes."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            found.append((process / "cmdline").read_bytes())
        except OSError:
            continue
    return found


def assert_nothing_left(on: Cluster) -> None:
    assert on.maintenance.run_sql(MADE) == ""
    # That of the question before may not be gone yet.
    wait_until(lambda: sessions(on) == "", "all sessions are gone")
    # The server's own processes name the database too.
    assert [
        each for each in commands() if NAME.encode() in each and not each.startswith(b"postgres: ")
    ] == []


def assert_failed(done: subprocess.CompletedProcess[str], status: int, *words: str) -> None:
    """The restore failed with this status, changed nothing, and says these words and a hint."""
    assert_failure(done.returncode, done.stdout, done.stderr, status, *words)


def assert_failure(returncode: int, out: str, said: str, status: int, *words: str) -> None:
    assert returncode == status, (returncode, out, said)
    message = re.search(
        r"FAILURE Restore failed after [\d.]+s, and nothing was changed in the target: (.+)",
        said,
        re.DOTALL,
    )
    assert message, said
    assert [word for word in words if word not in message[1]] == [], said
    assert "\n  " in message[1], said
    assert "Traceback" not in said
    assert "SUCCESS" not in out


# What a source can hold that no server takes from a dump of it.
REFUSED = {
    "pre-data": (
        """
        CREATE FUNCTION broken() RETURNS language_handler LANGUAGE c
            AS '$libdir/plpgsql', 'plpgsql_call_handler';
        UPDATE pg_proc SET probin = '/nonexistent/library' WHERE proname = 'broken';
        """,
        ["/nonexistent/library", "CREATE FUNCTION public.broken()"],
    ),
    "rows": (
        """
        CREATE FUNCTION is_good(int) RETURNS boolean LANGUAGE sql IMMUTABLE AS 'SELECT true';
        CREATE TABLE checked (n int CONSTRAINT must_be_good CHECK (is_good(n)));
        INSERT INTO checked SELECT generate_series(1, 100);
        CREATE OR REPLACE FUNCTION is_good(int) RETURNS boolean LANGUAGE sql IMMUTABLE
            AS 'SELECT $1 <> 77';
        """,
        ["must_be_good", "checked", "Rows of the source violate a CHECK"],
    ),
    "a unique index": (
        """
        CREATE TABLE twice (n int);
        INSERT INTO twice VALUES (1), (1);
        CREATE INDEX only_once ON twice (n);
        UPDATE pg_index SET indisunique = true WHERE indexrelid = 'only_once'::regclass;
        """,
        ["only_once", "Rows of the source violate a constraint"],
    ),
    "a foreign key": (
        """
        CREATE TABLE parents (id int PRIMARY KEY);
        CREATE TABLE children (parent int CONSTRAINT has_parent REFERENCES parents);
        ALTER TABLE children DISABLE TRIGGER ALL;
        INSERT INTO children VALUES (5);
        ALTER TABLE children ENABLE TRIGGER ALL;
        """,
        ["has_parent", "children", "Rows of the source violate a constraint"],
    ),
}


@pytest.mark.parametrize("where", later(REFUSED, "a unique index"))
def test_what_the_server_refuses(
    where: str, newest_cluster: Cluster, make_database: MakeDatabase, tmp_path: Path
) -> None:
    source = make_database()
    script, words = REFUSED[where]
    source.run_sql(script + "CREATE TABLE good (n int); INSERT INTO good VALUES (1);")
    pieces.back_up(source, tmp_path)
    assert_failed(restore(tmp_path, newest_cluster), 62, *words)
    assert_nothing_left(newest_cluster)


# What a statement about it needs before.
IMPORT = "from pgstash.restore import parallel_restore"


def test_a_role_that_goes_meanwhile(
    newest_cluster: Cluster, make_database: MakeDatabase, tmp_path: Path
) -> None:
    """It was there when it was looked for."""
    source, role = make_database(), "loading_gone"
    newest_cluster.maintenance.run_sql(f"CREATE ROLE {role}")
    try:
        source.run_sql(
            "CREATE TABLE guarded (n int); INSERT INTO guarded VALUES (1);"
            f"CREATE POLICY own ON guarded TO {role} USING (true)"
        )
        folder = tmp_path / "backup"
        folder.mkdir()
        pieces.back_up(source, folder)
        source.run_sql("DROP POLICY own ON guarded")
        stop = pieces.Stop("parallel_restore, 'build'", tmp_path)
        with started_pgstash(
            ["restore", "--create", NAME],
            restore_environment(folder, newest_cluster),
            statements=pieces.statements(IMPORT, stop.statement),
        ) as process:
            with stop.reached():
                newest_cluster.maintenance.run_sql(f"DROP ROLE {role}")
            out, err = process.communicate(timeout=60)
    finally:
        newest_cluster.maintenance.run_sql(f"DROP ROLE IF EXISTS {role}")
    assert_failure(process.returncode, out, err, 62, role, "own", "Create the role first")
    assert_nothing_left(newest_cluster)


# In each phase one statement takes longer than anybody waits, on the way back alone.
PAUSE = "'BEGIN PERFORM pg_sleep(600); RETURN true; END'"
NO_PAUSE = "'BEGIN RETURN true; END'"
ENDLESS = {
    "pre-data": """
        CREATE FUNCTION handler() RETURNS language_handler LANGUAGE c
            AS '$libdir/plpgsql', 'plpgsql_call_handler';
        CREATE FUNCTION pause(oid) RETURNS boolean LANGUAGE plpgsql AS %s;
        CREATE LANGUAGE slowly HANDLER handler VALIDATOR pause;
        CREATE FUNCTION validated() RETURNS int LANGUAGE slowly AS 'BEGIN RETURN 1; END';
    """,
    "rows": """
        CREATE FUNCTION pause(int) RETURNS boolean LANGUAGE plpgsql IMMUTABLE AS %s;
        CREATE TABLE checked (n int CHECK (pause(n)));
        INSERT INTO checked SELECT generate_series(1, 20000);
    """,
    "post-data": """
        CREATE FUNCTION pause(int) RETURNS boolean LANGUAGE plpgsql IMMUTABLE AS %s;
        CREATE TABLE indexed (n int);
        INSERT INTO indexed SELECT generate_series(1, 100);
        CREATE INDEX slow_index ON indexed (pause(n));
    """,
}
RUNS = {
    "pre-data": "CREATE FUNCTION public.validated",
    "rows": "COPY public.checked",
    "post-data": "CREATE INDEX slow_index",
}
OTHERS = """
    CREATE TABLE others (id int PRIMARY KEY, line text);
    INSERT INTO others SELECT n, md5(n::text) FROM generate_series(1, 5000) n;
    CREATE INDEX others_line ON others (line);
"""


@pytest.fixture(scope="module", params=ENDLESS)
def phase(request: pytest.FixtureRequest) -> str:
    chosen: str = request.param
    return chosen


@pytest.fixture(scope="module")
def endless(phase: str, newest_cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a backup that does not come to the end of this phase."""
    folder = tmp_path_factory.mktemp("endless")
    argument = "oid" if phase == "pre-data" else "int"
    how = "" if phase == "pre-data" else "IMMUTABLE"
    with temporary_database(newest_cluster) as source:
        source.run_sql(OTHERS + ENDLESS[phase] % NO_PAUSE)
        source.run_sql(
            f"CREATE OR REPLACE FUNCTION pause({argument}) RETURNS boolean LANGUAGE plpgsql {how}"
            f" AS {PAUSE}"
        )
        pieces.back_up(source, folder)
    return folder


def sleeping(on: Cluster, phase: str) -> list[int]:
    """Return the sessions in which the endless statement of the phase runs."""
    found = on.maintenance.run_sql(
        f"SELECT pid FROM pg_stat_activity WHERE datname LIKE '{NAME}_pgstash_%'"
        f" AND wait_event = 'PgSleep' AND query LIKE '%{RUNS[phase]}%'"
    )
    return [int(pid) for pid in found.split()]


def planted(on: Cluster) -> str:
    """Return an address with a password that nobody asks for."""
    url = on.maintenance.uri.replace("://admin@", f"://admin:{PLANTED}@")
    assert PLANTED in url
    return url


@pytest.mark.parametrize(
    "signum", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.long)]
)
def test_a_signal(
    signum: signal.Signals, phase: str, endless: Path, newest_cluster: Cluster
) -> None:
    env = restore_environment(
        endless, newest_cluster, RESTORE_URL=planted(newest_cluster), DEBUG="true"
    )
    with started_pgstash(["restore", "--create", NAME], env) as process:
        wait_until(lambda: sleeping(newest_cluster, phase), f"the statement of {phase} runs")
        shown = [each for each in commands() if PLANTED.encode() in each]
        sent = time.monotonic()
        process.send_signal(signum)
        out, err = process.communicate(timeout=60)
        took = time.monotonic() - sent
    assert process.returncode == -signum, out + err
    assert took < SECONDS_TO_END, f"{took:.1f} s"
    assert f"interrupted by {signum.name}" in err
    assert "and nothing was changed in the target: " in err
    assert_nothing_left(newest_cluster)
    assert shown == []
    assert PLANTED not in out + err


@pytest.mark.parametrize("phase", later(ENDLESS, "pre-data", "rows"), indirect=True)
def test_a_signal_while_nobody_answers(phase: str, endless: Path, newest_cluster: Cluster) -> None:
    """Then what is left there is named: nobody can be asked to drop it."""
    with TcpProxy(newest_cluster.port) as proxy:
        url = newest_cluster.maintenance.uri.replace(f":{newest_cluster.port}", f":{proxy.port}")
        env = restore_environment(endless, newest_cluster, RESTORE_URL=url)
        with started_pgstash(["restore", "--create", NAME], env) as process:
            wait_until(lambda: sleeping(newest_cluster, phase), f"the statement of {phase} runs")
            proxy.behave(STALL)
            sent = time.monotonic()
            process.send_signal(signal.SIGTERM)
            out, err = process.communicate(timeout=60)
            took = time.monotonic() - sent
    assert process.returncode == -signal.SIGTERM, out + err
    assert re.search(
        f"FAILURE .* and the database {NAME}_pgstash_[0-9a-f]+ is left, incomplete: ", err
    )
    assert took < SECONDS_TO_END, f"{took:.1f} s"


@pytest.mark.parametrize("phase", later(ENDLESS, "pre-data", "post-data"), indirect=True)
def test_a_session_is_ended_by_the_server(
    phase: str, endless: Path, newest_cluster: Cluster
) -> None:
    env = restore_environment(endless, newest_cluster)
    with started_pgstash(["restore", "--create", NAME], env) as process:
        wait_until(lambda: sleeping(newest_cluster, phase), f"the statement of {phase} runs")
        [pid, *_] = sleeping(newest_cluster, phase)
        newest_cluster.maintenance.run_sql(f"SELECT pg_terminate_backend({pid})")
        out, err = process.communicate(timeout=60)
    assert_failure(process.returncode, out, err, 63)
    assert "terminating connection" in err
    assert_nothing_left(newest_cluster)


def clients(on: Cluster) -> list[int]:
    """Return the processes of psql and pg_restore that load the database."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        tool = command[0].rpartition(b"/")[2]
        if tool in (b"psql", b"pg_restore") and f"{on.port}".encode() in b" ".join(command):
            found.append(int(process.name))
    return found


@pytest.mark.parametrize("which", ["the first", "the last"])
@pytest.mark.parametrize("phase", later(["pre-data", "post-data"], "pre-data"), indirect=True)
def test_a_client_is_killed(which: str, phase: str, endless: Path, newest_cluster: Cluster) -> None:
    """Of pg_restore the first is the leader, the others are its workers; rows need no client."""
    env = restore_environment(endless, newest_cluster)
    with started_pgstash(["restore", "--create", NAME], env) as process:
        wait_until(lambda: sleeping(newest_cluster, phase), f"the statement of {phase} runs")
        os.kill(sorted(clients(newest_cluster))[0 if which == "the first" else -1], signal.SIGKILL)
        out, err = process.communicate(timeout=90)
    assert_failure(process.returncode, out, err, 63)
    assert_nothing_left(newest_cluster)


def test_a_real_password(clusters: Clusters, make_database: MakeDatabase, tmp_path: Path) -> None:
    source = make_database("mixed")
    pieces.back_up(source, tmp_path)
    guarded = clusters.get(MAJORS[-1], auth="scram-sha-256")
    try:
        done = restore(tmp_path, guarded, DEBUG="true")
        assert done.returncode == 0, done.stdout + done.stderr
        made = Database(guarded, NAME)
        assert compare(source.conninfo, made.conninfo, bin_dir=source.bin_dir) == []
    finally:
        guarded.drop_database(NAME)
    assert PASSWORD not in done.stdout + done.stderr


# Each takes longer than any of the planted times, and two have to wait for the first of them.
SLOW = """
    CREATE FUNCTION slow(int) RETURNS boolean LANGUAGE plpgsql IMMUTABLE AS
        'BEGIN IF $1 = 1 THEN PERFORM pg_sleep(0.8); END IF; RETURN true; END';
    CREATE TABLE checked (n int CHECK (slow(n)));
    INSERT INTO checked SELECT generate_series(1, 10);
    CREATE TABLE parents (n int, CONSTRAINT slow_key EXCLUDE (n WITH =) WHERE (slow(n)));
    ALTER TABLE parents ADD PRIMARY KEY (n);
    INSERT INTO parents SELECT generate_series(1, 10);
    CREATE TABLE one (n int REFERENCES parents);
    CREATE TABLE two (n int REFERENCES parents);
    INSERT INTO one SELECT generate_series(1, 10);
    INSERT INTO two SELECT generate_series(1, 10);
    CREATE INDEX ON checked (slow(n));
"""
PLANTED_SETTINGS = {
    "statement_timeout": "50",
    "default_transaction_read_only": "on",
    "lock_timeout": "50",
    "idle_in_transaction_session_timeout": "50",
    "idle_session_timeout": "300",
    "transaction_timeout": "300",
}


def test_planted_settings_do_not_disturb(
    newest_cluster: Cluster, make_database: MakeDatabase, tmp_path: Path
) -> None:
    source, role = make_database(), "loading_planted"
    source.run_sql(SLOW)
    pieces.back_up(source, tmp_path)
    newest_cluster.maintenance.run_sql(f"CREATE ROLE {role} SUPERUSER LOGIN")
    try:
        known = newest_cluster.maintenance.run_sql("SELECT name FROM pg_settings").split()
        for name, value in PLANTED_SETTINGS.items():
            if name not in known:
                continue
            newest_cluster.maintenance.run_sql(f"ALTER ROLE {role} SET {name} TO '{value}'")
        url = newest_cluster.maintenance.uri.replace("://admin@", f"://{role}@")
        done = restore(tmp_path, newest_cluster, RESTORE_URL=url)
        assert (done.returncode, done.stderr) == (0, ""), done.stdout
        made = Database(newest_cluster, NAME)
        assert compare(source.conninfo, made.conninfo, bin_dir=source.bin_dir) == []
    finally:
        newest_cluster.drop_database(NAME)
        newest_cluster.maintenance.run_sql(f"DROP OWNED BY {role}; DROP ROLE {role}")


# A restore that goes the way of several sessions all the same ends with an error.
BY_ONE_ALONE = "parallel_restore.ParallelRestore.run = None"


def test_the_schema_is_gone(
    newest_cluster: Cluster, make_database: MakeDatabase, tmp_path: Path
) -> None:
    source = make_database("mixed")
    pieces.back_up(source, tmp_path)
    [schema] = (tmp_path / PREFIX).glob("backup_*.schema.gz")
    schema.unlink()
    done = restore(tmp_path, newest_cluster, statements=pieces.statements(IMPORT, BY_ONE_ALONE))
    assert done.returncode == 0, done.stderr
    said = done.stderr.splitlines()
    assert len(said) == 1
    assert "WARNING The schema companion of backup_" in said[0]
    assert "is missing: a single session restores" in said[0]
    made = Database(newest_cluster, NAME)
    assert compare(source.conninfo, made.conninfo, bin_dir=source.bin_dir) == []


@pytest.mark.parametrize(
    ("encrypted", "valid"),
    [
        pytest.param(False, False, id="plain", marks=pytest.mark.long),
        pytest.param(True, False, id="encrypted"),
        pytest.param(False, True, id="another one"),
    ],
)
def test_the_schema_is_damaged(
    newest_cluster: Cluster,
    make_database: MakeDatabase,
    tmp_path: Path,
    *,
    encrypted: bool,
    valid: bool,
) -> None:
    """Also where gzip has nothing to say against it: then the digest has."""
    pieces.back_up(make_database("mixed"), tmp_path, encrypted=encrypted)
    [schema] = (tmp_path / PREFIX).glob("backup_*.schema.gz*")
    data = bytearray(schema.read_bytes())
    if valid:
        head = gzip.decompress(data)
        data = bytearray(gzip.compress(head.replace(b"CREATE INDEX", b"CREATE  INDEX")))
        assert gzip.decompress(data) != head
    else:
        data[len(data) // 2] ^= 1
    schema.write_bytes(data)
    assert_failed(restore(tmp_path, newest_cluster), 31)
    assert_nothing_left(newest_cluster)


@pytest.mark.parametrize(
    ("older", "newer"),
    [(older, newer) for older in MAJORS for newer in MAJORS if older < newer],
)
def test_a_server_that_is_older_than_pg_dump(
    older: int,
    newer: int,
    clusters: Clusters,
    make_database: MakeDatabase,
    tmp_path: Path,
) -> None:
    """As where no other major is installed: what the older does not know is left out."""
    source, on = make_database("mixed", on=clusters.get(older)), clusters.get(older)
    env = environment(bin_dir(newer), **backups.settings(source, tmp_path))
    done = run_pgstash(["once"], env, statements=pieces.statements())
    assert (done.returncode, done.stderr) == (0, "")
    assert backups.stored(tmp_path)[0].manifest["client"].startswith(f"{newer}.")
    env = restore_environment(tmp_path, on) | {"PATH": env["PATH"]}
    arguments = ["restore", "--create", NAME]
    try:
        done = run_pgstash(arguments, env, statements=pieces.statements(IMPORT, BY_ONE_ALONE))
        assert (done.returncode, done.stderr) == (0, "")
        made = Database(on, NAME)
        assert compare(source.conninfo, made.conninfo, bin_dir=source.bin_dir) == []
    finally:
        on.drop_database(NAME)


def stored_in_bucket(source: Database, bucket: Bucket) -> None:
    small = ("snapshot.CHUNK_BYTES = 16 * 1024", "member_writer.MEMBER_BYTES = 64 * 1024")
    env = environment(source.bin_dir, DATABASE_URL=source.uri, **bucket.settings)
    done = run_pgstash(["once"], env, statements=pieces.statements(*small))
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    "action",
    [
        pytest.param(Answer(500, "InternalError"), id="answers 500"),
        pytest.param(Cut(after=0), id="breaks off", marks=pytest.mark.long),
    ],
)
@pytest.mark.parametrize(
    "for_good", [pytest.param(False, marks=pytest.mark.long), True], ids=["for a while", "for good"]
)
def test_the_store_is_gone(
    *,
    for_good: bool,
    action: Action,
    newest_cluster: Cluster,
    make_database: MakeDatabase,
    bucket: Bucket,
    http: HttpProxy,
) -> None:
    source = make_database()
    source.run_sql(OTHERS)
    stored_in_bucket(source, bucket)
    # The manifest, the schema, the header and what is before the rows come before.
    http.rule("GetObject", action, skip=8, times=1000 if for_good else 3)
    settings = bucket.settings | {"S3_ENDPOINT": http.endpoint}
    env = environment(
        source.bin_dir,
        RESTORE_URL=newest_cluster.maintenance.uri,
        RESTORE_JOBS="2",
        **settings,
    )
    done = run_pgstash(["restore", "--create", NAME], env)
    assert "retry 1 of 3" in done.stderr
    if for_good:
        assert_failed(done, 20)
        assert_nothing_left(newest_cluster)
    else:
        assert done.returncode == 0, done.stderr
        made = Database(newest_cluster, NAME)
        assert compare(source.conninfo, made.conninfo, bin_dir=source.bin_dir) == []
