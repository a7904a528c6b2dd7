"""A server is lost, and `pgstash recover` brings all of it back onto another one."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import psycopg
import pytest

from support import postgres
from support.backups import PASSPHRASE, PREFIX, decrypted, settings
from support.cli import environment, run_pgstash, started_pgstash
from support.postgres import PASSWORD, Cluster, Database, clean_environment

if TYPE_CHECKING:
    from collections.abc import Iterator

HOSTILE = "A b/c'd\"e%f?g=h,*"
NAMES = ["shop", HOSTILE, "latin", "Ünï"]
MAJOR = postgres.test_majors()[-1]

ROLES = """
    CREATE ROLE team NOLOGIN;
    CREATE ROLE app LOGIN CREATEDB CONNECTION LIMIT 7 PASSWORD 'planted app';
    CREATE ROLE "Odd role; --" LOGIN PASSWORD 'planted odd';
    CREATE ROLE reader LOGIN PASSWORD 'planted reader';
    ALTER ROLE app SET work_mem = '9MB';
    GRANT team TO app WITH ADMIN OPTION;
    GRANT pg_read_all_data TO reader;
    COMMENT ON ROLE team IS 'the team';
"""
# The index takes two seconds to build: time enough to be killed in.
SHOP = """
    CREATE FUNCTION slow(n int) RETURNS int IMMUTABLE LANGUAGE plpgsql
        AS 'BEGIN PERFORM pg_catalog.pg_sleep(0.1); RETURN n; END';
    CREATE TABLE orders (id int PRIMARY KEY, what text);
    INSERT INTO orders SELECT n, 'what ' || n FROM generate_series(1, 20) n;
    CREATE INDEX orders_slow ON orders (slow(id));
    ALTER TABLE orders OWNER TO app;
    GRANT SELECT ON orders TO reader WITH GRANT OPTION;
    ALTER DEFAULT PRIVILEGES FOR ROLE app GRANT SELECT ON TABLES TO team;
    ALTER DATABASE shop OWNER TO app;
    ALTER DATABASE shop SET lock_timeout = '7s';
    ALTER DATABASE shop CONNECTION LIMIT 40;
    ALTER ROLE app IN DATABASE shop SET search_path = public, pg_catalog;
    REVOKE CONNECT ON DATABASE shop FROM PUBLIC;
    GRANT CONNECT ON DATABASE shop TO reader, "Odd role; --";
    COMMENT ON DATABASE shop IS 'what it sells';
"""
OTHER = """
    CREATE TABLE "t ü" AS SELECT n, 'ü' || n AS text FROM generate_series(1, 5) n;
    CREATE VIEW v AS SELECT * FROM "t ü";
