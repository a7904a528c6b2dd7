"""`pgstash check` and `pgstash healthcheck` as users and containers run them; the health port."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from faults.scene import wait_until
from support import extension
from support.backups import settings as local
from support.cli import COMMAND, environment, run_pgstash, started_pgstash
from support.fake_tools import FakePgDump, install_pg_dump
from support.hooks import receiving
from support.postgres import Cluster, Clusters, Database, MakeDatabase
from support.proxy import HttpProxy, Reply, Rewrite
from support.swift import SwiftServer, free_ports

NOWHERE = "postgresql://u:p@127.0.0.1:1/x"
SECRET = "planted'$secret/of the role"


def to_swift(database: Database, server: SwiftServer, bucket: str) -> dict[str, str]:
    return {
        "DATABASE_URL": database.uri,
        "S3_ENDPOINT": server.endpoint,
        "S3_BUCKET": bucket,
        "S3_ACCESS_KEY_ID": server.access_key_id,
        "S3_SECRET_ACCESS_KEY": server.secret_access_key,
        "RETRY_ATTEMPTS": "0",
    }


def place(folder: Path, started: datetime) -> str:
    name = f"backup_{started:%Y%m%d_%H%M%S}.sql.gz"
    (folder / "postgres-backups").mkdir(exist_ok=True)
    (folder / "postgres-backups" / name).write_bytes(b"x")
    return name


def check(env: dict[str, str], *part: str) -> subprocess.CompletedProcess[str]:
    return run_pgstash(["check", *part], env)


def test_all_is_well(
    make_database: MakeDatabase, swift_server: SwiftServer, s3_bucket: str
) -> None:
    database = make_database("mixed")
    env = environment(database.bin_dir, **to_swift(database, swift_server, s3_bucket))
    done = check(env)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert set(re.findall(r"(?m)^(\w+) ", done.stdout)) == {"ok", "skipped"}
    assert re.search(r"(?m)^ok       login               PostgreSQL \d+\.\d+ at ", done.stdout)
    assert re.search(r"(?m)^ok       part size           8 MiB, 3 in memory: 24 MiB", done.stdout)
    assert "skipped  webhook             WEBHOOK_URL is not set" in done.stdout
    assert "Contents" not in swift_server.client.list_objects_v2(Bucket=s3_bucket)


def test_rules_of_the_bucket_that_do_not_fit_the_retention(
    swift_server: SwiftServer, s3_bucket: str
) -> None:
    swift_server.client.put_bucket_versioning(
        Bucket=s3_bucket, VersioningConfiguration={"Status": "Enabled"}
    )
    rule = (
        "<Rule><ID>tidy</ID><Status>Enabled</Status><Expiration><Days>9</Days></Expiration></Rule>"
    )
    body = f"<LifecycleConfiguration>{rule}</LifecycleConfiguration>".encode()
    with HttpProxy(swift_server.port) as http:
        http.rule("GetBucketLifecycleConfiguration", Rewrite(lambda _: Reply(200, [], body)))
        env = environment(
            DATABASE_URL=NOWHERE,
            S3_ENDPOINT=http.endpoint,
            S3_BUCKET=s3_bucket,
            S3_ACCESS_KEY_ID=swift_server.access_key_id,
            S3_SECRET_ACCESS_KEY=swift_server.secret_access_key,
            RETENTION_KEEP_WEEKLY="2",
        )
        done = check(env, "storage")
        assert done.returncode == 0, done.stdout
        assert re.search(r"(?m)^warning +versioning +on, and no lifecycle rule", done.stdout)
        assert re.search(
            r'(?m)^warning +lifecycle +the rule "tidy" removes backups after 9 days, earlier than '
            r"the retention \(14 days\)",
            done.stdout,
        )
        del env["RETENTION_KEEP_WEEKLY"]
        assert re.search(r"(?m)^ok +lifecycle ", check(env, "storage").stdout)


def test_each_part_alone(make_database: MakeDatabase, tmp_path: Path) -> None:
    database = make_database()
    env = environment(database.bin_dir, **local(database, tmp_path))
    topics = {
        part: re.findall(r"(?m)^ok +(\S+)", check(env, part).stdout)
        for part in ("database", "storage")
    }
    assert topics["database"][0] == "login"
    assert "write" not in topics["database"]
    assert {"bucket", "write", "multipart"} <= set(topics["storage"])
    assert "login" not in topics["storage"]


def test_what_fails_does_not_hide_the_rest(tmp_path: Path) -> None:
    env = environment(DATABASE_URL=NOWHERE, STORAGE_URL=tmp_path.as_uri())
    done = check(env)
    assert done.returncode == 40
    assert re.search(r"(?m)^FAILED   login  .*cannot be reached", done.stdout)
    assert re.search(r"(?m)^ {29}Check the host, the port", done.stdout)
    assert re.search(r"(?m)^skipped  large objects ", done.stdout)
    assert re.search(r"(?m)^ok       write ", done.stdout)
    gone = check(env | {"STORAGE_URL": (tmp_path / "gone").as_uri()}, "storage")
    assert (gone.returncode, "FAILED   bucket" in gone.stdout) == (40, True)


def test_a_reader_that_has_seen_enough_ends_it_quietly(tmp_path: Path) -> None:
    env = environment(tmp_path, DATABASE_URL=NOWHERE, STORAGE_URL=tmp_path.as_uri())
    with started_pgstash(["check"], env, command=(COMMAND,)) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(60) == -signal.SIGPIPE


def test_as_json(tmp_path: Path) -> None:
    env = environment(DATABASE_URL=NOWHERE, STORAGE_URL=tmp_path.as_uri())
    done = check(env, "--json")
    told = json.loads(done.stdout)
    assert (done.returncode, told["failed"]) == (40, 1)
    assert told["findings"][0] == {
        "topic": "configuration",
        "state": "ok",
        "found": "every setting is valid",
        "remedy": "",
    }


def test_a_wrong_configuration_lists_every_problem() -> None:
    for command in ("check", "healthcheck"):
        done = run_pgstash([command], environment(BACKUP_INTERVAL="1", S3_BUCKET="-"))
        assert done.returncode == 1
        assert {"BACKUP_INTERVAL", "S3_BUCKET", "DATABASE_URL", "S3_ENDPOINT"} <= set(
            re.findall(r"ERROR (\w+) ", done.stderr)
        )


def test_a_weak_key_and_a_misspelt_setting_are_warnings(
    make_database: MakeDatabase, tmp_path: Path
) -> None:
    database = make_database()
    env = environment(
        database.bin_dir,
        **local(database, tmp_path),
        BACKUP_ENCRYPTION="true",
        BACKUP_ENCRYPTION_KEY="short",
        BACKUP_RETENTION_DAY="3",
    )
    done = check(env)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"(?m)^warning  encryption key .*shorter than 32", done.stdout)
    assert re.search(r"(?m)^warning  configuration .*BACKUP_RETENTION_DAYS\?", done.stdout)
    assert "openssl rand" in done.stdout


def test_the_webhook_gets_a_test_when_asked_for(tmp_path: Path) -> None:
    with receiving() as receiver:
        env = environment(
            DATABASE_URL=NOWHERE,
            STORAGE_URL=tmp_path.as_uri(),
            WEBHOOK_URL=receiver.url("/planted-webhook-token"),
            HEALTHCHECK_PING_URL=receiver.url("/ping"),
        )
        assert "run `pgstash check webhook`" in check(env).stdout
        assert receiver.received == []
        done = check(env, "webhook")
        assert (done.returncode, done.stdout[:2]) == (0, "ok")
        [post] = receiver.received
        assert (post.method, post.target) == ("POST", "/planted-webhook-token")
        assert post.json["extra"]["test"] is True
        assert "test" in post.json["message"]
        assert (post.json["service"], post.json["database"]["name"]) == ("postgres-backup", "x")
        receiver.statuses = [403]
        done = check(env, "webhook")
        assert (done.returncode, "HTTP 403" in done.stdout) == (40, True)
        assert "planted" not in done.stdout + done.stderr
    without = environment(DATABASE_URL=NOWHERE, STORAGE_URL=tmp_path.as_uri())
    assert "WEBHOOK_URL is not set" in check(without, "webhook").stdout


def test_no_secret_is_printed(clusters: Clusters, newest_cluster: Cluster, tmp_path: Path) -> None:
    """The password is also the name of a table that the role may not read."""
    database = clusters.get(newest_cluster.major, "scram-sha-256").maintenance
    table = '"' + SECRET + '"'
    literal = SECRET.replace("'", "''")
    database.run_sql(
        f"DROP TABLE IF EXISTS {table}; DROP ROLE IF EXISTS planted;"
        f"CREATE TABLE {table} (a int); CREATE ROLE planted LOGIN PASSWORD '{literal}'"
    )
    env = environment(
        database.bin_dir,
        STORAGE_URL=tmp_path.as_uri(),
        PGHOST=database.cluster.host,
        PGPORT=str(database.cluster.port),
        PGDATABASE="postgres",
        PGUSER="planted",
        PGPASSWORD=SECRET,
    )
    for arguments in ([], ["--json"]):
        done = check(env, *arguments)
        assert done.returncode == 40
        assert "planted" in done.stdout
        assert "secret/of" not in done.stdout + done.stderr
        assert "GRANT pg_read_all_data TO planted;" in done.stdout
    database.run_sql(f"DROP TABLE {table}; DROP ROLE planted")


def test_drills_that_are_wanted_need_a_place(make_database: MakeDatabase, tmp_path: Path) -> None:
    database = make_database()
    storage = {"DATABASE_URL": database.uri, "STORAGE_URL": tmp_path.as_uri()}
    wanted = environment(database.bin_dir, **storage, VERIFY_INTERVAL="after-backup")
    done = check(wanted)
    assert done.returncode == 0, done.stdout
    assert re.search(r"(?m)^ok +drills +restore into a throwaway server of Postgre", done.stdout)
    (only := tmp_path / "only clients").mkdir()
    for name in ("pg_dump", "pg_dumpall", "pg_restore", "psql"):
        (only / name).symlink_to(database.bin_dir / name)
    done = check(environment(only, **storage, VERIFY_INTERVAL="after-backup"))
    assert done.returncode == 40
    assert re.search(r"(?m)^FAILED +drills ", done.stdout), done.stdout
    url = database.cluster.maintenance.uri
    more = {"VERIFY_INTERVAL": "86400", "VERIFY_DATABASE_URL": url}
    done = check(environment(only, **storage, **more))
    on_its_server = (
        r"(?m)^warning +drills +restore on PostgreSQL 1\d.* is on the source's own server"
    )
    assert re.search(on_its_server, done.stdout), done.stdout
    more["VERIFY_DATABASE_URL"] = url.replace(f":{database.cluster.port}/", ":1/")
    done = check(environment(only, **storage, **more))
    assert done.returncode == 40
    assert re.search(r"(?m)^FAILED +drills +VERIFY_DATABASE_URL: ", done.stdout), done.stdout


def test_a_drill_is_checked_for_what_it_would_fail_for(
    make_database: MakeDatabase, clusters: Clusters, tmp_path: Path
) -> None:
    database = make_database()
    database.run_sql(
        "CREATE ROLE of_policy; CREATE TABLE t (); CREATE EXTENSION hstore;"
        "CREATE POLICY p ON t TO of_policy"
    )
    scratch = clusters.get(14).load_sample("empty")
    scratch.run_sql("CREATE ROLE weak LOGIN")
    env = environment(
        database.bin_dir,
        DATABASE_URL=database.uri,
        STORAGE_URL=tmp_path.as_uri(),
        VERIFY_INTERVAL="after-backup",
        VERIFY_DATABASE_URL=scratch.uri.replace("//admin@", "//weak@"),
    )
    try:
        done = check(env)
        assert done.returncode == 40
        assert re.search(
            r"(?m)^FAILED +drills +weak may not create databases; weak may not create the roles "
            r"that are missing: of_policy\n"
            r" +ALTER ROLE weak CREATEDB;\n +ALTER ROLE weak CREATEROLE;\n",
            done.stdout,
        ), done.stdout
        scratch.run_sql("ALTER ROLE weak CREATEDB CREATEROLE")
        done = check(env)
        assert done.returncode == 0, done.stdout
        older = (
            r"(?m)^warning +drills +restore on PostgreSQL 14\S+ at \S+; PostgreSQL 14\S+ is older "
        )
        assert re.search(older, done.stdout), done.stdout
    finally:
        scratch.run_sql("DROP ROLE weak")
        scratch.drop()
        database.run_sql("DROP POLICY p ON t; DROP ROLE of_policy")


def test_a_drill_needs_the_extensions_of_the_source(
    make_database: MakeDatabase, clusters: Clusters, tmp_path: Path
) -> None:
    database = make_database()
    name = extension.install(database.cluster.major, "CREATE SCHEMA of_the_newest_major;")
    database.run_sql(f"CREATE EXTENSION {name}")
    env = environment(
        database.bin_dir,
        DATABASE_URL=database.uri,
        STORAGE_URL=tmp_path.as_uri(),
        VERIFY_INTERVAL="after-backup",
        VERIFY_DATABASE_URL=clusters.get(14).maintenance.uri,
    )
    done = check(env)
    assert done.returncode == 40
    missing = rf"(?m)^FAILED +drills +extensions of the source are missing: {name}\n +Install the "
    assert re.search(missing, done.stdout), done.stdout
    del env["VERIFY_DATABASE_URL"]
    assert check(env).returncode == 0  # the throwaway server has it
    excluded = {"PG_DUMP_EXTRA_ARGS": "--extension=plpgsql"}
    more = {"VERIFY_DATABASE_URL": clusters.get(14).maintenance.uri}
    assert check({**env, **more, **excluded}).returncode == 0


def test_healthcheck_from_fresh_to_stale(make_database: MakeDatabase, tmp_path: Path) -> None:
    database = make_database()
    env = environment(**local(database, tmp_path), BACKUP_INTERVAL="3600")
    now = datetime.now(UTC)

    done = run_pgstash(["healthcheck"], env)
    assert (done.returncode, done.stderr) == (41, "")
    assert re.fullmatch(r"unhealthy: there is no recent backup under file:///.*\n", done.stdout)

    name = place(tmp_path, now - timedelta(minutes=100))
    done = run_pgstash(["healthcheck"], env)
    assert done.returncode == 41
    assert re.fullmatch(rf"unhealthy: .*, {name}, is 1h 40m old, .* too old\n", done.stdout)
    assert run_pgstash(["healthcheck"], env | {"BACKUP_INTERVAL": "86400"}).returncode == 0

    name = place(tmp_path, now - timedelta(minutes=80))
    done = run_pgstash(["healthcheck"], env)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(rf"healthy: .*, {name}, is 1h 20m old\n", done.stdout)


def test_healthcheck_says_what_is_down(make_database: MakeDatabase, tmp_path: Path) -> None:
    database = make_database()
    place(tmp_path, datetime.now(UTC))
    env = environment(**local(database, tmp_path))
    cases = {
        10: {"DATABASE_URL": NOWHERE},
        11: {"DATABASE_URL": database.uri.replace("admin@", "nobody@")},
        20: {"STORAGE_URL": (tmp_path / "gone").as_uri()},
    }
    for status, different in cases.items():
        done = run_pgstash(["healthcheck"], env | different)
        assert (done.returncode, done.stderr) == (status, "")
        assert re.fullmatch(r"unhealthy: .+\n", done.stdout)


def test_healthcheck_does_not_wait_for_a_server_that_says_nothing(
    make_database: MakeDatabase, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        env = environment(**local(make_database(), tmp_path))
        env["DATABASE_URL"] = f"postgresql://u:p@127.0.0.1:{port}/x?connect_timeout=300"
        assert run_pgstash(["healthcheck"], env, timeout=60).returncode == 10


HEAVY = {"cryptography", "isal", "zlib_ng", "rich", "pgstash.backup.run", "pgstash.prune.run"}
HEAVY_HERE = {
    "pgstash.pipeline",
    "pgstash.check.database",
    "pgstash.check.storage",
    "pgstash.monitoring.health_server",
    "pgstash.monitoring.progress",
    "pgstash.monitoring.webhook",
    "pgstash.monitoring.http_delivery",
}


def test_healthcheck_is_cheap(
    make_database: MakeDatabase, swift_server: SwiftServer, s3_bucket: str
) -> None:
    """What costs CPU at the start is imports: none of those that other commands need."""
    database = make_database()
    env = environment(**to_swift(database, swift_server, s3_bucket))
    for hours in range(3):
        started = datetime.now(UTC) - timedelta(hours=hours)
        key = f"postgres-backups/backup_{started:%Y%m%d_%H%M%S}.sql.gz"
        swift_server.client.put_object(Bucket=s3_bucket, Key=key, Body=b"x")
    program = (
        "import sys; sys.argv = ['pgstash', 'healthcheck']\n"
        "from pgstash.cli import main\n"
        "try: main()\n"
        "finally: print(*sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=env,
        cwd="/",
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = set(done.stdout.split())
    assert "pgstash.storage.s3.storage" in loaded
    assert loaded & (HEAVY | HEAVY_HERE) == set()


def ready(port: int) -> tuple[int, dict[str, Any]]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    with contextlib.closing(connection):
        connection.request("GET", "/readyz")
        with connection.getresponse() as response:
            return response.status, json.loads(response.read())


@pytest.fixture
def port() -> Iterator[int]:
    yield from free_ports(1)


def listens(port: int) -> bool:
    with contextlib.suppress(OSError):
        socket.create_connection(("127.0.0.1", port)).close()
        return True
    return False


def test_the_service_answers_probes_until_it_ends(
    port: int, make_database: MakeDatabase, tmp_path: Path
) -> None:
    database = make_database("mixed")
    env = environment(database.bin_dir, **local(database, tmp_path), HEALTH_PORT=str(port))
    with started_pgstash(["backup"], env) as process:
        wait_until(lambda: listens(port), "it listens")
        wait_until(lambda: ready(port)[0] == 200 and ready(port)[1]["next_run"], "it is ready")
        facts = ready(port)[1]
        assert facts["last_success"]["raw_bytes"] > 0
        with socket.create_connection(("127.0.0.1", port)):  # somebody who says nothing
            process.terminate()
            _, errors = process.communicate(timeout=20)
    assert (process.returncode, errors) == (-15, "")


def test_a_service_that_fails_knows_of_backups_made_before(
    port: int, make_database: MakeDatabase, tmp_path: Path
) -> None:
    database = make_database()
    broken = install_pg_dump(tmp_path / "bin", FakePgDump(version="19.1", status=1))
    name = place(tmp_path, datetime.now(UTC) - timedelta(minutes=10))
    proven = place(tmp_path, datetime.now(UTC) - timedelta(days=500))
    beside = f"{proven.removesuffix('.sql.gz')}.0123456789abcdef.proof_20260131_040000.json.gz"
    (tmp_path / "postgres-backups" / beside).write_bytes(b"x")
    env = environment(broken, **local(database, tmp_path), HEALTH_PORT=str(port))
    with started_pgstash(["backup"], env) as process:
        wait_until(lambda: listens(port), "it listens")
        wait_until(lambda: ready(port)[1]["last_failure"], "it has failed")
        wait_until(lambda: ready(port)[1]["last_success"], "it has looked into the store")
        wait_until(lambda: ready(port)[1]["last_proof"], "it has looked for a proof")
        status, facts = ready(port)
        process.terminate()
        process.communicate(timeout=20)
    assert status == 200
    assert facts["last_success"]["name"] == name
    assert facts["last_failure"]["error"] == "DumpError"
    assert facts["last_proof"]["name"] == proven
    assert facts["last_proof"]["at"] == "2026-01-31T04:00:00Z"


def test_a_port_that_is_taken_ends_the_service_with_1(tmp_path: Path) -> None:
    with socket.create_server(("", 0)) as taken:
        number = taken.getsockname()[1]
        env = environment(
            DATABASE_URL=NOWHERE, STORAGE_URL=tmp_path.as_uri(), HEALTH_PORT=str(number)
        )
        done = run_pgstash(["backup"], env)
    assert done.returncode == 1
    assert re.search(rf"ERROR HEALTH_PORT {number} is not available: .*in use", done.stderr)
