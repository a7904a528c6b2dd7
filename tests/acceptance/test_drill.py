"""A drill proves a backup by restoring it into scratch, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from faults.scene import wait_until
from pgstash import events
from pgstash.commands.service import back_up_and_drill
from pgstash.errors import DatabaseUnreachableError
from pgstash.format import manifest as manifests
from pgstash.runtime import FollowUp, Runtime
from pgstash.service.retries import AFTER_FAILURE
from pgstash.settings import load
from support import databases, pieces
from support.backups import PASSPHRASE, PREFIX, back_up, settings, stored
from support.cli import NO_DOTENV, environment, run_pgstash, started_pgstash
from support.postgres import REPOSITORY, bin_dir
from support.stored import CLOSING, DATABASE, Made, make
from support.tiers import ENCRYPTED_FIRST, later

if TYPE_CHECKING:
    from support.postgres import Cluster, Clusters, Database, MakeDatabase

SECONDS_TO_END = 5.0
ROWS = b"COPY public.a (n) FROM stdin;\n1\n2\n\\.\n\n"
SCRIPT = b"CREATE TABLE public.a (n integer);\n\n" + ROWS + CLOSING
TABLES = [manifests.Table("public", "a", 2)]


def drill(
    folder: Path, scratch: Path, major: int, *arguments: str, **more: str
) -> subprocess.CompletedProcess[str]:
    given = {
        "STORAGE_URL": folder.as_uri(),
        "BACKUP_ENCRYPTION_KEY": PASSPHRASE,
        "TMPDIR": str(scratch),
    }
    return run_pgstash(["drill", *arguments], environment(bin_dir(major), **(given | more)))


def proofs(folder: Path) -> list[Path]:
    return sorted((folder / PREFIX).glob("backup_*.proof_*"))


def read(proof: Path) -> dict[str, Any]:
    packed = proof.read_bytes()
    if proof.suffix == ".enc":
        command = ["openssl", "enc", "-d", "-aes-256-cbc", "-pbkdf2", "-pass", "env:KEY"]
        env = dict(os.environ) | {"KEY": PASSPHRASE}
        packed = subprocess.run(
            command, input=packed, env=env, stdout=subprocess.PIPE, check=True
        ).stdout
    value: dict[str, Any] = json.loads(gzip.decompress(packed))
    return value


def made(
    folder: Path, script: bytes = SCRIPT, tables: list[manifests.Table] = TABLES, **changes: object
) -> Made:
    backup = make(script, passphrase=PASSPHRASE).with_manifest(tables=tables, **changes)
    backup.store_as_backup(folder)
    return backup


def assert_passed(done: subprocess.CompletedProcess[str], folder: Path) -> dict[str, Any]:
    assert done.returncode == 0, done.stdout + done.stderr
    assert "SUCCESS Drill passed in " in done.stdout
    return read(proofs(folder)[-1])


def assert_failed(
    done: subprocess.CompletedProcess[str], folder: Path, status: int, *words: str
) -> None:
    """The drill failed with this status, says these words, and has proven nothing."""
    assert done.returncode == status, (done.returncode, done.stdout, done.stderr)
    message = re.search(r"FAILURE Drill failed after [\d.]+s: (.+)", done.stderr, re.DOTALL)
    assert message, done.stderr
    assert [word for word in words if word not in message[1]] == [], done.stderr
    assert done.stderr.count("FAILURE") == 1
    assert "Traceback" not in done.stderr
    assert "SUCCESS" not in done.stdout
    assert proofs(folder) == []


@pytest.mark.parametrize("encrypted", ENCRYPTED_FIRST)
def test_on_a_throwaway_server_of_each_major(
    cluster: Cluster, make_database: MakeDatabase, tmp_path: Path, scratch: Path, *, encrypted: bool
) -> None:
    source = make_database("mixed", on=cluster)
    backup = back_up(source, tmp_path, encrypted=encrypted)
    proof = assert_passed(drill(tmp_path, scratch, cluster.major), tmp_path)
    assert proof["archive"] == backup.archive.name
    assert proof["id"] == backup.manifest["id"]
    assert proof["sha256"] == backup.manifest["sha256"]
    assert proof["server"].startswith(f"{cluster.major}.")
    assert proof["rows"] == sum(backup.row_counts.values()) > 0
    assert proof["tables"] == len(backup.row_counts)
    assert 0 < proof["restore_seconds"] <= proof["seconds"]
    # Chance decides whether this drill has the standard tools read it, too.
    assert {check["name"] for check in proof["checks"]} - {"standard tools"} == {
        *("digests", "restore", "rows", "indexes", "constraints", "sequences"),
        "owners and privileges",
    }
    assert all(check["passed"] for check in proof["checks"])
    assert ("hmac" in proof) == encrypted
    assert list(scratch.iterdir()) == []


@pytest.mark.newest_first
def test_what_the_source_wants_of_a_login_is_not_wanted_of_a_throwaway_server(
    cluster: Cluster, make_database: MakeDatabase, tmp_path: Path, scratch: Path
) -> None:
    back_up(make_database("mixed", on=cluster), tmp_path)
    wanted = {
        "PGCHANNELBINDING": "require",
        "PGGSSENCMODE": "require",
        "PGREQUIREAUTH": "scram-sha-256",
        "PGREQUIREPEER": "nobody_at_all",
        "PGSSLMODE": "require",
    }
    assert_passed(drill(tmp_path, scratch, cluster.major, **wanted), tmp_path)


@pytest.mark.newest_first
@pytest.mark.parametrize(
    "sample",
    [
        pytest.param(sample, marks=() if sample == "structure" else pytest.mark.long)
        for sample in (*databases.ROUND_TRIPPING, "breaks_under_clean")
    ],
)
def test_hard_databases(
    sample: str, cluster: Cluster, make_database: MakeDatabase, tmp_path: Path, scratch: Path
) -> None:
    backup = back_up(make_database(sample, on=cluster), tmp_path)
    more = {"LD_LIBRARY_PATH": str(bin_dir(cluster.major).parent / "lib")}
    proof = assert_passed(drill(tmp_path, scratch, cluster.major, **more), tmp_path)
    assert proof["rows"] == sum(backup.row_counts.values())


@pytest.mark.newest_first
def test_as_an_ordinary_user(cluster: Cluster, make_database: MakeDatabase, scratch: Path) -> None:
    back_up(make_database("mixed", on=cluster), scratch)
    for path in [scratch, *scratch.rglob("*")]:
        path.chmod(0o777 if path.is_dir() else 0o666)
    env = environment(
        bin_dir(cluster.major),
        STORAGE_URL=scratch.as_uri(),
        TMPDIR=str(scratch),
        PYTHONPATH=str(REPOSITORY / "tests"),
    )
    done = subprocess.run(
        [sys.executable, "-m", "support.ordinary_user", "drill"],
        env=env,
        cwd=NO_DOTENV,
        capture_output=True,
        text=True,
        check=False,
    )
    assert_passed(done, scratch)
    assert list(scratch.glob("pgstash-drill-*")) == []


def test_checks_of_the_users(tmp_path: Path, scratch: Path) -> None:
    made(tmp_path)
    file = tmp_path / "checks.sql"
    file.write_text("SET search_path = public;\nSELECT count(*) = 2 FROM a;\nSELECT n FROM a;\n")
    asked = {"VERIFY_SQL": str(file), "MIN_TABLE_COUNT": "1"}
    proof = assert_passed(drill(tmp_path, scratch, 18, **asked), tmp_path)
    found = {check["name"]: check["found"] for check in proof["checks"]}
    assert found["VERIFY_SQL, statement 1"] == "ran (SET)"
    assert found["VERIFY_SQL, statement 2"] == "returned true"
    assert found["VERIFY_SQL, statement 3"] == "returned 2 rows"
    assert found["MIN_TABLE_COUNT"] == "1 table, and MIN_TABLE_COUNT is 1"


LIBRARIES = ["session_preload_libraries", "local_preload_libraries"]


@pytest.mark.parametrize("library", later(LIBRARIES, LIBRARIES[1]))
def test_settings_of_the_database(library: str, tmp_path: Path, scratch: Path) -> None:
    """Definitions may ask for them; what decides on how sessions run is not for a drill's."""
    kept = [
        *("my.limit=5", "transaction_timeout=1s", "statement_timeout=1s"),
        *("default_transaction_isolation=serializable", "session_replication_role=replica"),
    ]
    limited = SCRIPT.replace(
        b"n integer", b"n integer CHECK (n < current_setting('my.limit')::int)"
    )
    database = replace(DATABASE, settings=[*kept, f"{library}=not_there"])
    made(tmp_path, limited, database=database)
    asked = {
        "VERIFY_SQL": "SELECT count(*) = 2 FROM public.a, pg_sleep(2);"
        f"SELECT setconfig = ARRAY{kept} FROM pg_db_role_setting"
    }
    done = drill(tmp_path, scratch, 18, **asked)
    proof = assert_passed(done, tmp_path)
    [warning] = proof["warnings"]
    assert warning.startswith(f"The setting {library} is left out: the target cannot be reached")
    assert "not_there" in warning