"""


class Lost:
    """A server, the folder with its backups, and moments after some of them.

    At the ``first`` there is one of the database postgres alone, and at the ``moment`` one of each.
    """

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.cluster = cluster
        self.folder = folder
        self.first = self.moment = ""

    def once(self, name: str, **more: str) -> str:
        """Back up one database; return the time, after which others have later names."""
        env = environment(
            self.cluster.bin_dir,
            **settings(self.cluster.maintenance, self.folder, encrypted=True),
            DATABASES="*",
            GLOBALS_PASSWORDS="true",
            **more,
        )
        done = run_pgstash(["once", f"--job={name}"], env)
        assert done.returncode == 0, done.stderr
        return f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S}Z"


@pytest.fixture(scope="module")
def lost(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lost]:
    with Cluster(MAJOR, auth="scram-sha-256") as cluster:
        cluster.maintenance.run_sql(ROLES)
        for name in NAMES:
            made = cluster.create_database(name, encoding="LATIN1" if name == "latin" else "UTF8")
            made.run_sql(SHOP if name == "shop" else f"SET client_encoding = 'UTF8'; {OTHER}")
        found = Lost(cluster, tmp_path_factory.mktemp("lost"))
        found.first = found.once("postgres", DUMP_JOBS="1")
        time.sleep(1.1)  # the names of backups have seconds
        for name in ["postgres", *NAMES]:
            found.moment = found.once(name)
        time.sleep(1.1)
        cluster.maintenance.run_sql("CREATE TABLE kept AS SELECT 1 AS n")
        found.once("postgres")
        yield found


@pytest.fixture
def target() -> Iterator[Cluster]:
    with Cluster(MAJOR, auth="scram-sha-256") as cluster:
        yield cluster


def arguments(cluster: Cluster, *more: str, user: str = postgres.SUPERUSER) -> list[str]:
    return ["recover", "--to", f"postgresql://{user}@127.0.0.1:{cluster.port}", *more]


def recovering(lost: Lost, cluster: Cluster, user: str = postgres.SUPERUSER) -> dict[str, str]:
    """Return the environment of a machine that has the store, the key and a password."""
    login = f"{user}:{quote(PASSWORD, safe='')}"
    return environment(
        cluster.bin_dir,
        STORAGE_URL=lost.folder.as_uri(),
        BACKUP_ENCRYPTION_KEY=PASSPHRASE,
        RESTORE_URL=f"postgresql://{login}@127.0.0.1:{cluster.port}/other",
    )


def recover(
    lost: Lost, cluster: Cluster, status: int, *more: str, user: str = postgres.SUPERUSER
) -> dict[str, Any]:
    done = run_pgstash(
        arguments(cluster, "--json", *more, user=user), recovering(lost, cluster, user)
    )
    assert done.returncode == status, done.stdout + done.stderr
    assert quote(PASSWORD, safe="") not in done.stdout + done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def states(report: dict[str, Any]) -> dict[str, str]:
    return {each["database"]: each["state"] for each in report["databases"]}


def databases(cluster: Cluster) -> set[str]:
    with cluster.maintenance.connect() as session:
        return {name for (name,) in session.execute("SELECT datname FROM pg_database")}


def everything(cluster: Cluster) -> set[str]:
    """Return the lines of pg_dumpall, which restores a whole server too."""
    done = subprocess.run(
        [
            cluster.bin_dir / "pg_dumpall",
            *("--host", cluster.host, "--port", str(cluster.port), "--username", cluster.user),
        ],
        env=clean_environment() | {"PGPASSWORD": cluster.password},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return {line for line in done.stdout.decode("latin-1").splitlines() if line}


def test_all_is_back_as_it_was(lost: Lost, target: Cluster, tmp_path: Path) -> None:
    before = databases(target)
    planned = recover(lost, target, 0, "--dry-run")
    assert states(planned) == dict.fromkeys([*NAMES, "postgres"], "planned")
    assert databases(target) == before
    assert "app" not in target.maintenance.run_sql("SELECT rolname FROM pg_roles")

    report = recover(lost, target, 0)
    assert states(report) == dict.fromkeys([*NAMES, "postgres"], "restored")
    assert {each["database"]: each["rows"] for each in report["databases"]} == {
        "shop": 20,
        "postgres": 1,
        **dict.fromkeys(NAMES[1:], 5),
    }
    differ = {line for line in everything(lost.cluster) ^ everything(target) if line[:2] != "--"}
    expected = [
        r"\\(un)?restrict \w+",  # random in each run of pg_dumpall
        r"ALTER ROLE admin WITH .*",  # of initdb, with another salt
        r"ALTER ROLE app WITH .*",  # CREATEDB: reported, see below
        r"COMMENT ON ROLE team .*",  # comments on roles are not stored
        r"GRANT pg_read_all_data TO reader .*",  # of a role that was there before: reported
        r"ALTER ROLE admin IN DATABASE .* SET application_name TO 'pgstash restored backup_.*';",
    ]
    assert [line for line in differ if not any(re.fullmatch(each, line) for each in expected)] == []
    to_do = "\n".join(report["to_do"])
    assert 'ALTER ROLE "app" CREATEDB;' in to_do
    assert 'GRANT "pg_read_all_data" TO "reader"' in to_do
    with psycopg.connect(
        Database(target, "shop").uri.replace(
            Database(target, "shop").uri.partition("@")[0], "postgresql://app:planted%20app"
        )
    ) as session:
        assert session.execute("SELECT count(*) FROM orders").fetchone() == (20,)

    again = recover(lost, target, 0)
    assert states(again) == dict.fromkeys([*NAMES, "postgres"], "there")
    # Whatever the first run could still report: what roles lack is reported until they have it.
    assert 'ALTER ROLE "app" CREATEDB;' in again["to_do"][0]
    assert 'GRANT "pg_read_all_data" TO "reader"' in again["to_do"][0]
    target.maintenance.run_sql("ALTER ROLE app CREATEDB; GRANT pg_read_all_data TO reader")
    assert recover(lost, target, 0)["to_do"] == []

    # A backup of the new server does not take the mark along.
    env = environment(
        target.bin_dir,
        **settings(Database(target, "shop"), tmp_path, encrypted=True),
    )
    assert run_pgstash(["once"], env).returncode == 0
    [script] = (tmp_path / PREFIX).glob("*.privileges.sql.gz.enc")
    text = subprocess.run(
        ["gunzip"], input=decrypted(script.read_bytes()), capture_output=True, check=True
    ).stdout
    assert b"lock_timeout" in text
    assert b"pgstash restored" not in text


@pytest.mark.long
def test_what_is_in_the_way_stops_nothing_else(lost: Lost, target: Cluster) -> None:
    """A database of another one's making, and a login that may not create roles."""
    target.maintenance.run_sql(f"CREATE ROLE limited LOGIN CREATEDB PASSWORD '{sql_quoted()}'")
    taken = target.create_database("latin")
    taken.run_sql("CREATE TABLE theirs AS SELECT 1 AS n")
    planned = recover(lost, target, 55, "--dry-run", user="limited")
    assert set(planned["roles_refused"]) == {"team", "app", "Odd role; --", "reader"}
    assert states(planned)["latin"] == "failed"

    report = recover(lost, target, 55, user="limited")
    found = states(report)
    assert found["shop"] == found["latin"] == "failed"
    # Everything in them belongs to a superuser of the lost server, and nobody else may connect.
    assert found["Ünï"] == found[HOSTILE] == "incomplete"
    by_name = {each["database"]: each for each in report["databases"]}
    assert by_name["shop"]["exit_code"] == 59
    assert "app" in by_name["shop"]["message"]
    assert by_name["latin"]["exit_code"] == 61
    assert "no recovery has made" in by_name["latin"]["message"]
    assert any("CREATEROLE" in each for each in report["to_do"])
    assert "shop" not in databases(target)
    assert taken.run_sql("SELECT count(*) FROM theirs") == "1\n"

    # As a text for people; the superuser is told what is still in the way.
    done = run_pgstash(arguments(target), recovering(lost, target))
    assert done.returncode == 55
    assert re.search(r"^shop +restored +backup_", done.stdout, re.MULTILINE)
    assert re.search(r"^latin +NOT RESTORED", done.stdout, re.MULTILINE)
    assert re.search(r"^Ünï +INCOMPLETE +backup_", done.stdout, re.MULTILINE)
    assert "Rename or drop the database latin" in done.stdout
    assert "3 of 5 databases not restored" in done.stderr

    target.maintenance.run_sql("ALTER DATABASE latin RENAME TO theirs")
    assert states(recover(lost, target, 0, "--only=l*"))["latin"] == "restored"