LOGGING = """
    CREATE TABLE logins (at timestamptz); CREATE TABLE a (n int);
    INSERT INTO a VALUES (1); CREATE MATERIALIZED VIEW m AS SELECT * FROM a;
    CREATE FUNCTION log() RETURNS event_trigger LANGUAGE plpgsql SECURITY DEFINER
        AS $$ BEGIN INSERT INTO public.logins VALUES (now()); END $$;
    CREATE EVENT TRIGGER logs ON login EXECUTE FUNCTION log();
    ALTER EVENT TRIGGER logs ENABLE ALWAYS;
"""
# Which makes a pg_restore of its own fill the views.
IN_ORDER = """
    CREATE FUNCTION latest() RETURNS int LANGUAGE sql AS 'SELECT max(n) FROM public.m';
    CREATE MATERIALIZED VIEW n AS SELECT latest();
"""
# Which makes a session of ours fill the views.
BY_US = "CREATE EXTENSION dblink;"


@pytest.mark.parametrize(
    ("more", "jobs"),
    later(
        [("", "1"), (IN_ORDER, "1"), ("", "2"), (IN_ORDER, "2"), (BY_US, "2")],
        *[("", "1"), (IN_ORDER, "1"), ("", "2")],
    ),
    ids=["one", "one, views in order", "several", "several, views in order", "views by us"],
)
def test_logins_that_are_logged(
    more: str, jobs: str, clusters: Clusters, make_database: MakeDatabase, tmp_path: Path
) -> None:
    """A drill's own are no rows of the backup."""
    on = clusters.get(18)
    source = make_database(on=on)
    source.run_sql(LOGGING + more)
    source.run_sql(f"ALTER DATABASE {source.name} SET session_preload_libraries = auto_explain")
    back_up(source, tmp_path, DUMP_JOBS="2")
    with_scratch = {"VERIFY_DATABASE_URL": on.maintenance.uri, "RESTORE_JOBS": jobs}
    assert_passed(drill(tmp_path, tmp_path, 18, **with_scratch), tmp_path)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (
            {
                "MIN_TABLE_COUNT": "2",
                "VERIFY_SQL": "SELECT false; SELECT 1; SELECT n FROM a WHERE n > 2;"
                "SELECT max(n) FROM a WHERE n > 2",
            },
            [
                "4 of ",
                "MIN_TABLE_COUNT: 1 table",
                "VERIFY_SQL, statement 1: returned false",
                "VERIFY_SQL, statement 3: returned no row",
                "VERIFY_SQL, statement 4: returned NULL",
            ],
        ),
        ({"VERIFY_SQL": "SELECT false"}, ["1 of ", "VERIFY_SQL, statement 1: returned false"]),
        pytest.param(
            *({"VERIFY_SQL": "SELECT * FROM gone"}, ['relation "gone" does not exist']),
            marks=pytest.mark.long,
        ),
    ],
    ids=["each", "false", "error"],
)
def test_checks_that_fail(
    asked: dict[str, str], words: list[str], tmp_path: Path, scratch: Path
) -> None:
    made(tmp_path)
    assert_failed(drill(tmp_path, scratch, 18, **asked), tmp_path, 42, *words)
    assert list(scratch.iterdir()) == []