def test_what_the_target_refuses_is_not_back(lost: Lost, target: Cluster) -> None:
    """Nor for the next run, until somebody has marked the database as complete."""
    target.maintenance.run_sql(
        f"CREATE ROLE maker LOGIN CREATEDB CREATEROLE PASSWORD '{sql_quoted()}';"
        "ALTER ROLE maker SET createrole_self_grant = '';"
    )
    for _ in range(2):
        report = recover(lost, target, 55, "--only=shop", user="maker")
        [shop] = report["databases"]
        assert (shop["state"], shop["exit_code"]) == ("incomplete", 56), shop
    done = shop["hint"].partition(": ")[2].replace("CURRENT_USER", "maker")
    target.maintenance.run_sql(done)
    assert states(recover(lost, target, 0, "--only=shop", user="maker")) == {"shop": "there"}


def sql_quoted() -> str:
    return PASSWORD.replace("'", "''")


def children_of(pid: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            found.append(int(path.parent.name))
    return found


@pytest.mark.long
def test_a_kill_in_the_middle(lost: Lost, target: Cluster) -> None:
    """Nothing half-made has a final name, and the next run does the rest."""
    building = (
        "SELECT 1 FROM pg_stat_activity WHERE datname LIKE 'shop\\_pgstash\\_%'"
        " AND query LIKE 'CREATE INDEX%' AND state = 'active'"
    )
    env = recovering(lost, target)
    with started_pgstash(arguments(target, "--parallel", "1", "--at", lost.moment), env) as run:
        deadline = time.monotonic() + 120
        with target.maintenance.connect() as session:
            while not session.execute(building).fetchone():
                assert run.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.05)
        restoring = children_of(run.pid)
        assert restoring
        for pid in restoring:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().decode()
            assert "restore" in words
            assert quote(PASSWORD, safe="") not in words
            assert PASSWORD not in words
        run.send_signal(signal.SIGSTOP)  # or it would report the end of the children
        for pid in [*restoring, run.pid]:
            os.kill(pid, signal.SIGKILL)
        run.wait()
    assert "shop" not in databases(target)
    with target.maintenance.connect() as session:  # the server goes on for a moment
        while session.execute(
            "SELECT 1 FROM pg_stat_activity WHERE datname ~ '_pgstash_'"
        ).rowcount:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    done_before = databases(target) & {*NAMES}
    report = recover(lost, target, 0, "--at", lost.moment)
    found = states(report)
    assert found.pop("postgres") == "empty"
    assert found == {name: "there" if name in done_before else "restored" for name in NAMES}
    assert Database(target, "shop").run_sql("SELECT count(*) FROM orders") == "20\n"


def test_privileges_in_the_maintenance_database_are_not_nothing(
    target: Cluster, tmp_path: Path
) -> None:
    target.maintenance.run_sql(
        "CREATE ROLE reader; GRANT CREATE ON SCHEMA public TO reader;"
        "REVOKE CONNECT ON DATABASE postgres FROM PUBLIC;"
    )
    own = Lost(target, tmp_path)
    own.once("postgres")
    report = recover(own, target, 0, "--dry-run")
    [found] = report["databases"]
    assert found["state"] == "planned"
    assert "GRANT … ON DATABASE" in found["to_do"][0]
    target.maintenance.run_sql(
        "REVOKE CREATE ON SCHEMA public FROM reader; GRANT CONNECT ON DATABASE postgres TO PUBLIC;"
    )
    time.sleep(1.1)
    own.once("postgres")
    [found] = recover(own, target, 0, "--dry-run")["databases"]
    assert (found["state"], found["to_do"]) == ("empty", [])


def test_nothing_is_started_that_cannot_be_meant(lost: Lost, target: Cluster) -> None:
    env = recovering(lost, target)
    for more, status, problem in (
        (["--to", ""], 2, "is empty"),
        (["--only", "a,,b"], 2, "has an empty pattern"),
        (["--at", "2001-01-01 00:00"], 55, "5 of 5 databases not restored"),
        (["--only", "none"], 55, "1 of 1 database not restored"),
    ):
        refused = run_pgstash(arguments(target, *more), env)
        assert refused.returncode == status, refused.stderr
        assert problem in refused.stderr
    # Also if the backup is one that no single table can be read from.
    alone = recover(lost, target, 0, "--only=postgres", "--at", lost.first)
    assert states(alone) == {"postgres": "empty"}
    empty = run_pgstash(arguments(target), env | {"BACKUP_PREFIX": "none"})
    assert empty.returncode == 25
    without_key = run_pgstash(
        arguments(target, "--dry-run"), {k: v for k, v in env.items() if "KEY" not in k}
    )
    assert without_key.returncode == 55
    assert "BACKUP_ENCRYPTION_KEY" in without_key.stdout


@pytest.mark.long
def test_a_server_of_a_configuration_file(lost: Lost, target: Cluster, tmp_path: Path) -> None:
    file = tmp_path / "pgstash.toml"
    file.write_text(f"""
        [defaults]
        store = "main"
        databases = ["*"]
        database_url = "postgresql://gone.invalid/postgres"
        [stores.main]
        storage_url = "{lost.folder.as_uri()}"
        [servers.eu]
        backup_prefix = "{PREFIX}"
        [servers.eu.database.own]
        backup_prefix = "elsewhere"
        [servers.us]
    """)
    file.chmod(0o600)
    env = recovering(lost, target) | {"PGSTASH_CONFIG": str(file)}
    unclear = run_pgstash(arguments(target), env)
    assert unclear.returncode == 1
    assert "Name the lost server, one of eu, us." in unclear.stderr
    given = ["--server", "eu", "--only", "latin,own", "--json"]
    done = run_pgstash(arguments(target, *given), env)
    assert done.returncode == 55, done.stderr
    report = json.loads(done.stdout)
    assert states(report) == {"latin": "restored", "own": "failed"}
    assert "--job eu/own" in report["databases"][1]["hint"]
    needless = run_pgstash(arguments(target, "--server", "eu"), recovering(lost, target))
    assert needless.returncode == 1