def test_a_doctored_archive_with_valid_digests(tmp_path: Path, scratch: Path) -> None:
    made(tmp_path, tables=[manifests.Table("public", "a", 3), manifests.Table("public", "b", 1)])
    done = drill(tmp_path, scratch, 18)
    assert_failed(
        done, tmp_path, 42, "public.a has 2 rows, and the dump had 3", "public.b is missing"
    )


def test_a_sequence_that_is_behind_its_column(tmp_path: Path, scratch: Path) -> None:
    script = (
        b"CREATE TABLE public.a (n serial PRIMARY KEY);\n\n"
        + ROWS
        + b"SELECT pg_catalog.setval('public.a_n_seq', 1, true);\n"
        + CLOSING
    )
    made(tmp_path, script)
    done = drill(tmp_path, scratch, 18)
    assert_failed(done, tmp_path, 42, "public.a_n_seq is 2, which public.a.n has already")


def test_a_script_that_does_not_run_names_its_statement(tmp_path: Path, scratch: Path) -> None:
    made(tmp_path, b"CREATE TABLE public.b (x missing_type);\n" + SCRIPT)
    done = drill(tmp_path, scratch, 18)
    assert_failed(done, tmp_path, 62, 'type "missing_type" does not exist', "public.b")


@pytest.mark.parametrize("what", ["archive", "manifest", "no manifest", "key"])
def test_damage(what: str, tmp_path: Path, scratch: Path) -> None:
    backup = made(tmp_path)
    folder = tmp_path / PREFIX
    archive = folder / backup.manifest.archive
    manifest = folder / Path(backup.manifest_key).name
    more = {}
    match what:
        case "archive":
            data = bytearray(archive.read_bytes())
            data[len(data) // 2] ^= 1
            archive.write_bytes(data)
        case "manifest":
            data = bytearray(manifest.read_bytes())
            data[len(data) // 2] ^= 1
            manifest.write_bytes(data)
        case "no manifest":
            manifest.unlink()
        case _:
            more = {"BACKUP_ENCRYPTION_KEY": "x" * 40}
    done = drill(tmp_path, scratch, 18, **more)
    assert_failed(done, tmp_path, 32 if what == "no manifest" else 31, backup.manifest.archive)
    assert list(scratch.iterdir()) == []


def test_no_programs_of_a_server(tmp_path: Path, scratch: Path) -> None:
    made(tmp_path, server="99.1")
    done = drill(tmp_path, scratch, 18)
    assert_failed(done, tmp_path, 43, "no server of PostgreSQL 99", "postgresql-99")


def test_a_server_that_lets_nobody_in_is_told_with_the_reason(
    tmp_path: Path, scratch: Path
) -> None:
    made(tmp_path)
    sooner = pieces.statements(
        "from pgstash.postgres.scratch import throwaway_server",
        "throwaway_server._SECONDS_TO_START = 9.0",
    )
    env = environment(
        bin_dir(18),
        STORAGE_URL=tmp_path.as_uri(),
        BACKUP_ENCRYPTION_KEY=PASSPHRASE,
        TMPDIR=str(scratch),
        PGSSLNEGOTIATION="direct",
    )
    done = run_pgstash(["drill"], env, statements=sooner)
    assert_failed(
        done, tmp_path, 43, "logging in to the throwaway server failed: ", "sslnegotiation=direct"
    )


def test_no_room(tmp_path: Path, scratch: Path) -> None:
    made(tmp_path, database=replace(DATABASE, bytes=10**18))
    assert_failed(drill(tmp_path, scratch, 18), tmp_path, 43, f"{scratch} has ", "GB free")
    assert list(scratch.iterdir()) == []


@pytest.mark.long
def test_a_locale_that_the_scratch_lacks_is_told(tmp_path: Path, scratch: Path) -> None:
    made(tmp_path, database=replace(DATABASE, collate="xx_YY.UTF-8", ctype="xx_YY.UTF-8"))
    done = drill(tmp_path, scratch, 18)
    proof = assert_passed(done, tmp_path)
    assert 'The locale is "C" instead' in done.stderr
    assert 'The locale is "C" instead' in proof["warnings"][0]


def test_a_backup_that_may_be_a_partial_one_is_told(tmp_path: Path, scratch: Path) -> None:
    made(tmp_path, options=["--verbose", "--exclude-table-data=big"])
    done = drill(tmp_path, scratch, 18)
    proof = assert_passed(done, tmp_path)
    [said] = proof["warnings"]
    assert said.endswith("may be a partial backup: it was made with --exclude-table-data=big")
    assert said in done.stderr


class TestOnAServer:
    """With VERIFY_DATABASE_URL."""

    def test_it_passes_and_the_database_is_gone(
        self, newest_cluster: Cluster, make_database: MakeDatabase, tmp_path: Path, scratch: Path
    ) -> None:
        source = make_database("mixed")
        back_up(source, tmp_path)
        url = newest_cluster.maintenance.uri
        more = {"VERIFY_DATABASE_URL": url, "DATABASE_URL": source.uri}
        done = drill(tmp_path, scratch, 18, **more)
        proof = assert_passed(done, tmp_path)
        assert "pgstash_drill_" in proof["scratch"]
        assert "is on the source's own server" in done.stderr
        assert scratch_databases(newest_cluster) == ""

    def test_the_source_itself_is_refused(
        self, make_database: MakeDatabase, tmp_path: Path, scratch: Path
    ) -> None:
        source = make_database("mixed")
        back_up(source, tmp_path)
        more = {"VERIFY_DATABASE_URL": source.uri, "DATABASE_URL": source.uri}
        done = drill(tmp_path, scratch, 18, **more)
        assert_failed(done, tmp_path, 43, "VERIFY_DATABASE_URL is the source itself", source.name)

    def test_variables_of_the_source_do_not_complete_it(
        self, newest_cluster: Cluster, tmp_path: Path, scratch: Path
    ) -> None:
        made(tmp_path)
        more = {
            "VERIFY_DATABASE_URL": f"postgresql:///postgres?host=127.0.0.1&user={newest_cluster.user}",
            "PGPORT": str(newest_cluster.port),
            "PGUSER": newest_cluster.user,
        }
        assert_failed(drill(tmp_path, scratch, 18, **more), tmp_path, 43, "VERIFY_DATABASE_URL: ")

    def test_a_failure_leaves_no_database(
        self, newest_cluster: Cluster, tmp_path: Path, scratch: Path
    ) -> None:
        made(tmp_path, b"SELECT 1/0;\n" + SCRIPT)
        more = {"VERIFY_DATABASE_URL": newest_cluster.maintenance.uri}
        done = drill(tmp_path, scratch, 18, **more)
        assert_failed(done, tmp_path, 62, "division by zero")
        assert scratch_databases(newest_cluster) == ""

    def test_a_role_that_may_not_make_databases(
        self, newest_cluster: Cluster, tmp_path: Path, scratch: Path
    ) -> None:
        made(tmp_path)
        newest_cluster.maintenance.run_sql("CREATE ROLE drill_humble LOGIN")
        try:
            url = newest_cluster.maintenance.uri.replace("admin@", "drill_humble@")
            done = drill(tmp_path, scratch, 18, VERIFY_DATABASE_URL=url)
            assert_failed(done, tmp_path, 61, "CREATEDB")
        finally:
            newest_cluster.maintenance.run_sql("DROP ROLE drill_humble")

    def test_what_a_killed_drill_left_is_dropped_and_what_runs_is_not(
        self, newest_cluster: Cluster, tmp_path: Path, scratch: Path
    ) -> None:
        made(tmp_path)
        dead, alive = "pgstash_drill_0badcafe", "pgstash_drill_00000001"
        others = ["pgstash_drill_notes", "pgstash_drill_0badcafe_mine"]
        for name in (dead, f"{dead}_pgstash_12345678", alive, *others):
            newest_cluster.create_database(name)
        try:
            with newest_cluster.maintenance.connect() as keeper:
                keeper.execute(f"SET application_name = '{alive}'")
                more = {"VERIFY_DATABASE_URL": newest_cluster.maintenance.uri}
                assert_passed(drill(tmp_path, scratch, 18, **more), tmp_path)
                assert scratch_databases(newest_cluster).split() == sorted([alive, *others])
        finally:
            for name in (alive, *others):
                newest_cluster.drop_database(name)


def scratch_databases(cluster: Cluster) -> str:
    query = r"SELECT datname FROM pg_database WHERE datname LIKE 'pgstash\_drill\_%' ORDER BY 1"
    return cluster.maintenance.run_sql(query)


ENDLESS = b"CREATE TABLE public.a (n integer);\n\nSELECT pg_sleep(600);\n" + ROWS + CLOSING


def commands(folder: Path) -> list[bytes]:
    """Return the command lines that name the folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            found.append((entry / "cmdline").read_bytes())
    return [command for command in found if str(folder).encode() in command]


def endless(folder: Path, scratch: Path, **more: str) -> dict[str, str]:
    made(folder, ENDLESS)
    given = {
        "STORAGE_URL": folder.as_uri(),
        "BACKUP_ENCRYPTION_KEY": PASSPHRASE,
        "TMPDIR": str(scratch),
    }
    return environment(bin_dir(18), **(given | more))


def sleeping(cluster: Cluster) -> bool:
    query = (
        "SELECT 1 FROM pg_stat_activity WHERE query ~ 'pg_sleep\\(600' AND pid <> pg_backend_pid()"
    )
    return cluster.maintenance.run_sql(query) != ""


@pytest.mark.parametrize("signum", later([signal.SIGTERM, signal.SIGINT], signal.SIGINT))
def test_a_signal_leaves_nothing(signum: signal.Signals, tmp_path: Path, scratch: Path) -> None:
    env = endless(tmp_path, scratch)
    with started_pgstash(["drill"], env) as process:
        wait_for_psql(process, scratch)
        time.sleep(0.5)
        began = time.monotonic()
        process.send_signal(signum)
        _, said = process.communicate(timeout=30)
        seconds = time.monotonic() - began
    assert process.returncode == -signum
    assert seconds < SECONDS_TO_END
    assert "FAILURE Drill failed" in said
    assert list(scratch.iterdir()) == []
    assert commands(scratch) == []
    assert proofs(tmp_path) == []


def wait_for_psql(process: subprocess.Popen[str], scratch: Path) -> None:
    assert process.stdout
    assert "Starting drill" in process.stdout.readline()
    wait_until(lambda: any(b"psql" in each for each in commands(scratch)), "psql runs")


def test_a_signal_drops_the_database(
    newest_cluster: Cluster, tmp_path: Path, scratch: Path
) -> None:
    env = endless(tmp_path, scratch, VERIFY_DATABASE_URL=newest_cluster.maintenance.uri)
    with started_pgstash(["drill"], env) as process:
        wait_until(lambda: sleeping(newest_cluster), "the restore")
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
    assert process.returncode == -signal.SIGTERM
    assert scratch_databases(newest_cluster) == ""
    assert not sleeping(newest_cluster)


def test_the_next_drill_removes_what_a_killed_one_left(tmp_path: Path, scratch: Path) -> None:
    env = endless(tmp_path, scratch)
    with started_pgstash(["drill"], env) as process:
        wait_for_psql(process, scratch)
        process.kill()
        process.communicate(timeout=30)
    [left] = scratch.iterdir()
    assert commands(left) != []
    made(tmp_path)
    assert_passed(drill(tmp_path, scratch, 18), tmp_path)
    assert list(scratch.iterdir()) == []
    assert commands(left) == []


@pytest.mark.long
def test_a_running_drill_keeps_its_server(tmp_path: Path, scratch: Path) -> None:
    env = endless(tmp_path, scratch)
    with started_pgstash(["drill"], env) as process:
        wait_for_psql(process, scratch)
        [running] = scratch.iterdir()
        other = tmp_path / "other"
        other.mkdir()
        made(other)
        assert_passed(drill(other, scratch, 18), other)
        assert list(scratch.iterdir()) == [running]
        assert commands(running) != []


@pytest.mark.long
def test_all_that_are_unproven(tmp_path: Path, scratch: Path) -> None:
    days = ["backup_20260131_020000", "backup_20260201_020000", "backup_20260202_020000"]
    for base in days:
        script = SCRIPT if base != days[1] else b"SELECT 1/0;\n" + SCRIPT
        backup = make(script, passphrase=PASSPHRASE, base=base).with_manifest(tables=TABLES)
        backup.store_as_backup(tmp_path)
    shell = tmp_path / PREFIX / "backup_20260101_020000.sql.gz"
    shell.write_bytes(gzip.compress(SCRIPT))
    assert drill(tmp_path, scratch, 18, days[0]).returncode == 0
    done = drill(tmp_path, scratch, 18, "--all-unproven")
    assert done.returncode == 62, done.stderr
    assert f"{shell.name} has no manifest, so it cannot be proven" in done.stderr
    assert [path.name.partition(".")[0] for path in proofs(tmp_path)] == [days[0], days[2]]
    assert done.stdout.index(f"Starting drill: {days[2]}") < done.stdout.index(
        f"Starting drill: {days[1]}"
    )
    assert f"Starting drill: {days[0]}" not in done.stdout


def test_a_wrong_command_line(tmp_path: Path) -> None:
    done = drill(tmp_path, tmp_path, 18, "backup_20260131_020000", "--all-unproven")
    assert done.returncode == 2


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("VERIFY_INTERVAL", "59"),
        ("VERIFY_INTERVAL", "after"),
        ("VERIFY_SQL", "/nonexistent.sql"),
        ("VERIFY_DATABASE_URL", "postgresql://user:Planted@host"),
        ("MIN_TABLE_COUNT", "0"),
    ],
)
def test_settings_that_are_wrong(variable: str, value: str, tmp_path: Path) -> None:
    done = drill(tmp_path, tmp_path, 18, **{variable: value})
    assert done.returncode == 1
    assert variable in done.stderr
    assert "Planted" not in done.stderr


class TestInTheService:
    """With VERIFY_INTERVAL."""

    @staticmethod
    def serve(database: Database, folder: Path, scratch: Path, word: str, **more: str) -> str:
        """Run the service until it has said a word; return all that it said."""
        env = environment(
            database.bin_dir, **settings(database, folder), TMPDIR=str(scratch), **more
        )
        with started_pgstash(["backup"], env) as process:
            assert process.stdout
            said = ""
            while word not in said:
                line = process.stdout.readline()
                assert line, said + process.stderr.read() if process.stderr else said
                said += line
            process.send_signal(signal.SIGTERM)
            out, err = process.communicate(timeout=30)
        assert process.returncode == -signal.SIGTERM
        return said + out + err

    def test_each_backup_is_proven(
        self, make_database: MakeDatabase, tmp_path: Path, scratch: Path
    ) -> None:
        database = make_database("mixed")
        more = {"VERIFY_INTERVAL": "after-backup"}
        said = self.serve(database, tmp_path, scratch, "Next run at", **more)
        assert "SUCCESS Drill passed" in said
        [backup] = stored(tmp_path)
        [proof] = proofs(tmp_path)
        assert read(proof)["archive"] == backup.archive.name

    @pytest.mark.long
    def test_only_when_the_last_proof_is_old_enough(
        self, make_database: MakeDatabase, tmp_path: Path, scratch: Path
    ) -> None:
        database = make_database("mixed")
        more = {"VERIFY_INTERVAL": "86400"}
        assert "Drill passed" in self.serve(database, tmp_path, scratch, "Next run at", **more)
        time.sleep(1.1)
        assert "drill" not in self.serve(database, tmp_path, scratch, "Next run at", **more).lower()
        assert len(stored(tmp_path)) == 2
        assert len(proofs(tmp_path)) == 1

    @pytest.mark.long
    def test_a_failed_drill_ends_nothing(
        self, make_database: MakeDatabase, tmp_path: Path, scratch: Path
    ) -> None:
        database = make_database("mixed")
        more = {"VERIFY_INTERVAL": "after-backup", "MIN_TABLE_COUNT": "1000"}
        said = self.serve(database, tmp_path, scratch, "Next run at", **more)
        assert "SUCCESS Backup completed" in said
        assert said.count("FAILURE Drill failed") == 1
        assert proofs(tmp_path) == []

    def test_a_store_that_does_not_say_whether_one_is_due(
        self, make_database: MakeDatabase, tmp_path: Path, scratch: Path
    ) -> None:
        (folder := tmp_path / "store").mkdir()
        more = {
            "VERIFY_INTERVAL": "86400",
            "HOOK_AFTER_BACKUP": f"mv '{folder}' '{tmp_path}/elsewhere'",
        }
        said = self.serve(make_database("mixed"), folder, scratch, "Next run at", **more)
        assert "SUCCESS Backup completed" in said
        assert "WARNING Could not determine whether a drill is due: " in said
        assert AFTER_FAILURE not in said, "another try would make another backup"

    @pytest.mark.parametrize("early", [True, False])
    def test_one_waits_for_a_backup_that_is_tried_again(
        self,
        early: bool,  # noqa: FBT001 - parameter
        make_database: MakeDatabase,
        tmp_path: Path,
        scratch: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        database = make_database("mixed")
        back_up(database, tmp_path)
        monkeypatch.setenv("PATH", f"{database.bin_dir}:{os.environ['PATH']}")
        monkeypatch.setenv("TMPDIR", str(scratch))
        away = settings(database, tmp_path) | {
            "DATABASE_URL": database.uri.replace(f":{database.cluster.port}/", ":1/"),
            "VERIFY_INTERVAL": "86400",
        }
        heard: list[events.Event] = []
        runtime = Runtime(heard.append, follow_up=lambda _: FollowUp(early=early))
        with pytest.raises(DatabaseUnreachableError):
            back_up_and_drill(load(away, Path("/nonexistent")), runtime)
        tried = any(isinstance(each, events.DrillStarted | events.DrillFailed) for each in heard)
        assert tried is not early


@pytest.mark.long
@pytest.mark.newest_first
def test_as_many_sessions_as_there_may_be(
    cluster: Cluster, make_database: MakeDatabase, tmp_path: Path, scratch: Path
) -> None:
    source = make_database(on=cluster)
    source.run_sql(
        "".join(f"CREATE TABLE t{n} AS SELECT generate_series(1, 9);" for n in range(70))
    )
    back_up(source, tmp_path)
    done = drill(tmp_path, scratch, cluster.major, RESTORE_JOBS="64")
    assert done.returncode == 0, done.stdout + done.stderr


UNRESTORABLE = {
    "a check that reads another table": (
        """
        CREATE TABLE a_checked (n int);
        CREATE TABLE limits (most int);
        INSERT INTO limits VALUES (5);
        CREATE FUNCTION within(n int) RETURNS bool LANGUAGE plpgsql AS
            'BEGIN RETURN n <= (SELECT coalesce(max(most), 0) FROM public.limits); END';
        ALTER TABLE a_checked ADD CONSTRAINT within CHECK (within(n));
        INSERT INTO a_checked VALUES (1);
        """,
        ["a_checked", "CHECK"],
    ),
    "a function that depends on search_path in a generated column": (
        """
        CREATE FUNCTION inner_of(w text) RETURNS text IMMUTABLE LANGUAGE sql AS 'SELECT lower(w)';
        CREATE FUNCTION outer_of(w text) RETURNS text IMMUTABLE LANGUAGE plpgsql AS
            'BEGIN RETURN inner_of(w); END';
        CREATE TABLE words (w text, o text GENERATED ALWAYS AS (outer_of(w)) STORED);
        INSERT INTO words VALUES ('A');
        """,
        ["words", "SET search_path"],
    ),
    "a violated foreign key": (
        """
        CREATE TABLE parents (n int PRIMARY KEY);
        CREATE TABLE children (n int REFERENCES parents);
        SET session_replication_role = replica;
        INSERT INTO children VALUES (1);
        """,
        ["children", "Correct the rows in the source"],
    ),
}


@pytest.mark.newest_first
@pytest.mark.parametrize(
    "case",
    later(UNRESTORABLE, *[each for each in UNRESTORABLE if each != "a violated foreign key"]),
)
def test_what_cannot_be_restored_is_named_with_its_remedy(
    case: str, cluster: Cluster, make_database: MakeDatabase, tmp_path: Path, scratch: Path
) -> None:
    script, words = UNRESTORABLE[case]
    source = make_database(on=cluster)
    source.run_sql(script)
    back_up(source, tmp_path)
    assert_failed(drill(tmp_path, scratch, cluster.major), tmp_path, 62, *words)
